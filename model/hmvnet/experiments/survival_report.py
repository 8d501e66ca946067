"""What a comparison of survival models writes: its table, here and in files, and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from hmvnet.case import Outcomes
from hmvnet.prognosis.fusion import BRANCHES
from hmvnet.survival.bootstrap import Bootstrap
from hmvnet.survival.validation import OutOfFold, Scores
from hmvnet.table_files import write_markdown, write_table

# Branches of the fusion network by the name of the ablation.
FUSIONS: Mapping[str, tuple[str, ...]] = {
    "fusion": BRANCHES,
    "fusion-no-task1": ("image", "table"),
    "fusion-no-table": ("image", "lesions"),
    "fusion-no-image": ("table", "lesions"),
    "fusion-table": ("table",),
}
# As pictures say them.
READABLE: Mapping[str, str] = {
    "fusion": "fusion (image, table, lesions)",
    "fusion-no-task1": "fusion without lesions",
    "fusion-no-table": "fusion without table",
    "fusion-no-image": "fusion without image",
    "fusion-table": "fusion (table)",
    "coxph": "Cox",
    "icare": "ICARE",
    "deephit": "DeepHit",
    "mtlr": "MTLR",
    "rsf": "random survival forest",
    "gbm": "gradient boosting",
}
LESIONS_TOO = "+lesions"
TRUTH = "(true model)"
DIFFERENCE = "C - "  # and the model that others' differences are taken to
# Columns that a terminal shows as far as they fit, by how soon one is missed.
FIRST_TO_GO = ("AUC", "calibration error", "Uno", "Brier", "calibration slope", "C, ", DIFFERENCE)


def readable(name: str) -> str:
    """A model's name in words, with what it sees: ``coxph+lesions`` is ``Cox (table, lesions)``."""
    if name == TRUTH:
        return "the model that drew the outcomes"
    base = name.removesuffix(LESIONS_TOO)
    words = READABLE.get(base, base)
    if base in FUSIONS:
        return words
    return f"{words} (table, lesions)" if base != name else f"{words} (table)"


def readable_names(names: Iterable[str]) -> dict[str, str]:
    """Those of models that stand side by side; where all see the table alone, none says so."""
    names = list(names)
    seeing_more = [
        n for n in names if n.endswith(LESIONS_TOO) or set(FUSIONS.get(n, ())) - {"table"}
    ]
    words = {name: readable(name) for name in names}
    if seeing_more:
        return words
    return {name: READABLE.get(name, word) for name, word in words.items()}


def title_of(outcomes: Outcomes, fold: np.ndarray) -> str:
    """Patients, events and folds in words; ``fold`` ``[repeats, n]``."""
    folds = len(np.unique(fold[0]))
    repeats = f"{len(fold)} x " if len(fold) > 1 else ""
    return f"{len(outcomes)} patients, {int(outcomes.event.sum())} relapses, {repeats}{folds} folds"


def print_table(table: pd.DataFrame, title: str, console: Console) -> None:
    """The table on a terminal of any width; what does not fit is in ``survival.csv``."""
    columns, unbounded = list(table.columns), console.options.update_width(10_000)
    for going in ("", *FIRST_TO_GO):
        columns = [name for name in columns if not (going and name.startswith(going))]
        shown = _drawn(table[columns], title)
        if Measurement.get(console, unbounded, shown).maximum <= console.width:
            break
    console.print(shown)
    if gone := [name for name in table.columns if name not in columns]:
        console.print(f"not shown here: {'; '.join(map(_heading, gone))}", markup=False)


def _drawn(table: pd.DataFrame, title: str) -> Table:
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("model", overflow="fold")
    for name in table.columns:
        drawn.add_column(_heading(name), justify="right", overflow="fold")
    words = readable_names(map(str, table.index))
    for label, row in table.iterrows():
        cells = [cell if isinstance(cell, str) else _figure(cell) for cell in row]
        drawn.add_row(words[str(label)], *cells)
    return drawn


def _heading(column: str) -> str:
    """A column's name in words: ``C - coxph`` is ``C less Cox``."""
    reference = column.removeprefix(DIFFERENCE)
    return column if reference == column else f"C less {READABLE.get(reference, reference)}"


def _figure(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def write_tables(
    table: pd.DataFrame,
    risks: Mapping[str, np.ndarray],
    ids: Sequence[str],
    fold: np.ndarray,
    run: Path,
    title: str,
) -> None:
    """``survival.md`` in words, ``survival.csv`` and ``risks.csv``, a row a patient and repeat."""
    named = table.rename_axis("model").reset_index()
    write_table(named, run / "survival.csv")
    words = readable_names(map(str, table.index))
    told = named.assign(model=[words[name] for name in named["model"]]).rename(columns=_heading)
    write_markdown(told, run / "survival.md", floatfmt=".3f", title=title)
    repeats, patients = fold.shape
    long = pd.DataFrame(
        {
            "PatientID": list(ids) * repeats,
            "repeat": np.repeat(np.arange(repeats), patients),
            "fold": fold.ravel(),
            **{name: risk.ravel() for name, risk in risks.items()},
        }
    )
    write_table(long, run / "risks.csv")


def draw(
    predictions: Mapping[str, OutOfFold],
    scores: Mapping[str, Scores],
    boot: Bootstrap,
    outcomes: Outcomes,
    fold: np.ndarray,
    run: Path,
    title: str,
) -> None:
    """Forest plot, Kaplan-Meier curves by the first model, calibration: PNG under ``run``."""
    from hmvnet.training import pictures  # matplotlib only here

    order = sorted(boot.estimate, key=lambda name: -boot.estimate[name])
    words = readable_names(order)
    intervals = {words[name]: boot.interval(name) for name in order}
    figure = pictures.forest_figure(intervals, title=title)
    pictures.save(figure, run / "forest.png")
    first = next(iter(predictions))
    rank = predictions[first].mean_rank(fold)
    groups = pictures.risk_groups(rank, rank)
    figure = pictures.kaplan_meier_figure(outcomes, groups, model=words[first])
    pictures.save(figure, run / "kaplan-meier.png")
    curves = {words[name]: s.calibration for name, s in scores.items() if s.calibration}
    if curves:
        figure = pictures.calibration_figure(curves, pictures.counted(outcomes))
        pictures.save(figure, run / "calibration.png")
