"""Sliding windows that overlap, weighted by a Gaussian, as nnU-Net lays them.

Isensee et al., Nature Methods 2021: windows lie evenly, by no more than a share of their size
apart, and the middle of a window counts more than its borders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from hmvnet.networks.output import stride_of

SIGMA = 1 / 8  # of the weights, as a share of the window
PEAK = 10.0


def starts(size: int, window: int, step: float) -> list[int]:
    """Where the windows of one axis begin, evenly from its first voxel to its last.

    Raises:
        ValueError: the axis is shorter than a window.
    """
    if size < window:
        raise ValueError(f"an axis of {size} voxels, windows of {window}")
    count = math.ceil((size - window) / (window * step)) + 1
    return [int(np.round((size - window) / max(count - 1, 1) * i)) for i in range(count)]


@lru_cache(maxsize=16)
def importance(window: tuple[int, ...]) -> Tensor:
    """The weight of each voxel of a window, float32, above 0; as nnU-Net rounds it to half."""
    impulse = np.zeros(window)
    impulse[tuple(n // 2 for n in window)] = 1
    weights = ndimage.gaussian_filter(impulse, [n * SIGMA for n in window], mode="constant")
    rounded = torch.from_numpy(weights / weights.max() * PEAK).half().float()
    return rounded.clamp(min=rounded[rounded > 0].min().item())


def slide(
    volume: Tensor,
    window: Sequence[int],
    step: float,
    network: Callable[[Tensor], Sequence[Tensor]],
) -> list[Tensor]:
    """What a network says of ``[1, c, z, y, x]``, put together from windows.

    Args:
        volume: no axis shorter than the window.
        step: from one window to the next at most, as a share of the window.
        network: a window to tensors ``[1, c, *]``, at its size or coarser by a factor an axis.

    Returns:
        The tensors of the whole, float32.
    """
    size = volume.shape[2:]
    sums: list[Tensor] = []
    weights: list[Tensor] = []
    for corner in product(*(starts(n, w, step) for n, w in zip(size, window, strict=True))):
        z, y, x = (slice(a, a + w) for a, w in zip(corner, window))
        for number, values in enumerate(network(volume[:, :, z, y, x])):
            small = values.shape[2:]
            if len(sums) == number:
                full = [math.ceil(n * s / w) for n, s, w in zip(size, small, window)]
                sums.append(volume.new_zeros((*values.shape[:2], *full), dtype=torch.float32))
                weights.append(volume.new_zeros(full, dtype=torch.float32))
            total, weight = sums[number], weights[number]
            own = importance(tuple(small)).to(volume.device)
            found = values.float()
            places = [_place(*each) for each in zip(corner, window, small, weight.shape)]
            for axis, place in enumerate(places, -3):
                if place.share is not None:
                    found = _along(axis, place.share, found)
                    own = _along(axis, place.share * place.trust, own)
            z, y, x = (place.at for place in places)
            total[:, :, z, y, x] += found * own
            weight[z, y, x] += own
    return [total / weight for total, weight in zip(sums, weights, strict=True)]


class _Place(NamedTuple):
    """Where a window's map lies in the whole's along an axis.

    Attributes:
        at: the whole's voxels.
        share: ``[voxels, small]``, where the window begins between two of them: of the map's two
            voxels around each; its nearest, where there is one only.
        trust: ``[voxels, 1]``, next to nothing where there is one only.
    """

    at: slice
    share: Tensor | None = None
    trust: Tensor | float = 1.0


def _place(start: int, window: int, small: int, whole: int) -> _Place:
    """Of a window's map.

    Args:
        start: the window's first voxel.
        window, small: voxels of the window, and of its map.
        whole: voxels of the whole's map.
    """
    begin = start * small / window  # in voxels of the map
    if begin.is_integer():
        return _Place(slice(int(begin), int(begin) + small))
    first, last = math.floor(begin), min(math.ceil(begin + small), whole)
    at = (torch.arange(first, last) - begin)[:, None]
    nearest = at.clamp(0, small - 1)
    share = (1 - (nearest - torch.arange(small)).abs()).clamp(min=0)
    return _Place(slice(first, last), share, torch.where(at == nearest, 1.0, 1e-3))


def part_of(
    values: Tensor, first: Sequence[int], size: Sequence[int], whole: Sequence[int]
) -> Tensor:
    """What a map over a volume holds of a part of it, at strides from the part's first voxel on.

    Args:
        values: ``[1, c, z, y, x]`` over the volume, at its size or coarser.
        first, size: the part's first voxel on each axis, and its number of voxels.
        whole: the volume's.

    Returns:
        Interpolated where the part begins between two voxels of the map.
    """
    for axis, (begin, n, full) in enumerate(zip(first, size, whole, strict=True), -3):
        there = values.shape[axis]
        stride = stride_of(full, there)
        count = math.ceil(n / stride)
        if begin % stride == 0:
            values = values.narrow(axis, begin // stride, count)
        else:
            at = (torch.arange(count) + begin / stride).clamp(max=there - 1)[:, None]
            values = _along(axis, (1 - (at - torch.arange(there)).abs()).clamp(min=0), values)
    return values


def _along(axis: int, share: Tensor, values: Tensor) -> Tensor:
    """An axis's voxels mixed by shares ``[voxels, small]``.

    In the values' own precision: in half of it the least shares are 0, and what one window alone
    sees would be divided by nothing.
    """
    with torch.autocast(values.device.type, enabled=False):
        mixed = torch.tensordot(values, share.to(values.device, values.dtype), ([axis], [1]))
    return mixed.movedim(-1, axis)
