"""Choosing the postprocessing of a bundle on patients that its networks did not see.

The networks run once; each setting is then tried in turn, the others held (coordinate search).
Dice and lesion F1 want different things (a speck costs Dice nothing and F1 a whole lesion), so the
limits of the two classes are tried against the metrics that the challenge scores each by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
import torch
from rich.console import Console

from hmvnet.bundle import check_other, load_bundle, write_bundle
from hmvnet.case import Grid
from hmvnet.config import PostprocessingSettings, Settings
from hmvnet.files import replacing
from hmvnet.imaging.resample import labels_onto
from hmvnet.progress import REMARKS, print_lines, print_notes, track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.segmentation import metrics
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.segmentation.segmenter import Segmenter, label_map
from hmvnet.state import claiming_run
from hmvnet.training.segmentation_bundle import BUNDLE

CANDIDATES: Mapping[str, Sequence[float]] = {
    "airway_mm": (0.0, 15.0, 20.0, 30.0),
    "threshold_gtvp": (0.2, 0.3, 0.4, 0.5, 0.6),
    "threshold_gtvn": (0.2, 0.3, 0.4, 0.5, 0.6),
    "min_ml_gtvp": (0.1, 0.2, 0.5, 1.0),
    "min_ml_gtvn": (0.05, 0.1, 0.2, 0.3, 0.5),
}


@dataclass(frozen=True)
class Kept:
    """One patient's network output; the arrays lie on disk (probabilities as float16)."""

    patient_id: str
    grid: Grid
    probabilities: np.ndarray
    ct: np.ndarray
    truth: np.ndarray


@claiming_run
def tune(settings: Settings, weights: Path, run: Path, limit: int, console: Console) -> Path:
    """Write ``<run>/bundle``: the bundle with the best postprocessing found.

    Raises:
        ValueError: no data, or a patient that the bundle's networks were trained on.
    """
    bundle, notes = load_bundle(weights).adjusted(settings)
    print_notes(console, notes)
    check_other(run / BUNDLE, weights)
    found = find_patients(settings.data.root, settings.clinical.table_names)
    print_lines(found.summary())
    patients = found[: limit or None]
    if known := bundle.seen_among(p.patient_id for p in patients):
        raise ValueError(
            f"the bundle was trained on {', '.join(known[:5])}: tune on other patients"
        )
    segmenter = Segmenter(bundle, pick_device(), settings.inference)
    run.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=run) as folder:
        kept = [_run(patient, segmenter, Path(folder)) for patient in track(patients, "segment")]
        region = bundle.manifest.region
        rules = bundle.manifest.postprocessing.for_region(region)
        best = search(rules, kept, region, console)
    if bundle.manifest.prognosis or bundle.manifest.staging:
        console.print("[yellow]note[/] other models were fitted to other masks: left out")
    without = {"prognosis": None, "staging": None}
    manifest = bundle.manifest.model_copy(update={"postprocessing": best, **without})
    files = {name: bundle.tensors(name) for name in manifest.segmentation.all_files}
    return write_bundle(run / BUNDLE, manifest, files)


def search(
    start: PostprocessingSettings, kept: Sequence[Kept], region: str, console: Console
) -> PostprocessingSettings:
    """The settings of the highest mean of the challenge's three figures."""
    best, highest = start, _figure(start, kept, region)
    console.print(f"{_text(start)}: {highest:.4f}")
    for name, values in CANDIDATES.items():
        if name == "airway_mm" and not start.airway_mm:
            continue
        for value in values:
            if value == getattr(best, name):
                continue
            other = best.model_copy(update={name: value})
            figure = _figure(other, kept, region)
            if figure > highest:
                best, highest = other, figure
                console.print(f"{_text(best)}: {highest:.4f}")
    return best


def _figure(settings: PostprocessingSettings, kept: Sequence[Kept], region: str) -> float:
    def score(one: Kept) -> metrics.CaseScore:
        probabilities, ct = (np.asarray(a, np.float32) for a in (one.probabilities, one.ct))
        mask = label_map(probabilities, ct, one.grid, settings, region)
        return metrics.score_case(
            mask, np.asarray(one.truth), one.grid.spacing[::-1], one.patient_id
        )

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # scipy and cc3d free the GIL
        total = metrics.aggregate(list(pool.map(score, kept)))
    figures = (total.gtvp_mean_dice, total.gtvn_aggregated_dice, total.gtvn_aggregated_f1)
    return float(np.mean(figures))


def _run(patient: Patient, segmenter: Segmenter, folder: Path) -> Kept:
    case = patient.read()
    REMARKS.tell(patient.patient_id, case.notes)
    assert case.truth is not None
    found = segmenter(case)
    grid = found.field.grid
    truth = labels_onto(sitk.GetArrayFromImage(case.truth), Grid.of(case.truth), grid)
    ct = found.field.scaled[0]
    arrays = found.probabilities.astype(np.float16), ct.astype(np.float16), truth
    stored = []
    for number, array in enumerate(arrays):
        path = folder / f"{patient.patient_id}.{number}"
        with replacing(path) as temporary:  # numpy does not say when there was no room for the end
            temporary.write_bytes(np.ascontiguousarray(array).data)
        stored.append(np.memmap(path, array.dtype, "r", shape=array.shape))
    return Kept(patient.patient_id, grid, *stored)


def _text(settings: PostprocessingSettings) -> str:
    return ", ".join(f"{name} {getattr(settings, name):g}" for name in CANDIDATES)
