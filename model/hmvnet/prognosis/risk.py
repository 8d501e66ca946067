"""From a segmented patient to a risk: the trained fusion networks and their ICARE heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hmvnet.bundle import Bundle
from hmvnet.case import GTVN, GTVP, ClinicalRecord
from hmvnet.lesions.features import LesionFeatures, lesion_features, pool_encoder_features
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.prognosis.fusion import (
    BRANCHES,
    FusionConfig,
    FusionNetwork,
    PatientInputs,
    signed_log,
)
from hmvnet.prognosis.icare import BaggedIcare
from hmvnet.prognosis.linear import LinearRisk
from hmvnet.segmentation.segmenter import Segmentation

ICARE_PREFIX, DIRECT_PREFIX, LINEAR_PREFIX = "icare.", "direct.", "linear."
NETWORK_PREFIX = "fusion."


@dataclass(frozen=True)
class LesionDescription:
    """What Task 1 hands to Task 2.

    Attributes:
        image: float32 ``[4, z, y, x]`` CT, PET, GTVp, GTVn at the fusion network's spacing.
        features: hand-crafted lesion features, then pooled encoder features.
    """

    image: np.ndarray
    features: LesionFeatures


@dataclass(frozen=True)
class Contribution:
    """What one named variable adds to the risk, exactly: both its models are sums of parts."""

    name: str
    value: float


@dataclass(frozen=True)
class Risk:
    """A predicted risk of recurrence.

    Attributes:
        value: higher = earlier recurrence; averaged over the folds.
        quantile: share of the training patients with a lower risk.
        expected_days: recurrence-free days expected at this risk, where the bundle knows.
        branches: how much of the risk hangs on each branch of the fusion network: its change when
            the branch's output is replaced by its training mean.
        contributions: what each named variable adds by ICARE and Cox, the strongest first.
        notes: what was repaired in the health record.
    """

    value: float
    quantile: float
    expected_days: float | None
    branches: dict[str, float]
    contributions: tuple[Contribution, ...] = ()
    notes: tuple[str, ...] = ()


def describe(segmentation: Segmentation, image_spacing_mm: float) -> LesionDescription:
    """The fusion network's image and lesion vector of one segmented patient."""
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
    return LesionDescription(image, features)


