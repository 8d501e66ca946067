"""Between the scanner's grids and the working grid: one resampling in, one out.

Only the working region is ever resampled: SimpleITK evaluates the output lattice alone, so the
rest of the scan costs nothing.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from hmvnet.case import HU_OF_AIR, Case, Grid


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
    volume[0] = resample(case.ct, grid, fill=HU_OF_AIR)
    volume[1] = resample(case.pet, grid, fill=0.0)
    return volume


def labels_onto(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """A label map moved from one grid to another, nearest neighbour, uint8 ``[z, y, x]``.

    Only the part of ``target`` that ``source`` covers is resampled and pasted into zeros.

    Args:
        labels: uint8 ``[z, y, x]`` on ``source``.
    """
    out = np.zeros(target.shape, np.uint8)
    used = np.argwhere(labels)
    if not len(used):
        return out
    # Only the box around the labels, one voxel wider, needs to be looked at.
    low = np.maximum(used.min(axis=0) - 1, 0)
    high = np.minimum(used.max(axis=0) + 2, labels.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high))
    part = source.crop((z, y, x))
    target_box = target.index_box(part, margin=1)
    if target_box is None:
        return out
    patch = target.crop(target_box)
    image = part.image(np.ascontiguousarray(labels[z, y, x]))
    out[target_box] = resample(image, patch, fill=0, interpolator=sitk.sitkNearestNeighbor).astype(
        np.uint8
    )
    return out
