"""A folder of many patients to cases.

Layouts read: HECKTOR 2025 (``Task 1/<ID>/<ID>__CT.nii.gz``), any folder of such patient folders,
HECKTOR 2022 and nnU-Net (``imagesTr``/``labelsTr``), with or without the outcome table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import SimpleITK as sitk

from hmvnet.case import GTVN, GTVP, Case, CaseError, ClinicalRecord, Outcome
from hmvnet.files import visible
from hmvnet.reading.checks import checked_case
from hmvnet.reading.images import read_image
from hmvnet.reading.records import read_json
from hmvnet.reading.tables import Known, read_records, read_tables

IMAGE_FOLDERS = ("imagesTr", "imagesTs")  # with labelsTr, labelsTs beside them


@dataclass(frozen=True)
class Patient:
    """Where one patient's files are, and what the tables say. Nothing is read yet."""

    patient_id: str
    ct: Path
    pet: Path
    label: Path | None = None
    classes: tuple[tuple[int, int], ...] = ()  # values in the label file that stand for others
    record: ClinicalRecord = field(default_factory=ClinicalRecord)
    outcome: Outcome | None = None
    notes: tuple[str, ...] = ()

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
        return [
            self.patient_id,
            self.classes,
            *((f.stat().st_size, f.stat().st_mtime_ns) for f in files),
        ]

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
                truth = _checked_labels(truth, self.label.name, dict(self.classes))
                notes2 = (*notes2, *notes3)
            return checked_case(
                self.patient_id,
                ct,
                pet,
                record=self.record,
                truth=truth,
                outcome=self.outcome,
                notes=(*self.notes, *notes, *notes2),
            )
        except CaseError as error:
            raise CaseError(f"patient {self.patient_id}: {error}", error.code) from error


def _checked_labels(image: sitk.Image, name: str, classes: Mapping[int, int]) -> sitk.Image:
    array = sitk.GetArrayViewFromImage(image)
    values = np.unique(array)
    if not np.isin(values, (0, GTVP, GTVN)).all():
        raise CaseError(f"{name}: label values {values[:6].tolist()}, expected 0, 1 and 2")
    image = sitk.Cast(image, sitk.sitkUInt8)
    return sitk.ChangeLabel(image, dict(classes)) if classes else image


def find_patients(root: Path | str, *, need_labels: bool = True) -> list[Patient]:
    """All patients of a data folder, sorted by id, joined with the tables found beside them.

    Raises:
        ValueError: no folder is given, it is missing, holds no patients in a known layout, or (with
            ``need_labels``) patients without a label; the message names them. As ``read_tables``.
    """
    if not str(root):
        raise ValueError("no data folder: say data.root=DIR, or in a settings file (--config)")
    root = Path(root)
    patients = _find(root)
    unlabelled = [p.patient_id for p in patients if p.label is None]
    if need_labels and unlabelled:
        raise ValueError(f"{len(unlabelled)} patients without a label: {', '.join(unlabelled[:5])}")
    known = read_tables(root, [patient.patient_id for patient in patients])
    return [_joined(patient, known) for patient in patients]


