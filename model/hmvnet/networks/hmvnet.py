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
* sizes that no window divides are padded, and the padding is masked in the attention.

Shapes in comments: b batch, c channels, z y x voxels, n windows, h heads, t tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from hmvnet.imaging.intensity import AIR


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
        modality: how PET and CT meet: ``early`` (both into one stem) or ``gated`` (a stem each,
            and at every stage each modality gates the joint features).
        norm: of the convolutions: ``batch``, or ``group`` (about 8 channels a group) where a patch
            is about as large as what inference sees.
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
    modality: Literal["early", "gated"] = "early"
    norm: Literal["batch", "group"] = "batch"
    head_channels_full: int = 8

    def __post_init__(self) -> None:
        stages = len(self.depths)
        if not 2 <= stages <= 5 or {len(self.convs), len(self.mlp_ratios)} != {stages}:
            raise ValueError(
                "HM-VNet has two to five stages: give depths, convs and mlp_ratios a number each"
            )
        if (2 * self.channels) % self.head_channels:
            raise ValueError("2 * channels must be a multiple of head_channels")
        if self.modality not in ("early", "gated"):
            raise ValueError(f"modality '{self.modality}': expected early or gated")
        if self.norm not in ("batch", "group"):
            raise ValueError(f"norm '{self.norm}': expected batch or group")


