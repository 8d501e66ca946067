"""A member of the survival model: a network, its ICARE head, and models on named variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hmvnet.bundle import below
from hmvnet.case import ClinicalRecord
from hmvnet.lesions.features import LesionFeatures
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.prognosis.forest import ForestRisk
from hmvnet.prognosis.fusion import (
    FusionConfig,
    FusionNetwork,
    PatientInputs,
    signed_log,
)
from hmvnet.prognosis.icare import BaggedIcare
from hmvnet.prognosis.linear import LinearRisk

# What the names of tensors in a bundle start with.
NETWORK_PREFIX, MEAN_PREFIX = "fusion.", "mean."
HEAD, CROPS = "icare", "crops"
CROPS_NAME = "image of the lesions"  # as a reason of a risk
NO_FEATURES = LesionFeatures((), np.zeros(0, np.float32))


@dataclass(frozen=True)
class LesionDescription:
    """A segmented patient as the survival model sees one, the health record apart.

    Attributes:
        image: float32 ``[4, z, y, x]`` CT, PET, GTVp, GTVn at the fusion network's spacing.
        features: hand-crafted lesion features, then pooled encoder features.
        crops: encoder features of parts of the lesions (``hmvnet.lesions.crops``), where wanted.
    """

    image: np.ndarray
    features: LesionFeatures
    crops: LesionFeatures = NO_FEATURES


@dataclass(frozen=True)
class Contribution:
    """What one named variable adds to the risk, exactly: its models are sums of parts."""

    name: str
    value: float


class RiskModel(Protocol):
    """A fitted model whose risk is a sum of parts, one a variable."""

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]`` of variables ``[n, p]``; higher = earlier event."""

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """What each variable adds to the risk, ``[n, p]``."""

    def draws(self, x: np.ndarray) -> np.ndarray:
        """Risks ``[b, n]`` by bootstrap samples of the training patients."""

    def state(self) -> dict[str, np.ndarray]:
        """The model as plain arrays, which its class's ``from_state`` takes."""


@dataclass(frozen=True)
class Weighted:
    """A model and its share of the risk."""

    weight: float
    model: RiskModel


