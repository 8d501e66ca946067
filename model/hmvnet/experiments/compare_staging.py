"""``hmvnet stage compare``: the rule and fitted models, cross-fitted, on true and predicted masks.

All see the same folds; whatever is fitted or chosen is so inside a fold's training part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from hmvnet.ajcc import AXES
from hmvnet.bundle import load_bundle
from hmvnet.config import DataSettings, Settings
from hmvnet.exits import RefusedError, shown
from hmvnet.lesions.features import LesionFeatures
from hmvnet.progress import print_notes, track
from hmvnet.staging.features import n_names, t_names
from hmvnet.staging.metrics import area_under_roc, balanced_accuracy, recalls
from hmvnet.state import claiming_run
from hmvnet.survival.bootstrap import Bootstrap, draw_weights
from hmvnet.table_files import print_frame, write_markdown, write_table
from hmvnet.training.staging import (
    Masks,
    StageData,
    StagedPatient,
    cross_fit,
    load_staged,
    refuse_rare_stages,
)

RULE, MODEL = "rule", "model"
SIZE_NAMES = ("t_log_diameter", "t_over_20_mm", "t_over_40_mm", "t_log_volume", "t_present")
SAMPLES = 2000
T4 = 3  # its number


@dataclass(frozen=True)
class Told:
    """What one method says of the patients of an axis.

    Attributes:
        given: stages' numbers ``[n]``.
        t4: how much speaks for T4 ``[n]``; None where nothing is said of it.
    """

    given: np.ndarray
    t4: np.ndarray | None = None


def known_masks(words: Sequence[str]) -> tuple[Masks, ...]:
    """Masks by name; none: both.

    Raises:
        RefusedError: another word.
    """
    known: dict[str, Masks] = {"true": "true", "predicted": "predicted"}
    if bad := [word for word in words if word not in known]:
        raise RefusedError(f"--masks {shown(bad[0])}: expected true or predicted")
    return tuple(known[word] for word in dict.fromkeys(words)) or tuple(known.values())


def methods_of(axis: str) -> dict[str, tuple[str, ...]]:
    """The fitted models of an axis, and the features that each sees."""
    if axis == "n":
        return {MODEL: n_names()}
    return {
        "size alone": SIZE_NAMES,
        "without invasion": t_names(invasion=False),
        MODEL: t_names(),
    }


def by_rule(data: StageData, patients: Sequence[StagedPatient], axis: str) -> Told:
    """What AJCC's rule gives, as it stands among the features; size alone says how much is T4."""
    features: Sequence[LesionFeatures] = [patients[i].features for i in data.rows]
    names = [f"{axis}_rule_{stage}" for stage in data.stages if (axis, stage) != ("t", "T4")]
    given = np.array([one.select(names).values for one in features])
    told = np.where(given.any(axis=1), given.argmax(axis=1), 0)  # no primary: T1
    size = np.array([one.select(["t_log_diameter"]).values[0] for one in features])
    return Told(told, size if axis == "t" else None)


@claiming_run
def compare_staging(
    settings: Settings,
    weights: Path,
    run: Path,
    console: Console,
    masks: Sequence[Masks] = ("true", "predicted"),
) -> pd.DataFrame:
    """Cross-fit every method, print one table and write it under ``run``.

    Writes ``staging.md`` and ``staging.csv`` (a row a mask, way of folding, axis and method),
    ``centres.csv`` (a centre each) and ``stages.csv`` (a row a patient).

    Args:
        masks: whose features are compared; the loss from true to predicted is in the table.

    Raises:
        ValueError: as ``load_staged``, or too few patients of a stage.
    """
    run.mkdir(parents=True, exist_ok=True)
    bundle, notes = load_bundle(weights).adjusted(settings)
    print_notes(console, notes)
    rows: list[dict[str, object]] = []
    centres: list[dict[str, object]] = []
    long: list[pd.DataFrame] = []
    foldings = [settings.data]
    if settings.data.fold_by == "stratified":
        loco = {"fold_by": "leave-one-centre-out"}
        foldings.append(settings.data.model_copy(update=loco))
    check = partial(refuse_rare_stages, data=settings.data)
    for kind in masks:
        patients = load_staged(bundle, settings, run, kind, check)
        for axis in AXES:
            data = StageData.of(patients, axis)
            for folding in foldings:
                if folding.fold_by != "stratified" and len(set(data.centres.tolist())) < 2:
                    continue
                try:
                    told = _tell_all(data, patients, axis, folding)
                except ValueError as error:  # too few of a stage where a centre is left out
                    if folding is settings.data:
                        raise
                    print_notes(console, [f"{axis.upper()}, {_folding_name(folding)}: {error}"])
                    continue
                said = {"masks": kind, "folds": _folding_name(folding), "axis": axis.upper()}
                weight = draw_weights(
                    len(data.y), SAMPLES, np.random.default_rng([settings.data.seed, 2])
                )
                rows += [said | row for row in score_methods(data, told, weight)]
                centres += [said | row for row in _by_centre(data, told)]
                long.append(_long(data, patients, told, said))
    table = pd.DataFrame(rows)
    write_markdown(table, run / "staging.md", floatfmt=".3f")
    write_table(table, run / "staging.csv")
    write_table(pd.DataFrame(centres), run / "centres.csv")
    write_table(pd.concat(long), run / "stages.csv")
    print_frame(table.round(3), console)
    console.print(f"wrote staging.md, staging.csv, centres.csv and stages.csv to {run}")
    return table


