"""A bundle with staging models from a data folder and a segmentation bundle."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hmvnet.ajcc import AXES
from hmvnet.bundle import (
    Bundle,
    StagingPart,
    fingerprint,
    load_bundle,
    refuse_loss,
    write_bundle,
)
from hmvnet.config import Settings
from hmvnet.progress import print_notes
from hmvnet.staging.metrics import balanced_accuracy
from hmvnet.state import claiming_run
from hmvnet.training.segmentation_bundle import BUNDLE
from hmvnet.training.staging import (
    StageData,
    StagedPatient,
    cross_fit,
    fit_axis,
    load_staged,
    refuse_rare_stages,
)

FILE = "staging.safetensors"


@claiming_run
def train_staging_bundle(
    settings: Settings, weights: Path, run: Path, console: Console | None = None
) -> Path:
    """Cross-fit, fit on everyone, and write ``<run>/bundle``: the bundle with staging beside it.

    All other parts stay what they are.

    Raises:
        ValueError: as ``load_staged``, or too few patients of a stage.
    """
    bundle, notes = load_bundle(weights).adjusted(settings)
    refuse_loss(run / BUNDLE, bundle, lambda there: there.staging)
    print_notes(Console(stderr=True), notes)
    check = partial(refuse_rare_stages, data=settings.data)
    patients = load_staged(bundle, settings, run, "predicted", check)
    return write_staged(bundle, patients, settings, run / BUNDLE)


def write_staged(
    bundle: Bundle, patients: Sequence[StagedPatient], settings: Settings, folder: Path
) -> Path:
    """The bundle with models of these patients' stages, in ``folder``."""
    tensors: dict[str, torch.Tensor] = {}
    names, measured = {}, {}
    for axis in AXES:
        data = StageData.of(patients, axis)
        names[axis] = list(data.names)
        measured[axis] = _measured(data, settings)
        arrays = fit_axis(data, seed=settings.data.seed).arrays()
        tensors |= {f"{axis}.{key}": torch.from_numpy(a) for key, a in arrays.items()}
    part = StagingPart(
        t_features=names["t"],
        n_features=names["n"],
        seen=sorted(fingerprint(p.patient_id) for p in patients),
        file=FILE,
    )
    said = {"data": Path(settings.data.root).resolve().name, "folds": settings.data.folds}
    metrics = bundle.manifest.metrics | {"staging": measured | said}
    manifest = bundle.manifest.model_copy(update={"staging": part, "metrics": metrics})
    kept = bundle.all_tensors(without=[FILE])
    return write_bundle(folder, manifest, kept | {FILE: tensors})


def _measured(data: StageData, settings: Settings) -> dict[str, Any]:
    """Balanced accuracy of models that did not see the patient."""
    _, given = cross_fit(data, data.folds(settings.data), settings.data.seed)
    accuracy = balanced_accuracy(data.y, given, len(data.stages))[0]
    return {"balanced_accuracy_cross_fitted": round(float(accuracy), 4), "patients": len(data.y)}
