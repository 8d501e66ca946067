import os

import numpy as np
import pytest
from conftest import case_score

from hmvnet.experiments.budget_table import (
    Result,
    in_order,
    load_results,
    points,
    run_table,
    summary,
)
from hmvnet.experiments.budgets import Budget
from hmvnet.state import write_state
from hmvnet.training.pictures_budgets import budgets_figure

TRAINING = {
    "steps": 10,
    "minutes_charged": 3.0,
    "parameters": 1000,
    "patch_size": [8, 8, 8],
    "device": "CPU",
}
DICE = np.linspace(0.4, 0.8, 6)


def result(network, dice, *, way="windows", minutes=3.0, fold=0, seconds=1.0, device="CPU"):
    scores = [case_score(float(d), name=f"P{fold}-{i}") for i, d in enumerate(dice)]
    cost = TRAINING | {"minutes_charged": minutes, "device": device}
    return Result(network, Budget(minutes), fold, way, cost, [seconds] * len(scores), scores)


def test_of_several_trainings_of_one_network_budget_and_fold_one_counts(tmp_path):
    """Of the same name, from weights that were trained anew, say."""

    def write(key, dice, seconds):
        path = tmp_path / f"a--3min--fold0--{key}.json"
        found = {"network_seconds": [1.0], "scores": [case_score(dice, name="P").to_dict()]}
        values = {
            "protocol": "p",
            "network": "a",
            "budget": {"amount": 3.0, "unit": "min"},
            "fold": 0,
            "training": TRAINING,
            "ways": {"windows": found},
        }
        write_state(path, key, values)
        os.utime(path, (seconds, seconds))

    write("new", 0.7, 300)
    write("old", 0.4, 100)
    write("older", 0.5, 50)
    (newest,), left_out = load_results(tmp_path, "p")
    assert newest.scores[0].gtvp.dice == 0.7 and left_out == 2
    (asked,), left_out = load_results(tmp_path, "p", ["older"])
    assert asked.scores[0].gtvp.dice == 0.5 and left_out == 2
    assert load_results(tmp_path, "other") == ([], 3)


def test_differences_are_paired_over_the_patients_that_both_have():
    """The second network lacks a fold: its own mean is over one, the difference over that one."""
    results = [
        result("a", DICE),
        result("a", DICE - 0.3, fold=1),
        result("b", DICE + 0.1),
        result("b", DICE + 0.1, minutes=10.0),
    ]
    first, second, alone = points(results, ["a", "b"])
    assert (first.network, first.folds, first.patients) == ("a", [0, 1], 12)
    assert first.figures["gtvp_mean_dice"].estimate == pytest.approx(0.45)
    assert not first.differences and (second.folds, second.shared) == ([0], 6)
    gap = second.differences["gtvp_mean_dice"]
    assert f"{gap:+.3f}" == "+0.100 (+0.100 to +0.100)"  # the same gain in every patient
    assert alone.budget == Budget(10) and not alone.differences  # nobody to compare with there


def test_each_way_of_inference_is_a_row_and_one_pass_the_reference():
    results = [
        result("b", DICE),
        result("a", DICE, way="windows", seconds=4.0),
        result("a", DICE - 0.05, way="one pass"),
    ]
    found = points(results, ["a", "b"])
    assert [(p.network, p.way) for p in found] == [
        ("a", "one pass"),
        ("a", "windows"),
        ("b", "windows"),
    ]
    assert [round(p.differences["gtvp_mean_dice"].estimate, 3) for p in found[1:]] == [0.05, 0.05]
    assert found[1].seconds == 4.0


def test_networks_of_earlier_calls_come_after_those_asked_for():
    results = [result(name, DICE) for name in "zxy"]
    assert [r.network for r in in_order(results, ["y"])] == ["y", "x", "z"]


def test_tables_have_a_row_a_run_and_a_row_a_network():
    results = [result("a", DICE), result("b", DICE - 0.1), result("b", DICE, minutes=10.0)]
    rows = run_table(results)
    assert list(rows["budget"]) == ["3 min", "3 min", "10 min"] and rows["patch_size"][0] == "8x8x8"
    assert rows["gtvp_mean_dice"][1] == pytest.approx(0.5)
    table = summary(points(results, ["a"]), "a", with_nodes=False)
    assert not any("GTVn" in column for column in table.columns)
    assert list(table["min charged"]) == ["3.00", "3.00", "10.00"]
    assert set(table["device"]) == {"CPU"}
    assert table["less a, GTVp mean Dice"][1] == "-0.100 (-0.100 to -0.100)"
    assert "GTVn agg. F1" in summary(points(results, ["a"]), "a", with_nodes=True).columns


def test_the_curve_has_a_line_a_network_and_way():
    results = [
        result(network, DICE + 0.01 * minutes, way=way, minutes=minutes)
        for network, way in (
            ("a", "one pass"),
            ("a", "windows"),
            ("a", "both"),
            ("b", "windows"),
        )
        for minutes in (3.0, 10.0, 30.0)
    ]
    figure = budgets_figure(points(results, ["a", "b"]))
    left, right = figure.axes
    assert len(left.containers) == 4 and len(right.lines) == 4
    assert left.get_xscale() == right.get_xscale() == "log"
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["a\n(one pass)", "a\n(windows)", "a\n(both)", "b\n(windows)"]


def test_seconds_of_another_device_are_not_on_one_axis():
    cpu = [result("a", DICE, minutes=m, seconds=2.0) for m in (3.0, 10.0)]
    gpu = [result("b", DICE, seconds=0.1, device="GPU")]
    both = [result("b", DICE, minutes=10.0), result("b", DICE, minutes=10.0, fold=1, device="GPU")]
    found = points([*cpu, *gpu, *both], ["a", "b"])
    assert [p.device for p in found] == ["CPU", "GPU", "CPU", "CPU and GPU"]
    left, right = budgets_figure(found).axes
    assert len(left.containers) == 2 and len(right.lines) == 1
    assert right.get_xlabel().endswith("(CPU; runs on others are left out)")
    low, _ = right.get_xlim()
    assert low > 0.1
    _, alone = budgets_figure(points(cpu, ["a"])).axes
    assert alone.get_xlabel().endswith("(CPU)")
