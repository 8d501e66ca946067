"""A folder of training data to cases, and preprocessed volumes cached on disk.

Layouts read: HECKTOR 2025 (``Task 1/<ID>/<ID>__CT.nii.gz``), any folder of such patient folders,
HECKTOR 2022 and nnU-Net (``imagesTr``/``labelsTr``), with or without the outcome table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import blosc2
import numpy as np
import SimpleITK as sitk

from hmvnet.case import GTVN, GTVP, Case, CaseError, ClinicalRecord, Grid, Outcome
from hmvnet.config import PreprocessingSettings
from hmvnet.files import digest, write_text
from hmvnet.imaging.resample import labels_onto
from hmvnet.reading.images import read_image
from hmvnet.reading.tables import read_tables
from hmvnet.segmentation.segmenter import prepare

IMAGE_FOLDERS = ("imagesTr", "imagesTs")  # with labelsTr, labelsTs beside them
CACHE_VERSION = 1
# Voxels of each class remembered for patch sampling.
SAMPLED_VOXELS = 4000


@dataclass(frozen=True)
class Patient:
    """Where one patient's files are, and what the tables say. Nothing is read yet."""

    patient_id: str
    ct: Path
    pet: Path
    label: Path | None = None
    record: ClinicalRecord = field(default_factory=ClinicalRecord)
    outcome: Outcome | None = None

    @property
    def centre(self) -> str:
        """The hospital: the table's CenterID, or the letters of the patient's name."""
        value = self.record.values.get("CenterID")
        if value is not None:
            return f"{value:g}" if isinstance(value, float) else str(value)
        return re.split(r"[-_ ]?\d", self.patient_id, maxsplit=1)[0] or "all"

    def state(self) -> list[object]:
        """The id, and what changes when a file does; much cheaper than the files' hash."""
        files = [f for f in (self.ct, self.pet, self.label) if f is not None]
        return [self.patient_id, *((f.stat().st_size, f.stat().st_mtime_ns) for f in files)]

    def read(self) -> Case:
        """The images and labels.

        Raises:
            CaseError: naming the patient and what is wrong.
        """
        try:
            ct, notes = read_image(self.ct)
            pet, notes2 = read_image(self.pet)
            truth = None
            if self.label is not None:
                truth, notes3 = read_image(self.label)
                truth = _checked_labels(truth, self.label.name)
                notes2 = (*notes2, *notes3)
            return Case.of(
                self.patient_id,
                ct,
                pet,
                record=self.record,
                truth=truth,
                outcome=self.outcome,
                warnings=(*notes, *notes2),
            )
        except CaseError as error:
            raise CaseError(f"patient {self.patient_id}: {error}") from error


def _checked_labels(image: sitk.Image, name: str) -> sitk.Image:
    array = sitk.GetArrayViewFromImage(image)
    values = np.unique(array)
    if not np.isin(values, (0, GTVP, GTVN)).all():
        raise CaseError(f"{name}: label values {values[:6].tolist()}, expected 0, 1 and 2")
    return sitk.Cast(image, sitk.sitkUInt8)


def find_patients(root: Path | str, *, need_labels: bool = True) -> list[Patient]:
    """All patients of a data folder, sorted by id, joined with the tables found beside them.

    Raises:
        ValueError: no folder is given, it is missing, holds no patients in a known layout, or (with
            ``need_labels``) patients without a label; the message names them.
    """
    if not str(root):
        raise ValueError("no data folder: set data.root in config.xml or on the command line")
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"data folder '{root}' does not exist")
    base = next((root / n for n in ("Task 1", "Task_1", "Task1") if (root / n).is_dir()), root)
    folders = [base / name for name in IMAGE_FOLDERS if (base / name).is_dir()]
    patients = _from_image_folder(folders[0]) if folders else _from_patient_folders(base)
    if not patients:
        raise ValueError(
            f"data folder '{root}' holds no patients: expected <ID>/<ID>__CT.nii.gz with __PT, or "
            "imagesTr (or imagesTs) with __CT/__PT or _0000/_0001"
        )
    unlabelled = [p.patient_id for p in patients if p.label is None]
    if need_labels and unlabelled:
        raise ValueError(f"{len(unlabelled)} patients without a label: {', '.join(unlabelled[:5])}")
    known, nothing = read_tables(root), (ClinicalRecord(), None)
    joined = []
    for patient in sorted(patients, key=lambda p: p.patient_id):
        record, outcome = known.get(patient.patient_id, nothing)
        joined.append(replace(patient, record=record, outcome=outcome))
    return joined


def _from_patient_folders(base: Path) -> list[Patient]:
    patients = []
    for folder in sorted(p for p in base.iterdir() if p.is_dir()):
        name = folder.name
        ct = _image(folder, f"{name}__CT")
        pet = _image(folder, f"{name}__PT")
        if ct is None and pet is None:
            continue
        if ct is None or pet is None:
            raise ValueError(f"patient {name}: {'CT' if ct is None else 'PET'} image is missing")
        patients.append(Patient(name, ct, pet, _image(folder, name)))
    return patients


