"""From a segmented patient to a risk: the trained fusion networks and their ICARE heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hmvnet.case import GTVN, GTVP, ClinicalRecord
from hmvnet.clinical import ClinicalEncoder
from hmvnet.lesions import LesionFeatures, lesion_features, pool_encoder_features
from hmvnet.networks.fusion import BRANCHES, FusionConfig, FusionNetwork, PatientInputs
from hmvnet.survival.icare import BaggedIcare
from hmvnet.weights import Bundle

ICARE_PREFIX, NETWORK_PREFIX = "icare.", "fusion."


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
class Risk:
    """A predicted risk of recurrence.

    Attributes:
        value: higher = earlier recurrence; averaged over the folds.
        quantile: share of the training patients with a lower risk.
        expected_days: recurrence-free days expected at this risk, where the bundle knows.
        branches: how much of the risk hangs on each branch: its change when the branch's output
            is replaced by its training mean.
        notes: what was repaired in the health record.
    """

    value: float
    quantile: float
    expected_days: float | None
    branches: dict[str, float]
    notes: tuple[str, ...] = ()


def describe(
    raw: np.ndarray,
    volume: np.ndarray,
    mask: np.ndarray,
    encoder_maps: Sequence[np.ndarray],
    spacing_mm: float,
    image_spacing_mm: float,
) -> LesionDescription:
    """The fusion network's image and lesion vector of one segmented patient.

    Args:
        raw: ``[2, z, y, x]`` CT in HU and PET in SUV on the working grid.
        volume: the same, normalised.
        mask: uint8 ``[z, y, x]``.
        encoder_maps: HM-VNet's, ``[c, z, y, x]`` each; may be empty (other networks).
    """
    step = max(1, round(image_spacing_mm / spacing_mm))
    classes = np.stack([mask == GTVP, mask == GTVN]).astype(np.float32)
    stacked = torch.from_numpy(np.concatenate([volume, classes]))
    image = F.avg_pool3d(stacked[None], step)[0].numpy()
    features = lesion_features(mask, raw[0], raw[1], (spacing_mm,) * 3)
    if encoder_maps:
        pooled = pool_encoder_features([torch.from_numpy(m) for m in encoder_maps], mask)
        features = LesionFeatures(
            features.names + pooled.names, np.concatenate([features.values, pooled.values])
        )
    return LesionDescription(image, features)


@dataclass
class PrognosisMember:
    """One fold's encoder, fusion network and ICARE head."""

    encoder: ClinicalEncoder
    network: FusionNetwork
    head: BaggedIcare
    branch_means: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was learnt, but the encoder (JSON), for a safetensors file."""
        state = {NETWORK_PREFIX + k: v for k, v in self.network.state_dict().items()}
        state |= {
            ICARE_PREFIX + k: torch.from_numpy(np.asarray(v)) for k, v in self.head.state().items()
        }
        return state | {f"mean.{k}": v for k, v in self.branch_means.items()}

    @classmethod
    def from_tensors(
        cls, encoder: ClinicalEncoder, config: FusionConfig, state: dict[str, Tensor]
    ) -> PrognosisMember:
        """The member whose :meth:`tensors` these are."""
        part = lambda p: {k[len(p) :]: v for k, v in state.items() if k.startswith(p)}  # noqa: E731
        network = FusionNetwork(config).eval()
        network.load_state_dict(part(NETWORK_PREFIX))
        head = BaggedIcare.from_state({k: v.numpy() for k, v in part(ICARE_PREFIX).items()})
        return cls(encoder, network, head, part("mean."))

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
        return self._head_risk(self.network.branch_outputs(inputs))

    @torch.inference_mode()
    def branch_effects(self, inputs: PatientInputs) -> dict[str, float]:
        """For one patient: the change of the risk a branch makes against its training mean."""
        outputs = self.network.branch_outputs(inputs)
        whole = self._head_risk(outputs)[0]
        effects = {}
        for name in outputs:
            replaced = outputs | {name: self.branch_means[name][None].expand_as(outputs[name])}
            effects[name] = float(whole - self._head_risk(replaced)[0])
        return effects

    def _head_risk(self, outputs: dict[str, Tensor]) -> np.ndarray:
        return self.head.predict_risk(self.network.join(outputs).double().numpy())


class Prognosis:
    """The survival model of a bundle: the mean risk of its folds."""

    def __init__(self, bundle: Bundle) -> None:
        part = bundle.manifest.prognosis
        if part is None:
            raise ValueError(f"bundle '{bundle.manifest.name}' holds no survival model (Task 2)")
        self.part = part
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in part.settings.items()}
        self.image_spacing_mm = float(settings.pop("image_spacing_mm"))
        config = FusionConfig(**settings)
        self.members = [
            PrognosisMember.from_tensors(ClinicalEncoder.from_state(s), config, bundle.tensors(f))
            for s, f in zip(part.clinical, part.files)
        ]

    def __call__(self, description: LesionDescription, record: ClinicalRecord) -> Risk:
        """The risk of one patient; any field missing, with or without a lesion.

        Raises:
            ValueError: the lesion features are not those the model was trained on.
        """
        if list(description.features.names) != self.part.lesion_features:
            raise ValueError(
                f"{len(description.features.names)} lesion features, but the survival model was "
                f"trained on {len(self.part.lesion_features)}: the bundle's parts do not fit"
            )
        values, effects, notes = [], [], ()
        for member in self.members:
            inputs, notes = member.inputs(description, record)
            values.append(float(member.risk(inputs)[0]))
            effects.append(member.branch_effects(inputs))
        value = float(np.mean(values))
        quantiles = np.asarray(self.part.risk_quantiles)
        days = None
        if self.part.expected_days:
            risks, expected = np.asarray(self.part.expected_days).T
            days = float(np.interp(value, risks, expected))
        branches = {b: float(np.mean([e[b] for e in effects])) for b in BRANCHES if b in effects[0]}
        quantile = float(np.interp(value, quantiles, np.linspace(0, 1, len(quantiles))))
        return Risk(value, quantile, days, branches, notes)
