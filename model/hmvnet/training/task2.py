"""Task 2 from a data folder and a segmentation bundle to a bundle with a survival model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sksurv.nonparametric import kaplan_meier_estimator

from hmvnet.bundle import PrognosisPart, fingerprint, load_bundle, write_bundle
from hmvnet.case import Outcomes
from hmvnet.config import Settings
from hmvnet.prognosis.risk import PrognosisMember
from hmvnet.progress import track
from hmvnet.reading.folder import find_patients
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.survival.metrics import harrell_c
from hmvnet.training.engine import make_fabric
from hmvnet.training.folds import split_folds
from hmvnet.training.prognosis import (
    Described,
    LesionDescriber,
    describe_all,
    fit_members,
    outcomes_of,
    predict,
)
from hmvnet.training.task1 import BUNDLE

RISK_QUANTILES = 21


def load_described(settings: Settings, weights: Path, run: Path) -> list[Described]:
    """Every patient with an outcome, described by networks that did not see them.

    Raises:
        ValueError: no data, no outcomes, or (LeakError) a patient that every network saw.
    """
    patients = find_patients(settings.data.root, need_labels=False)
    describer = LesionDescriber(
        load_bundle(weights),
        pick_device(),
        settings.prognosis.image_spacing_mm,
        Path(settings.data.cache or run / "cache"),
        settings.inference,
    )
    described = describe_all(describer, patients, lambda some: track(some, "segment and describe"))
    if not described:
        raise ValueError(f"no patient in '{settings.data.root}' has an outcome (RFS, Relapse)")
    return described


def cross_validate(
    settings: Settings, described: Sequence[Described], run: Path
) -> tuple[np.ndarray, float]:
    """Out-of-fold risks ``[n]`` and the mean C-index over the folds.

    Everything that is fitted is fitted inside the training part of a fold.
    """
    data = settings.data.model_copy(update={"folds": min(settings.data.folds, len(described))})
    risks, concordances = np.full(len(described), np.nan), []
    outcomes = outcomes_of(described)
    for number, (train, validation) in enumerate(split_folds(described, data)):
        members = fit(settings, [described[i] for i in train], run / f"fold{number}")
        risks[validation] = predict(members, [described[i] for i in validation])
        concordances.append(harrell_c(outcomes[validation], risks[validation]))
    return risks, float(np.nanmean(concordances))


def train_task2(settings: Settings, weights: Path, run: Path) -> Path:
    """Cross-validate, fit on everyone, and write ``<run>/bundle`` with both tasks in it.

    Raises:
        ValueError: as :func:`load_described`, or too few patients.
    """
    described = load_described(settings, weights, run)
    outcomes = outcomes_of(described)
    out_of_fold, concordance = cross_validate(settings, described, run)
    members = fit(settings, described, run / "all")
    bundle = load_bundle(weights)
    tensors = {f"prognosis{i}.safetensors": m.tensors() for i, m in enumerate(members)}
    kept = bundle.manifest.segmentation.files
    part = PrognosisPart(
        settings=members[0].settings() | {"image_spacing_mm": settings.prognosis.image_spacing_mm},
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
    files = {file: bundle.tensors(file) for file in kept} | tensors
    return write_bundle(run / BUNDLE, manifest, files)


def fit(
    settings: Settings, described: Sequence[Described], folder: Path, quiet: bool = False
) -> list[PrognosisMember]:
    """Everything that is learnt from outcomes, on these patients alone."""
    # Fabric announces its seed and its devices at every fold.
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    fabric = make_fabric(folder, "32-true")
    schema = settings.clinical.record_schema
    return fit_members(fabric, described, settings.prognosis, folder, schema, folder.name, quiet)


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
