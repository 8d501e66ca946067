"""Staged patients as the staging model sees them, and its cross-fitted and final fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
import torch

from hmvnet.ajcc import AXES
from hmvnet.bundle import Bundle
from hmvnet.case import Grid, Stage
from hmvnet.config import DataSettings, InferenceSettings, Settings
from hmvnet.files import digest
from hmvnet.imaging.resample import labels_onto
from hmvnet.lesions.features import LesionFeatures
from hmvnet.progress import REMARKS, print_lines, track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.segmentation.segmenter import Segmenter, Volume, prepare
from hmvnet.staging.features import is_node_free, n_names, staging_features, t_names, with_record
from hmvnet.staging.model import StageModel
from hmvnet.state import made_once, read_arrays, write_arrays
from hmvnet.training.cache import files_hash
from hmvnet.training.descriptions import networks_of, unseen_members
from hmvnet.training.folds import centre_parts, spread_parts
from hmvnet.training.stage_fit import fit_stage_model, refuse_rare

LABELS_VERSION, FEATURES_VERSION = 5, 2  # count changes that no setting shows
Masks = Literal["predicted", "true"]
# What a model may see, a choice each: the rule's stage; masses of nodes that the label map has
# wrong; sizes and sides; signs of invasion; record.
STARTS: dict[str, list[tuple[str, ...]]] = {
    "T": [("t_",), ("t_", "invasion_"), ("t_", "invasion_", "record_")],
    "N": [("n_rule_",), ("n_rule_", "n_mass_"), ("n_",), ("n_", "record_")],
}


@dataclass(frozen=True)
class StagedPatient:
    """A patient as the staging model sees one, and what a doctor staged."""

    patient_id: str
    centre: str
    stage: Stage
    features: LesionFeatures


class StagingDescriber:
    """Stage features of patients, of true masks or of networks that did not see them.

    Label maps and features are kept on disk, keyed by what made them, so that features can be made
    anew without the networks.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        cache: Path,
        masks: Masks,
        inference: InferenceSettings | None = None,
    ) -> None:
        self.bundle, self.masks = bundle, masks
        inference = (inference or InferenceSettings()).without_budget()
        manifest = bundle.manifest
        self.segmenter = Segmenter(bundle, device, inference) if masks == "predicted" else None
        made_by: list[Any] = [
            LABELS_VERSION,
            masks,
            manifest.region,
            manifest.preprocessing.model_dump(mode="json"),
        ]
        if masks == "predicted":
            made_by += [
                *networks_of(manifest),
                manifest.postprocessing.model_dump(mode="json"),
                inference.model_dump(mode="json"),
            ]
        self.labels = cache / f"labels-{digest(*made_by)}"
        self.features = cache / f"stage-features-{digest(FEATURES_VERSION, *made_by)}"

    def __call__(self, patient: Patient) -> StagedPatient:
        """One patient.

        Raises:
            LeakError: as ``unseen_members``.
            ValueError: true masks are wanted and the patient has none.
        """
        files = self.files_key(patient)
        path = self.features / f"{patient.patient_id}-{files}.npz"

        def make() -> dict[str, np.ndarray]:
            volume, labels = self._segmented(patient, files)
            spacing = volume.grid.spacing[::-1]
            ct_hu, pet_suv = volume.raw
            found = staging_features(labels, ct_hu, pet_suv, spacing)
            arrays = {"names": np.array(found.names), "values": found.values}
            write_arrays(path, **arrays)
            return arrays

        self.features.mkdir(parents=True, exist_ok=True)
        stored = made_once(path, lambda: read_arrays(path), make)
        features = LesionFeatures(tuple(stored["names"].tolist()), stored["values"])
        features = with_record(features, patient.record)
        return StagedPatient(patient.patient_id, patient.centre, patient.stage, features)

    def files_key(self, patient: Patient) -> str:
        """What a patient's label map hangs on, beside the settings."""
        if self.masks == "true":
            return digest(files_hash(patient))
        return digest(unseen_members(self.bundle, patient.patient_id), files_hash(patient))

    def _segmented(self, patient: Patient, key: str) -> tuple[Volume, np.ndarray]:
        case, manifest = patient.read(), self.bundle.manifest
        REMARKS.tell(patient.patient_id, case.notes)
        if self.segmenter is None:
            if case.truth is None:
                raise ValueError(f"patient {patient.patient_id} has no true mask")
            volume = prepare(case, manifest.preprocessing, manifest.region)
            truth = sitk.GetArrayFromImage(case.truth)
            return volume, labels_onto(truth, Grid.of(case.truth), volume.grid)
        path = self.labels / f"{patient.patient_id}-{key}.npz"
        if stored := read_arrays(path):
            return prepare(case, manifest.preprocessing, manifest.region), stored["labels"]
        members = unseen_members(self.bundle, patient.patient_id)
        found = self.segmenter.only(members)(case)
        self.labels.mkdir(parents=True, exist_ok=True)
        write_arrays(path, labels=found.labels)
        return found.volume, found.labels