# The models on the named variables, by the name that their tensors and weights have in bundles. A
# new one is a class with ``from_state`` and a line here.
NAMED_MODELS: Mapping[str, type[BaggedIcare] | type[LinearRisk] | type[ForestRisk]] = {
    "direct": BaggedIcare,
    "linear": LinearRisk,
    "forest": ForestRisk,
    "mtlr": LinearRisk,
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
    fused variables, of each of the named models on the named ones, and of ``crops`` on the named
    ones and encoder features of the lesions.

    Attributes:
        encoder: of the health record.
        network: to the fused variables.
        branch_means: mean output of each branch over the training patients.
        head: ICARE on the fused variables.
        named: models on the named variables, by the names of ``NAMED_MODELS``.
        variables: the named variables.
        crops: a model on the named variables, then encoder features of parts of the lesions.
    """

    encoder: ClinicalEncoder
    network: FusionNetwork
    branch_means: Mapping[str, Tensor]
    head: Weighted
    named: Mapping[str, Weighted]
    variables: NamedVariables
    crops: Weighted | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was learnt, but the encoder (JSON), for a safetensors file."""
        state = {NETWORK_PREFIX + k: v for k, v in self.network.state_dict().items()}
        beside = self.named if self.crops is None else {**self.named, CROPS: self.crops}
        for name, part in {HEAD: self.head, **beside}.items():
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
            | ({} if self.crops is None else {f"{CROPS}_weight": self.crops.weight})
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
        models = {**NAMED_MODELS, CROPS: LinearRisk}
        weights = {name: float(sizes.pop(f"{name}_weight", 0.0)) for name in models}
        network = FusionNetwork(FusionConfig(**sizes)).eval()
        network.load_state_dict(below(NETWORK_PREFIX, state))
        head = _arrays(HEAD, state)
        if not head:
            raise ValueError("the survival model's file holds no ICARE head")
        named = {}
        for name, kind in models.items():
            found = _arrays(name, state)
            if bool(weights[name]) != bool(found):
                raise ValueError(
                    f"the survival model's {name}_weight is {weights[name]:g}, and its file "
                    f"{'has' if found else 'lacks'} the model it weighs: the parts do not fit"
                )
            if found:
                named[name] = Weighted(weights[name], kind.from_state(found))
        share, crops = rest_of(named), named.pop(CROPS, None)
        return cls(
            encoder,
            network,
            below(MEAN_PREFIX, state),
            Weighted(share, BaggedIcare.from_state(head)),
            named,
            NamedVariables.of(network.config.branches, columns),
            crops,
        )

    def inputs(
        self, description: LesionDescription, record: ClinicalRecord
    ) -> tuple[PatientInputs, tuple[str, ...]]:
        """One patient as a batch of one, and notes on the health record."""
        table, notes = self.encoder.transform_record(record)
        tensors = (
            description.image,
            table,
            description.features.values,
            description.crops.values,
        )
        return PatientInputs(*(torch.from_numpy(t).float()[None] for t in tensors)), notes

    @torch.inference_mode()
    def risk(self, inputs: PatientInputs) -> np.ndarray:
        """Risk ``[b]`` of ``b`` patients."""
        parts = self.part_risks(inputs)
        return np.sum([self.weights[name] * risk for name, risk in parts.items()], axis=0)

    @torch.inference_mode()
    def part_risks(self, inputs: PatientInputs) -> dict[str, np.ndarray]:
        """The risk ``[b]`` of ``b`` patients by each part alone, the head first."""
        fused = self.network.join(self.network.branch_outputs(inputs)).double().numpy()
        risks = {HEAD: self.head.model.predict_risk(fused)}
        if self.named:
            variables = self.variables.values(inputs)
            risks |= {k: part.model.predict_risk(variables) for k, part in self.named.items()}
        if self.crops is not None:
            risks[CROPS] = self.crops.model.predict_risk(self._with_crops(inputs))
        return risks

    def _with_crops(self, inputs: PatientInputs) -> np.ndarray:
        """The named variables and the crops' features, ``[b, p + c]``.

        Raises:
            ValueError: there are none.
        """
        if inputs.crops is None:
            raise ValueError("the survival model wants encoder features of the lesions' crops")
        return np.concatenate([self.variables.values(inputs), inputs.crops.double().numpy()], 1)

    @property
    def weights(self) -> dict[str, float]:
        """Of the parts, by their names, the head first; their sum is 1."""
        crops = {} if self.crops is None else {CROPS: self.crops.weight}
        named = {k: part.weight for k, part in self.named.items()}
        return {HEAD: self.head.weight} | named | crops

    def weighted(self, weights: Mapping[str, float]) -> PrognosisMember:
        """With other weights of its parts, of sum 1; one of weight 0 is left out, but the head."""
        named = {
            name: Weighted(weights[name], part.model)
            for name, part in self.named.items()
            if weights[name]
        }
        crops = None
        if self.crops is not None and weights[CROPS]:
            crops = Weighted(weights[CROPS], self.crops.model)
        head = Weighted(rest_of(named, crops), self.head.model)
        return replace(self, named=named, head=head, crops=crops)

    @torch.inference_mode()
    def draws(self, inputs: PatientInputs) -> np.ndarray:
        """Risks ``[draws, b]`` of ``b`` patients by bootstrap samples of the training patients.

        A draw is the same sample in all parts that were fitted to some; those that were not are
        the same in all.
        """
        fused = self.network.join(self.network.branch_outputs(inputs)).double().numpy()
        parts = [self.head.weight * self.head.model.draws(fused)]
        if self.named:
            x = self.variables.values(inputs)
            parts += [part.weight * part.model.draws(x) for part in self.named.values()]
        if self.crops is not None:
            parts.append(self.crops.weight * self.crops.model.draws(self._with_crops(inputs)))
        several = [len(part) for part in parts if len(part) > 1]
        count = min(several, default=1)
        return np.sum([part[:count] + np.zeros((count, 1)) for part in parts], axis=0)

    @torch.inference_mode()
    def branch_effects(self, inputs: PatientInputs) -> dict[str, float]:
        """For one patient: the change of the risk a branch makes against its training mean.

        Of the fusion network's part of the risk; ``contributions`` explain the other part. Nothing
        where the network has no share of it.
        """
        if not self.head.weight:
            return {}
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

        They sum to the part of the risk that is not the network's; what the crops add is one of
        them, the last.
        """
        if not self.named and self.crops is None:
            return []
        x = self.variables.values(inputs)
        parts = [part.weight * part.model.contributions(x)[0] for part in self.named.values()]
        names = self.variables.names(self.encoder, lesion_names)
        values = np.sum([np.zeros(len(names)), *parts], axis=0)
        if self.crops is not None:
            added = self.crops.model.contributions(self._with_crops(inputs))[0]
            own = np.append(added[: len(names)], added[len(names) :].sum())
            names, values = [*names, CROPS_NAME], np.append(values, 0.0) + self.crops.weight * own
        return [Contribution(name, value) for name, value in zip(names, values.tolist())]

    def _head_risk(self, outputs: dict[str, Tensor]) -> np.ndarray:
        """The head's part of the risk, ``[b]``."""
        fused = self.network.join(outputs).double().numpy()
        return self.head.weight * self.head.model.predict_risk(fused)


def rest_of(named: Mapping[str, Weighted], crops: Weighted | None = None) -> float:
    """The share of the risk that is left for the fusion network."""
    rest = 1.0 - sum(part.weight for part in named.values())
    return rest if crops is None else rest - crops.weight


def _arrays(name: str, state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in below(f"{name}.", state).items()}