class _SumOverProcesses(torch.autograd.Function):
    """All-reduced sum; so is the gradient, for what every process adds to the shared loss."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


def pad_with_air(x: Tensor, more: Sequence[int]) -> Tensor:
    """``[b, c, z, y, x]`` (CT, PET) with that many voxels of air after the end of each axis."""
    if not any(more):
        return x
    fill = x.new_tensor(AIR).repeat(x.shape[1])[: x.shape[1]].view(1, -1, 1, 1, 1)
    return F.pad(x - fill, (0, more[2], 0, more[1], 0, more[0])) + fill


class SharedBatchNorm(nn.BatchNorm3d):
    """BatchNorm whose statistics are of the whole batch where processes share it.

    torch's SyncBatchNorm does the same, on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        shared = distributed.is_available() and distributed.is_initialized()
        if not self.training or not shared or distributed.get_world_size() == 1:
            return super().forward(x)
        values, axes, view = x.float(), (0, 2, 3, 4), (1, -1, 1, 1, 1)
        count = values.numel() / values.shape[1] * distributed.get_world_size()
        mean = _SumOverProcesses.apply(values.sum(axes)) / count
        centred = values - mean.view(view)
        variance = _SumOverProcesses.apply(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / max(count - 1, 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(view) + self.bias.view(view)).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """As ``nn.BatchNorm3d``: a moving average, or without momentum the mean of all."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum or 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def make_norm(channels: int, norm: str) -> nn.Module:
    """The norm of convolution features ``[b, c, z, y, x]``."""
    if norm == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)
    return SharedBatchNorm(channels)


class ResidualBlock(nn.Module):
    """Norm, GELU, 3 x 3 x 3 convolution, twice, added to the input."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm1 = make_norm(channels, norm)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = make_norm(channels, norm)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.gelu(self.norm1(x)))
        return x + self.conv2(F.gelu(self.norm2(y)))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside the windows of a token map, with relative position bias.

    ``shift`` moves the windows by half a window (cyclically; tokens that meet only through the
    wrap-around do not see each other).
    """

    # Windows are attended in chunks whose mask stays below this many numbers.
    mask_budget = 1 << 25

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
        self._bias_cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[b, z, y, x, c]`` to the same shape."""
        size = x.shape[1:4]
        window = tuple(min(self.window, n) for n in size)
        shift = tuple(w // 2 if self.shift and n > w else 0 for w, n in zip(window, size))
        pad = tuple(-n % w for n, w in zip(size, window))
        if any(pad):
            x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        if any(shift):
            x = torch.roll(x, [-s for s in shift], dims=(1, 2, 3))
        tokens = _partition(x, window)  # (b, n, t, c)
        groups = _token_groups(size, pad, window, shift, x.device)
        tokens = self.proj(self._attend(self.qkv(tokens), self._bias(window), groups))
        x = _unpartition(tokens, x.shape, window)
        if any(shift):
            x = torch.roll(x, shift, dims=(1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]

    position_index: Tensor

    def _attend(self, qkv: Tensor, bias: Tensor, groups: Tensor | None) -> Tensor:
        b, n, t, _ = qkv.shape
        # (3, b, n, h, t, c/h)
        q, k, v = qkv.reshape(b, n, t, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        if groups is None:
            shape = (b * n, self.heads, t, -1)
            out = F.scaled_dot_product_attention(
                q.reshape(shape), k.reshape(shape), v.reshape(shape), attn_mask=bias.to(q.dtype)
            )
            return out.reshape(b, n, self.heads, t, -1).transpose(2, 3).reshape(b, n, t, -1)
        step = max(1, self.mask_budget // bias.numel())
        chunks = []
        for start in range(0, n, step):
            part = slice(start, start + step)
            apart = groups[part, :, None] != groups[part, None, :]  # (n, t, t)
            mask = bias.masked_fill(apart[:, None], -1e4).to(q.dtype)  # (n, h, t, t)
            outs = [
                F.scaled_dot_product_attention(q[i, part], k[i, part], v[i, part], attn_mask=mask)
                for i in range(b)
            ]
            chunks.append(torch.stack(outs))
        return torch.cat(chunks, 1).transpose(2, 3).reshape(b, n, t, -1)

    def _bias(self, window: tuple[int, ...]) -> Tensor:
        """Relative position bias ``[h, t, t]`` of a (possibly shrunk) window."""
        if window == (self.window,) * 3:
            if self.training or torch.is_grad_enabled():
                self._bias_cache = None
                return self.position_bias[:, self.position_index]
            if self._bias_cache is None or self._bias_cache.device != self.position_bias.device:
                self._bias_cache = self.position_bias[:, self.position_index]
            return self._bias_cache
        full = self.position_index.reshape((self.window,) * 6)
        index = full[: window[0], : window[1], : window[2], : window[0], : window[1], : window[2]]
        tokens = window[0] * window[1] * window[2]
        return self.position_bias[:, index.reshape(tokens, tokens)]

    def _apply(self, fn, recurse: bool = True):
        self._bias_cache = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._bias_cache = None
        super()._load_from_state_dict(*args, **kwargs)


def _relative_index(window: int) -> Tensor:
    """Index of each token pair's offset into the bias table, ``[t, t]``."""
    axis = torch.arange(window)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    offset = points[:, None] - points[None, :] + window - 1
    span = 2 * window - 1
    return (offset[..., 0] * span + offset[..., 1]) * span + offset[..., 2]


def _partition(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """``[b, z, y, x, c]`` to windows ``[b, n, t, c]``."""
    b, z, y, w, c = x.shape
    wz, wy, wx = window
    x = x.reshape(b, z // wz, wz, y // wy, wy, w // wx, wx, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, wz * wy * wx, c)


def _unpartition(tokens: Tensor, shape: Sequence[int], window: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`_partition`; ``shape`` is that of the padded map."""
    b, z, y, w, c = shape
    wz, wy, wx = window
    x = tokens.reshape(b, z // wz, y // wy, w // wx, wz, wy, wx, c)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, z, y, w, c)


def _token_groups(
    size: Sequence[int],
    pad: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    device: torch.device,
) -> Tensor | None:
    """Which tokens of a window may see each other: equal numbers, ``[n, t]``; None if all may.

    Padding is a group of its own, and so is what the cyclic shift brought from the far end.
    """
    if not (any(pad) or any(shift)):
        return None
    axes = []
    for n, p, s in zip(size, pad, shift):
        position = torch.arange(n + p, device=device)
        group = (position >= n).long()  # padding
        group = torch.roll(group, -s)
        if s:
            group = group + 2 * (position >= n + p - s)  # wrapped around
        axes.append(group)
    gz, gy, gx = axes
    groups = (gz[:, None, None] * 4 + gy[None, :, None]) * 4 + gx
    return _partition(groups[None, ..., None], window)[0, ..., 0]


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
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SwinStage(nn.Module):
    """Patch merging (2 x 2 x 2 convolution of stride 2), residual convolutions, Swin blocks.

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
        x = self.convs(self.merge(x))
        return self.blocks(x.movedim(1, -1)).movedim(-1, 1)


class CrossModalGate(nn.Module):
    """Lets CT and PET gate the joint features of a stage.

    ``joint * (1 + tanh(gate(modalities))) + shift(modalities)``, the modalities averaged down to
    the stage's resolution. Starts as the identity.
    """

    def __init__(self, modality_channels: int, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(modality_channels, 2 * channels, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, joint: Tensor, modalities: Tensor) -> Tensor:
        gate, shift = self.mix(modalities).chunk(2, 1)
        return joint * (1 + torch.tanh(gate)) + shift


class UpStage(nn.Module):
    """Transposed convolution of stride 2, the skip added, a residual pair of convolutions."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
        self.block = ResidualBlock(outputs, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(self.up(x) + skip)


class HMVNet(nn.Module):
    """PET/CT ``[b, 2, z, y, x]`` to logits ``[b, classes, z, y, x]``; any size of 2 voxels or more.

    ``network(x, scales=True)`` gives the logits at several resolutions for deep supervision.
    """

    multi_scale = True

    def __init__(self, config: HMVNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HMVNetConfig()
        c, stages = config.channels, len(config.depths)
        self.stride = 2 ** (stages + 1)
        if config.modality == "gated":
            self.stems = nn.ModuleList(
                nn.Sequential(
                    nn.Conv3d(1, c // 2, 3, stride=2, padding=1),
                    ResidualBlock(c // 2, config.norm),
                )
                for _ in range(config.in_channels)
            )
            self.join = nn.Conv3d(c // 2 * config.in_channels, c, 1)
            self.gates = nn.ModuleList(
                CrossModalGate(c // 2 * config.in_channels, c << i) for i in range(1, stages + 1)
            )
        else:
            self.stem = nn.Sequential(
                nn.Conv3d(config.in_channels, c, 3, stride=2, padding=1),
                ResidualBlock(c, config.norm),
            )
        self.stages = nn.ModuleList(SwinStage(c << i, config, i) for i in range(stages))
        self.ups = nn.ModuleList(
            UpStage(c << (i + 1), c << i, config.norm) for i in reversed(range(stages))
        )
        scales = range(min(3, stages))  # 1/2, 1/4, 1/8
        self.scale_heads = nn.ModuleList(
            nn.Sequential(
                make_norm(c << i, config.norm), nn.GELU(), nn.Conv3d(c << i, config.classes, 1)
            )
            for i in scales
        )
        self.refine = nn.Sequential(
            nn.Conv3d(config.in_channels + config.classes, config.head_channels_full, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(config.head_channels_full, config.classes, 1),
        )

    def settings(self) -> dict:
        """The configuration, as ``weights/`` manifests store it."""
        return asdict(self.config)

    def forward(self, x: Tensor, scales: bool = False) -> Tensor | list[Tensor]:
        """Logits ``[b, classes, z, y, x]`` of the input's own size.

        With ``scales`` a list: these, and those at 1/2, 1/4, 1/8 of the padded map. An argument
        rather than a method, since only ``forward`` passes through DDP and mixed precision.
        """
        padded = self._pad(x)
        logits = self._decode(padded, self._encode(padded), coarse=scales)
        logits[0] = logits[0][..., : x.shape[2], : x.shape[3], : x.shape[4]]
        return logits if scales else logits[0]

    def forward_with_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the encoder map of each stage (2C, 4C ... channels at 1/4, 1/8 ...)."""
        padded = self._pad(x)
        features = self._encode(padded)
        logits = self._decode(padded, features, coarse=False)[0]
        return logits[..., : x.shape[2], : x.shape[3], : x.shape[4]], features[1:]

    def _pad(self, x: Tensor) -> Tensor:
        return pad_with_air(x, [-n % self.stride for n in x.shape[2:]])

    def _encode(self, x: Tensor) -> list[Tensor]:
        if self.config.modality == "gated":
            modalities = torch.cat([stem(x[:, i : i + 1]) for i, stem in enumerate(self.stems)], 1)
            features = [self.join(modalities)]
            for stage, gate in zip(self.stages, self.gates):
                modalities = F.avg_pool3d(modalities, 2)
                features.append(gate(stage(features[-1]), modalities))
            return features
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features

    def _decode(self, x: Tensor, features: list[Tensor], coarse: bool) -> list[Tensor]:
        d = features[-1]
        maps: list[Tensor] = []
        for up, skip in zip(self.ups, reversed(features[:-1])):
            d = up(d, skip)
            maps.insert(0, d)  # 1/2, 1/4, 1/8 ...
        half = self.scale_heads[0](maps[0])
        up_half = F.interpolate(half, scale_factor=2.0, mode="trilinear", align_corners=False)
        full = up_half + self.refine(torch.cat([x, up_half], 1))
        if not coarse:
            return [full]
        coarser = [head(m) for head, m in zip(self.scale_heads[1:], maps[1:])]
        return [full, half, *coarser]
