"""A bundle with a survival model from a data folder and a segmentation bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hmvnet.bundle import (
    Bundle,
    PrognosisPart,
    RecordFreePart,
    check_other,
    fingerprint,
    load_bundle,
    write_bundle,
)
from hmvnet.config import Settings
from hmvnet.progress import print_notes
from hmvnet.state import claiming_run
from hmvnet.survival.calibration import fit_curve, onto
from hmvnet.training.descriptions import load_described, outcomes_of
from hmvnet.training.leaks import refuse_hidden_outcome
from hmvnet.training.prognosis import cross_validate, fit
from hmvnet.training.segmentation_bundle import BUNDLE

RISK_QUANTILES = 21


@claiming_run
def train_survival_bundle(settings: Settings, weights: Path, run: Path) -> Path:
    """Cross-validate, fit on everyone, and write ``<run>/bundle`` with both tasks in it.

    The survival curve is fitted to the out-of-fold risks. The same again, of images and lesions
    alone, for patients without a health record.

    Raises:
        ValueError: as ``load_described``, or too few patients.
    """
    bundle, notes = load_bundle(weights).adjusted(settings)
    check_other(run / BUNDLE, weights)
    print_notes(Console(stderr=True), notes)
    options = settings.prognosis
    spacing, schema = options.image_spacing_mm, settings.clinical.record_schema
    described = load_described(bundle, settings, spacing, run)
    refuse_hidden_outcome(described, schema)
    outcomes = outcomes_of(described)
    data = settings.data
    out_of_fold, concordance = cross_validate(described, data, options, schema, run)
    curve = fit_curve(out_of_fold, outcomes)
    members = fit(described, options, schema, run / "all")
    tensors = {f"prognosis{i}.safetensors": m.tensors() for i, m in enumerate(members)}
    metrics: dict[str, Any] = {
        "c_index_cross_validated": round(concordance, 4),
        "folds": data.folds,
        "patients": len(described),
        "relapses": int(outcomes.event.sum()),
        "data": Path(data.root).resolve().name,
    }
    without_record = None
    if "table" in options.branches and len(options.branches) > 1:
        rest = tuple(branch for branch in options.branches if branch != "table")
        options = options.model_copy(update={"branches": rest})
        own = run / "without-record"
        risk, concordance = cross_validate(described, data, options, schema, own)
        metrics["c_index_without_record"] = round(concordance, 4)
        others = fit(described, options, schema, own / "all")
        named = {f"without-record{i}.safetensors": m.tensors() for i, m in enumerate(others)}
        shift, scale = onto(curve, risk, outcomes)
        without_record = RecordFreePart(
            settings=others[0].settings(), files=list(named), shift=shift, scale=scale
        )
        tensors |= named
    part = PrognosisPart(
        settings=members[0].settings() | {"image_spacing_mm": spacing},
        clinical=[m.encoder.state() for m in members],
        lesion_features=list(described[0].description.features.names),
        risk_quantiles=np.quantile(out_of_fold, np.linspace(0, 1, RISK_QUANTILES)).tolist(),
        curve=curve.state(),
        without_record=without_record,
        seen=sorted(fingerprint(p.patient_id) for p in described),
        files=[f"prognosis{i}.safetensors" for i in range(len(members))],
    )
    kept = _of_other_parts(bundle)
    metrics = bundle.manifest.metrics | {"task2": metrics}
    manifest = bundle.manifest.model_copy(update={"prognosis": part, "metrics": metrics})
    files = {file: bundle.tensors(file) for file in kept} | tensors
    return write_bundle(run / BUNDLE, manifest, files)


def _of_other_parts(bundle: Bundle) -> list[str]:
    """The tensor files of a bundle that are not its survival model's."""
    part = bundle.manifest.prognosis
    other = part.without_record if part else None
    own = {*(part.files if part else ()), *(other.files if other else ())}
    return [f for f in bundle.manifest.files if f.endswith(".safetensors") and f not in own]
