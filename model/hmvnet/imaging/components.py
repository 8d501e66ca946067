"""Connected pieces and what they enclose, in boolean volumes ``[z, y, x]``."""

from __future__ import annotations

from collections.abc import Iterator

import cc3d
import numpy as np
from scipy import ndimage


def lesions_of(mask: np.ndarray) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Each 26-connected component: its box in the volume, and its voxels inside that box."""
    around = bounding_box(mask)
    if around is None:
        return
    part = np.ascontiguousarray(mask[around], dtype=np.uint8)
    labels, count = cc3d.connected_components(part, connectivity=26, return_N=True)
    for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
        inside = tuple(
            slice(a.start + s.start, a.start + s.stop) for a, s in zip(around, box, strict=True)
        )
        yield inside, labels[box] == label


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds what is not 0; None if nothing is."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        used = np.flatnonzero(mask[tuple(box)].any(axis=others))
        if not len(used):
            return None
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected component (an empty mask stays empty)."""
    return cc3d.largest_k(mask.astype(np.uint8), k=1, connectivity=6).astype(bool)


def fill_slices(mask: np.ndarray) -> np.ndarray:
    """The mask with what it encloses in each axial slice (four-connected background).

    ``scipy.ndimage.binary_fill_holes`` slice by slice, in one pass: a slice of nothing between
    any two keeps the background's pieces apart.
    """
    z, y, x = mask.shape
    free = np.zeros((2 * z, y + 2, x + 2), np.uint8)
    free[::2] = 1
    free[::2, 1:-1, 1:-1] = ~mask
    pieces = cc3d.connected_components(free, connectivity=6)[::2]
    return (pieces != pieces[:, :1, :1])[:, 1:-1, 1:-1]
