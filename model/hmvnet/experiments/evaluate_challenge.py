"""A bundle on a data folder, end to end, by the figures of both years: mask, stage and risk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hmvnet.bundle import Bundle, load_bundle
from hmvnet.case import Stage
from hmvnet.config import Settings
from hmvnet.exits import one_line
from hmvnet.experiments.challenge_score import (
    OF_2025,
    OF_2026,
    Figure,
    Scored,
    by_centre,
    challenge_figures,
)
from hmvnet.experiments.evaluate import UNKNOWN_SEEN, masks_of, predicted
from hmvnet.pipeline import Pipeline
from hmvnet.progress import print_lines, print_notes, track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.segmentation import metrics
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.state import claiming_run
from hmvnet.table_files import write_markdown, write_table

ALL = "all"
# What the columns of centres are called.
SHORT = {
    "gtvp_mean_dice": "GTVp",
    "gtvn_aggregated_dice": "agg.",
    "gtvn_aggregated_f1": "F1",
    "c_index": "C",
    "gtvn_mean_dice": "GTVn",
    "segmentation": "seg.",
    "t_balanced_accuracy": "T",
    "n_balanced_accuracy": "N",
    "staging": "stage",
    "total": "total",
}


@claiming_run
def evaluate_challenge(
    settings: Settings, weights: Path, run: Path, limit: int, console: Console
) -> dict[str, Figure]:
    """Predict every patient and score what is known of each: label, stage, outcome.

    Settings that are given explicitly take the place of the bundle's own. Writes ``patients.csv``
    (a row a patient) and ``figures.csv`` and ``figures.md`` (a row a figure and centre, with 95%
    intervals) under ``run``.

    Raises:
        ValueError: no patient with a label, a stage or an outcome.
    """
    found = find_patients(settings.data.root, settings.clinical.table_names, need_labels=False)
    print_lines(found.summary())
    patients = found[: limit or None]
    bundle, notes = load_bundle(weights).adjusted(settings)
    print_notes(console, [*notes, *_seen(bundle, [p.patient_id for p in patients])])
    has_risk = bundle.manifest.prognosis is not None
    pipeline = Pipeline(
        bundle, pick_device(), settings.inference.without_budget(), needs_risk=has_risk
    )
    scored = [scored_patient(pipeline, patient) for patient in track(patients, "predict")]
    figures = {ALL: challenge_figures(scored)}
    if not figures[ALL]:
        raise ValueError(
            f"'{settings.data.root}': no patient with a label, a stage or an outcome, expected one "
            "to compare with"
        )
    centres = by_centre(scored)
    figures |= centres if len(centres) > 1 else {}
    write_table(_patient_rows(scored), run / "patients.csv")
    table = _figure_rows(figures)
    write_table(table, run / "figures.csv")
    write_markdown(table, run / "figures.md")
    for year, names in (("2025", OF_2025), ("2026", OF_2026)):
        console.print(figure_table(f"HECKTOR {year}", names, figures[ALL]))
    if len(figures) > 1:
        console.print(centre_table(OF_2025 | OF_2026, figures))
    console.print(f"wrote {run / 'patients.csv'} and {run / 'figures.md'}", markup=False)
    return figures[ALL]


def scored_patient(pipeline: Pipeline, patient: Patient) -> Scored:
    """A patient's prediction beside what is known of them."""
    case, prediction = predicted(pipeline, patient)
    score = None
    if case.truth is not None:
        score = metrics.score_case(*masks_of(case, prediction), patient.patient_id)
    given = Stage()
    if prediction.staging:
        given = Stage(prediction.staging.t.stage, prediction.staging.n.stage)
    return Scored(
        patient.patient_id,
        patient.centre,
        score,
        given,
        patient.stage,
        prediction.risk.value if prediction.risk else None,
        patient.outcome,
    )


def _seen(bundle: Bundle, patient_ids: Sequence[str]) -> Iterator[str]:
    """What the bundle's parts learnt of these patients."""
    if not bundle.says_whom_it_saw:
        yield UNKNOWN_SEEN
    for what, known in (
        ("the networks were trained on", bundle.seen_among(patient_ids)),
        ("the survival model was fitted to", bundle.fitted_among(patient_ids)),
        ("the staging models were fitted to", bundle.staged_among(patient_ids)),
    ):
        if known:
            yield (
                f"{what} {len(known)} of these {len(patient_ids)} patients: their figures say "
                "nothing about new ones"
            )


def figure_table(title: str, names: Mapping[str, str], found: Mapping[str, Figure]) -> Table:
    """A row a figure, with its interval and over how many patients it is."""
    table = Table(title=title)
    for name in ("", "value", "95% interval", "patients"):
        table.add_column(name, justify="right" if name else "left")
    for key, name in names.items():
        if (one := found.get(key)) is not None:
            value = one.value
            interval = f"{value.low:.3f} to {value.high:.3f}"
            table.add_row(name, f"{value.estimate:.3f}", interval, str(one.patients))
    return table


def centre_table(names: Mapping[str, str], figures: Mapping[str, Mapping[str, Figure]]) -> Table:
    """A row a centre, a column a figure; a dash where a centre's patients have none."""
    known = [key for key in names if key in figures[ALL]]
    table = Table(title="by centre", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", *(SHORT[key] for key in known)):
        table.add_column(name, justify="right" if name else "left")
    for label, found in figures.items():
        values = [found[key].value.estimate if key in found else np.nan for key in known]
        cells = ("-" if np.isnan(value) else f"{value:.3f}" for value in values)
        table.add_row(escape(one_line(label)), *cells)
    return table


def _figure_rows(figures: Mapping[str, Mapping[str, Figure]]) -> pd.DataFrame:
    rows = [
        {
            "centre": label,
            "figure": key,
            "patients": one.patients,
            "value": round(one.value.estimate, 4),
            "low": round(one.value.low, 4),
            "high": round(one.value.high, 4),
        }
        for label, found in figures.items()
        for key, one in found.items()
    ]
    return pd.DataFrame(rows)


def _patient_rows(scored: Sequence[Scored]) -> pd.DataFrame:
    rows = []
    for one in scored:
        row: dict[str, object] = {"PatientID": one.patient_id, "centre": one.centre}
        if one.score:
            row |= {
                "gtvp_dice": round(one.score.gtvp.dice, 4),
                "gtvn_dice": round(one.score.gtvn.dice, 4),
            }
        row |= {
            "T": one.given.t,
            "T true": one.truth.t,
            "N": one.given.n,
            "N true": one.truth.n,
            "risk": one.risk,
        }
        if one.outcome:
            row |= {"RFS": one.outcome.days, "Relapse": int(one.outcome.event)}
        rows.append(row)
    return pd.DataFrame(rows)
