"""The middle of the patient, also of one whose head is turned and bent."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import patient_with
from scipy.ndimage import gaussian_filter

from hmvnet.lesions.midline import Midplane, body_middle_mm, find_midplane


def test_points_have_sides_and_mirror_images() -> None:
    plane = Midplane(10.0, by_y=0.2, by_z=-0.1)
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3))
    other = plane.mirrored(points)
    assert plane.lateral_mm(other) == pytest.approx(-plane.lateral_mm(points))
    assert plane.mirrored(other) == pytest.approx(points)
    assert plane.lateral_mm(np.array([[60.0, 0, 0]]))[0] > 0  # x grows to the left


def head(plane: Midplane) -> np.ndarray:
    """A body that is alike on both sides of a plane, with a lump on one."""
    shape = (70, 60, 80)
    z, y, x = np.indices(shape)
    points = np.stack([x, y, z], -1).reshape(-1, 3).astype(float)
    lateral = np.abs(plane.lateral_mm(points)).reshape(shape)
    y = ((points + plane.mirrored(points)) / 2)[:, 1].reshape(shape)  # of the nearest on the plane
    depth = np.hypot(lateral / 28, (y - 30) / 24)
    ct = np.where(depth < 1, 40.0, -1000.0)
    ct[(np.hypot(lateral - 12, y - 22) < 4) & (depth < 1)] = 400.0
    ct[(np.hypot(lateral, y - 40) < 5) & (depth < 1)] = -900.0
    ct = gaussian_filter(ct, 1.0) + np.random.default_rng(1).normal(0, 10, shape)
    ct[30:42, 20:32, 52:62] = 90.0
    return ct.astype(np.float32)


@pytest.mark.parametrize("plane", [Midplane(41.0), Midplane(38.0, 0.12, -0.08), Midplane(45, -0.1)])
def test_a_turned_head_is_followed(plane: Midplane) -> None:
    ct = head(plane)
    mask = np.zeros(ct.shape, np.uint8)
    mask[30:42, 20:32, 52:62] = 1
    found = find_midplane(mask, ct, np.ones(3))
    y, z = (g.ravel().astype(float) for g in np.meshgrid([15, 30, 45], [15, 35, 55]))
    on = np.stack([plane.offset_mm + plane.by_y * y + plane.by_z * z, y, z], 1)
    assert np.abs(found.lateral_mm(on)).max() < 1.0


def test_the_grid_may_be_any() -> None:
    plane = Midplane(40.0, 0.1, 0.0)
    ct = head(plane)[::2]
    mask = np.zeros(ct.shape, np.uint8)
    mask[15:21, 20:32, 52:62] = 1
    found = find_midplane(mask, ct, np.array([2.0, 1.0, 1.0]))
    assert found.offset_mm == pytest.approx(40.0, abs=2) and found.by_y == pytest.approx(
        0.1, abs=0.04
    )


def test_the_plane_is_given_from_the_arrays_first_slice_on() -> None:
    """Lesions high up: what is compared begins at slice 90, z is counted from 0 all the same."""
    plane = Midplane(44.0, 0.0, 0.1)
    ct = np.concatenate([np.full((120, 60, 80), -1000, np.float32), head(plane)])
    mask = np.zeros(ct.shape, np.uint8)
    mask[150:162, 20:32, 52:62] = 1
    found = find_midplane(mask, ct, np.ones(3))
    y, z = (g.ravel().astype(float) for g in np.meshgrid([15, 30, 45], [135, 155, 175]))
    on = np.stack([plane.offset_mm + plane.by_z * (z - 120), y, z], 1)
    assert np.abs(found.lateral_mm(on)).max() < 1.0


def test_the_bodys_middle_is_that_of_most_slices_with_lesions() -> None:
    """An arm beside one slice of nine moves it in none."""
    mask, ct, _ = patient_with((1, (40, 30, 45), 4))
    plain = body_middle_mm(mask, ct, np.ones(3))
    arm = ct.copy()
    arm[40, 30:34, -3:] = 40.0
    assert body_middle_mm(mask, arm, np.ones(3)) == plain


def test_without_body_or_lesion_there_is_a_middle() -> None:
    air = np.full((10, 12, 20), -1000, np.float32)
    plane = find_midplane(np.zeros(air.shape, np.uint8), air, np.ones(3))
    assert plane == Midplane(9.5)
    mask, ct, _ = patient_with()
    assert body_middle_mm(mask, ct, np.ones(3)) == pytest.approx(45.0, abs=0.6)
