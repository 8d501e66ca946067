"""STU-Net: a U-Net of residual blocks that scales in depth and width together.

Huang et al., "STU-Net: scalable and transferable medical image segmentation models empowered by
large-scale supervised pre-training", 2023 (arXiv 2304.06716), written from its description. Where
nnU-Net's U-Net convolves with a stride or transposed, STU-Net puts a residual block with a stride,
and nearest-neighbour interpolation with a 1 x 1 x 1 convolution behind it. Parameters have the
names of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmvnet.networks.output import Output

# Channels of the first stage and blocks a stage; the stages have 1, 2, 4, 8, 16, 16 times as many.
SIZES = {"small": (16, 1), "base": (32, 1), "large": (64, 2), "huge": (96, 3)}
WIDTHS = (1, 2, 4, 8, 16, 16)
STRIDES = ((2, 2, 2),) * (len(WIDTHS) - 1)


class Block(nn.Module):
    """Two 3 x 3 x 3 convolutions with InstanceNorm and leaky ReLU, and a skip."""

    def __init__(
        self, inputs: int, outputs: int, stride: Sequence[int] = (1, 1, 1), project: bool = False
    ) -> None:
        super().__init__()
        step = tuple(stride)
        self.conv1 = nn.Conv3d(inputs, outputs, 3, step, padding=1)  # type: ignore[arg-type]
        self.norm1 = nn.InstanceNorm3d(outputs, affine=True)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(outputs, affine=True)
        self.conv3 = nn.Conv3d(inputs, outputs, 1, step) if project else None  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.leaky_relu(self.norm1(self.conv1(x)))))
        return F.leaky_relu(y + (self.conv3(x) if self.conv3 else x))


def _stage(inputs: int, outputs: int, depth: int, stride: Sequence[int] = (1, 1, 1)) -> nn.Module:
    more = (Block(outputs, outputs) for _ in range(depth - 1))
    return nn.Sequential(Block(inputs, outputs, stride, project=True), *more)


class Up(nn.Module):
    """Nearest-neighbour interpolation by the stride, then a 1 x 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1)
        self.scale = [float(s) for s in stride]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.scale, mode="nearest"))


class STUNet(nn.Module):
    """``[b, in_channels, z, y, x]``, axes multiples of their strides' products, to an ``Output``.

    Its features are the encoder's maps from the third stage on, as of ``networks.unet.UNet``.

    Args:
        size: small, base, large or huge (the paper's S, B, L, H: 14.6, 58.3, 440 and 1457 million
            parameters): sets channels and depths.
        channels: of each stage, in the place of the size's.
        depths: blocks of each stage, in the place of the size's.
        strides: of each stage but the first, along each axis.
        deep_supervision: whether ``scales`` are given where they are asked for.

    Raises:
        ValueError: an unknown size, or lists that do not belong together.
    """

    whole_region = False

    def __init__(
        self,
        in_channels: int,
        classes: int,
        size: str = "small",
        channels: Sequence[int] = (),
        depths: Sequence[int] = (),
        strides: Sequence[Sequence[int]] = STRIDES,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size '{size}': expected one of {', '.join(SIZES)}")
        width, depth = SIZES[size]
        channels = channels or [width * factor for factor in WIDTHS]
        depths = depths or [depth] * len(channels)
        if len(channels) < 2 or {len(depths), len(strides) + 1} != {len(channels)}:
            raise ValueError(
                f"STU-Net of {len(channels)} stages: expected at least two, as many depths, and "
                "one stride fewer"
            )
        below = len(channels) - 1
        self.conv_blocks_context = nn.ModuleList(
            _stage(
                channels[i - 1] if i else in_channels,
                channels[i],
                depths[i],
                strides[i - 1] if i else (1, 1, 1),
            )
            for i in range(len(channels))
        )
        up = list(reversed(range(below)))  # of the decoder's stages, coarsest first
        self.upsample_layers = nn.ModuleList(
            Up(channels[i + 1], channels[i], strides[i]) for i in up
        )
        self.conv_blocks_localization = nn.ModuleList(
            _stage(2 * channels[i], channels[i], depths[i]) for i in up
        )
        self.seg_outputs = nn.ModuleList(nn.Conv3d(channels[i], classes, 1) for i in up)
        self.deep_supervision = deep_supervision

    def forward(self, x: Tensor, scales: bool = False) -> Output:
        maps: list[Tensor] = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            maps.append(x)
        logits: list[Tensor] = []
        layers = zip(self.upsample_layers, self.conv_blocks_localization, reversed(maps[:-1]))
        for number, (up, stage, skip) in enumerate(layers):
            x = stage(torch.cat([up(x), skip], 1))
            if (scales and self.deep_supervision) or number == len(self.seg_outputs) - 1:
                logits.append(self.seg_outputs[number](x))
        finest, *coarser = reversed(logits)
        return Output(finest, tuple(coarser), tuple(maps[2:]))