def find_scans(root: Path) -> list[Patient]:
    """All patients of a folder to be predicted: their images and records, and nothing else.

    Labels and outcomes that may lie beside them are not looked at.

    Raises:
        ValueError: as ``find_patients``, or training and test images side by side.
    """
    both = [name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    if len(both) > 1:
        raise ValueError(f"'{root}' holds {' and '.join(both)}: name one of them")
    patients = _find(root, whole=False)
    known = read_records(root, [patient.patient_id for patient in patients])
    return [replace(_joined(patient, known), label=None) for patient in patients]


def _joined(patient: Patient, known: Mapping[str, Known]) -> Patient:
    """A patient with what the tables say of it."""
    found = known.get(patient.patient_id, Known())
    return replace(patient, record=found.record, outcome=found.outcome, notes=found.notes)


def _find(root: Path, whole: bool = True) -> list[Patient]:
    """The patients of a folder in any layout, sorted by id, without what tables say of them.

    Args:
        whole: whether a patient with only one of CT and PET is an error here; it is when read.
    """
    if not root.is_dir():
        raise ValueError(f"data folder '{root}' does not exist")
    base = next((root / n for n in ("Task 1", "Task_1", "Task1") if (root / n).is_dir()), root)
    folders = [base / name for name in IMAGE_FOLDERS if (base / name).is_dir()]
    if root.name in IMAGE_FOLDERS:
        folders.insert(0, root)
    find = partial(_from_image_folder, folders[0]) if folders else partial(_from_folders, base)
    patients = find(whole)
    if not patients:
        raise ValueError(
            f"data folder '{root}' holds no patients: expected <ID>/<ID>__CT.nii.gz with __PT, or "
            "imagesTr (or imagesTs) with __CT/__PT or _0000/_0001"
        )
    return sorted(patients, key=lambda p: p.patient_id)


def _from_folders(base: Path, whole: bool) -> list[Patient]:
    patients = []
    for folder in visible(p for p in base.iterdir() if p.is_dir()):
        name = folder.name
        ct = _image(folder, f"{name}__CT")
        pet = _image(folder, f"{name}__PT")
        if ct is None and pet is None:
            continue
        if whole and (ct is None or pet is None):
            raise ValueError(f"patient {name}: {'CT' if ct is None else 'PET'} image is missing")
        ct, pet = ct or folder / f"{name}__CT.nii.gz", pet or folder / f"{name}__PT.nii.gz"
        patients.append(Patient(name, ct, pet, _image(folder, name)))
    return patients


def _from_image_folder(images: Path, whole: bool) -> list[Patient]:
    labels = images.with_name(images.name.replace("images", "labels"))
    patients = []
    ct_channel, pet_channel, classes = read_dataset_json(images.with_name("dataset.json"))
    for ending, pet_ending in (("__CT", "__PT"), (f"_{ct_channel:04d}", f"_{pet_channel:04d}")):
        for ct in visible(images.glob(f"*{ending}.nii*")):
            name = ct.name.split(".nii")[0].removesuffix(ending)
            pet = _image(images, name + pet_ending)
            if whole and pet is None:
                raise ValueError(f"patient {name}: PET image is missing")
            pet = pet or images / f"{name}{pet_ending}.nii.gz"
            patients.append(Patient(name, ct, pet, _image(labels, name), classes))
    return patients


def read_dataset_json(path: Path) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """What nnU-Net's ``dataset.json`` says: the channels of CT and PET, and labels to exchange.

    Names count, not their order: nnU-Net's names of normalisations ("CT", "noNorm") too.

    Returns:
        The channels of CT and PET, 0 and 1 where there is no such file, and pairs of a label's
        value in the files and the one that it stands for; none where they are the same.

    Raises:
        ValueError: it is not readable, or names other channels or classes.
    """
    if not path.is_file():
        return 0, 1, ()
    try:
        content, _ = read_json(path)
        raw = cast(dict[str, dict[str, Any]], content)
        channels = raw.get("channel_names", raw.get("modality", {}))
        named = {int(number): str(name).strip().lower() for number, name in channels.items()}
        values = {}
        for key, value in raw.get("labels", {}).items():
            number, name = (key, value) if str(key).isdigit() else (value, key)
            values[str(name).strip().lower()] = int(number)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not readable as nnU-Net's dataset.json: {error}") from error
    ct = [number for number, name in named.items() if name.startswith("ct")]
    pet = [number for number, name in named.items() if name.startswith(("pet", "pt", "suv"))]
    if len(named) == 2 and len(ct) == 1 and not pet:
        pet = [number for number in named if number not in ct]
    if named and (len(ct) != 1 or len(pet) != 1):
        raise ValueError(
            f"{path}: channels {list(named.values())}, expected one named CT and one named PET"
        )
    known = {"gtvp": GTVP, "gtvt": GTVP, "gtvn": GTVN}
    classes = {value: known[name] for name, value in values.items() if name in known}
    others = [name for name, value in values.items() if value and name not in known]
    if (len(others) > 1) or (others and classes):
        raise ValueError(f"{path}: classes {others}, expected GTVp and GTVn, or one class alone")
    moved = tuple(sorted((a, b) for a, b in classes.items() if a != b))
    return (ct[0], pet[0], moved) if named else (0, 1, moved)


def _image(folder: Path, stem: str) -> Path | None:
    return next(
        (p for s in (".nii.gz", ".nii", ".mha") if (p := folder / (stem + s)).is_file()), None
    )