@dataclass
class PrognosisMember:
    """One fusion network with its ICARE head, and ICARE and Cox on the named variables beside it.

    Attributes:
        encoder: of the health record.
        network: to 256 fused variables.
        head: ICARE on those.
        branch_means: mean output of each branch over the training patients.
        direct: ICARE on the encoded health record and established lesion features themselves; None
            where neither is in use.
        linear: ridge Cox on the same; None likewise.
        direct_weight, linear_weight: their shares of the risk; the network has the rest.
        direct_columns: which of the lesion features it sees, counted from 0.
    """

    encoder: ClinicalEncoder
    network: FusionNetwork
    head: BaggedIcare
    branch_means: dict[str, Tensor]
    direct: BaggedIcare | None = None
    linear: LinearRisk | None = None
    direct_weight: float = 0.0
    linear_weight: float = 0.0
    direct_columns: tuple[int, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was learnt, but the encoder (JSON), for a safetensors file."""
        state = {NETWORK_PREFIX + k: v for k, v in self.network.state_dict().items()}
        heads = {ICARE_PREFIX: self.head, DIRECT_PREFIX: self.direct, LINEAR_PREFIX: self.linear}
        for prefix, head in heads.items():
            if head is not None:
                state |= {prefix + k: torch.from_numpy(v) for k, v in head.state().items()}
        return state | {f"mean.{k}": v for k, v in self.branch_means.items()}

    def settings(self) -> dict[str, Any]:
        """Sizes and weights, as ``weights/`` manifests store them."""
        return self.network.settings() | {
            "direct_weight": self.direct_weight,
            "linear_weight": self.linear_weight,
            "direct_columns": list(self.direct_columns),
        }

    @classmethod
    def from_tensors(
        cls, encoder: ClinicalEncoder, settings: Mapping[str, Any], state: dict[str, Tensor]
    ) -> PrognosisMember:
        """The member whose :meth:`tensors` and :meth:`settings` these are."""
        part = lambda p: {k[len(p) :]: v for k, v in state.items() if k.startswith(p)}  # noqa: E731
        sizes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        columns = sizes.pop("direct_columns", ())
        weights = {name: sizes.pop(name, 0.0) for name in ("direct_weight", "linear_weight")}
        network = FusionNetwork(FusionConfig(**sizes)).eval()
        network.load_state_dict(part(NETWORK_PREFIX))
        arrays = {
            prefix: {k: v.numpy() for k, v in part(prefix).items()}
            for prefix in (ICARE_PREFIX, DIRECT_PREFIX, LINEAR_PREFIX)
        }
        if not arrays[ICARE_PREFIX]:
            raise ValueError("the survival model's file holds no ICARE head")
        direct, linear = arrays[DIRECT_PREFIX], arrays[LINEAR_PREFIX]
        for name, found in (("direct_weight", direct), ("linear_weight", linear)):
            if bool(weights[name]) != bool(found):
                raise ValueError(
                    f"the survival model's {name} is {weights[name]:g}, and its file "
                    f"{'has' if found else 'lacks'} the model it weighs: the parts do not fit"
                )
        return cls(
            encoder,
            network,
            BaggedIcare.from_state(arrays[ICARE_PREFIX]),
            part("mean."),
            BaggedIcare.from_state(direct) if direct else None,
            LinearRisk.from_state(linear) if linear else None,
            **weights,
            direct_columns=columns,
        )

    def inputs(
        self, description: LesionDescription, record: ClinicalRecord
    ) -> tuple[PatientInputs, tuple[str, ...]]:
        """One patient as a batch of one, and notes on the health record."""
        table, notes = self.encoder.transform_record(record)
        tensors = (description.image, table, description.features.values)
        return PatientInputs(*(torch.from_numpy(t).float()[None] for t in tensors)), notes

    @torch.inference_mode()
    def risk(self, inputs: PatientInputs) -> np.ndarray:
        """Risk ``[b]`` of ``b`` patients."""
        risk = self.network_weight * self._head_risk(self.network.branch_outputs(inputs))
        if models := self._named_models():
            variables = self.direct_variables(inputs)
            for weight, model in models:
                risk = risk + weight * model.predict_risk(variables)
        return risk

    @property
    def network_weight(self) -> float:
        """The share of the risk that the fusion network and its head have."""
        return 1.0 - self.direct_weight - self.linear_weight

    def _named_models(self) -> list[tuple[float, BaggedIcare | LinearRisk]]:
        """The models on the named variables, with their shares of the risk."""
        both = ((self.direct_weight, self.direct), (self.linear_weight, self.linear))
        return [(weight, model) for weight, model in both if model is not None]

    def direct_variables(self, inputs: PatientInputs) -> np.ndarray:
        """The named variables, ``[b, p]``: the health record, then some lesion features."""
        parts = []
        if "table" in self.network.config.branches:
            parts.append(inputs.table)
        if "lesions" in self.network.config.branches:
            parts.append(signed_log(inputs.lesions[:, list(self.direct_columns)]))
        return torch.cat(parts, 1).double().numpy()

    @torch.inference_mode()
    def branch_effects(self, inputs: PatientInputs) -> dict[str, float]:
        """For one patient: the change of the risk a branch makes against its training mean.

        Of the fusion network's part of the risk; :meth:`contributions` explain the other part.
        """
        outputs = self.network.branch_outputs(inputs)
        whole = self._head_risk(outputs)[0]
        effects = {}
        for name in outputs:
            replaced = outputs | {name: self.branch_means[name][None].expand_as(outputs[name])}
            effects[name] = self.network_weight * float(whole - self._head_risk(replaced)[0])
        return effects

    def contributions(
        self, inputs: PatientInputs, lesion_names: Sequence[str]
    ) -> list[Contribution]:
        """For one patient: what each named variable adds to the risk, none left out.

        They sum to the part of the risk that is not the network's.
        """
        models = self._named_models()
        if not models:
            return []
        names: list[str] = []
        if "table" in self.network.config.branches:
            names += self.encoder.feature_names_
        if "lesions" in self.network.config.branches:
            names += [lesion_names[i] for i in self.direct_columns]
        variables = self.direct_variables(inputs)
        values = np.sum([weight * m.contributions(variables)[0] for weight, m in models], axis=0)
        return [Contribution(n, v) for n, v in zip(names, values.tolist(), strict=True)]

    def _head_risk(self, outputs: dict[str, Tensor]) -> np.ndarray:
        return self.head.predict_risk(self.network.join(outputs).double().numpy())


class Prognosis:
    """The survival model of a bundle: the mean risk of its members."""

    def __init__(self, bundle: Bundle) -> None:
        part = bundle.manifest.prognosis
        if part is None:
            raise ValueError(f"bundle '{bundle.manifest.name}' holds no survival model (Task 2)")
        self.part = part
        settings = dict(part.settings)
        self.image_spacing_mm = float(settings.pop("image_spacing_mm"))
        self.members = [
            PrognosisMember.from_tensors(
                ClinicalEncoder.from_state(s), settings, bundle.tensors(file)
            )
            for s, file in zip(part.clinical, part.files, strict=True)
        ]

    def own_features(self, description: LesionDescription) -> LesionDescription:
        """With the lesion features that the model was trained on, in their order.

        Raises:
            ValueError: one of them is not there.
        """
        return replace(description, features=description.features.select(self.part.lesion_features))

    def __call__(self, description: LesionDescription, record: ClinicalRecord) -> Risk:
        """The risk of one patient; any field missing, with or without a lesion.

        Raises:
            ValueError: a lesion feature that the model was trained on is not there.
        """
        description = self.own_features(description)
        values, effects, named = [], [], []
        notes: tuple[str, ...] = ()
        for member in self.members:
            inputs, notes = member.inputs(description, record)
            values.append(float(member.risk(inputs)[0]))
            effects.append(member.branch_effects(inputs))
            named.append(member.contributions(inputs, description.features.names))
        value = float(np.mean(values))
        quantiles = np.asarray(self.part.risk_quantiles)
        days = None
        if self.part.expected_days:
            risks, expected = np.asarray(self.part.expected_days).T
            days = float(np.interp(value, risks, expected))
        branches = {b: float(np.mean([e[b] for e in effects])) for b in BRANCHES if b in effects[0]}
        quantile = float(np.interp(value, quantiles, np.linspace(0, 1, len(quantiles))))
        return Risk(value, quantile, days, branches, _mean_contributions(named), notes)


def _mean_contributions(named: Sequence[Sequence[Contribution]]) -> tuple[Contribution, ...]:
    """Mean over the members, those that move the risk, the strongest first."""
    mean = [
        Contribution(same[0].name, float(np.mean([c.value for c in same])))
        for same in zip(*named, strict=True)
    ]
    moving = [c for c in mean if c.value != 0]
    return tuple(sorted(moving, key=lambda c: -abs(c.value)))
