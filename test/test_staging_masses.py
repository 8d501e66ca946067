"""Masses of nodes that a label map has wrong, on shapes of known size."""

import numpy as np
import pytest

from hmvnet.case import GTVN, GTVP
from hmvnet.lesions.midline import Midplane
from hmvnet.staging.masses import avid_mm, beside_mm

SHAPE, MM = (120, 60, 120), np.ones(3)
MIDPLANE = Midplane(60.0)


def rod(length: int, x: int, y: int = 30, width: int = 12) -> tuple[slice, ...]:
    """Along z from 10 on, square in cross-section."""
    half = width // 2
    return np.s_[10 : 10 + length, y - half : y + half, x - half : x + half]


def longest(length: int, width: int = 12) -> float:
    """Of a rod's voxel centres."""
    return float(np.sqrt((length - 1) ** 2 + 2 * (width - 1) ** 2))


def test_a_mass_beside_the_pharynx_that_is_called_a_primary_is_measured():
    mask = np.zeros(SHAPE, np.uint8)
    mask[50:70, 20:40, 50:70] = GTVP
    assert beside_mm(mask, MM, MIDPLANE) == 0.0
    mask[rod(70, x=98)] = GTVP
    assert beside_mm(mask, MM, MIDPLANE) == pytest.approx(longest(70))
    mask[40:44, 28:32, 60:100] = GTVP  # it grows together with the primary
    assert beside_mm(mask, MM, MIDPLANE) == pytest.approx(longest(70), abs=8)
    mirrored = np.ascontiguousarray(mask[:, :, ::-1])
    assert beside_mm(mirrored, MM, Midplane(59.0)) == beside_mm(mask, MM, MIDPLANE)
    assert beside_mm(mask, 2 * MM, Midplane(120.0)) > 1.9 * longest(70)
    mask[mask > 0] = GTVN
    assert beside_mm(mask, MM, MIDPLANE) == 0.0


def avid(least_suv: float, *regions: tuple[slice, ...]) -> np.ndarray:
    suv = np.ones(SHAPE, np.float32)
    for region in regions:
        suv[region] = least_suv
    return suv


def test_a_node_of_which_a_part_is_labelled_counts_with_what_is_avid_around_it():
    mask = np.zeros(SHAPE, np.uint8)
    assert avid_mm(mask, avid(4.0), MM) == 0.0
    mask[rod(20, x=98)] = GTVN
    alone, whole = longest(20), longest(70)
    assert avid_mm(mask, avid(4.0, rod(70, x=98)), MM) == pytest.approx(whole, abs=6)  # corners go
    assert avid_mm(mask, avid(2.4, rod(70, x=98)), MM) == pytest.approx(alone)  # below 2.5
    hot = avid(4.0, rod(70, x=98))
    hot[rod(20, x=98)] = 12.0  # of which 4 is less than 40%
    assert avid_mm(mask, hot, MM) == pytest.approx(alone)
    mask[rod(70, x=98)] = np.where(mask[rod(70, x=98)], GTVN, GTVP)
    assert avid_mm(mask, avid(4.0, rod(70, x=98)), MM) == pytest.approx(alone)  # the primary's


def test_what_is_too_large_or_hangs_by_a_thread_is_no_mass():
    mask = np.zeros(SHAPE, np.uint8)
    mask[rod(20, x=98)] = GTVN
    alone = longest(20)
    everything = avid(4.0, np.s_[:, :, 40:])
    assert avid_mm(mask, everything, MM) == pytest.approx(alone)
    other = np.s_[10:30, 24:36, 60:72]
    for width, joined in ((3, False), (8, True)):
        bridge = np.s_[18 : 18 + width, 28 : 28 + width, 66:98]
        found = avid_mm(mask, avid(4.0, rod(20, x=98), other, bridge), MM)
        assert (found > 40) is joined
