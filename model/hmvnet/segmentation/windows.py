"""Sliding windows that overlap, weighted by a Gaussian, as nnU-Net lays them.

Isensee et al., Nature Methods 2021: windows lie evenly, by no more than a share of their size
apart, and the middle of a window counts more than its borders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

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
                full = [round(n * s / w) for n, s, w in zip(size, small, window)]
                sums.append(volume.new_zeros((*values.shape[:2], *full), dtype=torch.float32))
                weights.append(volume.new_zeros(full, dtype=torch.float32))
            total, weight = sums[number], weights[number]
            first = [
                min(round(a * s / w), n - s)
                for a, s, w, n in zip(corner, small, window, weight.shape)
            ]
            z, y, x = (slice(a, a + s) for a, s in zip(first, small))
            own = importance(tuple(small)).to(volume.device)
            total[:, :, z, y, x] += values.float() * own
            weight[z, y, x] += own
    return [total / weight for total, weight in zip(sums, weights, strict=True)]
