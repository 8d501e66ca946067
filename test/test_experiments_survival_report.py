import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from hmvnet.case import Outcomes
from hmvnet.experiments.survival_report import (
    print_table,
    readable_names,
    title_of,
    write_tables,
)

TABLE = pd.DataFrame(
    {
        "C (95% CI)": ["0.718 (0.677 to 0.758)", "0.708 (0.664 to 0.749)"],
        "C - coxph": ["0.011 (0.001 to 0.020)", "0.000 (0.000 to 0.000)"],
        "Uno's C": [0.69, np.nan],
        "AUC 1 y": [0.779, 0.767],
        "Brier": [0.12, 0.134],
        "calibration slope": [1.01, 2.41],
    },
    index=["fusion-table", "coxph"],
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_table_fits_and_says_what_it_left_out(width: int) -> None:
    file = io.StringIO()
    print_table(TABLE, "763 patients", Console(file=file, width=width))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "763 patients" in text and "fusion (table)" in text and "coxph" not in text
    hidden = " ".join(text.split()).partition("not shown here: ")[2].split("; ")
    headings = {name.replace("C - coxph", "C less Cox") for name in TABLE.columns}
    assert len(set(hidden) & headings) == {40: 5, 60: 5, 80: 4, 120: 0, 200: 0}[width]
    assert ("0.011 (0.001 to 0.020)" in text) == (width >= 80) == ("C less Cox" not in hidden)
    assert "nan" not in text


def test_the_title_counts_patients_events_and_folds() -> None:
    outcomes = Outcomes(np.arange(6.0), np.array([1, 0, 1, 0, 1, 0]))
    fold = np.array([[0, 1, 2, 0, 1, 2]])
    assert title_of(outcomes, fold) == "6 patients, 3 relapses, 3 folds"
    assert title_of(outcomes, np.tile(fold, (2, 1))) == "6 patients, 3 relapses, 2 x 3 folds"


def test_what_a_model_sees_is_said_where_they_see_different_things() -> None:
    assert readable_names(["coxph", "rsf", "fusion-table"]) == {
        "coxph": "Cox",
        "rsf": "random survival forest",
        "fusion-table": "fusion (table)",
    }
    for other in ("coxph+lesions", "fusion", "fusion-no-image"):
        assert readable_names(["coxph", other])["coxph"] == "Cox (table)"


def test_markdown_is_for_readers_and_csv_for_programs(tmp_path) -> None:
    fold = np.zeros((1, 2), int)
    write_tables(TABLE, {"coxph": np.zeros((1, 2))}, ["a", "b"], fold, tmp_path, "2 patients")
    told = (tmp_path / "survival.md").read_text()
    assert told.startswith("2 patients\n\n| model") and "C less Cox" in told
    assert list(pd.read_csv(tmp_path / "survival.csv")["model"]) == list(TABLE.index)
