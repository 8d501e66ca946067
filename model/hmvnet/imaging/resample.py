"""Between the scanner's grids and the working grid: one resampling in, one out.

Only the working region is ever resampled: SimpleITK evaluates the output lattice alone, so the
rest of the scan costs nothing.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch

from hmvnet.case import HU_OF_AIR, Case, Grid
from hmvnet.imaging.components import bounding_box, widened


def resample(
    image: sitk.Image, grid: Grid, *, fill: float, interpolator: int = sitk.sitkLinear
) -> np.ndarray:
    """``image`` sampled on ``grid``, as float32 ``[z, y, x]``; ``fill`` outside the image."""
    resampled = sitk.Resample(
        image,
        grid.size,
        sitk.Transform(),
        interpolator,
        grid.origin,
        grid.spacing,
        grid.direction,
        fill,
        sitk.sitkFloat32,
    )
    return sitk.GetArrayFromImage(resampled)


def resample_pet_ct(case: Case, grid: Grid) -> np.ndarray:
    """CT (HU) and PET (SUV) of a case on one grid, float32 ``[2, z, y, x]``, linear.

    B-splines ring at edges (a box of 0 and 20 comes out between -2.6 and 27.5), which CT's bone
    and PET's bladder would carry into the tumour; linear interpolation cannot overshoot.
    """
    volume = np.empty((2, *grid.shape), np.float32)
    for channel, image, fill in ((0, case.ct, HU_OF_AIR), (1, case.pet, 0.0)):
        if (axes := _shared_axes(Grid.of(image), grid)) is None:
            volume[channel] = resample(image, grid, fill=fill)
        else:
            _resample_along_axes(image, grid, axes, fill, volume[channel])
    return volume


def _shared_axes(source: Grid, target: Grid) -> list[int] | None:
    """Which of ``source``'s axes (x, y, z) runs along each of ``target``'s; None if oblique."""
    cosines = np.abs(source.axes.T @ target.axes)
    axes = cosines.argmax(axis=0)
    # Off by this angle, the far end of an axis is still within a thousandth of its millimetre.
    aligned = (cosines.max(axis=0) > 1 - 1e-12).all() and len(set(axes.tolist())) == 3
    return axes.tolist() if aligned else None


def _resample_along_axes(
    image: sitk.Image, grid: Grid, axes: list[int], fill: float, out: np.ndarray
) -> None:
    """Trilinear interpolation between grids that share their axes, written into ``out``.

    The interpolation then factors into one matrix an axis, each with two weights a row: three
    matrix products, several times faster than SimpleITK's general way and equal to it to rounding.
    """
    source = Grid.of(image)
    ends = source.indices(grid.points(np.array([[0, 0, 0], np.array(grid.size) - 1])))
    boxes, matrices, outside = [slice(0)] * 3, [], []
    for target_axis in (2, 1, 0):  # z, y, x
        axis = axes[target_axis]
        length = source.size[axis]
        at = np.linspace(ends[0, axis], ends[1, axis], grid.size[target_axis])
        # As in ITK, a voxel reaches half a voxel beyond its centre and holds its value there.
        outside.append((at < -0.5) | (at >= length - 0.5))
        at = np.clip(at, 0, length - 1)
        low = int(at.min())
        part = slice(low, min(int(at.max()) + 2, length))
        boxes[2 - axis] = part
        matrices.append(linear_weights(at - low, part.stop - low))
    array = sitk.GetArrayViewFromImage(image)[tuple(boxes)]
    array = array.transpose([2 - axes[i] for i in (2, 1, 0)]).astype(np.float32)
    along_z, along_y, along_x = map(torch.from_numpy, matrices)
    rows = along_y @ (torch.from_numpy(array) @ along_x.T)
    torch.matmul(along_z, rows.flatten(1), out=torch.from_numpy(out).flatten(1))
    for axis, beyond in enumerate(outside):
        out[(slice(None),) * axis + (beyond,)] = fill


def linear_weights(at: np.ndarray, length: int) -> np.ndarray:
    """The matrix ``[len(at), length]`` that interpolates linearly at indices ``at``."""
    low = np.minimum(at.astype(int), max(length - 2, 0))
    weights = np.zeros((len(at), length), np.float32)
    row = np.arange(len(at))
    weights[row, low] = 1 - (at - low)
    if length > 1:
        weights[row, low + 1] = at - low
    return weights


def labels_onto(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """A label map moved from one grid to another, nearest neighbour, ``[z, y, x]`` of its type.

    Only the part of ``target`` that ``source`` covers is resampled and pasted into zeros.

    Args:
        labels: whole numbers ``[z, y, x]`` on ``source``.
    """
    out = np.zeros(target.shape, labels.dtype)
    used = bounding_box(labels)
    if not labels[used].size:
        return out
    # Only the box around the labels, one voxel wider, needs to be looked at.
    z, y, x = widened(used, 1, labels.shape)
    part = source.crop((z, y, x))
    target_box = target.index_box(part, margin=1)
    if target_box is None:
        return out
    patch = target.crop(target_box)
    image = part.image(np.ascontiguousarray(labels[z, y, x]))
    out[target_box] = resample(image, patch, fill=0, interpolator=sitk.sitkNearestNeighbor)
    return out
