"""A bundle with a survival model from a data folder and a segmentation bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hmvnet.bundle import (
    PrognosisPart,
    RecordFreePart,
    fingerprint,
    load_bundle,
    refuse_loss,
    write_bundle,
)
from hmvnet.config import PrognosisSettings, Settings
from hmvnet.prognosis.encoder import notes_on
from hmvnet.prognosis.member import PrognosisMember
from hmvnet.progress import print_notes
from hmvnet.reading.folder import Patient
from hmvnet.reading.records import ClinicalSchema
from hmvnet.state import claiming_run
from hmvnet.survival.calibration import fit_curve, onto
from hmvnet.training.descriptions import Described, load_described, outcomes_of
from hmvnet.training.judged import fit
from hmvnet.training.leaks import refuse_hidden_outcome
from hmvnet.training.prognosis import Validated, cross_validate, refuse_few_in_folds
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
    refuse_loss(run / BUNDLE, bundle, lambda there: there.prognosis)
    print_notes(Console(stderr=True), notes)
    options = settings.prognosis
    spacing, schema = options.image_spacing_mm, settings.clinical.record_schema

    def check(patients: Sequence[Patient]) -> None:
        refuse_hidden_outcome(patients, schema)
        refuse_few_in_folds(patients, settings.data)

    described = load_described(bundle, settings, spacing, run, options.wants_crops, check)
    print_notes(Console(stderr=True), notes_on([p.record for p in described], schema))
    outcomes = outcomes_of(described)
    data = settings.data
    validated = cross_validate(described, data, options, schema, run)
    curve = fit_curve(validated.risk, outcomes, validated.steeper)
    members = _fit_all(described, options, schema, run, validated)
    tensors = {f"prognosis{i}.safetensors": m.tensors() for i, m in enumerate(members)}
    metrics: dict[str, Any] = {
        "c_index_cross_validated": round(validated.concordance, 4),
        "folds": data.folds,
        "patients": len(described),
        "relapses": int(outcomes.event.sum()),
        "data": Path(data.root).resolve().name,
    }
    without_record, others = None, []
    if "table" in options.branches and len(options.branches) > 1:
        rest = tuple(branch for branch in options.branches if branch != "table")
        options = options.model_copy(update={"branches": rest})
        own = run / "without-record"
        alone = cross_validate(described, data, options, schema, own)
        metrics["c_index_without_record"] = round(alone.concordance, 4)
        others = _fit_all(described, options, schema, own, alone)
        named = {f"without-record{i}.safetensors": m.tensors() for i, m in enumerate(others)}
        shift, scale = onto(curve, alone.risk, outcomes, alone.steeper)
        without_record = RecordFreePart(
            settings=others[0].settings(), files=list(named), shift=shift, scale=scale
        )
        tensors |= named
    looks = any(member.crops for member in (*members, *others))
    part = PrognosisPart(
        settings=members[0].settings() | {"image_spacing_mm": spacing},
        clinical=[m.encoder.state() for m in members],
        lesion_features=list(described[0].description.features.names),
        crop_features=list(described[0].description.crops.names) if looks else [],
        risk_quantiles=np.quantile(validated.risk, np.linspace(0, 1, RISK_QUANTILES)).tolist(),
        curve=curve.state(),
        without_record=without_record,
        seen=sorted(fingerprint(p.patient_id) for p in described),
        files=[f"prognosis{i}.safetensors" for i in range(len(members))],
    )
    metrics = bundle.manifest.metrics | {"task2": metrics}
    manifest = bundle.manifest.model_copy(update={"prognosis": part, "metrics": metrics})
    before = bundle.manifest.prognosis
    files = bundle.all_tensors(without=before.all_files if before else ()) | tensors
    return write_bundle(run / BUNDLE, manifest, files)


def _fit_all(
    described: Sequence[Described],
    options: PrognosisSettings,
    schema: ClinicalSchema,
    run: Path,
    validated: Validated,
) -> list[PrognosisMember]:
    """Fitted on everyone, with the weights that the cross-validation judged."""
    as_given = options.model_copy(update={"inner_folds": 0})
    members = fit(described, as_given, schema, run / "all")
    return [member.weighted(validated.weights) for member in members]
