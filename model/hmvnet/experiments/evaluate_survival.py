"""Scoring a bundle's survival model on a data folder, and recalibrating it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from hmvnet.bundle import (
    Bundle,
    Manifest,
    load_bundle,
    refuse_loss,
    write_bundle,
)
from hmvnet.case import harrell_c
from hmvnet.config import Settings
from hmvnet.prognosis.risk import Prognosis
from hmvnet.progress import print_notes
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.state import claiming_run
from hmvnet.survival.calibration import cox_slope, offset_to, recalibrated, refuse_few_events
from hmvnet.table_files import write_table
from hmvnet.training.descriptions import Described, load_described, outcomes_of
from hmvnet.training.prognosis import predict_as_given
from hmvnet.training.segmentation_bundle import BUNDLE

RECALIBRATED = "recalibrated_on"  # in the metrics of a bundle that was made here


@claiming_run
def evaluate_survival(
    settings: Settings, weights: Path, run: Path, limit: int, console: Console
) -> float:
    """Harrell's C-index of a bundle on patients that none of its networks saw.

    Of a bundle with a survival curve also its calibration: the slope, and the events over those
    expected. Writes ``risks.csv``, a row a patient.

    Raises:
        ValueError: the bundle holds no survival model, or it was fitted to some of the patients; or
            as ``load_described``.
    """
    _, prognosis, found = _unseen(settings, load_bundle(weights), run, console)
    described = found[: limit or None]
    risk = predict_as_given(prognosis, described)
    outcomes = outcomes_of(described)
    concordance = harrell_c(outcomes, risk)
    days = [prognosis.expected_days(float(r)) for r in risk]
    rows = [
        {
            "PatientID": p.patient_id,
            "risk": f"{r:.6f}",
            "expected_days": "" if d is None else f"{d:.2f}",
            "RFS": f"{p.outcome.days:g}",
            "Relapse": int(p.outcome.event),
        }
        for p, r, d in zip(described, risk, days)
    ]
    write_table(pd.DataFrame(rows), run / "risks.csv")
    console.print(
        f"C-index {concordance:.4f} on {len(outcomes)} patients, "
        f"{int(outcomes.event.sum())} relapses"
    )
    if prognosis.curve is not None and outcomes.event.any():
        hazard = prognosis.curve.log_hazard(risk)
        ratio = np.exp(offset_to(prognosis.curve, hazard, outcomes))
        console.print(
            f"calibration slope {cox_slope(hazard, outcomes):.2f}, "
            f"relapses over those expected {ratio:.2f}"
        )
    return concordance


def _is_recalibrated(there: Manifest) -> bool:
    """Whether it is as ``recalibrate`` left it: a staging model on top inherits the mark."""
    return RECALIBRATED in there.metrics.get("task2", {}) and not there.staging


@claiming_run
def recalibrate_survival(settings: Settings, weights: Path, run: Path, console: Console) -> Path:
    """A bundle's survival curve fitted to where it is used; writes ``<run>/bundle``.

    Risks and their order stay; slope and level of the curve change (``recalibrated``). What was
    observed in risk groups elsewhere is left out.

    Raises:
        ValueError: as ``evaluate_survival``, the bundle has no curve, or too few relapses.
        RefusedError: the bundle that is there holds other networks.
    """
    given = load_bundle(weights)
    refuse_loss(run / BUNDLE, given, _is_recalibrated)
    if given.manifest.prognosis and given.manifest.prognosis.curve is None:
        raise ValueError(
            f"bundle '{given.manifest.name}' has no survival curve to recalibrate; fit it with "
            "this version (hmvnet survival train)"
        )

    def check(patients: Sequence[Patient]) -> None:
        refuse_few_events(outcomes_of(patients))

    bundle, prognosis, described = _unseen(settings, given, run, console, check)
    part, curve = prognosis.part, prognosis.curve
    assert curve is not None
    outcomes = outcomes_of(described)
    new = recalibrated(curve, predict_as_given(prognosis, described), outcomes)
    measured = {
        "patients": len(outcomes),
        "relapses": int(outcomes.event.sum()),
        "slope": round(new.slope / curve.slope, 3),
        "data": Path(settings.data.root).resolve().name,
    }
    task2 = bundle.manifest.metrics.get("task2", {}) | {RECALIBRATED: measured}
    changed = {
        "prognosis": part.model_copy(update={"curve": new.state()}),
        "metrics": bundle.manifest.metrics | {"task2": task2},
    }
    manifest = bundle.manifest.model_copy(update=changed)
    console.print(
        f"recalibrated on {measured['patients']} patients, {measured['relapses']} relapses: slope "
        f"times {measured['slope']}"
    )
    return write_bundle(run / BUNDLE, manifest, bundle.all_tensors())


def _unseen(
    settings: Settings,
    given: Bundle,
    run: Path,
    console: Console,
    check: Callable[[Sequence[Patient]], object] = lambda patients: None,
) -> tuple[Bundle, Prognosis, Sequence[Described]]:
    """A bundle, its survival model, and a folder's patients as it wants them, all new to it."""
    bundle, notes = given.adjusted(settings)
    prognosis = Prognosis(bundle)
    names = settings.clinical.table_names
    patients = find_patients(settings.data.root, names, need_labels=False)
    if not prognosis.part.seen:
        raise ValueError(
            f"bundle '{bundle.manifest.name}' does not say whom its survival model was fitted to; "
            "fit it with this version"
        )
    if known := bundle.fitted_among(p.patient_id for p in patients):
        raise ValueError(
            f"{len(known)} patients, {', '.join(known[:3])}, ...: the survival model was fitted to "
            "them, and is not to be scored on them (hmvnet survival compare cross-validates)"
        )
    print_notes(console, notes)
    spacing = prognosis.image_spacing_mm  # as the model was fitted, whatever the settings say
    found = load_described(bundle, settings, spacing, run, prognosis.wants_crops, check)
    own = [replace(p, description=prognosis.own_features(p.description)) for p in found]
    return bundle, prognosis, own