def _from_image_folder(images: Path) -> list[Patient]:
    labels = images.with_name(images.name.replace("images", "labels"))
    patients = []
    for ending, pet_ending in (("__CT", "__PT"), ("_0000", "_0001")):
        for ct in sorted(images.glob(f"*{ending}.nii*")):
            name = ct.name.split(".nii")[0].removesuffix(ending)
            pet = _image(images, name + pet_ending)
            if pet is None:
                raise ValueError(f"patient {name}: PET image is missing")
            patients.append(Patient(name, ct, pet, _image(labels, name)))
    return patients


def _image(folder: Path, stem: str) -> Path | None:
    return next(
        (p for s in (".nii.gz", ".nii", ".mha") if (p := folder / (stem + s)).is_file()), None
    )


@dataclass(frozen=True)
class Prepared:
    """One patient's preprocessed volume, on disk until sliced.

    Attributes:
        volume: float16 ``[2, z, y, x]``, CT in [0, 1] and PET in [-1, 1], a blosc2 array.
        label: uint8 ``[z, y, x]``, a blosc2 array; all 0 where there is no truth.
        grid: the working grid.
        voxels: for GTVp and GTVn, up to 4000 of their voxels as ``[n, 3]`` (z, y, x).
    """

    patient_id: str
    volume: blosc2.NDArray
    label: blosc2.NDArray
    grid: Grid
    voxels: Mapping[int, np.ndarray]


class Cache:
    """Preprocessed volumes on disk, one folder a set of preprocessing settings.

    An entry is keyed by the settings and the content hash of the patient's files; one that no
    longer fits is made anew, and a half-written one is never seen.
    """

    def __init__(self, folder: Path, settings: PreprocessingSettings, region: str) -> None:
        self.settings = settings
        self.region = region
        self.folder = Path(folder) / digest(CACHE_VERSION, region, settings.model_dump(mode="json"))
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, patient: Patient) -> Prepared:
        """The preprocessed patient, made now if it is not there or is stale."""
        source = _files_hash(patient)
        return self._load(patient, source) or self._make(patient, source)

    def _paths(self, patient: Patient) -> tuple[Path, Path, Path]:
        names = (".b2nd", ".label.b2nd", ".json")
        volume, label, meta = (self.folder / (patient.patient_id + n) for n in names)
        return volume, label, meta

    def _load(self, patient: Patient, source: str) -> Prepared | None:
        volume, label, meta_path = self._paths(patient)
        try:
            meta = json.loads(meta_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if meta.get("source") != source:
            return None
        return Prepared(
            patient.patient_id,
            blosc2.open(str(volume), mode="r"),
            blosc2.open(str(label), mode="r"),
            Grid(**{k: tuple(v) for k, v in meta["grid"].items()}),
            {int(k): np.array(v, dtype=int).reshape(-1, 3) for k, v in meta["voxels"].items()},
        )

    def _make(self, patient: Patient, source: str) -> Prepared:
        case = patient.read()
        volume = prepare(case, self.settings, self.region)
        grid = volume.grid
        label = np.zeros(grid.shape, np.uint8)
        if case.truth is not None:
            truth = sitk.GetArrayFromImage(case.truth)
            label = labels_onto(truth, Grid.of(case.truth), grid)
        rng = np.random.default_rng(0)
        voxels = {}
        for kind in (GTVP, GTVN):
            found = np.argwhere(label == kind)
            chosen = rng.permutation(len(found))[:SAMPLED_VOXELS]
            voxels[kind] = found[np.sort(chosen)].tolist()
        volume_path, label_path, meta_path = self._paths(patient)
        # The description comes last: without it the arrays count as not there.
        meta_path.unlink(missing_ok=True)
        _store(volume.scaled.astype(np.float16), volume_path, (1, 32, 32, 32))
        _store(label, label_path, (32, 32, 32))
        grid_json = {k: getattr(grid, k) for k in ("size", "spacing", "origin", "direction")}
        meta = {"source": source, "grid": grid_json, "voxels": voxels}
        write_text(json.dumps(meta), meta_path)
        prepared = self._load(patient, source)
        assert prepared is not None
        return prepared


def _store(array: np.ndarray, path: Path, blocks: tuple[int, ...]) -> None:
    chunks = tuple(min(n, 4 * b) for n, b in zip(array.shape, blocks))
    blocks = tuple(min(c, b) for c, b in zip(chunks, blocks))
    blosc2.asarray(
        array, urlpath=str(path), mode="w", chunks=chunks, blocks=blocks, cparams={"clevel": 3}
    )


def _files_hash(patient: Patient) -> str:
    return digest(*(path for path in (patient.ct, patient.pet, patient.label) if path))
