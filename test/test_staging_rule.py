"""AJCC's rule on lesions, and the one call of the pipeline without a model."""

from __future__ import annotations

import json

import pytest
from conftest import patient_with

from hmvnet.lesions.midline import Midplane
from hmvnet.lesions.table import lesion_table
from hmvnet.staging.rule import NO_PRIMARY, SITE_UNKNOWN, stage_by_rule

LEFT, RIGHT = 62, 28  # x of centres, mm; the body's middle is at 45
MIDDLE = Midplane(45.0)


def staged(*lesions: tuple[int, tuple[int, int, int], int]):
    return stage_by_rule(lesion_table(*patient_with(*lesions), (1.0, 1.0, 1.0)), MIDDLE)


@pytest.mark.parametrize(("radius", "stage"), [(8, "T1"), (13, "T2"), (22, "T3")])
def test_t_by_the_greatest_dimension(radius: int, stage: str) -> None:
    found = staged((1, (40, 30, 45), radius))
    assert found.t.stage == stage and found.n.stage == "N0"
    assert "mm" in found.t.reasons[0] and found.t.probabilities == {}


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_primaries_the_largest_counts_wherever_it_stands(order: int) -> None:
    """Of 19 and 15 mm: T1, where their sum would be T2."""
    large, small = (1, (20, 30, 62), 9), (1, (70, 30, 62), 7)
    lesions = lesion_table(*patient_with(large, small), (1.0, 1.0, 1.0))[::order]
    assert sum(one.diameter_mm for one in lesions) > 30
    found = stage_by_rule(lesions, MIDDLE)
    assert found.t.stage == "T1" and found.t.reasons[0] == "greatest dimension 19 mm"


def test_the_side_of_two_primaries_is_that_of_most_of_them() -> None:
    """A large one on the left and a speck far on the right; the node on the left is ipsilateral."""
    primary = (1, (20, 30, 54), 9), (1, (70, 30, 15), 3)
    assert staged(*primary, (2, (45, 30, LEFT), 8)).n.stage == "N1"
    assert staged(*primary, (2, (45, 30, RIGHT), 8)).n.stage == "N2"


@pytest.mark.parametrize(("mm", "stage"), [(4, "N1"), (6, "N2")])
def test_a_node_within_5_mm_of_the_midline_is_on_neither_side(mm: int, stage: str) -> None:
    found = staged((1, (20, 30, LEFT), 6), (2, (60, 30, 45 - mm), 8))
    assert found.n.stage == stage


@pytest.mark.parametrize(
    ("nodes", "stage", "why"),
    [
        ([(2, (60, 30, LEFT), 8)], "N1", "on the primary's side"),
        ([(2, (60, 30, LEFT), 16)], "N2", "33 mm"),
        ([(2, (60, 30, RIGHT), 8)], "N2", "on the other side than the primary"),
        ([(2, (60, 30, LEFT), 8), (2, (20, 30, LEFT), 8)], "N2", "2 nodes"),
        ([(2, (60, 30, LEFT), 8), (2, (60, 30, RIGHT), 8)], "N2", "on both sides"),
        ([(2, (60, 30, 45), 8)], "N1", "1 node"),  # on the midline: ipsilateral
    ],
)
def test_n_by_size_number_and_side(nodes, stage: str, why: str) -> None:
    found = staged((1, (30, 30, LEFT + 4), 6), *nodes)
    assert found.n.stage == stage
    assert why in ", ".join(found.n.reasons)


def test_a_node_beyond_6_cm_is_n3() -> None:
    mask, ct, pet = patient_with((1, (10, 30, LEFT), 6))
    mask[20:85, 22:30, 60:68] = 2
    found = stage_by_rule(lesion_table(mask, ct, pet, (1.0, 1.0, 1.0)), MIDDLE)
    assert found.n.stage == "N3"


def test_the_side_is_that_of_the_anatomy_and_not_of_the_array() -> None:
    lesions = lesion_table(
        *patient_with((1, (30, 30, 40), 6), (2, (60, 30, 55), 6)), (1.0, 1.0, 1.0)
    )
    assert stage_by_rule(lesions, Midplane(20.0)).n.stage == "N1"  # both on the left of x = 20
    assert stage_by_rule(lesions, Midplane(47.0)).n.stage == "N2"  # on either side of x = 47


def test_no_primary_is_answered_and_said() -> None:
    found = staged((2, (60, 30, LEFT), 8))
    assert found.t.stage == "T1" and NO_PRIMARY in found.notes and SITE_UNKNOWN in found.notes
    nothing = staged()
    assert str(nothing) == "T1 N0" and nothing.n.reasons == ("no nodes",)
    assert json.loads(json.dumps(nothing.to_dict()))["t"]["stage"] == "T1"
