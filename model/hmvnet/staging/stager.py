"""One call for the pipeline: a segmented patient to T and N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from hmvnet.ajcc import N_STAGES, T_STAGES
from hmvnet.bundle import Bundle, WeightsError, below
from hmvnet.case import GTVP, ClinicalRecord
from hmvnet.lesions.features import LesionFeatures
from hmvnet.lesions.midline import find_midplane
from hmvnet.lesions.table import Lesion, lesion_table
from hmvnet.segmentation.segmenter import Segmentation
from hmvnet.staging.estimate import StageEstimate, Staging
from hmvnet.staging.features import is_node_free, staging_features, with_record
from hmvnet.staging.model import StageModel
from hmvnet.staging.rule import SITE_UNKNOWN, stage_by_rule
from hmvnet.staging.words import in_words

STRONGEST = 4  # features that are named as reasons
MODELLED = "no primary found: T is what staged patients without a visible one had, not AJCC's T0"


class Stager:
    """Stages patients: by a bundle's models where it has them, else by AJCC's rule."""

    def __init__(self, t: StageModel | None = None, n: StageModel | None = None) -> None:
        """With these models, both or none."""
        self.models = (t, n) if t is not None and n is not None else None

    @classmethod
    def of(cls, bundle: Bundle) -> Stager:
        """With the bundle's models, where it has some.

        Raises:
            WeightsError: they are damaged, or were fitted to features that are not known here.
        """
        part = bundle.manifest.staging
        if part is None:
            return cls()
        tensors = bundle.tensors(part.file)
        try:
            return cls(
                StageModel.from_arrays(T_STAGES, part.t_features, _arrays("t.", tensors)),
                StageModel.from_arrays(N_STAGES, part.n_features, _arrays("n.", tensors)),
            )
        except ValueError as error:
            raise WeightsError(f"{part.file}: {error}") from error

    def __call__(
        self,
        segmentation: Segmentation,
        record: ClinicalRecord,
        lesions: Sequence[Lesion] | None = None,
    ) -> Staging:
        """T and N of a patient.

        Who ``is_node_free`` is N0 whatever the model says.

        Args:
            lesions: of ``lesion_table`` on the segmentation, where they are known already.

        Raises:
            ValueError: a model was fitted to features that are not there.
        """
        labels, (ct_hu, pet_suv) = segmentation.labels, segmentation.volume.raw
        spacing = segmentation.volume.grid.spacing[::-1]
        if lesions is None:
            lesions = lesion_table(labels, ct_hu, pet_suv, spacing)
        midplane = find_midplane(labels, ct_hu, spacing)
        rule = stage_by_rule(lesions, midplane)
        if self.models is None:
            return rule
        features = staging_features(labels, ct_hu, pet_suv, spacing, lesions, midplane)
        features = with_record(features, record)
        t, n = (_estimate(model, features) for model in self.models)
        notes = [SITE_UNKNOWN]
        if not any(one.label == GTVP for one in lesions):
            notes.append(MODELLED)
        t = _explained(t, rule.t.stage, rule.t.reasons[:1])
        n = rule.n if is_node_free(features) else _explained(n, rule.n.stage, rule.n.reasons)
        if str(rule) != f"{t.stage} {n.stage}":
            notes.append(f"by size, number and side alone: {rule}")
        return Staging(t, n, "model", tuple(notes))


def _explained(estimate: StageEstimate, by_rule: str, why: tuple[str, ...]) -> StageEstimate:
    """With the rule's reasons, which come first only where they speak for the same stage."""
    own = estimate.reasons
    told = (*why, *own) if estimate.stage == by_rule else (*own, *why)
    return replace(estimate, reasons=told)


def _estimate(model: StageModel, features: LesionFeatures) -> StageEstimate:
    values = features.select(model.names).values.astype(float)
    probabilities = model.probabilities(values[None])
    stage = model.stages[int(model.decide(probabilities)[0])]
    named = dict(zip(model.stages, probabilities[0].tolist(), strict=True))
    # What the rule decides by is said by its own reasons.
    told = [in_words(*one) for one in model.reasons(values) if "_rule_" not in one[0]]
    return StageEstimate(stage, named, tuple(told[:STRONGEST]))


def _arrays(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in below(prefix, tensors).items()}
