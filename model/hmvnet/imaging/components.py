"""Connected pieces of boolean volumes ``[z, y, x]``, their boxes, and what they enclose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import cc3d
import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]
Connectivity = Literal[6, 26]

CONNECTIVITY: Final = 26  # a lesion's: voxels that share a face, an edge or a corner
FACES: Final = 6
IN_PLANE: Final = ndimage.generate_binary_structure(2, 1)[None]


def label_pieces(
    mask: np.ndarray, connectivity: Connectivity = CONNECTIVITY
) -> tuple[np.ndarray, int]:
    """The number of each voxel's connected piece, from 1, 0 outside; and how many pieces."""
    part = np.ascontiguousarray(mask, dtype=np.uint8)
    return cc3d.connected_components(part, connectivity=connectivity, return_N=True)


def pieces_of(mask: np.ndarray, connectivity: Connectivity) -> Iterator[tuple[Box, np.ndarray]]:
    """Each connected piece: its box in the volume, and its voxels (boolean) inside that box."""
    around = bounding_box(mask)
    labels, count = label_pieces(mask[around], connectivity)
    if not count:  # scipy takes a count of 0 for none given
        return
    for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
        inside = tuple(
            slice(a.start + s.start, a.start + s.stop) for a, s in zip(around, box, strict=True)
        )
        yield inside, labels[box] == label


def lesions_of(mask: np.ndarray) -> Iterator[tuple[Box, np.ndarray]]:
    """Each 26-connected component, as ``pieces_of`` gives it."""
    return pieces_of(mask, CONNECTIVITY)


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box that holds what is not 0; an empty box, from 0 to 0, if nothing is."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        used = np.flatnonzero(mask[tuple(box)].any(axis=others))
        box.append(slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0))
    return tuple(box)


def widened(box: Box, voxels: int | Sequence[int] | np.ndarray, shape: Sequence[int]) -> Box:
    """A box with so many voxels more on each side, as far as an array of ``shape`` reaches.

    Args:
        voxels: of an axis each, or of every axis.
    """
    margins = np.broadcast_to(voxels, len(box)).tolist()
    return tuple(
        slice(max(0, side.start - margin), min(size, side.stop + margin))
        for side, margin, size in zip(box, margins, shape, strict=True)
    )


def within(where: np.ndarray, box: Box, wide: Box) -> np.ndarray:
    """The voxels of a piece, boolean inside its box, inside a wider box around that."""
    return np.pad(
        where,
        [(side.start - w.start, w.stop - side.stop) for side, w in zip(box, wide, strict=True)],
    )


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected component (an empty mask stays empty)."""
    return cc3d.largest_k(mask.astype(np.uint8), k=1, connectivity=FACES).astype(bool)


def without_specks(mask: np.ndarray, least_voxels: int) -> np.ndarray:
    """The mask less its 26-connected components of fewer than ``least_voxels``."""
    return cc3d.dust(mask.astype(np.uint8), least_voxels, CONNECTIVITY) > 0


def enclosed_in_slices(bone: np.ndarray) -> np.ndarray:
    """What bone ``[z, y, x]`` encloses in axial slices, ``[z, y, x]``; not what is thin.

    Gaps in the bone of up to four voxels are closed.
    """
    padded = np.pad(bone, ((0, 0), (2, 2), (2, 2)))
    closed = ndimage.binary_closing(padded, IN_PLANE, iterations=2)[:, 2:-2, 2:-2]
    return ndimage.binary_opening(fill_slices(closed) & ~closed, np.ones((3, 3, 3), bool))


def fill_slices(mask: np.ndarray) -> np.ndarray:
    """The mask with what it encloses in each axial slice (four-connected background).

    ``scipy.ndimage.binary_fill_holes`` slice by slice, in one pass: a slice of nothing between
    any two keeps the background's pieces apart.
    """
    z, y, x = mask.shape
    free = np.zeros((2 * z, y + 2, x + 2), np.uint8)
    free[::2] = 1
    free[::2, 1:-1, 1:-1] = ~mask
    pieces = label_pieces(free, FACES)[0][::2]
    return (pieces != pieces[:, :1, :1])[:, 1:-1, 1:-1]
