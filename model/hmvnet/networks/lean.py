"""HM-VNet's inference in less time and memory: the same arithmetic, otherwise laid out.

Where nobody asks for gradients, activations may be overwritten, a BatchNorm behind a convolution is
part of its weights, and the full-resolution head needs a slab of the volume at a time. What comes
out differs from the plain forward by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLAB = 16  # planes of the full-resolution head at a time; even


def allowed(module: nn.Module) -> bool:
    """Whether a module runs for its output alone: no gradients, no training, no export."""
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


def gelu_in_place(x: Tensor) -> Tensor:
    """GELU, written over its input."""
    return torch.ops.aten.gelu_(x)


def norm_and_gelu(norm: nn.Module, x: Tensor) -> Tensor:
    """``gelu(norm(x))``."""
    return gelu_in_place(norm(x))


def pointwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A 1 x 1 x 1 convolution in channels_last_3d, as the matrix product that it is."""
    return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)


def folded(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution followed by a BatchNorm with its running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return conv.weight * scale.view(-1, 1, 1, 1, 1), bias


def conv_and_norm(conv: nn.Conv3d, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``, in one go where the norm has fixed statistics."""
    if isinstance(norm, nn.BatchNorm3d) and norm.running_mean is not None:
        return F.conv3d(x, *folded(conv, norm), padding=conv.padding)  # type: ignore[arg-type]
    return norm(conv(x))


def cut_to(size: Sequence[int], x: Tensor) -> Tensor:
    """The first voxels of ``[b, c, z, y, x]``, so many an axis."""
    return x[..., : size[0], : size[1], : size[2]]


def up_and_add(up: nn.ConvTranspose3d, x: Tensor, skip: Tensor) -> Tensor:
    """``up(x) + skip``, as far as the skip goes."""
    y = up(x)
    return y.add_(skip) if y.shape == skip.shape else cut_to(skip.shape[2:], y) + skip


def full_resolution(half: Tensor, x: Tensor, refine: nn.Sequential) -> Tensor:
    """The full-resolution head, slab by slab: logits float32 ``[b, classes, z, y, x]``.

    Trilinear interpolation of the logits at half the resolution, to which ``refine`` adds what it
    makes of them and of the volume.

    Args:
        half: logits ``[b, classes, *]`` at half the resolution, rounded up.
        x: the volume.
        refine: a 3 x 3 x 3 convolution of volume and logits, GELU, a 1 x 1 x 1 convolution.
    """
    batch, inputs, depth, rows, width = x.shape
    classes, half = half.shape[1], half.float().contiguous()
    run = in_pairs(refine) if x.device.type == "cpu" else one_by_one(refine)
    logits = x.new_empty((batch, classes, depth, rows, width), dtype=torch.float32)
    # Zeros around the volume, as the convolution pads; an even row for the pairs.
    frame = x.new_zeros((batch, SLAB + 2, rows, width + width % 2, inputs + classes))
    for first in range(0, depth, SLAB):
        last = min(first + SLAB, depth)
        low, high = max(first - 1, 0), min(last + 1, depth)  # what the convolution sees
        start, stop = max(first // 2 - 1, 0), min((last + 1) // 2 + 1, half.shape[2])
        fine = F.interpolate(
            half[:, :, start:stop], scale_factor=2.0, mode="trilinear", align_corners=False
        )[:, :, low - 2 * start : high - 2 * start, :rows, :width]
        seen = frame[:, : last - first + 2]
        if high == last:
            seen[:, -1] = 0
        inside = seen[:, low - first + 1 : high - first + 1, :, :width].movedim(-1, 1)
        inside[:, :inputs] = x[:, :, low:high]
        inside[:, inputs:] = fine
        found = run(seen)[..., :width]
        found += fine[:, :, first - low : last - low]
        logits[:, :, first:last] = found
    return logits


def one_by_one(refine: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """The head's convolutions on ``[b, z + 2, y, x, c]``; gives ``[b, classes, z, y, x]``."""
    wide, narrow = cast(nn.Conv3d, refine[0]), cast(nn.Conv3d, refine[-1])

    def run(seen: Tensor) -> Tensor:
        y = F.conv3d(seen.movedim(-1, 1), wide.weight, wide.bias, padding=(0, 1, 1))
        return narrow(gelu_in_place(y)).float()

    return run


def in_pairs(refine: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """As ``one_by_one``, two neighbours along x at a time as one voxel of twice the channels.

    A CPU's vectors are wider than the head's few channels. A third of the weights are zeros, and
    still it takes about half the time.
    """
    wide, narrow = cast(nn.Conv3d, refine[0]), cast(nn.Conv3d, refine[-1])
    assert wide.bias is not None and narrow.bias is not None
    weight, bias = pair_weight(wide.weight), wide.bias.repeat(2)
    last = torch.block_diag(*[narrow.weight.flatten(1)] * 2)
    last_bias = narrow.bias.repeat(2)

    def run(seen: Tensor) -> Tensor:
        b, z, y, x, c = seen.shape
        pairs = seen.view(b, z, y, x // 2, 2 * c).movedim(-1, 1)
        wider = gelu_in_place(F.conv3d(pairs, weight, bias, padding=(0, 1, 1)))
        found = F.linear(wider.movedim(1, -1), last, last_bias)
        return found.reshape(b, z - 2, y, x, -1).movedim(-1, 1).float()

    return run


def pair_weight(weight: Tensor) -> Tensor:
    """A 3 x 3 x 3 convolution's weight ``[o, i, 3, 3, 3]`` for pairs along x: ``[2o, 2i, ...]``.

    Channels of a pair are those of its first voxel, then those of its second.
    """
    out, inputs = weight.shape[:2]
    wide = weight.new_zeros(2, out, 2, inputs, *weight.shape[2:])
    for to in range(2):
        for pair in (-1, 0, 1):
            for source in range(2):
                offset = 2 * pair + source - to
                if abs(offset) <= 1:
                    wide[to, :, source, ..., pair + 1] = weight[..., offset + 1]
    return wide.flatten(2, 3).flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)
