"""HM-VNet: a V-shaped 3D segmentation network for PET/CT.

A convolutional stem, four Swin-Transformer stages (Liu et al., ICCV 2021, in 3D), and four
transposed-convolution stages with skip connections. Attention is paid where it is cheap, from a
quarter of the resolution downwards; the full resolution sees only a thin head.

Two choices differ from the usual Swin U-Nets, and both serve inference on the whole head-and-neck
region in one pass after training on patches:

* every normalisation is a LayerNorm over channels, so that what the network computes at a voxel
  does not depend on how much air the field of view holds around it (an InstanceNorm's statistics
  differ between a patch and the whole region);
* sizes that no window divides are padded, and the padding is masked in the attention.

Shapes in comments: b batch, c channels, z y x voxels, n windows, h heads, t tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class HMVNetConfig:
    """The network's sizes.

    Attributes:
        in_channels: CT and PET.
        classes: background, GTVp, GTVn.
        channels: C; the stages have 2C, 4C, 8C and 16C channels.
        depths: Swin blocks of each stage, shifted ones in second place.
        window: edge of an attention window in tokens (shrunk to the map where that is smaller).
        head_channels: channels of one attention head.
        mlp_ratios: expansion of the MLP in each stage.
        modality: how PET and CT meet: ``early`` (both into one stem) or ``gated`` (a stem each,
            and at every stage each modality gates the joint features).
        head_channels_full: channels of the head's full-resolution layer.
        stem_norm: ChannelNorm in the stem; without, the stem keeps the size of HU and SUV.
    """

    in_channels: int = 2
    classes: int = 3
    channels: int = 16
    depths: tuple[int, ...] = (2, 2, 2, 2)
    window: int = 6
    head_channels: int = 16
    mlp_ratios: tuple[float, ...] = (2.0, 2.0, 4.0, 4.0)
    modality: Literal["early", "gated"] = "early"
    head_channels_full: int = 8
    stem_norm: bool = True

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or len(self.mlp_ratios) != 4:
            raise ValueError("HM-VNet has four stages: give four depths and four mlp_ratios")
        if (2 * self.channels) % self.head_channels:
            raise ValueError("2 * channels must be a multiple of head_channels")
        if self.modality not in ("early", "gated"):
            raise ValueError(f"modality '{self.modality}': expected early or gated")


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``[b, c, z, y, x]``; free of copies in channels_last_3d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def conv_block(inputs: int, outputs: int, stride: int = 1, norm: bool = True) -> nn.Sequential:
    """3 x 3 x 3 convolution, ChannelNorm (or none), GELU."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1),
        ChannelNorm(outputs) if norm else nn.Identity(),
        nn.GELU(),
    )


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
    """Patch merging (2 x 2 x 2 convolution of stride 2), a convolution, then Swin blocks.

    The residual 3 x 3 x 3 convolution before the blocks (He et al., "SwinUNETR-V2: stronger Swin
    Transformers with stagewise convolutions", MICCAI 2023) gives attention local features to work
    on; it starts as the identity.

    ``[b, c, z, y, x]`` to ``[b, 2c, z/2, y/2, x/2]``.
    """

    def __init__(self, inputs: int, depth: int, config: HMVNetConfig, mlp_ratio: float) -> None:
        super().__init__()
        channels = 2 * inputs
        self.merge = nn.Conv3d(inputs, channels, 2, stride=2)
        self.merge_norm = ChannelNorm(channels)
        self.conv = conv_block(channels, channels)
        norm = self.conv[1]
        assert isinstance(norm, ChannelNorm)
        nn.init.zeros_(norm.weight)
        self.blocks = nn.Sequential(
            *(
                SwinBlock(
                    channels,
                    channels // config.head_channels,
                    config.window,
                    mlp_ratio,
                    shift=i % 2 == 1,
                )
                for i in range(depth)
            )
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge_norm(self.merge(x))
        x = x + self.conv(x)
        x = self.norm(self.blocks(x.movedim(1, -1)))
        return x.movedim(-1, 1)


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
    """Transposed convolution of stride 2, the skip beside it, a residual pair of convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
        self.conv1 = conv_block(2 * outputs, outputs)
        self.conv2 = conv_block(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.conv1(torch.cat([self.up(x), skip], 1))
        return x + self.conv2(x)


class HMVNet(nn.Module):
    """PET/CT ``[b, 2, z, y, x]`` to logits ``[b, classes, z, y, x]``; any size of 2 voxels or more.

    ``forward_features`` gives the encoder's maps, ``network(x, scales=True)`` the logits at
    several resolutions for deep supervision.
    """

    stride = 32
    multi_scale = True

    def __init__(self, config: HMVNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HMVNetConfig()
        c = config.channels
        if config.modality == "gated":
            self.stems = nn.ModuleList(
                nn.Sequential(conv_block(1, c // 2, stride=2), conv_block(c // 2, c // 2))
                for _ in range(config.in_channels)
            )
            self.join = conv_block(c // 2 * config.in_channels, c)
            self.gates = nn.ModuleList(
                CrossModalGate(c // 2 * config.in_channels, c << i) for i in range(1, 5)
            )
        else:
            self.stem = nn.Sequential(
                conv_block(config.in_channels, c, stride=2, norm=config.stem_norm),
                conv_block(c, c, norm=config.stem_norm),
            )
        self.stages = nn.ModuleList(
            SwinStage(c << i, depth, config, ratio)
            for i, (depth, ratio) in enumerate(zip(config.depths, config.mlp_ratios))
        )
        self.ups = nn.ModuleList(UpStage(c << (i + 1), c << i) for i in reversed(range(4)))
        self.scale_heads = nn.ModuleList(nn.Conv3d(c << i, config.classes, 1) for i in (2, 1, 0))
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
        """Logits, and the four encoder maps (2C ... 16C channels at 1/4 ... 1/32)."""
        padded = self._pad(x)
        features = self._encode(padded)
        logits = self._decode(padded, features, coarse=False)[0]
        return logits[..., : x.shape[2], : x.shape[3], : x.shape[4]], features[1:]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps: stem (C, 1/2) and stages (2C ... 16C, 1/4 ... 1/32)."""
        return self._encode(self._pad(x))

    def _pad(self, x: Tensor) -> Tensor:
        pad = [-n % self.stride for n in x.shape[2:]]
        if not any(pad):
            return x
        # The value of air in CT and of no uptake in PET is each channel's minimum.
        fill = x.new_tensor([0.0, -1.0]).repeat(x.shape[1])[: x.shape[1]].view(1, -1, 1, 1, 1)
        padded = F.pad(x - fill, (0, pad[2], 0, pad[1], 0, pad[0]))
        return padded + fill

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
        maps = []
        for up, skip in zip(self.ups, reversed(features[:-1])):
            d = up(d, skip)
            maps.append(d)  # 1/16, 1/8, 1/4, 1/2
        half = self.scale_heads[-1](maps[-1])
        up_half = F.interpolate(half, scale_factor=2.0, mode="trilinear", align_corners=False)
        full = up_half + self.refine(torch.cat([x, up_half], 1))
        if not coarse:
            return [full]
        return [full, half, self.scale_heads[1](maps[2]), self.scale_heads[0](maps[1])]