def _tell_all(
    data: StageData, patients: Sequence[StagedPatient], axis: str, folding: DataSettings
) -> dict[str, Told]:
    """Every method on the same folds."""
    folds = data.folds(folding)
    told = {RULE: by_rule(data, patients, axis)}
    methods = methods_of(axis)
    for name in track(list(methods), f"{axis.upper()}, {_folding_name(folding)}"):
        some = StageData.of(patients, axis, methods[name])
        probabilities, given = cross_fit(some, folds, folding.seed)
        told[name] = Told(given, probabilities[:, T4] if axis == "t" else None)
    return told


def score_methods(
    data: StageData, told: Mapping[str, Told], weights: np.ndarray
) -> list[dict[str, object]]:
    """A row a method: balanced accuracy and its difference to the rule's, recalls, T4's area.

    Args:
        weights: of ``draw_weights``; the same for all, so that differences are paired.
    """
    k, n = len(data.stages), len(data.y)
    accuracy = Bootstrap.of(
        {name: balanced_accuracy(data.y, one.given, k, weights) for name, one in told.items()}, n
    )
    seen = {name: one.t4 for name, one in told.items() if one.t4 is not None}
    area = Bootstrap.of(
        {name: area_under_roc(score, data.y == T4, weights) for name, score in seen.items()}, n
    )
    rows = []
    for name, one in told.items():
        row: dict[str, object] = {
            "method": name,
            "patients": n,
            "balanced accuracy": str(accuracy.interval(name)),
            "to the rule": f"{accuracy.difference(name, RULE):+.3f}" if name != RULE else "",
        }
        found = recalls(data.y, one.given, k, weights[:1])[0]
        row["recall"] = ", ".join(
            f"{stage} {value:.2f}" for stage, value in zip(data.stages, found, strict=True)
        )
        told_t4 = name in seen
        row["area of T4"] = str(area.interval(name)) if told_t4 else ""
        row["to size"] = f"{area.difference(name, RULE):+.3f}" if told_t4 and name != RULE else ""
        rows.append(row)
    return rows


def _folding_name(folding: DataSettings) -> str:
    return "centre left out" if folding.fold_by != "stratified" else f"{folding.folds} folds"


def _by_centre(data: StageData, told: Mapping[str, Told]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for centre in np.unique(data.centres):
        here = np.flatnonzero(data.centres == centre)
        row: dict[str, object] = {"centre": str(centre), "patients": len(here)}
        for name, one in told.items():
            found = balanced_accuracy(data.y[here], one.given[here], len(data.stages))[0]
            row[name] = round(float(found), 4)
        rows.append(row)
    return rows


def _long(
    data: StageData,
    patients: Sequence[StagedPatient],
    told: Mapping[str, Told],
    said: Mapping[str, str],
) -> pd.DataFrame:
    stages = np.array(data.stages)
    columns = {name: stages[one.given] for name, one in told.items()}
    scores = {f"T4 by {name}": one.t4 for name, one in told.items() if one.t4 is not None}
    names = [patients[i].patient_id for i in data.rows]
    fixed = {"PatientID": names, **said, "centre": data.centres, "stage": stages[data.y]}
    return pd.DataFrame(fixed | columns | scores)
