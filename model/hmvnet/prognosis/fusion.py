"""The multi-modal fusion network: images, health record and lesions to a risk of recurrence.

Three branches (image -> 512, table -> 32, lesions -> 2048) meet in an MLP -> 256, whose values
are the variables of a bagged ICARE head (``hmvnet.prognosis.icare``). While training, a linear
layer on the 256 gives the risk that the losses see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

BRANCHES = ("image", "table", "lesions")
IMAGE_CHANNELS = 4  # CT, PET, GTVp, GTVn
RAW_CHANNELS = 2  # CT, PET


@dataclass(frozen=True)
class FusionConfig:
    """The network's sizes.

    Attributes:
        table_features: length of the encoded health record.
        lesion_features: length of the lesion vector (hand-crafted and encoder features).
        branches: those in use; the others are left out (ablations). Without ``lesions`` nothing of
            Task 1 is used: the image branch does not see the predicted masks either.
        image_width: channels of the image branch's first stage; 64 is a full ResNet-18.
    """

    table_features: int
    lesion_features: int
    branches: tuple[str, ...] = BRANCHES
    image_width: int = 16
    image_out: int = 512
    table_out: int = 32
    lesion_out: int = 2048
    fused: int = 256
    dropout: float = 0.3

    def __post_init__(self) -> None:
        unknown = [b for b in self.branches if b not in BRANCHES]
        if unknown or not self.branches:
            raise ValueError(
                f"branches {list(self.branches)}: expected at least one of {', '.join(BRANCHES)}"
            )


@dataclass(frozen=True)
class PatientInputs:
    """What the fusion network sees of ``b`` patients.

    Attributes:
        image: ``[b, 4, z, y, x]`` CT [0, 1], PET [-1, 1], GTVp and GTVn (shares of a voxel).
        table: ``[b, t]`` encoded health record.
        lesions: ``[b, l]`` lesion features as measured; NaN where there is nothing to describe.
        crops: ``[b, c]`` what the segmentation encoder saw in parts of the lesions, NaN alike; no
            network sees it, a model beside it does. None: not wanted.
    """

    image: Tensor
    table: Tensor
    lesions: Tensor
    crops: Tensor | None = None

    def rows(self, rows: Tensor | Sequence[int]) -> PatientInputs:
        """The patients of these rows."""
        return self._each(lambda values: values[rows])

    def to(self, device: torch.device) -> PatientInputs:
        """On another device."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> PatientInputs:
        crops = None if self.crops is None else change(self.crops)
        return PatientInputs(change(self.image), change(self.table), change(self.lesions), crops)


class LesionStandardiser(nn.Module):
    """Signed logarithm, then z-scores of the training patients; missing becomes their mean, 0.

    Volumes, energies and the like span six decades; the logarithm brings them to one scale and
    leaves small values as they are.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def fit(self, lesions: Tensor) -> LesionStandardiser:
        """Statistics of the training patients' features ``[n, l]``."""
        values = signed_log(lesions)
        seen = torch.isfinite(values)
        filled = torch.where(seen, values, torch.zeros_like(values))
        count = seen.sum(0).clamp(min=1)
        self.mean = filled.sum(0) / count
        variance = (torch.where(seen, values - self.mean, torch.zeros_like(values)) ** 2).sum(0)
        scale = (variance / count).sqrt()
        # A feature that never varied says nothing: whatever it is later, it stays 0.
        self.scale = torch.where(scale > 1e-6, scale, torch.full_like(scale, torch.inf))
        return self

    def forward(self, lesions: Tensor) -> Tensor:
        z = (signed_log(lesions) - self.mean) / self.scale
        return torch.nan_to_num(z, nan=0.0).clamp(-5, 5)


def signed_log(values: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return torch.sign(values) * torch.log1p(values.abs())


class FusionNetwork(nn.Module):
    """Patients to 256 fused variables (``join``) or to a log-hazard (``forward``).

    A branch that is not in use is None.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        uses_image, uses_table, uses_lesions = (name in config.branches for name in BRANCHES)
        # Without Task 1 the image branch does not see its masks either.
        self.image_channels = IMAGE_CHANNELS if uses_lesions else RAW_CHANNELS
        self.image = _image_branch(config, self.image_channels) if uses_image else None
        self.table = _table_branch(config) if uses_table else None
        self.standardise = LesionStandardiser(config.lesion_features) if uses_lesions else None
        self.lesions = _lesion_branch(config) if uses_lesions else None
        widths = {
            "image": config.image_out,
            "table": config.table_out,
            "lesions": config.lesion_out,
        }
        self.fuse = nn.Sequential(
            nn.Linear(sum(widths[name] for name in set(config.branches)), config.fused),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.risk = nn.Linear(config.fused, 1, bias=False)

    def settings(self) -> dict:
        """The configuration, as ``weights/`` manifests store it."""
        return asdict(self.config)

    def branch_outputs(self, patients: PatientInputs) -> dict[str, Tensor]:
        """What each branch in use gives, ``[b, c]``, in the order of ``BRANCHES``."""
        outputs = {}
        if self.image is not None:
            seen = patients.image[:, : self.image_channels]
            outputs["image"] = torch.relu(self.image(seen))
        if self.table is not None:
            outputs["table"] = self.table(patients.table)
        if self.standardise is not None and self.lesions is not None:
            outputs["lesions"] = self.lesions(self.standardise(patients.lesions))
        return outputs

    def join(self, outputs: dict[str, Tensor]) -> Tensor:
        """Branch outputs to the fused variables ``[b, 256]``, inputs of the ICARE head."""
        return self.fuse(torch.cat(list(outputs.values()), 1))

    def forward(self, patients: PatientInputs) -> Tensor:
        """Log relative hazard ``[b]``."""
        return self.risk(self.join(self.branch_outputs(patients)))[:, 0]


def _image_branch(config: FusionConfig, channels: int) -> nn.Module:
    width = config.image_width
    return ResNet(
        "basic",
        [2, 2, 2, 2],
        [width, 2 * width, 4 * width, 8 * width],
        spatial_dims=3,
        n_input_channels=channels,
        conv1_t_size=3,
        conv1_t_stride=2,
        no_max_pool=True,
        num_classes=config.image_out,
    )


def _table_branch(config: FusionConfig) -> nn.Module:
    return nn.Sequential(
        nn.Linear(config.table_features, config.table_out),
        nn.ReLU(),
        nn.BatchNorm1d(config.table_out),
        nn.Dropout(config.dropout),
    )


def _lesion_branch(config: FusionConfig) -> nn.Module:
    return nn.Sequential(
        nn.Dropout(config.dropout),
        nn.Linear(config.lesion_features, config.lesion_out),
        nn.ReLU(),
        nn.Dropout(config.dropout),
    )
