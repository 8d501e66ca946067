"""The lesion table: known volumes and uptake, borders, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import ball, patient_with

from hmvnet.case import CaseError, Grid
from hmvnet.lesions.features import lesion_features
from hmvnet.lesions.table import lesion_table

MM = (1.0, 1.0, 1.0)


def test_anisotropic_voxels_in_the_table_and_refused_for_texture() -> None:
    spacing, shape = (3.0, 1.0, 2.0), (20, 60, 30)
    grid = Grid(shape[::-1], spacing[::-1])
    mask = ball(grid, (29.0, 29.5, 28.5), 16.0).astype(np.uint8)
    one = lesion_table(mask, np.zeros(shape), np.full(shape, 2.0), spacing)[0]
    assert one.volume_ml == pytest.approx(4 / 3 * math.pi * 16**3 / 1000, rel=0.02)
    assert one.diameter_mm == pytest.approx(32, abs=3)  # half a slice at either end
    assert one.centroid_mm == pytest.approx((29.0, 29.5, 28.5), abs=0.5)
    assert one.suv_peak == pytest.approx(2.0)
    with pytest.raises(ValueError, match="same on all axes"):
        lesion_features(mask, np.zeros(shape), np.zeros(shape), spacing)


def test_suv_mtv_and_tlg_of_known_voxels() -> None:
    mask = np.zeros((10, 10, 10), dtype=np.uint8)
    pet = np.zeros(mask.shape, dtype=np.float32)
    mask[2, 2, 2:7] = 1
    pet[2, 2, 2:7] = [10, 4.2, 4.0, 3.9, 2.9]
    mask[8, 8, 8] = 2
    pet[8, 8, 8] = 3
    primary, node = lesion_table(mask, np.full(mask.shape, 30.0), pet, (2.0, 2.0, 2.0))
    assert (primary.label, node.label) == (1, 2)
    assert primary.volume_ml == pytest.approx(0.040)
    assert primary.mtv41_ml == pytest.approx(0.016)  # 10 and 4.2
    assert primary.mtv4_ml == pytest.approx(0.024)
    assert primary.tlg == pytest.approx(0.008 * 25.0)
    assert (primary.suv_max, primary.suv_mean) == pytest.approx((10, 5))
    assert (node.mtv41_ml, node.mtv4_ml) == pytest.approx((0.008, 0))
    assert node.hu_mean == 30.0
    assert node.centroid_mm == (16, 16, 16)
    vector = lesion_features(mask, np.full(mask.shape, 30.0), pet, (2.0, 2.0, 2.0)).to_dict()
    assert vector["total_mtv41_ml"] == pytest.approx(0.024)
    assert vector["total_suv_mean"] == pytest.approx(28 / 6)
    assert vector["total_tlg"] == pytest.approx(0.008 * 28)
    json.dumps([primary.to_dict(), node.to_dict()], allow_nan=False)


def test_lesion_on_the_border_is_measured_as_the_same_voxels_inside() -> None:
    mask, ct, pet = patient_with((1, (2, 3, 4), 9), (2, (78, 58, 80), 6))
    inside = [np.pad(mask, 8), np.pad(ct, 8, mode="edge"), np.pad(pet, 8)]
    for at_border, same in zip(
        lesion_table(mask, ct, pet, MM), lesion_table(*inside, MM), strict=True
    ):
        a, b = at_border.to_dict(), same.to_dict()
        assert np.subtract(b.pop("centroid_mm"), a.pop("centroid_mm")) == pytest.approx([8] * 3)
        assert a.pop("suv_peak") >= b.pop("suv_peak")  # the padding's zeros are in b's sphere
        assert a == pytest.approx(b)
    assert np.isfinite(lesion_features(mask, ct, pet, MM).values).all()


def test_bad_input_is_named() -> None:
    mask, ct, pet = patient_with((1, (40, 30, 40), 6))
    holes = pet.copy()
    holes[0, 0, :3] = np.nan
    with pytest.raises(CaseError, match="PET has 3 voxels that are NaN"):
        lesion_features(mask, ct, holes, MM)
    with pytest.raises(CaseError, match=r"CT has shape \(79, 60, 90\)"):
        lesion_table(mask, ct[1:], pet, MM)
    with pytest.raises(CaseError, match="values from 0 to 3"):
        lesion_table(mask * 3, ct, pet, MM)
    with pytest.raises(CaseError, match="whole numbers"):
        lesion_table(mask.astype(float), ct, pet, MM)
    with pytest.raises(ValueError, match="three positive numbers"):
        lesion_table(mask, ct, pet, (1.0, 1.0))
