"""A folder of many patients to cases.

Layouts read: HECKTOR 2025 (``Task 1/<ID>/<ID>__CT.nii.gz``), any folder of such patient folders,
HECKTOR 2022 and nnU-Net (``imagesTr``/``labelsTr``), with or without the outcome table. What is
there and is not read is told, with why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import SimpleITK as sitk

from hmvnet.case import GTVN, GTVP, Case, CaseError, ClinicalRecord, Outcome, Stage
from hmvnet.exits import shown
from hmvnet.reading.centres import ALL, name_centres
from hmvnet.reading.checks import checked_case
from hmvnet.reading.images import read_image
from hmvnet.reading.names import LeftOut, entries, first
from hmvnet.reading.outcomes import TableNames
from hmvnet.reading.records import read_json
from hmvnet.reading.tables import Known, read_records, read_suv_factors, read_tables

TASK_FOLDERS = ("Task 1", "Task_1", "Task1")
IMAGE_FOLDERS = ("imagesTr", "imagesTs")  # with labelsTr, labelsTs beside them
PATIENT_SUFFIXES = (".nii.gz", ".nii", ".mha")  # of images in a data folder
OTHER_IMAGES = ("__CTPlanning", "__RTDOSE")  # HECKTOR's, known and not needed
MOST_LINES = 10  # on what is left out, in a summary
MOST_CENTRES = 20
MOST_CHANNELS, MOST_LABELS = 9999, 255  # of nnU-Net: four digits, and a byte


@dataclass(frozen=True)
class Patient:
    """Where one patient's files are, and what the tables say. Nothing is read yet."""

    patient_id: str
    ct: Path
    pet: Path
    label: Path | None = None
    classes: tuple[tuple[int, int], ...] = ()  # values in the label file that stand for others
    record: ClinicalRecord = field(default_factory=ClinicalRecord, repr=False)  # nobody's to see
    outcome: Outcome | None = field(default=None, repr=False)
    stage: Stage = field(default_factory=Stage)
    suv_factor: float | None = None  # of a PET in Bq/mL
    notes: tuple[str, ...] = ()
    centre: str = ALL  # the hospital, as ``name_centres`` says

    def __str__(self) -> str:
        record = ", a health record" if self.record.values else ""
        return f"{self.ct.name}, {self.pet.name}{record}"

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read of the disk."""
        return tuple(f for f in (self.ct, self.pet, self.label) if f is not None)

    def state(self) -> list[object]:
        """The id, and what changes when a file does; much cheaper than the files' hash."""
        return [
            self.patient_id,
            self.classes,
            self.suv_factor,
            *((f.stat().st_size, f.stat().st_mtime_ns) for f in self.files),
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
                truth = checked_labels(truth, self.label.name, dict(self.classes))
                notes2 = (*notes2, *notes3)
            return checked_case(
                self.patient_id,
                ct,
                pet,
                record=self.record,
                truth=truth,
                outcome=self.outcome,
                suv_factor=self.suv_factor,
                notes=(*self.notes, *notes, *notes2),
            )
        except CaseError as error:
            raise CaseError(f"patient {self.patient_id}: {error}", error.code) from error


def checked_labels(
    image: sitk.Image, name: str, classes: Mapping[int, int] | None = None
) -> sitk.Image:
    """A label map of 0, 1 and 2, uint8, some of them exchanged by ``classes``.

    Raises:
        CaseError: it holds other values.
    """
    array = sitk.GetArrayViewFromImage(image)
    values = np.unique(array)
    if not np.isin(values, (0, GTVP, GTVN)).all():
        raise CaseError(f"{name}: label values {values[:6].tolist()}, expected 0, 1 and 2")
    image = sitk.Cast(image, sitk.sitkUInt8)
    return sitk.ChangeLabel(image, dict(classes)) if classes else image


class NoPatientsError(ValueError):
    """A folder that is none of the layouts."""


@dataclass(frozen=True)
class Found(Sequence[Patient]):
    """The patients of a data folder, sorted by id, and what of it is not read.

    Attributes:
        root: the folder.
        scans: whether labels and outcomes were not looked at.
    """

    root: Path
    patients: tuple[Patient, ...]
    left_out: tuple[LeftOut, ...] = ()
    scans: bool = False

    @overload
    def __getitem__(self, index: int) -> Patient: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Patient, ...]: ...
    def __getitem__(self, index):
        return self.patients[index]

    def __len__(self) -> int:
        return len(self.patients)

    def summary(self) -> list[str]:
        """What a person checks before the work starts, in lines: counts, and what is left out."""
        columns = sorted({name for p in self for name in p.record.values})
        counts = {"a health record": sum(bool(p.record.values) for p in self)}
        if scaled := sum(p.suv_factor is not None for p in self):
            counts["a SUV factor"] = scaled
        if not self.scans:
            counts["a label"] = sum(p.label is not None for p in self)
            counts["an outcome"] = sum(p.outcome is not None for p in self)
        patients = "1 patient" if len(self) == 1 else f"{len(self)} patients"
        having = [f"{count} with {what}" for what, count in counts.items()]
        centres = Counter(p.centre for p in self).most_common()
        shown = [f"{name} ({count})" for name, count in centres[:MOST_CENTRES]]
        if len(centres) > MOST_CENTRES:
            shown.append(f"{len(centres) - MOST_CENTRES} more")
        return [
            f"{self.root}: {', '.join([patients, *having])}",
            f"centres: {', '.join(shown)}",
            *([f"of the health records: {first(columns)}"] if columns else []),
            *_stages_told([p.stage for p in self]),
            *(f"left out: {line}" for line in _told(self.left_out, self.root)),
        ]