def load_staged(
    bundle: Bundle,
    settings: Settings,
    run: Path,
    masks: Masks = "predicted",
    check: Callable[[Sequence[Patient]], object] = lambda patients: None,
) -> list[StagedPatient]:
    """Every patient with a T or an N stage.

    Args:
        settings: where the data is, what its tables are called, how networks run.
        run: where what was made is kept, unless ``data.cache`` says another place.
        check: told whom it is about before the networks run, so that it can refuse them.

    Raises:
        ValueError: as ``check``, no data, no stages, or (LeakError) a patient whom
            every network saw.
    """
    data, names = settings.data, settings.clinical.table_names
    found = find_patients(data.root, names, need_labels=masks == "true")
    print_lines(found.summary())
    staged = [p for p in found if p.stage.t or p.stage.n]
    if not staged:
        raise ValueError(f"no patient in '{data.root}' has a stage (T-stage, N-stage)")
    check(staged)
    cache = Path(data.cache or run / "cache")
    device = pick_device()
    describer = StagingDescriber(bundle, device, cache, masks, settings.inference)
    for patient in staged:
        describer.files_key(patient)  # leaks are found before the first is described
    return [describer(p) for p in track(staged, f"stage features of {masks} masks")]


@dataclass(frozen=True)
class StageData:
    """The patients that have a stage of one axis.

    Attributes:
        stages: the axis's, in order.
        names: of the features.
        x: ``[n, p]``, NaN where missing.
        y: numbers ``[n]`` of their stages.
        centres: ``[n]``.
        rows: which of the patients they are, ``[n]``.
        settled: ``[n]``, the number of the stage of whom no model is asked about (N0, as
            ``Stager`` has it), else -1.
    """

    stages: tuple[str, ...]
    names: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    centres: np.ndarray
    rows: np.ndarray
    settled: np.ndarray

    @classmethod
    def of(
        cls, patients: Sequence[StagedPatient], axis: str, names: Sequence[str] | None = None
    ) -> StageData:
        """Those with a stage of ``axis``, "t" or "n"; ``names``: of the features, None: all."""
        if names is None:
            names = t_names() if axis == "t" else n_names()
        stages = AXES[axis]
        given = [getattr(p.stage, axis) for p in patients]
        rows = np.array([i for i, stage in enumerate(given) if stage in stages], dtype=int)
        x = np.array([patients[i].features.select(names).values for i in rows], dtype=float)
        y = np.array([stages.index(given[i]) for i in rows], dtype=int)
        centres = np.array([patients[i].centre for i in rows])
        free = [axis == "n" and is_node_free(patients[i].features) for i in rows]
        settled = np.where(np.array(free, dtype=bool), 0, -1)  # N0 is the first
        x = x.reshape(len(rows), len(names))
        return cls(stages, tuple(names), x, y, centres, rows, settled)

    def folds(self, data: DataSettings) -> list[tuple[np.ndarray, np.ndarray]]:
        """Training and test rows of each fold: stages spread evenly, or a centre each."""
        return _stage_folds(self.y, self.centres, self.stages, data)


def _stage_folds(
    y: np.ndarray, centres: np.ndarray, stages: Sequence[str], data: DataSettings
) -> list[tuple[np.ndarray, np.ndarray]]:
    if not len(y):
        raise ValueError(f"no patient has a stage of {stages[0][0]}: nothing to fit")
    if data.fold_by == "leave-one-centre-out":
        parts = centre_parts(centres)
    else:
        count = max(2, min(data.folds, int(np.bincount(y).max(initial=2))))
        parts = spread_parts(y, count, data.seed)
    everyone = np.arange(len(y))
    return [(np.setdiff1d(everyone, part), part) for part in parts]


def refuse_rare_stages(patients: Sequence[Patient], data: DataSettings) -> None:
    """Refuse what cross-fitting would, before any network has run.

    Raises:
        ValueError: no patient with a stage of T or N, patients that cannot be parted, or a stage
            that fewer than two have in a fold's training part.
    """
    for axis, stages in AXES.items():
        having = [p for p in patients if getattr(p.stage, axis) in stages]
        y = np.array([stages.index(getattr(p.stage, axis)) for p in having], dtype=int)
        centres = np.array([p.centre for p in having])
        refuse_rare(y, stages)
        for known, _ in _stage_folds(y, centres, stages, data):
            refuse_rare(y[known], stages)


def fit_axis(data: StageData, rows: np.ndarray | None = None, seed: int = 0) -> StageModel:
    """The model of some of the patients; None: of all."""
    rows = np.arange(len(data.y)) if rows is None else rows
    chosen = [s for s in STARTS[data.stages[0][0]] if any(n.startswith(s) for n in data.names)]
    return fit_stage_model(data.x[rows], data.y[rows], data.stages, data.names, seed, starts=chosen)


def cross_fit(
    data: StageData, folds: Iterable[tuple[np.ndarray, np.ndarray]], seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``[n, k]`` and stages' numbers ``[n]`` by models that did not see the patient.

    The stages are those that a bundle gives: who is ``settled`` is asked no model about. Everything
    is fitted, and chosen, inside the training part of a fold.
    """
    probabilities = np.full((len(data.y), len(data.stages)), np.nan)
    given = np.full(len(data.y), -1)
    for known, unseen in folds:
        model = fit_axis(data, known, seed)
        probabilities[unseen] = model.probabilities(data.x[unseen])
        decided = model.decide(probabilities[unseen])
        given[unseen] = np.where(data.settled[unseen] < 0, decided, data.settled[unseen])
    return probabilities, given
