from __future__ import annotations

import numpy as np
from conftest import YEAR, follow_up

from hmvnet.case import Outcomes
from hmvnet.survival.bootstrap import Interval
from hmvnet.survival.metrics import calibration
from hmvnet.training.pictures import (
    calibration_figure,
    forest_figure,
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