def _stages_told(stages: Sequence[Stage]) -> Iterator[str]:
    """How many patients have each T and N stage; nothing where there are none."""
    for axis, found in (("T", [one.t for one in stages]), ("N", [one.n for one in stages])):
        counts = Counter(stage for stage in found if stage)
        if counts:
            told = ", ".join(f"{stage} ({counts[stage]})" for stage in sorted(counts))
            without = len(found) - counts.total()
            none = "T0, Tx or nothing" if axis == "T" else "Nx or nothing"
            rest = f"; not for staging: {without} with {none}" if without else ""
            yield f"{axis} stages: {told}{rest}"


def _told(left_out: Sequence[LeftOut], root: Path) -> Iterator[str]:
    """A line a reason."""
    names: dict[str, list[str]] = {}
    for path, why in left_out:
        name = path.relative_to(root) if path.is_relative_to(root) else path.name
        names.setdefault(why, []).append(str(name))
    for why in list(names)[:MOST_LINES]:
        yield f"{first(names[why])}: {why}"
    if rest := sum(map(len, list(names.values())[MOST_LINES:])):
        yield f"{rest} more"


def _besides(left_out: Sequence[LeftOut], root: Path) -> str:
    """The end of a message on what is missing: what was found instead."""
    told = "; ".join(_told(left_out, root))
    return f"; left out: {told}" if told else ""


def find_patients(
    root: Path | str, names: TableNames | None = None, *, need_labels: bool = True
) -> Found:
    """All patients of a data folder, joined with the tables found beside them.

    Args:
        names: of the tables' columns; None: HECKTOR's.

    Raises:
        ValueError: no folder is given, it is missing, holds no patients in a known layout, one of
            them twice, or (with ``need_labels``) patients without a label; the message names them.
            As ``read_tables``.
    """
    if not str(root):
        raise ValueError("no data folder: say data.root=DIR, or in a settings file (--config)")
    root = Path(root)
    left_out: list[LeftOut] = []
    patients = _find(root, left_out)
    unlabelled = [p.patient_id for p in patients if p.label is None]
    if need_labels and unlabelled:
        raise ValueError(
            f"{len(unlabelled)} patients without a label: {first(unlabelled)}"
            + _besides(left_out, root)
        )
    ids = [patient.patient_id for patient in patients]
    known = read_tables(root, ids, names, left_out)
    return _found(root, patients, known, left_out)


