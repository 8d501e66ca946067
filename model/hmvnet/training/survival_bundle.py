"""A bundle with a survival model from a data folder and a segmentation bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from sksurv.nonparametric import kaplan_meier_estimator

from hmvnet.bundle import PrognosisPart, check_other, fingerprint, load_bundle, write_bundle
from hmvnet.case import Outcomes
from hmvnet.config import Settings
from hmvnet.progress import print_notes
from hmvnet.state import claiming_run
from hmvnet.training.descriptions import load_described, outcomes_of
from hmvnet.training.prognosis import cross_validate, fit, predict
from hmvnet.training.segmentation_bundle import BUNDLE

RISK_QUANTILES = 21


@claiming_run
def train_survival_bundle(settings: Settings, weights: Path, run: Path) -> Path:
    """Cross-validate, fit on everyone, and write ``<run>/bundle`` with both tasks in it.

    Raises:
        ValueError: as ``load_described``, or too few patients.
    """
    bundle, notes = load_bundle(weights).adjusted(settings)
    check_other(run / BUNDLE, weights)
    print_notes(Console(stderr=True), notes)
    options = settings.prognosis
    spacing, schema = options.image_spacing_mm, settings.clinical.record_schema
    described = load_described(bundle, settings, spacing, run)
    outcomes = outcomes_of(described)
    out_of_fold, concordance = cross_validate(described, settings.data, options, schema, run)
    members = fit(described, options, schema, run / "all")
    tensors = {f"prognosis{i}.safetensors": m.tensors() for i, m in enumerate(members)}
    replaced = bundle.manifest.prognosis.files if bundle.manifest.prognosis else ()
    part = PrognosisPart(
        settings=members[0].settings() | {"image_spacing_mm": spacing},
        clinical=[m.encoder.state() for m in members],
        lesion_features=list(described[0].description.features.names),
        risk_quantiles=np.quantile(
            predict(members, described), np.linspace(0, 1, RISK_QUANTILES)
        ).tolist(),
        expected_days=_expected_days(out_of_fold, outcomes),
        seen=sorted(fingerprint(p.patient_id) for p in described),
        files=list(tensors),
    )
    metrics = bundle.manifest.metrics | {
        "task2": {
            "c_index_cross_validated": round(concordance, 4),
            "folds": settings.data.folds,
            "patients": len(described),
            "relapses": int(outcomes.event.sum()),
            "data": Path(settings.data.root).resolve().name,
        }
    }
    manifest = bundle.manifest.model_copy(update={"prognosis": part, "metrics": metrics})
    files = bundle.all_tensors(without=replaced) | tensors
    return write_bundle(run / BUNDLE, manifest, files)


def _expected_days(risk: np.ndarray, outcomes: Outcomes) -> list[list[float]]:
    """Pairs of risk and restricted mean recurrence-free days, for terciles of out-of-fold risk.

    The area under the Kaplan-Meier curve up to the longest follow-up, made to fall with risk.
    """
    horizon = outcomes.days.max()
    pairs = []
    for rows in np.array_split(np.argsort(risk), 3):
        time, survival = kaplan_meier_estimator(outcomes.event[rows], outcomes.days[rows])
        edges = np.concatenate([[0.0], time, [horizon]])
        pairs.append(
            [
                float(np.median(risk[rows])),
                float(np.diff(edges) @ np.concatenate([[1.0], survival])),
            ]
        )
    falling = np.minimum.accumulate([d for _, d in pairs])
    return [[r, float(d)] for (r, _), d in zip(pairs, falling)]
