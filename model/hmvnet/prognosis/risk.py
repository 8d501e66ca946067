"""From a segmented patient to a risk: the trained fusion networks and their ICARE heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hmvnet.bundle import Bundle
from hmvnet.case import GTVN, GTVP, ClinicalRecord
from hmvnet.exits import RefusedError
from hmvnet.lesions.crops import crop_features
from hmvnet.lesions.features import LesionFeatures, lesion_features, pool_encoder_features
from hmvnet.prognosis.curve import SurvivalCurve, days_of_knots
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.prognosis.fusion import BRANCHES
from hmvnet.prognosis.member import (
    NO_FEATURES,
    Contribution,
    LesionDescription,
    PrognosisMember,
)
from hmvnet.segmentation.segmenter import Segmentation

INTERVAL = (2.5, 97.5)  # percentiles
_NO_RECORD = {
    True: "no health record: the risk is of images and lesions alone",
    False: "no health record: the risk takes all of it as missing, and rests on images and lesions",
}


@dataclass(frozen=True)
class PatientCurve:
    """A patient's chance of no recurrence by time, beside what was observed in risk groups.

    Attributes:
        days: ``[t]`` ascending, where it steps down.
        survival: ``[t]`` from each of them on.
        model: of which it is one curve.
    """

    days: np.ndarray
    survival: np.ndarray
    model: SurvivalCurve

    @classmethod
    def of(cls, model: SurvivalCurve, risk: float) -> PatientCurve:
        """At a risk."""
        days = np.asarray(model.days)
        return cls(days, model.survival(np.array([risk]), days)[0], model)

    def at(self, days: float) -> float:
        """The chance of no recurrence up to a day."""
        step = int(np.searchsorted(self.days, days, side="right"))
        return float(self.survival[step - 1]) if step else 1.0


@dataclass(frozen=True)
class Risk:
    """A predicted risk of recurrence.

    Attributes:
        value: higher = earlier recurrence; averaged over the folds.
        quantile: share of the training patients with a lower risk.
        expected_days: recurrence-free days expected at this risk, where the bundle knows; of two
            patients the one of higher risk has fewer.
        branches: how much of the risk hangs on each branch of the fusion network: its change when
            the branch's output is replaced by its training mean.
        contributions: what each named variable adds by the models on them, the strongest first.
        notes: what was repaired in the health record.
        interval: 2.5th and 97.5th percentile of the risk over the members and the bootstrap samples
            of the training patients that its parts were fitted to. The networks themselves were
            fitted to all of them, so that it is rather too narrow.
        curve: the chance of no recurrence by time, where the bundle knows.
    """

    value: float
    quantile: float
    expected_days: float | None
    branches: dict[str, float]
    contributions: tuple[Contribution, ...] = ()
    notes: tuple[str, ...] = ()
    interval: tuple[float, float] | None = None
    curve: PatientCurve | None = None


def describe(
    segmentation: Segmentation, image_spacing_mm: float, crops: bool = False
) -> LesionDescription:
    """The fusion network's image and lesion vector of one segmented patient.

    Args:
        crops: whether encoder features of the lesions' crops are wanted too; there are none where
            the segmentation has no encoder maps.
    """
    volume, mask = segmentation.volume, segmentation.labels
    spacing = volume.grid.spacing[::-1]
    step = max(1, round(image_spacing_mm / spacing[0]))
    classes = np.stack([mask == GTVP, mask == GTVN]).astype(np.float32)
    stacked = torch.from_numpy(np.concatenate([volume.scaled, classes]))
    image = F.avg_pool3d(stacked[None], step)[0].numpy()
    features = lesion_features(mask, volume.raw[0], volume.raw[1], spacing)
    if segmentation.encoder_maps:
        maps = [torch.from_numpy(m) for m in segmentation.encoder_maps]
        pooled = pool_encoder_features(maps, mask)
        features = LesionFeatures(
            features.names + pooled.names, np.concatenate([features.values, pooled.values])
        )
    seen = crop_features(segmentation.encoder_maps, mask, spacing) if crops else NO_FEATURES
    return LesionDescription(image, features, seen)


class Prognosis:
    """The survival model of a bundle: the mean risk of its members."""

    def __init__(self, bundle: Bundle) -> None:
        """Load the members.

        Raises:
            RefusedError: the bundle has none.
            ValueError: parts that do not fit together.
        """
        part = bundle.manifest.prognosis
        if part is None:
            raise RefusedError(
                f"bundle '{bundle.manifest.name}' holds no survival model, which a risk wants: "
                "expected one with it (hmvnet survival train)"
            )
        self.part = part
        self.image_spacing_mm = float(part.settings["image_spacing_mm"])
        encoders = [ClinicalEncoder.from_state(state) for state in part.clinical]
        self.members = _members(bundle, part.settings, part.files, encoders)
        self.curve = None if part.curve is None else SurvivalCurve.from_state(part.curve)
        self.without_record: list[PrognosisMember] = []
        if other := part.without_record:
            # What an encoder makes of no record is looked at by nobody: any of them will do.
            same = encoders[:1] * len(other.files)
            self.without_record = _members(bundle, other.settings, other.files, same)

    def knows_nothing(self, record: ClinicalRecord) -> bool:
        """Whether a health record says nothing that the model uses."""
        return self.members[0].encoder.knows_nothing(record)

    def members_for(self, record: ClinicalRecord) -> tuple[Sequence[PrognosisMember], float, float]:
        """Whose mean is the risk of who has this record, and that risk's shift and scale.

        Without a record they are those of images and lesions alone, where the bundle has some.
        """
        other = self.part.without_record
        if other and self.knows_nothing(record):
            return self.without_record, other.shift, other.scale
        return self.members, 0.0, 1.0

    def own_features(self, description: LesionDescription) -> LesionDescription:
        """With the lesion features that the model was trained on, in their order.

        Raises:
            ValueError: one of them is not there.
        """
        return replace(
            description,
            features=description.features.select(self.part.lesion_features),
            crops=description.crops.select(self.part.crop_features),
        )

    @property
    def wants_crops(self) -> bool:
        """Whether it looks at encoder features of the lesions' crops."""
        return bool(self.part.crop_features)

    def expected_days(self, risk: float) -> float | None:
        """Recurrence-free days expected at a risk; None where the bundle does not know."""
        if self.curve is not None:
            return float(self.curve.expected_days(np.array([risk]))[0])
        if self.part.expected_days:
            return float(days_of_knots(self.part.expected_days, np.array([risk]))[0])
        return None

    def usual(self) -> Risk:
        """The median risk of the training patients: what is left to say where nothing is known."""
        value = float(np.median(self.part.risk_quantiles))
        return Risk(value, 0.5, self.expected_days(value), {}, notes=("the median risk",))

    def __call__(self, description: LesionDescription, record: ClinicalRecord) -> Risk:
        """The risk of one patient; any field missing, with or without a lesion.

        Without a health record it is that of a model of images and lesions alone, on the same
        scale, where the bundle has one.

        Raises:
            ValueError: a lesion feature that the model was trained on is not there.
        """
        description = self.own_features(description)
        no_record = self.knows_nothing(record)
        members, shift, scale = self.members_for(record)
        values, draws, effects, named = [], [], [], []
        notes: tuple[str, ...] = ()
        for member in members:
            inputs, notes = member.inputs(description, record)
            values.append(shift + scale * float(member.risk(inputs)[0]))
            draws.append(shift + scale * member.draws(inputs)[:, 0])
            effects.append({b: scale * e for b, e in member.branch_effects(inputs).items()})
            reasons = member.contributions(inputs, description.features.names)
            if no_record:  # a value that is not there is no reason
                reasons = reasons[len(member.encoder.feature_names_) * member.variables.table :]
            named.append([Contribution(c.name, scale * c.value) for c in reasons])
        if no_record:
            unusable = notes if any(v is not None for v in record.values.values()) else ()
            notes = (_NO_RECORD[bool(self.part.without_record)], *unusable)
        value = float(np.mean(values))
        branches = {
            b: float(np.mean([e[b] for e in effects if b in e]))
            for b in BRANCHES
            if any(b in e for e in effects) and not (no_record and b == "table")
        }
        quantiles = np.asarray(self.part.risk_quantiles)
        low, high = np.percentile(np.concatenate(draws), INTERVAL)
        return Risk(
            value=value,
            quantile=float(np.interp(value, quantiles, np.linspace(0, 1, len(quantiles)))),
            expected_days=self.expected_days(value),
            branches=branches,
            interval=(min(float(low), value), max(float(high), value)),
            curve=None if self.curve is None else PatientCurve.of(self.curve, value),
            contributions=_mean_contributions(named),
            notes=notes,
        )


def _members(
    bundle: Bundle,
    settings: Mapping[str, Any],
    files: Sequence[str],
    encoders: Sequence[ClinicalEncoder],
) -> list[PrognosisMember]:
    sizes = {name: value for name, value in settings.items() if name != "image_spacing_mm"}
    return [
        PrognosisMember.from_tensors(encoder, sizes, bundle.tensors(file))
        for encoder, file in zip(encoders, files, strict=True)
    ]


def _mean_contributions(named: Sequence[Sequence[Contribution]]) -> tuple[Contribution, ...]:
    """Mean over the members, those that move the risk, the strongest first."""
    mean = [
        Contribution(same[0].name, float(np.mean([c.value for c in same])))
        for same in zip(*named, strict=True)
    ]
    moving = [c for c in mean if c.value != 0]
    return tuple(sorted(moving, key=lambda c: -abs(c.value)))
