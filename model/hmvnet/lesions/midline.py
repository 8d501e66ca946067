"""Where the patient's middle is: from the anatomy, not from the array.

``body_middle_mm`` is one x for all slices, halfway between the body's sides. ``find_midplane`` is
the plane across which head and neck are most alike, which follows a head that is turned or bent.
Positions are millimetres from the centre of the array's first voxel, along its axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from hmvnet.imaging.components import bounding_box
from hmvnet.lesions.ibsi import Spacing

BODY_HU = -300.0
# What is compared: air, fat, muscle and bone; beyond, metal and noise would count most.
COMPARED_HU = (-300.0, 400.0)
COARSE_MM = 4.0
REACH_MM = 60.0  # above and below the lesions
LEAST_SHARE = 0.5  # of the body's points with a mirror image in the array
MOST_TILT = 0.35  # of the plane, mm a mm: 19 degrees
MOST_SHIFT_MM = 25.0  # from the middle of the body


@dataclass(frozen=True)
class Midplane:
    """The plane x = offset + by_y * y + by_z * z, in mm; ``x`` grows to the patient's left.

    Attributes:
        offset_mm, by_y, by_z: see above.
    """

    offset_mm: float
    by_y: float = 0.0
    by_z: float = 0.0

    def lateral_mm(self, points: np.ndarray) -> np.ndarray:
        """Signed distance in mm of points ``[n, 3]`` (x, y, z; mm): above 0 on the left."""
        x, y, z = np.asarray(points, float).T
        length = np.sqrt(1.0 + self.by_y**2 + self.by_z**2)
        return (x - self.offset_mm - self.by_y * y - self.by_z * z) / length

    def mirrored(self, points: np.ndarray) -> np.ndarray:
        """Points ``[n, 3]`` on the other side of the plane."""
        normal = np.array([1.0, -self.by_y, -self.by_z])
        normal /= np.linalg.norm(normal)
        return np.asarray(points, float) - 2.0 * self.lateral_mm(points)[:, None] * normal


def body_middle_mm(mask: np.ndarray, ct_hu: np.ndarray, spacing_zyx: np.ndarray) -> float:
    """x of the body's middle in mm: median over the slices with lesions.

    Halfway between the outermost voxels above -300 HU of each slice; the array's middle where
    there are none.

    Args:
        mask: ``[z, y, x]``; lesions are where it is above 0.
        ct_hu: ``[z, y, x]``.
    """
    body = np.any(ct_hu[bounding_box(mask > 0)[0]] > BODY_HU, axis=1)  # [z, x]
    body = body[np.any(body, axis=1)]
    last = ct_hu.shape[2] - 1
    if not len(body):
        return last / 2 * float(spacing_zyx[2])
    middles = (body.argmax(axis=1) + last - body[:, ::-1].argmax(axis=1)) / 2
    return float(np.median(middles) * spacing_zyx[2])


def find_midplane(
    mask: np.ndarray, ct_hu: np.ndarray, spacing_zyx: Spacing | np.ndarray
) -> Midplane:
    """The plane across which the CT around the lesions is most like its mirror image.

    Least mean absolute difference of the CT and its reflection, on points 4 mm apart up to 60 mm
    above and below the lesions, from the body's middle on (Nelder-Mead). A lesion on one side
    hardly counts in it: most of what is compared is normal. Where the search leaves what a head can
    do, the body's middle is taken.

    Args:
        mask, ct_hu: as for ``body_middle_mm``.
        spacing_zyx: in mm.
    """
    spacing = np.asarray(spacing_zyx, float)
    start = body_middle_mm(mask, ct_hu, spacing)
    reach = round(REACH_MM / spacing[0])
    slices = bounding_box(mask > 0)[0]
    first, last = max(0, slices.start - reach), slices.stop + reach
    steps = [max(1, round(COARSE_MM / mm)) for mm in spacing]
    part = ct_hu[first : last : steps[0], :: steps[1], :: steps[2]]
    part = np.clip(part, *COMPARED_HU).astype(np.float32)
    mm = spacing * steps
    body = np.argwhere(part > BODY_HU)
    if len(body) < 100:
        return Midplane(start)
    middle = body.mean(axis=0) * mm  # tilts turn about it, so that they do not shift the plane
    points = (body * mm)[:, ::-1]  # x, y, z
    values = part[tuple(body.T)]

    def plane(numbers: np.ndarray) -> Midplane:
        shift, by_y, by_z = (numbers * (10.0, 0.1, 0.1)).tolist()
        offset = start + shift - by_y * float(middle[1]) - by_z * float(middle[0])
        return Midplane(offset, by_y, by_z)

    def unlike(numbers: np.ndarray) -> float:
        other = (plane(numbers).mirrored(points)[:, ::-1] / mm).T
        seen = map_coordinates(part, other, order=1, mode="constant", cval=np.nan)
        known = np.isfinite(seen)  # what has its mirror image outside of the array says nothing
        if known.mean() < LEAST_SHARE:
            return float("inf")
        return float(np.abs(seen[known] - values[known]).mean())

    simplex = np.array([[0, 0, 0], [0.6, 0, 0], [0, 0.6, 0], [0, 0, 0.6]], float)
    found = minimize(
        unlike,
        simplex[0],
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.01, "fatol": 0.01, "maxfev": 120},
    ).x
    best = plane(found)
    if abs(found[0] * 10.0) > MOST_SHIFT_MM or max(abs(best.by_y), abs(best.by_z)) > MOST_TILT:
        return Midplane(start)
    # found with z from the first slice that was compared
    return Midplane(best.offset_mm - best.by_z * first * float(spacing[0]), best.by_y, best.by_z)
