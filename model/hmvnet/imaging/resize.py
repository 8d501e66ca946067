"""Resizing a volume as nnU-Net does: splines, and slice by slice where voxels are flat.

Both lattices cover the same box, face to face, whatever the spacings would make of it. Where an
axis is coarser than the finest by more than three times, before or after, the slices across it are
resized one by one and the nearest of them is taken (Isensee et al., Nature Methods 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from skimage.transform import resize

from hmvnet.imaging.resample import linear_weights

FLAT = 3.0  # how many times coarser than the finest an axis is that is resized apart


def flat_axis(
    before: Sequence[float], after: Sequence[float], separate: bool | None = None
) -> int | None:
    """The axis to be resized apart, going from one spacing to another; None: all together.

    Args:
        separate: True or False say so whatever the spacings are; None: where voxels are flat.
    """
    if separate is False:
        return None
    for spacing in (before, after):
        if separate or max(spacing) / min(spacing) > FLAT:
            axes = [i for i, mm in enumerate(spacing) if max(spacing) / mm == 1]
            return axes[0] if len(axes) == 1 else None
    return None


def resized(
    volume: np.ndarray, shape: Sequence[int], order: int = 3, flat: int | None = None
) -> np.ndarray:
    """``[c, z, y, x]`` resized to ``[c, *shape]`` with splines of an order, of the same type.

    Args:
        flat: the axis (0 to 2) that is resized apart, by the nearest slice.
    """
    shape = tuple(shape)
    if volume.shape[1:] == shape:
        return volume
    options = {"order": order, "mode": "edge", "anti_aliasing": False}
    out = np.empty((len(volume), *shape), volume.dtype)
    for values, result in zip(volume, out):
        channel = values.astype(np.float64)
        if flat is None:
            result[...] = resize(channel, shape, **options)
            continue
        slices, into = np.moveaxis(channel, flat, 0), np.moveaxis(result, flat, 0)
        nearest = _nearest(len(slices), len(into))
        for number in np.unique(nearest):
            into[nearest == number] = resize(slices[number], into.shape[1:], **options)
    return out


def resized_box(
    volume: np.ndarray, shape: Sequence[int], box: Sequence[slice], flat: int | None = None
) -> np.ndarray:
    """A box of ``[c, z, y, x]`` resized linearly to ``[c, *shape]``; only the box is computed."""
    out = torch.from_numpy(np.ascontiguousarray(volume, np.float32))
    for axis, (length, part) in enumerate(zip(shape, box)):
        before = volume.shape[axis + 1]
        if axis == flat:
            weights = torch.eye(before)[_nearest(before, length)]
        else:
            at = (np.arange(length) + 0.5) * before / length - 0.5
            weights = torch.from_numpy(linear_weights(np.clip(at, 0, before - 1), before))
        out = torch.movedim(weights[part] @ torch.movedim(out, axis + 1, -2), -2, axis + 1)
    return out.numpy()


def _nearest(before: int, after: int) -> np.ndarray:
    """Which of ``before`` slices lies nearest to each of ``after`` in the same extent."""
    at = np.floor((np.arange(after) + 0.5) * before / after).astype(int)
    return np.clip(at, 0, before - 1)
