from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import YEAR, case_score, follow_up

from hmvnet.case import GTVP, Outcomes
from hmvnet.experiments.survival_report import FUSIONS, LESIONS_TOO, TRUTH, readable
from hmvnet.survival import baselines
from hmvnet.survival.bootstrap import Interval
from hmvnet.survival.metrics import calibration
from hmvnet.training.checkpoints import History
from hmvnet.training.pictures import (
    calibration_figure,
    comparison_figure,
    counted,
    draw_comparison,
    draw_examples,
    draw_history,
    forest_figure,
    history_figure,
    kaplan_meier_figure,
    risk_groups,
)


def test_risk_groups_are_cut_at_training_quantiles() -> None:
    training = np.arange(1.0, 10.0)
    groups = risk_groups(np.array([-5.0, 3.0, 5.0, 99.0]), training)
    assert groups.tolist() == [0, 0, 1, 2]
    counts = np.bincount(risk_groups(training, training))
    assert counts.tolist() == [3, 3, 3]


def test_kaplan_meier_figure_shows_each_group() -> None:
    x, outcomes = follow_up(n=200)
    figure = kaplan_meier_figure(outcomes, risk_groups(x[:, 0], x[:, 0]))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["low", "middle", "high"]
    final = [line.get_ydata()[-1] for line in axes.get_lines()]
    assert final[0] > final[1] > final[2]
    assert all(line.get_ydata()[0] == 1.0 for line in axes.get_lines())
    assert "log-rank p" in axes.get_title()
    assert counted(outcomes) in axes.get_title()
    assert "95% CI" in axes.get_ylabel()
    below = figure.axes[1]
    assert [label.get_text().split(" (")[0] for label in below.get_yticklabels()] == [
        "low",
        "middle",
        "high",
    ]
    at_start = [int(t.get_text()) for t in below.texts if t.get_position()[0] == 0]
    assert sum(at_start) == 200


def test_kaplan_meier_figure_of_one_group_without_events() -> None:
    outcomes = Outcomes([100.0, 400.0, 900.0], [False, False, False])
    figure = kaplan_meier_figure(outcomes, np.zeros(3, dtype=int))
    assert "log-rank" not in figure.axes[0].get_title()


def test_forest_and_calibration_figures(tmp_path) -> None:
    intervals = {"icare": Interval(0.68, 0.6, 0.75), "coxph": Interval(0.66, 0.58, 0.72)}
    figure = forest_figure(intervals)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["icare", "coxph"]
    figure.savefig(tmp_path / "forest.png")

    x, outcomes = follow_up()
    curve = calibration(outcomes, np.clip(0.3 + 0.2 * x[:, 0], 0.01, 0.99), YEAR)
    calibration_figure({"m": curve}).savefig(tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 1000


def apart(axes) -> bool:
    """Whether no label of the y axis lies on the next."""
    axes.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    boxes.sort(key=lambda box: box.y0)
    return all(one.y1 <= other.y0 for one, other in pairwise(boxes))


def test_forest_of_twelve_says_what_it_shows() -> None:
    names = [TRUTH, *FUSIONS, *baselines.available()]
    intervals = {readable(name): Interval(0.7, 0.6, 0.8) for name in names}
    figure = forest_figure(intervals, title="12 patients, 3 events")
    axes = figure.axes[0]
    assert len(axes.get_yticklabels()) == 12
    assert apart(axes)
    assert axes.get_title() == "12 patients, 3 events"
    assert "95% CI" in axes.get_xlabel()


def test_every_survival_model_has_a_name_in_words() -> None:
    classical = baselines.available()
    names = [TRUTH, *FUSIONS, *classical, *(name + LESIONS_TOO for name in classical)]
    words = [readable(name) for name in names]
    assert len(set(words)) == len(words)
    assert not set(words) & set(names)
    assert readable("coxph") == "Cox (table)"
    assert readable("coxph+lesions") == "Cox (table, lesions)"
    assert readable("fusion-no-image") == "fusion without image"


def test_comparison_has_patients_in_its_titles_and_labels_apart(tmp_path) -> None:
    scores = {
        f"network{i} width={i} depths=2,2,2,2 window=4": [case_score(0.1 * k) for k in range(8)]
        for i in range(12)
    }
    figure = comparison_figure(scores)
    assert [axes.get_title() for axes in figure.axes] == [
        "GTVp, n = 8 patients",
        "GTVn, n = 8 patients",
    ]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label.replace("\n", " ") for label in labels] == list(scores)
    assert all(len(line) <= 22 for label in labels for line in label.splitlines())
    assert apart(figure.axes[0])
    assert all("Dice" in axes.get_xlabel() for axes in figure.axes)
    assert draw_comparison(scores, tmp_path / "c.png").stat().st_size < 1_000_000


def test_comparison_without_nodes_has_one_panel() -> None:
    figure = comparison_figure({"hmvnet": [case_score(total=0.0, inter=0.0)]})
    assert len(figure.axes) == 1


@pytest.mark.parametrize("values", [(0.70, 0.74), (0.0, 1.0), (0.5, float("nan")), (-3.0, 8.0)])
def test_validation_range_holds_all_values_and_little_more(values, tmp_path) -> None:
    losses = [{"step": step, "total": 1 / (1 + step)} for step in range(20)]
    validations = [{"step": 10 * i, "gtvp_mean_dice": v} for i, v in enumerate(values)]
    history = History(losses=losses, validations=validations)
    axes = history_figure(history).axes[1]
    low, high = axes.get_ylim()
    known = [v for v in values if v == v]
    assert low < min(known) and max(known) < high
    assert high - low <= max(0.15, 1.2 * (max(known) - min(known)))
    assert draw_history(history, tmp_path / "h.png").stat().st_size > 1000


def test_legends_of_the_history_lie_below_the_lines() -> None:
    losses = [{"step": step, "total": 1.0} for step in range(20)]
    figure = history_figure(History(losses=losses, validations=[{"step": 9, "gtvp_mean_dice": 1}]))
    figure.canvas.draw()
    for axes in figure.axes:
        assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0


def test_history_of_nothing_draws(tmp_path) -> None:
    assert draw_history(History(), tmp_path / "empty.png").stat().st_size > 1000


def test_calibration_has_a_panel_a_model() -> None:
    x, outcomes = follow_up()
    curve = calibration(outcomes, np.clip(0.3 + 0.2 * x[:, 0], 0.01, 0.99), YEAR)
    names = [f"model {i}" for i in range(6)]
    figure = calibration_figure(dict.fromkeys(names, curve), counted(outcomes))
    titles = [axes.get_title().splitlines()[0] for axes in figure.axes if axes.axison]
    assert titles == names
    assert counted(outcomes) in figure.get_suptitle()
    assert "95% CI" in figure.get_supylabel()


def test_examples_are_marked_and_leave_pyplot_alone(tmp_path) -> None:
    before = plt.get_fignums()
    volume = np.zeros((2, 6, 30, 30), np.float32)
    labels = np.zeros((6, 30, 30), np.uint8)
    labels[3, 10:20, 10:20] = GTVP
    # A name that is no formula: "$\\" would be a mistake in one.
    path = draw_examples({"$P1\\$": (volume, labels, labels)}, tmp_path / "examples.png")
    assert 1000 < path.stat().st_size < 1_000_000
    assert plt.get_fignums() == before


def test_pictures_do_not_import_pyplot() -> None:
    code = """import sys
import hmvnet.training.pictures
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
