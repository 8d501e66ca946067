"""Whoever opens a result finds each of its columns in docs/reference/outputs.md."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import predicted
from test_writing_page import TWO, bundle

from hmvnet.experiments.budget_table import Result, patient_table, points, summary
from hmvnet.experiments.budgets import Budget
from hmvnet.experiments.compare_table import Cost, Scored, comparison
from hmvnet.segmentation import metrics
from hmvnet.writing.cohort import _COLUMNS, _FAILED
from hmvnet.writing.report import report, write_lesions

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "outputs.md"
RUNS = PAGE.parents[1] / "results" / "budgets-sts-2mm" / "runs-method4.csv"
SURVIVAL = PAGE.parents[1] / "results" / "phantoms400.csv"


def told() -> set[str]:
    """What the page has between backticks."""
    return set(re.findall(r"`([^`\n]+)`", PAGE.read_text(encoding="utf-8")))


def scores() -> list[metrics.CaseScore]:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:6, 2:6, 2:6], labels[8:10, 8:10, 8:10] = 1, 2
    return [metrics.score_case(labels, labels, (1, 1, 1), f"P{i}") for i in range(3)]


def test_every_column_of_a_patient_is_told(tmp_path):
    found = predicted(*TWO)
    columns = pd.read_csv(write_lesions(found, tmp_path / "lesions.csv")).columns
    keys = report(found, bundle())
    assert {*columns, *keys, *keys["lesions"][0], *_COLUMNS, *_FAILED} - told() == set()


def test_every_column_of_a_score_is_told():
    # Of the two classes the first alone is written out.
    platform = metrics.platform_scores(*[np.ones((4, 4, 4), np.uint8)] * 2)
    columns = {*metrics.to_frame(scores()).columns, *platform} - {"patient_id"}
    known = told() | {name.replace("gtvp_", "gtvn_") for name in told()}
    assert columns - known == set()


def test_every_column_of_a_comparison_is_told():
    cost = Cost(10, 5, 1.0, 1.0, 1.0)
    table = comparison({"a": Scored(scores(), cost), "b": Scored(scores(), cost)})
    training = {"steps": 3, "minutes_charged": 1.0, "parameters": 10, "device": "CPU"}
    one = Result("a", Budget(10), 0, "windows", training, [1.0], scores())
    made = points([one], ["a"])
    runs, survival = pd.read_csv(RUNS, nrows=1), pd.read_csv(SURVIVAL, nrows=1)
    columns = {*table.columns, *summary(made, "a", True).columns, *runs.columns, *survival.columns}
    columns |= {*patient_table([one]).columns}
    # Differences are named after the model that they are taken to.
    columns = {c for c in columns if not c.startswith(("less ", "C - ")) and c != "model"}
    columns -= {"gtvn_aggregated_dice", "gtvn_aggregated_f1"}  # as gtvp_mean_dice, which is told
    assert columns - told() == set()
