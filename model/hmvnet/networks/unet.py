"""nnU-Net's U-Nets: plain and with a residual encoder.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 2021, and "nnU-Net revisited", MICCAI 2024 (the residual encoder).
Parameters have the names that nnU-Net's checkpoints give them, so that those load as they are; of
the names that a checkpoint has for one and the same tensor the shortest is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmvnet.networks.output import Output

Axes = Sequence[int]
NORMS = {"instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d}
# A checkpoint has some tensors several times: a unit's layers once more as a list, and the encoder
# once more as a part of the decoder.
ALIASES = (".all_modules.", "decoder.encoder.")


class Unit(nn.Module):
    """Convolution, norm and, unless ``slope`` is None, a leaky ReLU.

    Attributes:
        conv, norm: as they are named in nnU-Net's checkpoints.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Axes,
        stride: Axes,
        bias: bool,
        norm: str,
        slope: float | None,
    ) -> None:
        super().__init__()
        padding = [(k - 1) // 2 for k in kernel]
        self.conv = nn.Conv3d(inputs, outputs, tuple(kernel), tuple(stride), padding, bias=bias)  # type: ignore[arg-type]
        self.norm = NORMS[norm](outputs, affine=True)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.slope is None else nn.functional.leaky_relu(x, self.slope)


class Stack(nn.Module):
    """Units in a row, the first of which has the stride."""

    def __init__(
        self, count: int, inputs: int, outputs: int, kernel: Axes, stride: Axes, *unit: Any
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                Unit(outputs if i else inputs, outputs, kernel, (1, 1, 1) if i else stride, *unit)
                for i in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class ResidualUnit(nn.Module):
    """Two units with a skip, as in ResNet-D (He et al., "Bag of tricks", CVPR 2019).

    The skip averages where there is a stride, and projects where the channels differ.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Axes,
        stride: Axes,
        bias: bool,
        norm: str,
        slope: float,
    ) -> None:
        super().__init__()
        self.conv1 = Unit(inputs, outputs, kernel, stride, bias, norm, slope)
        self.conv2 = Unit(outputs, outputs, kernel, (1, 1, 1), bias, norm, None)
        skip: list[nn.Module] = []
        if math.prod(stride) > 1:
            skip.append(nn.AvgPool3d(tuple(stride)))  # type: ignore[arg-type]
        if inputs != outputs:
            skip.append(Unit(inputs, outputs, (1, 1, 1), (1, 1, 1), False, norm, None))
        self.skip = nn.Sequential(*skip)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), self.slope)


class ResidualStack(nn.Module):
    """Residual units in a row, the first of which has the stride."""

    def __init__(
        self, count: int, inputs: int, outputs: int, kernel: Axes, stride: Axes, *unit: Any
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                ResidualUnit(
                    outputs if i else inputs, outputs, kernel, (1, 1, 1) if i else stride, *unit
                )
                for i in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(nn.Module):
    """The stages' maps, finest first."""

    def __init__(self, inputs: int, plan: _Plan, unit: tuple[Any, ...]) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        if plan.residual:
            self.stem = Stack(1, inputs, plan.features[0], plan.kernels[0], (1, 1, 1), *unit)
            inputs = plan.features[0]
        for count, outputs, kernel, stride in zip(
            plan.blocks, plan.features, plan.kernels, plan.strides
        ):
            if plan.residual:
                stages.append(ResidualStack(count, inputs, outputs, kernel, stride, *unit))
            else:
                stages.append(nn.Sequential(Stack(count, inputs, outputs, kernel, stride, *unit)))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.residual = plan.residual

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x) if self.residual else x
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Transposed convolutions, skips joined, units; logits at every resolution, finest first."""

    def __init__(self, classes: int, plan: _Plan, unit: tuple[Any, ...]) -> None:
        super().__init__()
        bias = unit[0]
        self.transpconvs, self.stages, self.seg_layers = (nn.ModuleList() for _ in range(3))
        below = len(plan.features) - 1
        for count, stage in zip(plan.decoder, reversed(range(below))):
            inputs, outputs = plan.features[stage + 1], plan.features[stage]
            step = tuple(plan.strides[stage + 1])
            self.transpconvs.append(nn.ConvTranspose3d(inputs, outputs, step, step, bias=bias))  # type: ignore[arg-type]
            self.stages.append(
                Stack(count, 2 * outputs, outputs, plan.kernels[stage], (1, 1, 1), *unit)
            )
            self.seg_layers.append(nn.Conv3d(outputs, classes, 1))

    def forward(self, maps: Sequence[Tensor], scales: bool) -> list[Tensor]:
        x, logits = maps[-1], []
        layers = zip(self.transpconvs, self.stages, self.seg_layers, reversed(maps[:-1]))
        for number, (up, stage, head, skip) in enumerate(layers, start=1):
            x = stage(torch.cat([up(x), skip], 1))
            if scales or number == len(self.stages):
                logits.append(head(x))
        return logits[::-1]


class _Plan:
    """The sizes of a U-Net, all lists of one length but the decoder's."""

    def __init__(
        self,
        residual: bool,
        features: Sequence[int],
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
        blocks: Sequence[int],
        decoder: Sequence[int],
    ) -> None:
        stages = len(features)
        if stages < 2 or {len(strides), len(kernels), len(blocks), len(decoder) + 1} != {stages}:
            raise ValueError(
                f"a U-Net of {stages} stages: expected at least two, and as many strides, kernels "
                "and blocks, and one number fewer in decoder"
            )
        if any(k % 2 == 0 for kernel in kernels for k in kernel):
            raise ValueError(f"kernels {list(kernels)}: expected odd sizes")
        self.residual, self.features, self.strides = residual, features, strides
        self.kernels, self.blocks, self.decoder = kernels, blocks, decoder


class UNet(nn.Module):
    """``[b, in_channels, z, y, x]``, axes multiples of their strides' products, to an ``Output``.

    Its features are the encoder's maps from the third stage on: the finer ones are as large as the
    input many times over, and show edges.

    Args:
        features: channels of each stage.
        strides: of each stage's first unit, along each axis; the first stage's is usually 1.
        kernels: of each stage's units, along each axis.
        blocks: units (``residual``: residual units) of each stage of the encoder.
        decoder: units of each stage of the decoder, coarsest first.
        residual: a residual encoder behind a stem.
        deep_supervision: whether ``scales`` are given where they are asked for.
        slope: of the leaky ReLU below 0; 0 makes it a ReLU.

    Raises:
        ValueError: sizes that do not belong together.
    """

    whole_region = False

    def __init__(
        self,
        in_channels: int,
        classes: int,
        features: Sequence[int],
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
        blocks: Sequence[int],
        decoder: Sequence[int],
        residual: bool = False,
        deep_supervision: bool = False,
        bias: bool = True,
        norm: Literal["instance", "batch"] = "instance",
        slope: float = 0.01,
    ) -> None:
        super().__init__()
        plan, unit = (
            _Plan(residual, features, strides, kernels, blocks, decoder),
            (bias, norm, slope),
        )
        self.encoder = Encoder(in_channels, plan, unit)
        self.decoder = Decoder(classes, plan, unit)
        self.deep_supervision = deep_supervision
        self.register_load_state_dict_pre_hook(_drop_aliases)

    def forward(self, x: Tensor, scales: bool = False) -> Output:
        maps = self.encoder(x)
        logits, *coarser = self.decoder(maps, scales and self.deep_supervision)
        return Output(logits, tuple(coarser), tuple(maps[2:]))


def _drop_aliases(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Remove a checkpoint's further names of the same tensors."""
    for name in [name for name in state if any(alias in name for alias in ALIASES)]:
        del state[name]
