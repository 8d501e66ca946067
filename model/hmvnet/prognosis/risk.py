"""From a segmented patient to a risk: the trained fusion networks and their ICARE heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hmvnet.bundle import Bundle
from hmvnet.case import GTVN, GTVP, ClinicalRecord
from hmvnet.exits import RefusedError
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

# What the names of tensors in a bundle start with.
NETWORK_PREFIX, MEAN_PREFIX = "fusion.", "mean."
HEAD = "icare"


@dataclass(frozen=True)
class LesionDescription:
    """A segmented patient as the survival model sees one, the health record apart.

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


class RiskModel(Protocol):
    """A fitted model whose risk is a sum of parts, one a variable."""

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]`` of variables ``[n, p]``; higher = earlier event."""

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """What each variable adds to the risk, ``[n, p]``."""

    def state(self) -> dict[str, np.ndarray]:
        """The model as plain arrays, which its class's ``from_state`` takes."""


@dataclass(frozen=True)
class Weighted:
    """A model and its share of the risk."""

    weight: float
    model: RiskModel


# The models on the named variables, by the name that their tensors and weights have in bundles. A
# new one is a class with ``from_state`` and a line here.
NAMED_MODELS: Mapping[str, type[BaggedIcare] | type[LinearRisk]] = {
    "direct": BaggedIcare,
    "linear": LinearRisk,
}


@dataclass(frozen=True)
class NamedVariables:
    """The variables that have a name: the encoded health record, then some lesion features.

    Attributes:
        table: whether the health record is among them.
        lesion_columns: which of the lesion features are, counted from 0.
    """

    table: bool
    lesion_columns: tuple[int, ...]

    @classmethod
    def of(cls, branches: Sequence[str], lesion_columns: Sequence[int]) -> NamedVariables:
        """Of what these branches see; ``lesion_columns`` as far as lesions are."""
        return cls("table" in branches, tuple(lesion_columns) if "lesions" in branches else ())

    def values(self, inputs: PatientInputs) -> np.ndarray:
        """``[b, p]``, lesion features as signed logarithms."""
        parts = [inputs.table] if self.table else []
        parts.append(signed_log(inputs.lesions[:, list(self.lesion_columns)]))
        return torch.cat(parts, 1).double().numpy()

    def names(self, encoder: ClinicalEncoder, lesion_names: Sequence[str]) -> list[str]:
        """The variables' names, in order."""
        table = list(encoder.feature_names_) if self.table else []
        return [*table, *(lesion_names[i] for i in self.lesion_columns)]


