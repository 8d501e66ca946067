"""What the staging model sees: the same names for anybody, sizes and sides, signs of invasion."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import patient_with

from hmvnet.case import ClinicalRecord
from hmvnet.lesions.midline import Midplane
from hmvnet.lesions.table import lesion_table
from hmvnet.staging.features import (
    feature_names,
    n_names,
    staging_features,
    t_names,
    with_record,
)
from hmvnet.staging.invasion import NAMES, invasion_features

ONE = (1.0, 1.0, 1.0)


def of(*lesions) -> dict[str, float]:
    return staging_features(*patient_with(*lesions), ONE).to_dict()


def test_names_are_the_same_for_anybody() -> None:
    record = ClinicalRecord({"Age": 61.0, "Treatment": 2.0, "HPV Status": "1", "CenterID": 3.0})
    for lesions in ((), ((1, (40, 30, 60), 8),), ((2, (40, 30, 60), 8),)):
        found = with_record(staging_features(*patient_with(*lesions), ONE), record)
        assert found.names == feature_names()
    assert found.to_dict()["record_treatment"] == 2 and found.to_dict()["record_age"] == 61
    assert np.isnan(found.to_dict()["record_tobacco_consumption"])
    assert not any("center" in name for name in feature_names())
    assert {*t_names(), *n_names()} == {*feature_names()}
    assert {*t_names()} - {*t_names(invasion=False)} == {f"invasion_{name}" for name in NAMES}


def test_what_is_not_there_is_0_or_nan() -> None:
    nothing = of()
    assert nothing["t_present"] == nothing["n_present"] == nothing["t_log_diameter"] == 0
    assert np.isnan(nothing["t_sphericity"]) and np.isnan(nothing["invasion_shell_hard_share"])
    assert nothing["n_rule_N0"] == 1 and nothing["t_rule_T1"] == 0  # T0 is no T1


def test_sizes_begin_at_ajccs_limits() -> None:
    small, large = of((1, (40, 30, 60), 8)), of((1, (40, 30, 45), 14))
    assert small["t_over_20_mm"] == 0 < large["t_over_20_mm"] < 0.5
    assert small["t_rule_T1"] == large["t_rule_T2"] == 1
    assert large["t_across_mm"] == pytest.approx(28, abs=2)


def test_nodes_on_both_sides_are_seen() -> None:
    primary, left, right = (1, (20, 30, 60), 6), (2, (45, 30, 62), 7), (2, (70, 30, 26), 7)
    one, both = of(primary, left), of(primary, left, right)
    assert (one["n_several"], one["n_bilateral"], one["n_contralateral"]) == (0, 0, 0)
    assert (both["n_several"], both["n_bilateral"], both["n_contralateral"]) == (1, 1, 1)
    assert both["n_log_contralateral"] > 0 == one["n_log_contralateral"]


def test_where_a_primary_lies_and_how_far_it_crosses() -> None:
    """Centred 9 mm to one side, of a radius of 14: 23 mm there, 5 mm on the other."""
    mask, ct, pet = patient_with((1, (40, 30, 54), 14))
    for sign, plane in ((1, Midplane(45.0)), (-1, Midplane(63.0))):
        found = staging_features(mask, ct, pet, ONE, midplane=plane).to_dict()
        assert found["t_lateral_mm"] == pytest.approx(9, abs=0.5), sign
        assert found["t_reach_mm"] == pytest.approx(23, abs=1)
        assert found["t_crosses_mm"] == pytest.approx(5, abs=1)
    far = staging_features(mask, ct, pet, ONE, midplane=Midplane(20.0)).to_dict()
    assert far["t_crosses_mm"] == 0 and far["t_reach_mm"] == pytest.approx(48, abs=1)


def test_nodes_by_number_size_side_and_distance() -> None:
    """Of 8, 7 and 4 mm in radius, the last of 0.3 mL: not sure. Without a primary no other side."""
    nodes = (2, (20, 30, 62), 8), (2, (70, 30, 62), 7), (2, (45, 30, 26), 4)
    mask, ct, pet = patient_with(*nodes)
    found = staging_features(mask, ct, pet, ONE, midplane=Midplane(45.0)).to_dict()
    lesions = lesion_table(mask, ct, pet, ONE)
    small = next(one for one in lesions if one.centroid_mm[0] < 45)
    assert found["n_log_count"] == pytest.approx(np.log1p(3))
    assert found["n_log_sure"] == pytest.approx(np.log1p(2)) and found["n_several_sure"] == 1
    assert found["n_log_minor_side"] == pytest.approx(np.log1p(small.volume_ml), rel=1e-3)
    assert found["n_log_contralateral"] == found["n_log_minor_side"]  # no side is the primary's
    assert found["n_contralateral"] == 0 and found["n_bilateral"] == 1
    assert found["n_spread"] == pytest.approx(np.log1p(50), rel=0.01)
    _, second, largest = sorted(one.diameter_mm for one in lesions)
    assert found["n_log_second"] == pytest.approx(np.log1p(second))
    assert found["n_log_diameter"] == pytest.approx(np.log1p(largest)) and second < largest


def test_what_lies_beyond_a_limit_is_the_logarithm_of_how_often() -> None:
    found = of((2, (45, 30, 45), 20))
    (node,) = lesion_table(*patient_with((2, (45, 30, 45), 20)), ONE)
    assert found["n_over_30_mm"] == pytest.approx(np.log(node.diameter_mm / 30), rel=1e-5)
    assert found["n_over_60_mm"] == 0


# --- invasion


def jaws(eroded: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two bars of bone on either side of x = 40 and a tumour at the one on the left.

    ``eroded``: how much of the bone's CT number the tumour has taken where it reaches it.
    """
    shape = (50, 50, 81)
    ct = np.full(shape, 40.0, np.float32)
    for x in (20, 60):
        ct[:, 20:30, x - 3 : x + 4] = 900.0
    z, y, x = np.indices(shape)
    ball = np.hypot(np.hypot(z - 25, y - 25), x - 52) < 9
    bone = ct > 500
    mask = (ball & (~bone if eroded == 0 else True)).astype(np.uint8)
    ct[ball & ~bone] = 90.0
    ct[ball & bone] = (1 - eroded) * 900.0 + eroded * 90.0
    ct += np.random.default_rng(0).normal(0, 10, shape).astype(np.float32)
    return mask, ct, np.where(mask > 0, 8.0, 1.0).astype(np.float32)


def test_eroded_bone_is_lost_and_touched_bone_is_kept() -> None:
    plane, spacing = Midplane(40.0), np.ones(3)
    touching = invasion_features(*jaws(0.0), spacing, plane)
    eroding = invasion_features(*jaws(0.9), spacing, plane)
    assert tuple(touching) == NAMES
    assert touching["near_lost_log_ml"] < 0.2 < 1.0 < eroding["inside_lost_log_ml"]
    assert touching["near_lost_share"] < 0.1 < 0.3 < eroding["near_lost_share"]
    assert touching["near_kept_log_ml"] > 1.0 and touching["shell_hard_share"] > 0.05
    assert eroding["inside_asymmetry_log_hu"] > touching["inside_asymmetry_log_hu"] + 1


def test_no_primary_and_a_primary_without_surroundings() -> None:
    mask, ct, pet = jaws(0.9)
    none = invasion_features(0 * mask, ct, pet, np.ones(3), Midplane(40.0))
    assert all(np.isnan(value) for value in none.values())
    full = invasion_features(np.ones_like(mask), ct, pet, np.ones(3), Midplane(-500.0))
    assert all(np.isfinite(value) for value in full.values())
