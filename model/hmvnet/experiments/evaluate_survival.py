"""Scoring a bundle's survival model on a data folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from hmvnet.bundle import load_bundle
from hmvnet.case import harrell_c
from hmvnet.config import Settings
from hmvnet.prognosis.risk import Prognosis
from hmvnet.progress import print_notes
from hmvnet.reading.folder import find_patients
from hmvnet.state import claiming_run
from hmvnet.table_files import write_table
from hmvnet.training.descriptions import load_described, outcomes_of
from hmvnet.training.prognosis import predict


@claiming_run
def evaluate_survival(
    settings: Settings, weights: Path, run: Path, limit: int, console: Console
) -> float:
    """Harrell's C-index of a bundle on patients that none of its networks saw.

    Raises:
        ValueError: the bundle holds no survival model, or it was fitted to some of the patients; or
            as ``load_described``.
    """
    bundle, notes = load_bundle(weights).adjusted(settings)
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
    found = load_described(bundle, settings, spacing, run)
    described = [
        replace(p, description=prognosis.own_features(p.description))
        for p in found[: limit or None]
    ]
    risk = predict(prognosis.members, described)
    outcomes = outcomes_of(described)
    concordance = harrell_c(outcomes, risk)
    rows = [
        {
            "PatientID": p.patient_id,
            "risk": f"{r:.6f}",
            "RFS": f"{p.outcome.days:g}",
            "Relapse": int(p.outcome.event),
        }
        for p, r in zip(described, risk)
    ]
    write_table(pd.DataFrame(rows), run / "risks.csv")
    console.print(
        f"C-index {concordance:.4f} on {len(outcomes)} patients, "
        f"{int(outcomes.event.sum())} relapses"
    )
    return concordance