def find_scans(root: Path, sheet: str = "") -> Found:
    """All patients of a folder to be predicted: their images and records, and nothing else.

    Labels and outcomes that may lie beside them are not looked at.

    Args:
        sheet: of Excel workbooks among the tables, as ``TableNames`` has it.

    Raises:
        ValueError: as ``find_patients``, or training and test images side by side.
    """
    both = [name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    if len(both) > 1:
        raise ValueError(f"'{root}' holds {' and '.join(both)}: name one of them")
    left_out: list[LeftOut] = []
    patients = _find(root, left_out, scans=True)
    known = read_records(root, [patient.patient_id for patient in patients], left_out, sheet)
    return _found(root, patients, known, left_out, scans=True)


def _found(
    root: Path,
    patients: Sequence[Patient],
    known: Mapping[str, Known],
    left_out: Sequence[LeftOut],
    scans: bool = False,
) -> Found:
    """The patients with what the tables say of them."""
    joined = []
    ids = [patient.patient_id for patient in patients]
    factors = read_suv_factors(root, ids)
    told = [known.get(name, Known()) for name in ids]
    centres = name_centres(ids, [said.record for said in told])
    for patient, said, centre in zip(patients, told, centres, strict=True):
        joined.append(
            replace(
                patient,
                record=said.record,
                outcome=said.outcome,
                stage=said.stage,
                suv_factor=factors.get(patient.patient_id),
                notes=said.notes,
                centre=centre,
            )
        )
    return Found(root, tuple(joined), tuple(dict.fromkeys(left_out)), scans)


def _find(root: Path, left_out: list[LeftOut], scans: bool = False) -> list[Patient]:
    """The patients of a folder in any layout, sorted by id, without what tables say of them.

    Args:
        left_out: what is not read is added to it.
        scans: labels are not looked at, and a patient with only one of CT and PET is an error when
            read rather than here.
    """
    if not root.is_dir():
        raise ValueError(f"data folder '{root}' does not exist")
    base = next((root / n for n in TASK_FOLDERS if (root / n).is_dir()), root)
    inner = [base / name for name in IMAGE_FOLDERS if (base / name).is_dir()]
    images = root if root.name in IMAGE_FOLDERS else next(iter(inner), None)
    beside: list[LeftOut] = []
    if images:
        patients = _from_image_folder(images, left_out, scans)
    elif own := _from_folder(root, beside, scans):  # a patient's own folder, and no more
        patients = [own]
        left_out += beside
    else:
        patients = _from_folders(base, left_out, scans)
    for folder in {root, base} - {images or base}:
        _leave_strays(folder, images or base, left_out)
    for other in sorted(root.glob("Task*")):
        if base != root and other != base and other.is_dir():
            _leave_task(other, {p.patient_id for p in patients}, base, left_out)
    if not patients:
        raise NoPatientsError(
            f"data folder '{root}' holds no patients: expected <ID>/<ID>__CT.nii.gz with __PT, or "
            "imagesTr (or imagesTs) with __CT/__PT or _0000/_0001" + _besides(left_out, root)
        )
    _check_once(patients)
    return sorted(patients, key=lambda p: p.patient_id)


def _from_folders(base: Path, left_out: list[LeftOut], scans: bool) -> list[Patient]:
    patients = []
    for folder in entries(base, left_out):
        if not folder.is_dir():
            if image_stem(folder):
                left_out.append(LeftOut(folder, "an image outside a patient's folder"))
            continue
        if (patient := _from_folder(folder, left_out, scans)) is not None:
            patients.append(patient)
    return patients


def _from_folder(folder: Path, left_out: list[LeftOut], scans: bool) -> Patient | None:
    """The patient of a folder of the same name; None where it holds no images of such names."""
    name = folder.absolute().name
    images = _images(folder, left_out)
    pair = {end: _only(images.get(f"{name}{end}")) for end in ("__CT", "__PT")}
    ours = (name, *(name + end for end in (*pair, *OTHER_IMAGES)))
    others = [path for stem, paths in images.items() if stem not in ours for path in paths]
    if not any(pair.values()):
        names = [path.name for paths in images.values() for path in paths]
        deeper = not names and any(path.is_dir() for path in folder.iterdir())
        none = "no images, but folders in it" if deeper else "no images"
        why = f"no {name}__CT and {name}__PT; found {first(names)}" if names else none
        left_out.append(LeftOut(folder, why))
        return None
    if not scans:
        _check_whole(name, pair["__CT"], pair["__PT"], others)
    left_out += [LeftOut(path, "none of <ID>__CT, <ID>__PT and <ID>") for path in others]
    ct, pet = (path or folder / f"{name}{end}.nii.gz" for end, path in pair.items())
    return Patient(name, ct, pet, None if scans else _only(images.get(name)))


def _from_image_folder(folder: Path, left_out: list[LeftOut], scans: bool) -> list[Patient]:
    label_folder = folder.with_name(folder.name.replace("images", "labels"))
    ct_channel, pet_channel, classes = read_dataset_json(
        folder.with_name("dataset.json"), labels=not scans
    )
    images = _images(folder, left_out)
    labels = _images(label_folder, left_out) if label_folder.is_dir() and not scans else {}
    forms = (("__CT", "__PT"), (f"_{ct_channel:04d}", f"_{pet_channel:04d}"))
    patients = []
    for form in forms:
        names = [s.removesuffix(end) for end in form for s in images if s.endswith(end)]
        for name in dict.fromkeys(filter(None, names)):
            ct, pet = (_only(images.pop(name + end, None)) for end in form)
            if not scans:
                _check_whole(name, ct, pet)
            ct, pet = (path or folder / f"{name}{end}.nii.gz" for path, end in zip((ct, pet), form))
            label = _only(labels.pop(name, None))
            patients.append(Patient(name, ct, pet, label, classes))
    why = f"none of {', '.join(f'<ID>{end}' for form in forms for end in form)}"
    left_out += [LeftOut(path, why) for paths in images.values() for path in paths]
    why = "a label without images"
    left_out += [LeftOut(path, why) for paths in labels.values() for path in paths]
    return patients


def image_stem(path: Path, suffixes: Sequence[str] = PATIENT_SUFFIXES) -> str:
    """The name of an image file without its suffix, whatever its case; empty: no such image."""
    suffix = next((s for s in suffixes if path.name.lower().endswith(s)), None)
    return path.name[: -len(suffix)] if suffix else ""


def _images(folder: Path, left_out: list[LeftOut]) -> dict[str, list[Path]]:
    """The images of a folder by their names without suffix."""
    images: dict[str, list[Path]] = {}
    for path in entries(folder, left_out):
        if stem := image_stem(path):
            images.setdefault(stem, []).append(path)
        elif path.is_file() and set(PATIENT_SUFFIXES) & {s.lower() for s in path.suffixes}:
            left_out.append(LeftOut(path, f"ends in none of {', '.join(PATIENT_SUFFIXES)}"))
    return images


def _only(paths: Sequence[Path] | None) -> Path | None:
    """One image's only file."""
    if paths and len(paths) > 1:
        raise ValueError(f"{paths[0]}: {paths[1].name} is there too, expected one of them")
    return paths[0] if paths else None


def _check_whole(name: str, ct: Path | None, pet: Path | None, others: Sequence[Path] = ()) -> None:
    if ct is None or pet is None:
        found = f"; found {first([path.name for path in others])}" if others else ""
        raise ValueError(f"patient {name}: {'CT' if ct is None else 'PET'} image is missing{found}")


def _check_once(patients: Sequence[Patient]) -> None:
    """Ids that differ in case alone would be one file or folder on many a disk."""
    known: dict[str, Patient] = {}
    for patient in patients:
        other = known.setdefault(patient.patient_id.casefold(), patient)
        if other is not patient:
            paths = [p.ct if p.ct.exists() else p.pet for p in (other, patient)]
            raise ValueError(
                f"{paths[0]} and {paths[1]}: one patient twice, or ids that differ only in upper "
                "and lower case"
            )


def _leave_strays(folder: Path, read: Path, left_out: list[LeftOut]) -> None:
    """What looks like patients beside the folder that is read."""
    for path in entries(folder, left_out):
        known = path == read or path.name.startswith(("Task", "labels"))
        if not known and (_images(path, []) if path.is_dir() else image_stem(path)):
            left_out.append(LeftOut(path, f"images beside {read.name}, which is read"))


def _leave_task(folder: Path, read: set[str], base: Path, left_out: list[LeftOut]) -> None:
    """Patients of another task's folder who are not in the one that is read."""
    for path in entries(folder, []):
        if path.is_dir() and path.name not in read and _images(path, []):
            left_out.append(
                LeftOut(path, f"images in {folder.name} alone, and {base.name} is read")
            )


def _whole(value: object, most: int) -> int:
    """A whole number from 0 to ``most``, or its digits. Raises: ValueError."""
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or int(text) > most:
        raise ValueError(f"'{shown(text)}' is no whole number from 0 to {most}")
    return int(text)


def read_dataset_json(
    path: Path, *, labels: bool = True
) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """What nnU-Net's ``dataset.json`` says: the channels of CT and PET, and labels to exchange.

    Names count, not their order: nnU-Net's names of normalisations ("CT", "noNorm") too.

    Args:
        labels: whether labels are looked at.

    Returns:
        The channels of CT and PET, 0 and 1 where there is no such file, and pairs of a label's
        value in the files and the one that it stands for; none where they are the same.

    Raises:
        ValueError: it is not readable, or names other channels or classes.
    """
    if not path.exists():
        return 0, 1, ()
    try:
        content, _ = read_json(path)
        raw = cast(dict[str, dict[str, Any]], content)
        channels = raw.get("channel_names", raw.get("modality", {}))
        named = {
            _whole(number, MOST_CHANNELS): str(name).strip().lower()
            for number, name in channels.items()
        }
        values = {}
        for key, value in raw.get("labels", {}).items() if labels else ():
            number, name = (key, value) if str(key).isdigit() else (value, key)
            values[str(name).strip().lower()] = _whole(number, MOST_LABELS)
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
    given = [values[name] for name in values if name in known]
    if 0 in given or len(classes) < len(given) or len(set(classes.values())) < len(classes):
        raise ValueError(
            f"{path}: labels {values}, expected a value above 0 of its own for a class"
        )
    others = [name for name, value in values.items() if value and name not in known]
    if (len(others) > 1) or (others and classes):
        raise ValueError(f"{path}: classes {others}, expected GTVp and GTVn, or one class alone")
    moved = tuple(sorted((a, b) for a, b in classes.items() if a != b))
    return (ct[0], pet[0], moved) if named else (0, 1, moved)
