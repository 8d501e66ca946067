"""HM-VNet: a V-shaped 3D segmentation network for PET/CT.

A convolutional stem, four Swin-Transformer stages (Liu et al., ICCV 2021, in 3D), and four
transposed-convolution stages with skip connections. Attention is paid where it is cheap, from a
quarter of the resolution downwards; the full resolution sees only a thin head. Convolutions come
in residual pairs with the norm before them (He et al., "Identity mappings in deep residual
networks", ECCV 2016).

Two choices differ from the usual Swin U-Nets, and both serve inference on the whole head-and-neck
region in one pass after training on patches:

* convolutions are normalised by BatchNorm, tokens by LayerNorm, so that what the network computes
  at a voxel does not depend on how much air the field of view holds around it (the statistics of
  an InstanceNorm or GroupNorm differ between a patch and the whole region);
* windows end where the map ends: those at its edges are smaller, so that any size will do, and
  nothing is padded, moved around or masked for the attention.

Shapes in comments: b batch, c channels, z y x voxels, n windows, h heads, t tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmvnet.networks import lean
from hmvnet.networks.norms import NORMS, make_norm
from hmvnet.networks.output import Output


@dataclass(frozen=True)
class HMVNetConfig:
    """The network's sizes.

    Attributes:
        in_channels: CT and PET.
        classes: background, GTVp, GTVn.
        channels: C; the stages have 2C, 4C, 8C ... channels.
        depths: Swin blocks of each stage, every second one shifted. As many stages as numbers
            here, two to five; the design has four.
        convs: residual pairs of convolutions before each stage's Swin blocks.
        window: edge of an attention window in tokens (shrunk to the map where that is smaller).
        head_channels: channels of one attention head.
        mlp_ratios: expansion of the MLP in each stage.
        norm: of the convolutions: ``batch``; ``group`` (about 8 channels a group) where a patch is
            about as large as what inference sees, or it sees windows of the patch's size; or
            ``voxel``, which has no statistics.
        head_channels_full: channels of the head's full-resolution layer.
    """

    in_channels: int = 2
    classes: int = 3
    channels: int = 16
    depths: tuple[int, ...] = (2, 2, 2, 2)
    convs: tuple[int, ...] = (1, 1, 1, 0)
    window: int = 6
    head_channels: int = 16
    mlp_ratios: tuple[float, ...] = (2.0, 2.0, 2.0, 4.0)
    norm: Literal["batch", "group", "voxel"] = "batch"
    head_channels_full: int = 8

    def __post_init__(self) -> None:
        stages = len(self.depths)
        if not 2 <= stages <= 5 or {len(self.convs), len(self.mlp_ratios)} != {stages}:
            raise ValueError(
                "HM-VNet has two to five stages: give depths, convs and mlp_ratios a number each"
            )
        if (2 * self.channels) % self.head_channels:
            raise ValueError("2 * channels must be a multiple of head_channels")
        if self.norm not in NORMS:
            raise ValueError(f"norm '{self.norm}': expected one of {', '.join(NORMS)}")


class ResidualBlock(nn.Module):
    """Norm, GELU, 3 x 3 x 3 convolution, twice, added to the input."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm1 = make_norm(channels, norm)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = make_norm(channels, norm)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if lean.allowed(self):
            y = lean.conv_and_norm(self.conv1, self.norm2, lean.norm_and_gelu(self.norm1, x))
            return self.conv2(lean.gelu_in_place(y)).add_(x)
        y = self.conv1(F.gelu(self.norm1(x)))
        return x + self.conv2(F.gelu(self.norm2(y)))


