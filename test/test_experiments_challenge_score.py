"""The challenge's figures of made-up patients, where each is known."""

import numpy as np
import pytest
from conftest import case_score

from hmvnet.case import Outcome, Stage
from hmvnet.experiments.challenge_score import (
    OF_2025,
    OF_2026,
    Scored,
    by_centre,
    challenge_figures,
)
from hmvnet.segmentation.metrics import CaseScore, LabelScore, LesionCount


def patients(n: int = 12) -> list[Scored]:
    """Stages that are right for all but T3, risks in the right order, Dice 0.5 and 1 by turns."""
    made = []
    for i in range(n):
        truth = Stage(f"T{i % 4 + 1}", f"N{i % 4}")
        given = Stage("T1" if truth.t == "T3" else truth.t, truth.n)
        score = case_score(dice=0.5 + 0.5 * (i % 2), inter=1.0, total=2.0, name=f"P{i}")
        outcome = Outcome(100.0 + i, True)
        made.append(Scored(f"P{i}", "AB"[i % 2], score, given, truth, -float(i), outcome))
    return made


def test_the_figures_of_both_years():
    found = challenge_figures(patients(), samples=50)
    assert set(OF_2025) | set(OF_2026) <= set(found)
    value = {name: one.value.estimate for name, one in found.items()}
    assert value["gtvp_mean_dice"] == pytest.approx(0.75)
    assert value["t_balanced_accuracy"] == pytest.approx(0.75)
    assert value["n_balanced_accuracy"] == 1 and value["c_index"] == 1
    assert value["segmentation"] == (value["gtvp_mean_dice"] + value["gtvn_mean_dice"]) / 2
    total = 0.25 * value["segmentation"] + 0.35 * 0.875 + 0.40
    assert value["total"] == pytest.approx(total)
    for one in found.values():
        assert one.patients == 12
    low, high = found["gtvp_mean_dice"].value.low, found["gtvp_mean_dice"].value.high
    assert low < 0.75 < high


def test_each_figure_is_over_the_patients_that_have_it():
    some = patients()
    some[0] = Scored("P0", "A", truth=Stage(None, "N1"), given=Stage("T1", "N1"), risk=1.0)
    found = challenge_figures(some, samples=20)
    counts = {name: one.patients for name, one in found.items()}
    assert counts["staging"] == counts["total"] == 11  # of the fewer, each
    assert counts["gtvp_mean_dice"] == counts["t_balanced_accuracy"] == counts["c_index"] == 11
    assert counts["n_balanced_accuracy"] == 12


def test_what_nobody_has_is_left_out():
    bare = [Scored(f"P{i}", "A", risk=0.0) for i in range(3)]
    assert challenge_figures(bare, samples=5) == {}
    without_stage = [Scored(p.patient_id, "A", p.score, risk=p.risk) for p in patients()]
    assert "total" not in challenge_figures(without_stage, samples=5)


def test_the_mean_dice_of_nodes_counts_patients_not_volumes():
    """An empty class costs a whole patient where it is empty in one of the two alone."""
    both_empty = case_score(inter=0.0, total=0.0, name="a")
    missed = case_score(inter=0.0, total=50.0, name="b")
    found = challenge_figures([Scored("a", "A", both_empty), Scored("b", "A", missed)], samples=5)
    assert found["gtvn_mean_dice"].value.estimate == 0.5
    assert found["gtvn_aggregated_dice"].value.estimate == 0.0


def test_per_centre():
    found = by_centre(patients(), samples=5)
    assert list(found) == ["A", "B"]
    assert [one["gtvp_mean_dice"].value.estimate for one in found.values()] == [0.5, 1.0]
    assert np.isfinite(found["A"]["n_balanced_accuracy"].value.estimate)


def test_a_draw_in_which_nobody_has_a_label_counts_for_nothing():
    """It counted as a Dice of 1: the upper limits of all figures were 1."""
    part = LabelScore(20, 100, 100, float("nan"))
    one = CaseScore(part, part, LesionCount(0, 3, 3), "a")
    bare = [Scored(f"b{i}", "A") for i in range(9)]
    found = challenge_figures([Scored("a", "A", one), *bare])
    assert str(found["gtvp_mean_dice"].value) == "0.200 (0.200 to 0.200)"
    assert str(found["gtvn_aggregated_f1"].value) == "0.000 (0.000 to 0.000)"
