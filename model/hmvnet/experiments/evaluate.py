"""Scoring a bundle on a data folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hmvnet.bundle import load_bundle
from hmvnet.case import Case, Grid
from hmvnet.config import Settings
from hmvnet.exits import one_line
from hmvnet.files import write_text
from hmvnet.pipeline import Pipeline, Prediction
from hmvnet.progress import REMARKS, print_lines, print_notes, track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.segmentation import metrics
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.state import claiming_run
from hmvnet.table_files import write_table

UNKNOWN_SEEN = (
    "which patients the networks were trained on is not known: if some of these, their scores say "
    "nothing about new ones"
)


@claiming_run
def evaluate_segmentation(
    settings: Settings, weights: Path, run: Path, limit: int, console: Console
) -> metrics.Table1Scores:
    """The challenge's Task 1 metrics on the CT grids, end to end, as the container would score.

    Settings that are given explicitly take the place of the bundle's own, and the result says so.
    Writes ``scores.csv`` (a row a patient: our scores, then the platform's own,
    ``hmvnet.segmentation.metrics.platform_scores``) and ``scores.json`` under ``run``.
    """
    found = find_patients(settings.data.root, settings.clinical.table_names)
    print_lines(found.summary())
    patients = found[: limit or None]
    bundle, notes = load_bundle(weights).adjusted(settings)
    print_notes(console, notes)
    if not bundle.says_whom_it_saw:
        console.print(f"[yellow]note[/] {UNKNOWN_SEEN}")
    if known := bundle.seen_among(p.patient_id for p in patients):
        console.print(
            f"[yellow]note[/] trained on {len(known)} of these {len(patients)} patients: their "
            "scores say nothing about new ones"
        )
    inference = settings.inference.without_budget()  # scores do not hang on the machine's speed
    pipeline = Pipeline(bundle, pick_device(), inference, needs_risk=False)
    scores, platform = [], []
    for patient in track(patients, "segment"):
        masks = masks_of(*predicted(pipeline, patient))
        scores.append(metrics.score_case(*masks, patient.patient_id))
        platform.append(metrics.platform_scores(*masks[:2]))
    table = metrics.aggregate(scores, [p.centre for p in patients])
    rows = metrics.to_frame(scores).join(pd.DataFrame(platform))
    write_table(rows, run / "scores.csv")
    summary = {"bundle": bundle.manifest.name, "notes": notes, **table.to_dict()}
    write_text(json.dumps(summary, indent=2), run / "scores.json")
    console.print(score_table({bundle.manifest.name: table}))
    console.print(f"wrote {run / 'scores.csv'} and {run / 'scores.json'}", markup=False)
    return table


def score_patient(pipeline: Pipeline, patient: Patient) -> tuple[metrics.CaseScore, Prediction]:
    """The challenge's scores of one patient on the CT grid, and what was predicted."""
    case, prediction = predicted(pipeline, patient)
    return metrics.score_case(*masks_of(case, prediction), patient.patient_id), prediction


def predicted(pipeline: Pipeline, patient: Patient) -> tuple[Case, Prediction]:
    """A patient as read, and what is predicted; notes and doubts are told."""
    case = patient.read()
    prediction = pipeline(case)
    doubts = [] if prediction.verdict.status == "ok" else [f"verdict {prediction.verdict}"]
    # Where memory did not suffice: networks that were not run as the settings say.
    otherwise = [note for one in pipeline.segmenter.ensemble.members for note in one.notes]
    REMARKS.tell(patient.patient_id, [*case.notes, *doubts, *dict.fromkeys(otherwise)])
    return case, prediction


def masks_of(
    case: Case, prediction: Prediction
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Predicted and true label map and spacing ``[z, y, x]`` on the CT grid."""
    assert case.truth is not None
    mask, truth = (sitk.GetArrayFromImage(image) for image in (prediction.mask, case.truth))
    return mask, truth, Grid.of(case.ct).spacing[::-1]


def score_table(rows: dict[str, metrics.Table1Scores]) -> Table:
    """One row a method, and below it one a centre."""
    table = Table(title="Task 1")
    figures = ("GTVp mean Dice", "GTVn agg. Dice", "GTVn agg. F1", "GTVp HD95 mm", "of patients")
    headers = ("", "patients", *figures)
    for name in headers:
        table.add_column(name, justify="right" if name else "left")
    for name, scores in rows.items():
        for label, one in ((name, scores), *((f"  {c}", s) for c, s in scores.per_centre.items())):
            table.add_row(
                escape(one_line(label)),
                str(one.patients),
                f"{one.gtvp_mean_dice:.4f}",
                f"{one.gtvn_aggregated_dice:.4f}",
                f"{one.gtvn_aggregated_f1:.4f}",
                f"{one.gtvp_mean_hd95_mm:.1f}",
                str(one.gtvp_hd95_patients),
            )
    return table