def _run_stage(stage: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return stage(*inputs)


def stem(inputs: int, channels: int, norm: str) -> nn.Sequential:
    """``[b, inputs, z, y, x]`` to ``[b, channels, z/2, y/2, x/2]``."""
    return nn.Sequential(
        nn.Conv3d(inputs, channels, 3, stride=2, padding=1), ResidualBlock(channels, norm)
    )


class Run(NamedTuple):
    """Windows of one width in a row along an axis: ``tokens`` of them, a multiple of ``window``."""

    tokens: int
    window: int


def window_runs(size: int, window: int, shift: bool) -> list[Run]:
    """How an axis of ``size`` tokens is cut into windows.

    Whole windows, and a smaller one for what is left at the end. With ``shift`` they begin half a
    window before the axis, so that the first is smaller as well; an axis that is no longer than
    one window is not shifted.
    """
    window = min(window, size)
    first = window // 2 if shift and size > window else 0
    rest = (size - first) % window
    runs = [Run(first, first), Run(size - first - rest, window), Run(rest, rest)]
    return [run for run in runs if run.tokens]


def partition(x: Tensor, window: Sequence[int]) -> Tensor:
    """``[b, z, y, x, c]`` to windows ``[b * n, t, c]``."""
    b, z, y, w, c = x.shape
    wz, wy, wx = window
    x = x.reshape(b, z // wz, wz, y // wy, wy, w // wx, wx, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wz * wy * wx, c)


def unpartition(windows: Tensor, shape: Sequence[int], window: Sequence[int]) -> Tensor:
    """The inverse of ``partition``; ``shape`` is (b, z, y, x) of the map."""
    b, z, y, w = shape
    wz, wy, wx = window
    x = windows.reshape(b, z // wz, y // wy, w // wx, wz, wy, wx, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, z, y, w, -1)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside the windows of a token map, with relative position bias.

    ``shift`` moves the windows by half a window. Where Swin moves the map around cyclically and
    masks what does not belong together, the map is cut here: at most three runs of equal windows
    an axis (``window_runs``), and all windows of a combination of runs are attended at once.
    """

    position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: bool) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.shift = shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.position_bias = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 3))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("position_index", _relative_index(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, z, y, x, c]`` to the same shape."""
        runs = [window_runs(n, self.window, self.shift) for n in x.shape[1:4]]
        return self.proj(self._cut(self.qkv(x), self._bias(x.shape[1:4]), runs))

    def _bias(self, size: Sequence[int]) -> Tensor:
        """Relative position bias ``[h, z, y, x, z, y, x]`` of the largest window of a map."""
        z, y, x = (min(self.window, n) for n in size)
        return self.position_bias[:, self.position_index[:z, :y, :x, :z, :y, :x]]

    def _cut(self, qkv: Tensor, bias: Tensor, runs: Sequence[Sequence[Run]], axis: int = 0):
        """Attention in a map ``[b, z, y, x, 3c]``, cut into runs along an axis and those after."""
        if axis == len(runs):
            return self._attend(qkv, bias)
        done = []
        for part, run in zip(qkv.split([r.tokens for r in runs[axis]], axis + 1), runs[axis]):
            # A smaller window's positions are the first of a larger one's.
            own = bias.narrow(axis + 1, 0, run.window).narrow(axis + 4, 0, run.window)
            done.append(self._cut(part, own, runs, axis + 1))
        return torch.cat(done, axis + 1) if len(done) > 1 else done[0]

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Attention in a map ``[b, z, y, x, 3c]`` that windows of the bias's size divide."""
        window = bias.shape[1:4]
        windows = partition(qkv, window).unflatten(-1, (3, self.heads, -1))
        q, k, v = windows.permute(2, 0, 3, 1, 4)  # (b * n, h, t, c/h) each
        # (1, h, t, t): without the first axis torch takes a slower way.
        mask = bias.flatten(1, 3).flatten(2).to(q.dtype)[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return unpartition(out.transpose(1, 2).flatten(2), qkv.shape[:4], window)


def _relative_index(window: int) -> Tensor:
    """Index of each token pair's offset into the bias table, ``[z, y, x, z, y, x]``."""
    axis = torch.arange(window)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    offset = points[:, None] - points[None, :] + window - 1
    span = 2 * window - 1
    index = (offset[..., 0] * span + offset[..., 1]) * span + offset[..., 2]
    return index.reshape((window,) * 6)


class SwinBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual; tokens are ``[b, z, y, x, c]``."""

    def __init__(
        self, channels: int, heads: int, window: int, mlp_ratio: float, shift: bool
    ) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        if lean.allowed(self):
            x = self.attention(self.norm1(x)).add_(x)
            return self.mlp[2](lean.gelu_in_place(self.mlp[0](self.norm2(x)))).add_(x)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SwinStage(nn.Module):
    """Patch merging (2 x 2 x 2 convolution of stride 2), residual convolutions, Swin blocks.

    An odd axis has its last plane twice, so that an axis of n becomes one of n / 2, rounded up.

    The convolutions before the blocks (He et al., "SwinUNETR-V2: stronger Swin Transformers with
    stagewise convolutions", MICCAI 2023) give attention local features to work on.

    ``[b, c, z, y, x]`` to ``[b, 2c, z/2, y/2, x/2]``.
    """

    def __init__(self, inputs: int, config: HMVNetConfig, stage: int) -> None:
        super().__init__()
        channels = 2 * inputs
        self.merge = nn.Conv3d(inputs, channels, 2, stride=2)
        self.convs = nn.Sequential(
            *(ResidualBlock(channels, config.norm) for _ in range(config.convs[stage]))
        )
        self.blocks = nn.Sequential(
            *(
                SwinBlock(
                    channels,
                    channels // config.head_channels,
                    config.window,
                    config.mlp_ratios[stage],
                    shift=i % 2 == 1,
                )
                for i in range(config.depths[stage])
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(self.merge(_even(x)))
        return self.blocks(x.movedim(1, -1)).movedim(-1, 1)


def _even(x: Tensor) -> Tensor:
    """``[b, c, z, y, x]``, the last plane of each odd axis twice."""
    for axis in (2, 3, 4):
        if x.shape[axis] % 2:
            x = torch.cat([x, x.narrow(axis, -1, 1)], axis)
    return x


class UpStage(nn.Module):
    """Transposed convolution of stride 2, the skip added, a residual pair of convolutions."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
        self.block = ResidualBlock(outputs, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(lean.cut_to(skip.shape[2:], self.up(x)) + skip)


class HMVNet(nn.Module):
    """PET/CT ``[b, 2, z, y, x]``, of any size, to an ``Output``.

    Its features are the maps of the encoder's stages: 2C, 4C ... channels at 1/4, 1/8 ... of the
    input, rounded up at each stage; its scales are at 1/2, 1/4 and 1/8. Nothing is padded to a
    multiple of 32: that would be a quarter more work, and what a GroupNorm takes its statistics
    of would be air, which the patches of a training do not hold.
    """

    whole_region = True

    def __init__(self, config: HMVNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HMVNetConfig()
        # How a stage is run in training; hmvnet.training.recompute puts another way here.
        self.run_stage: Callable[..., Tensor] = _run_stage
        c, stages = config.channels, len(config.depths)
        self.stride = 2 ** (stages + 1)  # of the coarsest map
        self.stem = stem(config.in_channels, c, config.norm)
        self.stages = nn.ModuleList(SwinStage(c << i, config, i) for i in range(stages))
        self.ups = nn.ModuleList(
            UpStage(c << (i + 1), c << i, config.norm) for i in reversed(range(stages))
        )
        self.scale_heads = nn.ModuleList(
            nn.Sequential(
                make_norm(c << i, config.norm), nn.GELU(), nn.Conv3d(c << i, config.classes, 1)
            )
            for i in range(min(3, stages))  # 1/2, 1/4, 1/8
        )
        self.refine = nn.Sequential(
            nn.Conv3d(config.in_channels + config.classes, config.head_channels_full, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(config.head_channels_full, config.classes, 1),
        )

    def forward(self, x: Tensor, scales: bool = False) -> Output:
        """Logits, encoder maps, and with ``scales`` the coarser logits of deep supervision.

        An argument rather than a method of its own, since only ``forward`` passes through DDP and
        mixed precision.
        """
        if lean.allowed(self):
            return self._lean(x, scales)
        encoded = self._encode(self.stem[0](x))
        decoded = self._decode(encoded)
        half = self.scale_heads[0](decoded[0])
        fine = F.interpolate(half, scale_factor=2.0, mode="trilinear", align_corners=False)
        fine = lean.cut_to(x.shape[2:], fine)
        logits = fine + self.run_stage(self.refine, torch.cat([x, fine], 1))
        coarse: list[Tensor] = []
        if scales:
            coarse = [half, *(head(m) for head, m in zip(self.scale_heads[1:], decoded[1:]))]
        return Output(logits, tuple(coarse), tuple(encoded[1:]))

    def _lean(self, x: Tensor, scales: bool) -> Output:
        """As ``forward``, nothing kept for longer than it is needed."""
        encoded = self._encode(self.stem[0](x.contiguous(memory_format=torch.channels_last_3d)))
        features, decoded = tuple(encoded[1:]), [encoded.pop()]
        for up in cast(Iterable[UpStage], self.ups):
            y = up.block(lean.up_and_add(up.up, decoded[0], encoded.pop()))
            decoded = [y, *decoded] if scales else [y]
        del y
        norm, conv = self.scale_heads[0][0], self.scale_heads[0][-1]  # type: ignore[index]
        half = lean.pointwise(conv, lean.norm_and_gelu(norm, decoded[0]))
        coarse = [head(m) for head, m in zip(self.scale_heads[1:], decoded[1:])] if scales else []
        decoded.clear()
        logits = lean.full_resolution(half, x, self.refine)
        return Output(logits, (half, *coarse) if scales else (), features)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """The maps at 1/2, 1/4 ..., from what the stem's first convolution gives."""
        encoded = [self.run_stage(self.stem[1], x)]
        del x
        for stage in self.stages:
            encoded.append(self.run_stage(stage, encoded[-1]))
        return encoded

    def _decode(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        """The decoder's maps at 1/2, 1/4, 1/8 ..."""
        x = encoded[-1]
        decoded: list[Tensor] = []
        for up, skip in zip(self.ups, reversed(encoded[:-1])):
            x = self.run_stage(up, x, skip)
            decoded.insert(0, x)
        return decoded