@dataclass(frozen=True)
class PrognosisMember:
    """One fusion network with its ICARE head, and models on the named variables beside it.

    The risk is ``sum of weight * model.predict_risk(variables)``: of the head on the network's 256
    fused variables, and of each of the others on the named ones.

    Attributes:
        encoder: of the health record.
        network: to the fused variables.
        branch_means: mean output of each branch over the training patients.
        head: ICARE on the fused variables.
        named: models on the named variables, by the names of ``NAMED_MODELS``.
        variables: the named variables.
    """

    encoder: ClinicalEncoder
    network: FusionNetwork
    branch_means: Mapping[str, Tensor]
    head: Weighted
    named: Mapping[str, Weighted]
    variables: NamedVariables

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was learnt, but the encoder (JSON), for a safetensors file."""
        state = {NETWORK_PREFIX + k: v for k, v in self.network.state_dict().items()}
        for name, part in {HEAD: self.head, **self.named}.items():
            arrays = part.model.state()
            state |= {f"{name}.{k}": torch.from_numpy(v) for k, v in arrays.items()}
        return state | {MEAN_PREFIX + k: v for k, v in self.branch_means.items()}

    def settings(self) -> dict[str, Any]:
        """Sizes and weights, as ``weights/`` manifests store them."""
        weights = {
            name: self.named[name].weight if name in self.named else 0.0 for name in NAMED_MODELS
        }
        return (
            self.network.settings()
            | {f"{name}_weight": weight for name, weight in weights.items()}
            | {"direct_columns": list(self.variables.lesion_columns)}
        )

    @classmethod
    def from_tensors(
        cls, encoder: ClinicalEncoder, settings: Mapping[str, Any], state: Mapping[str, Tensor]
    ) -> PrognosisMember:
        """The member whose ``tensors`` and ``settings`` these are.

        Raises:
            ValueError: a model is there without its weight, or a weight without its model.
        """
        sizes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        columns = sizes.pop("direct_columns", ())
        weights = {name: float(sizes.pop(f"{name}_weight", 0.0)) for name in NAMED_MODELS}
        network = FusionNetwork(FusionConfig(**sizes)).eval()
        network.load_state_dict(_below(NETWORK_PREFIX, state))
        head = _arrays(HEAD, state)
        if not head:
            raise ValueError("the survival model's file holds no ICARE head")
        named = {}
        for name, kind in NAMED_MODELS.items():
            found = _arrays(name, state)
            if bool(weights[name]) != bool(found):
                raise ValueError(
                    f"the survival model's {name}_weight is {weights[name]:g}, and its file "
                    f"{'has' if found else 'lacks'} the model it weighs: the parts do not fit"
                )
            if found:
                named[name] = Weighted(weights[name], kind.from_state(found))
        return cls(
            encoder,
            network,
            _below(MEAN_PREFIX, state),
            Weighted(rest_of(named), BaggedIcare.from_state(head)),
            named,
            NamedVariables.of(network.config.branches, columns),
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
        risk = self._head_risk(self.network.branch_outputs(inputs))
        if self.named:
            variables = self.variables.values(inputs)
            for part in self.named.values():
                risk = risk + part.weight * part.model.predict_risk(variables)
        return risk

    @torch.inference_mode()
    def branch_effects(self, inputs: PatientInputs) -> dict[str, float]:
        """For one patient: the change of the risk a branch makes against its training mean.

        Of the fusion network's part of the risk; ``contributions`` explain the other part.
        """
        outputs = self.network.branch_outputs(inputs)
        whole = self._head_risk(outputs)[0]
        effects = {}
        for name in outputs:
            replaced = outputs | {name: self.branch_means[name][None].expand_as(outputs[name])}
            effects[name] = float(whole - self._head_risk(replaced)[0])
        return effects

    def contributions(
        self, inputs: PatientInputs, lesion_names: Sequence[str]
    ) -> list[Contribution]:
        """For one patient: what each named variable adds to the risk, none left out.

        They sum to the part of the risk that is not the network's.
        """
        if not self.named:
            return []
        x = self.variables.values(inputs)
        parts = [part.weight * part.model.contributions(x)[0] for part in self.named.values()]
        names = self.variables.names(self.encoder, lesion_names)
        values = np.sum(parts, axis=0).tolist()
        return [Contribution(name, value) for name, value in zip(names, values, strict=True)]

    def _head_risk(self, outputs: dict[str, Tensor]) -> np.ndarray:
        """The head's part of the risk, ``[b]``."""
        fused = self.network.join(outputs).double().numpy()
        return self.head.weight * self.head.model.predict_risk(fused)


def rest_of(named: Mapping[str, Weighted]) -> float:
    """The share of the risk that is left for the fusion network."""
    return 1.0 - sum(part.weight for part in named.values())


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, without it."""
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _arrays(name: str, state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in _below(f"{name}.", state).items()}


class Prognosis:
    """The survival model of a bundle: the mean risk of its members."""

    def __init__(self, bundle: Bundle) -> None:
        part = bundle.manifest.prognosis
        if part is None:
            raise RefusedError(f"bundle '{bundle.manifest.name}' holds no survival model")
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

    def expected_days(self, value: float) -> float | None:
        """Recurrence-free days expected at a risk; None where the bundle does not know."""
        if not self.part.expected_days:
            return None
        risks, expected = np.asarray(self.part.expected_days).T
        return float(np.interp(value, risks, expected))

    def usual(self) -> Risk:
        """The median risk of the training patients: what is left to say where nothing is known."""
        value = float(np.median(self.part.risk_quantiles))
        return Risk(value, 0.5, self.expected_days(value), {}, notes=("the median risk",))

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
        days = self.expected_days(value)
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
