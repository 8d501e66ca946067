"""What every image format's header has to pass."""

from __future__ import annotations

import math

import numpy as np

from hmvnet.case import SYNTHETIC, CaseError, Grid

MAX_VOXELS = 2**30
MAX_AXIS = 16_384
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 100.0
MAX_ORIGIN_MM = 1e6
MAX_RATIO = 1040  # of bytes inflated to bytes stored: what deflate can do is 1032
ORTHONORMAL_REPAIR, ORTHONORMAL_REFUSE = 1e-6, 1e-2


def remarked(remarks: str, name: str) -> tuple[str, ...]:
    """What of a header's remarks is a note: that the image is no patient's."""
    return (f"{name}: {SYNTHETIC}",) if SYNTHETIC in remarks else ()


def checked_grid(
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    direction: tuple[float, ...],
    name: str,
) -> tuple[Grid, tuple[str, ...]]:
    """A grid whose size, spacing and direction make sense, and notes on what was repaired.

    Raises:
        CaseError: what is wrong with ``name``'s header.
    """
    if any(n < 2 or n > MAX_AXIS for n in size) or math.prod(size) > MAX_VOXELS:
        raise CaseError(
            f"{name}: image size {size} voxels, expected 2 to {MAX_AXIS} along each of three axes "
            f"and at most 2^30 in all"
        )
    if any(not MIN_SPACING_MM <= s <= MAX_SPACING_MM for s in spacing):
        raise CaseError(
            f"{name}: voxel spacing {spacing} mm, expected {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g}"
        )
    if any(not abs(o) <= MAX_ORIGIN_MM for o in origin):
        raise CaseError(f"{name}: origin {origin} mm, expected at most {MAX_ORIGIN_MM:g} from 0")
    axes = np.reshape(direction, (3, 3)).astype(float)
    error = orthonormal_error(axes)
    if not error <= ORTHONORMAL_REFUSE:
        raise CaseError(
            f"{name}: the direction matrix is not orthonormal (error {error:.3g}), expected "
            "perpendicular unit vectors"
        )
    notes: tuple[str, ...] = ()
    if error > ORTHONORMAL_REPAIR:
        left, _, right = np.linalg.svd(axes)
        axes = left @ right
        if error > 1e-4:
            notes = (f"{name}: direction matrix made orthonormal (error {error:.2g})",)
    direction = tuple(axes.ravel().tolist())
    nx, ny, nz = size
    dx, dy, dz = spacing
    x, y, z = origin
    return Grid((nx, ny, nz), (dx, dy, dz), (x, y, z), direction), notes


def check_stored(expected: int, stored: int, name: str, *, compressed: bool) -> None:
    """Whether so few bytes can hold what is declared, before memory is asked for.

    Args:
        expected, stored: bytes of the voxels in memory and in the file.

    Raises:
        CaseError: they cannot.
    """
    if expected > stored * (MAX_RATIO if compressed else 1):
        raise CaseError(
            f"{name}: truncated image, {stored} bytes found, which cannot hold the {expected} that "
            "its header declares"
        )


def orthonormal_error(axes: np.ndarray) -> float:
    """How far the columns of a 3 x 3 matrix are from perpendicular unit vectors."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.abs(axes.T @ axes - np.eye(3)).max())
