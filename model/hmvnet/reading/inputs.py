"""What ``hmvnet predict`` is given, told apart by what it holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, overload

from hmvnet.case import Case, ClinicalRecord, plain_name
from hmvnet.exits import RefusedError, shown
from hmvnet.reading.challenge import is_challenge_folder, read_case
from hmvnet.reading.checks import checked_case
from hmvnet.reading.dicom import DicomFolder, Scan, Unpaired, find_dicom
from hmvnet.reading.folder import NoPatientsError, Patient, find_scans, image_stem
from hmvnet.reading.frames import OLD_EXCEL, is_workbook, read_frame
from hmvnet.reading.images import SUFFIXES, read_image
from hmvnet.reading.records import HECKTOR, plain_code, read_health_record
from hmvnet.reading.tables import Known, read_records

CT_ENDINGS = ("__CT", "_0000", "_CT", "_ct")
USUAL_COLUMNS = {name for column in HECKTOR.columns for name in column.plain_names}
IDENTITIES = re.compile(
    r"name|mrn|birth|dob|accession|address|phone|mail|ssn|insurance|patientid|initials|nhs|postcode"
    r"|postal|zipcode|plz|street|stra(ss|ß)e|geburt|telefon|fax|versicher|hospital(no|number|id)"
    r"|fallnummer|consultant|physician|doctor|arzt|comment|remark|bemerkung|notes?$|freetext"
)
LEAST_TEXTS = 5  # of a column, to see that each patient has one of its own
LIST_COLUMNS = ("patient", "ct", "pet", "record")  # of a CSV that lists patients


class Source(Protocol):
    """A patient that can be read."""

    @property
    def patient_id(self) -> str: ...

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read of the disk."""

    def read(self) -> Case:
        """The patient's case. Raises: CaseError."""


@dataclass(frozen=True)
class ChallengeFolder:
    """A grand-challenge input folder: one patient, named after the folder (or its parent)."""

    folder: Path
    needs_record: bool = True

    @property
    def patient_id(self) -> str:
        folder = self.folder.resolve()
        named = folder.parent if folder.name == "input" and folder.parent.name else folder
        return named.name

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.folder,)

    def __str__(self) -> str:
        return "images/ct, images/pet, ehr.json"

    def read(self) -> Case:
        return read_case(self.folder, needs_record=self.needs_record)


@dataclass(frozen=True)
class Pair:
    """A CT and a PET file, and perhaps a health record.

    Attributes:
        name: of the patient; empty: as the CT's file.
        known: what a table says of the patient; before ``record``.
        suv_factor: as for ``hmvnet.reading.checks.checked_case``.
    """

    ct: Path
    pet: Path
    record: Path | None = None
    name: str = ""
    known: Known | None = None
    suv_factor: float | None = None

    @property
    def patient_id(self) -> str:
        if self.name:
            return self.name
        name = image_stem(self.ct, SUFFIXES) or self.ct.stem
        for ending in CT_ENDINGS:
            name = name.removesuffix(ending)
        if name.lower() in ("", "ct"):  # the folder is what tells such files apart
            name = self.ct.resolve().parent.name
        return name or "patient"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.ct, self.pet, *([self.record] if self.record else []))

    def __str__(self) -> str:
        return f"{self.ct.name}, {self.pet.name}"

    def read(self) -> Case:
        ct, ct_notes = read_image(self.ct)
        pet, pet_notes = read_image(self.pet)
        record, notes = ClinicalRecord(), tuple[str, ...]()  # without one the risk says so
        if self.known:
            record, notes = self.known.record, self.known.notes
        elif self.record:
            record, notes = read_health_record(self.record)
        notes = (*ct_notes, *pet_notes, *notes)
        return checked_case(
            self.patient_id, ct, pet, record=record, notes=notes, suv_factor=self.suv_factor
        )


@dataclass(frozen=True)
class Asked:
    """How inputs are to be read.

    Attributes:
        record: a health record (JSON) of a CT and a PET, or a table of many patients (CSV, Excel).
        needs_record: whether a damaged health record is refused: where a risk is wanted.
        keep_names: patients of DICOM are named as in the files.
        series: UIDs of DICOM series to be used rather than others of their modality.
        suv_factor: what PET values are multiplied by to be SUV.
        sheet: of Excel workbooks; empty: the only one that holds something.
    """

    record: Path | None = None
    needs_record: bool = True
    keep_names: bool = False
    series: tuple[str, ...] = ()
    suv_factor: float | None = None
    sheet: str = ""


@dataclass(frozen=True)
class Inputs(Sequence[Source]):
    """The patients in what was given.

    Attributes:
        kind: what it was taken for.
        told: what a person checks before the work starts, in lines.
    """

    kind: str
    sources: tuple[Source, ...]
    told: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Source, ...]: ...
    def __getitem__(self, index):
        return self.sources[index]

    def __len__(self) -> int:
        return len(self.sources)

    def listing(self) -> Iterator[str]:
        """What was recognised: a line a patient."""
        yield f"{self.kind}: {len(self)} patients"
        yield from self.told
        for source in self:
            yield f"{source.patient_id}: {source}"


def find_sources(inputs: Sequence[Path], asked: Asked | None = None) -> Inputs:
    """The patients in what was given.

    Args:
        inputs: a CT and a PET file, in this order; a table (CSV, Excel) with the columns
            patient, ct, pet and perhaps record; a zip of DICOM files; or a folder: a
            grand-challenge input folder (``images/ct``, ``images/pet``, ``ehr.json``), a HECKTOR
            folder, an nnU-Net folder (``imagesTs`` or ``imagesTr``), BIDS (``sub-*``), or any with
            DICOM files in it.

    Raises:
        RefusedError: it is none of these; says what was found and what was expected.
    """
    asked = asked or Asked()
    if asked.suv_factor is not None and not 0 < asked.suv_factor < float("inf"):
        raise RefusedError(f"--suv-factor {asked.suv_factor}: expected a number above 0")
    given = [*inputs, *([asked.record] if asked.record else [])]
    if absent := [str(path) for path in given if not path.exists()]:
        raise RefusedError(f"{absent[0]}: no such file or folder")
    return _with_records(_recognised(inputs, asked), asked)


def _recognised(inputs: Sequence[Path], asked: Asked) -> Inputs:
    """The patients, without what a table of health records says of them."""
    if len(inputs) == 2 and all(path.is_file() for path in inputs):
        ct, pet = inputs
        if ct.samefile(pet):
            raise RefusedError(f"{ct} is given as CT and as PET, expected two files")
        pair = Pair(ct, pet, None if _is_table(asked.record) else asked.record)
        return Inputs("a CT and a PET", _scaled([pair], asked))
    if len(inputs) == 1:
        (path,) = inputs
        if path.is_dir():
            return _folder(path, asked)
        if path.is_file() and path.suffix.lower() == ".zip":
            return _dicom(path, asked, f"{path} holds no DICOM files")
        if path.is_file() and _is_table(path):
            return Inputs(path.name, _scaled(_listed(path, asked.sheet), asked))
    raise RefusedError(
        f"found {', '.join(map(str, inputs)) or 'no input'}; expected one folder, or a CT file "
        "and a PET file, a zip of DICOM or a CSV of patient, ct, pet"
    )


def _folder(folder: Path, asked: Asked) -> Inputs:
    if is_challenge_folder(folder):
        if asked.record or asked.suv_factor is not None:
            raise RefusedError(
                "--record and --suv-factor do not go with a challenge's folder: it holds its own "
                "record, and its PET is in SUV"
            )
        return Inputs("grand-challenge input", (ChallengeFolder(folder, asked.needs_record),))
    if bids := list(_bids(folder)):
        told = tuple(
            f"{pair.patient_id}: CT {pair.ct.name} taken of {len(cts)}, the first by name"
            for pair, cts in bids
            if len(cts) > 1
        )
        return Inputs("BIDS", _scaled([pair for pair, _ in bids], asked), told)
    try:
        found = find_scans(folder, asked.sheet)
    except NoPatientsError as error:
        inside = next((p for p in sorted(folder.glob("*/")) if is_challenge_folder(p)), None)
        otherwise = f"{error}; images/ct and images/pet, or sub-* of BIDS are read as well"
        if inside:
            otherwise = f"{folder}: expected {inside}, a grand-challenge input; no patients here"
        return _dicom(folder, asked, otherwise)
    return Inputs("data folder", _scaled(found, asked), tuple(found.summary()))


def _dicom(path: Path, asked: Asked, otherwise: str) -> Inputs:
    """The scans of DICOM files. Raises: RefusedError, where there are none: ``otherwise``."""
    found = find_dicom(
        path, keep_names=asked.keep_names, series=asked.series, suv_factor=asked.suv_factor
    )
    if found is None:
        raise RefusedError(f"{otherwise}, and there are no DICOM files")
    if not found.scans:
        raise RefusedError(f"{path}: no PET series; found {_told(found) or 'nothing'}")
    drawn = {file for scan in found.scans for file in getattr(scan, "drawn", ())}
    beside = f", {len(drawn)} files of contours or labels" if drawn else ""
    told = [f"{path.name}: {len(found.scans)} PET/CT examinations in DICOM{beside}"]
    for scan in found.scans:
        told += [f"{scan.patient_id}: {note}" for note in getattr(scan, "notes", ())]
    if found.left_out:
        told.append(f"left out: {_told(found)}")
    return Inputs("DICOM", found.scans, tuple(told))


def _told(found: DicomFolder) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(found.left_out.items()))


def _scaled(sources: Sequence[Pair | Patient], asked: Asked) -> tuple[Source, ...]:
    if asked.suv_factor is None:
        return tuple(sources)
    return tuple(replace(source, suv_factor=asked.suv_factor) for source in sources)


# --- lists and BIDS ------------------------------------------------------------------------------


def _is_table(path: Path | None) -> bool:
    """Whether it is named as a table; one that cannot be read is refused where it is."""
    return path is not None and (
        is_workbook(path) or path.suffix.lower() in (".csv", ".tsv", OLD_EXCEL)
    )


def _listed(path: Path, sheet: str) -> list[Pair]:
    """The patients of a table; paths in it are relative to it."""
    frame = read_frame(path, LIST_COLUMNS, sheet=sheet)
    columns = {str(name).strip().lower(): name for name in frame.columns}
    if missing := [name for name in LIST_COLUMNS[:3] if name not in columns]:
        raise RefusedError(
            f"{path}: no column {', '.join(missing)}; expected patient, ct, pet and perhaps record"
        )
    pairs = []
    for number, row in zip(frame.index, frame.to_dict("records"), strict=True):
        cells = {name: str(row.get(columns.get(name)) or "") for name in LIST_COLUMNS}
        if not all(cells[name] for name in LIST_COLUMNS[:3]):
            raise RefusedError(f"{path}: row {number} lacks a patient, ct or pet")
        ct, pet, record = (path.parent / cells[name] for name in LIST_COLUMNS[1:])
        pairs.append(Pair(ct, pet, record if cells["record"] else None, cells["patient"]))
    return pairs


def _bids(root: Path) -> Iterator[tuple[Pair, list[Path]]]:
    """The scans of a BIDS data set: PET with the CT of the same subject and session.

    The CT is in ``ct`` or ``anat`` and ends in ``_ct``; of several, which are given too, the first
    by name. Where there are several PETs, those of FDG
    that are corrected for attenuation are meant.
    """
    for subject in sorted(path for path in root.glob("sub-*") if path.is_dir()):
        sessions = sorted(path for path in subject.glob("ses-*") if path.is_dir()) or [subject]
        for session in sessions:
            pets, cts = _ending(session / "pet", "_pet"), []
            for name in ("ct", "anat", "pet"):
                cts += _ending(session / name, "_ct")
            if not pets:
                continue
            name = subject.name if session is subject else f"{subject.name}_{session.name}"
            pet = max(pets, key=_worth)
            ct = cts[0] if cts else session / "ct" / f"{name}_ct.nii.gz"
            yield Pair(ct, pet, name=name), cts


def _ending(folder: Path, ending: str) -> list[Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if image_stem(path).lower().endswith(ending)]


def _worth(pet: Path) -> tuple[bool, bool]:
    entities = dict(re.findall(r"(trc|rec)-([A-Za-z0-9]+)", pet.name))
    is_fdg = "fdg" in entities.get("trc", "fdg").lower()
    return is_fdg, "nac" not in entities.get("rec", "").lower()


# --- health records ------------------------------------------------------------------------------


def _with_records(found: Inputs, asked: Asked) -> Inputs:
    """The patients with what a table says of them, or as they are where none is given."""
    if asked.record is None:
        return found
    if not _is_table(asked.record):
        if found.kind != "a CT and a PET":
            raise RefusedError(
                "--record with a JSON file goes with a CT and a PET file; many patients take a "
                "table (CSV, Excel) with a column of their names"
            )
        return found
    ids = {one.patient_id: one.file_id for one in found if isinstance(one, Scan) and one.file_id}
    names = [one.patient_id for one in found]
    known = read_records(asked.record, [*names, *ids.values()], sheet=asked.sheet)
    hidden: list[str] = []
    if ids and not asked.keep_names:
        known, hidden = _without_identities(known, ids | {own: own for own in ids.values()})
    # The note on how an id is spelled would say it.
    by_id = {name: known[own]._replace(notes=()) for name, own in ids.items() if own in known}
    taken = {*by_id, *ids.values()}  # whose id a name is, and not whose number, is meant by it
    by_name = {name: known[name] for name in names if name in known and name not in taken}
    sources = tuple(_knowing(source, by_name | by_id) for source in found)
    count = len(by_name) + len(by_id)
    told = [f"{asked.record.name}: health records of {count} of {len(found)} patients"]
    if numbered := [name for name in by_name if name in ids and not asked.keep_names]:
        told.append(
            f"{len(numbered)} of them by names such as {numbered[0]}, which are numbers and change "
            "where patients are added: a column of the ids in the files does not"
        )
    if hidden:
        told.append(f"left out, as they say who a patient is: columns {', '.join(hidden)}")
    return replace(found, sources=sources, told=(*found.told, *told))


def _without_identities(
    known: Mapping[str, Known], ids: Mapping[str, str]
) -> tuple[dict[str, Known], list[str]]:
    """Records without the columns that say who somebody is, and those columns' names.

    By their names; since most of those who have something there have their own id of the DICOM
    files (an id may be 1, and be in any column by chance); or since most have a text of their own,
    as a date or a remark is.

    Args:
        ids: of the DICOM files, by the name that a record goes by.
    """

    def is_own(name: str, value: object) -> bool:
        text = plain_code(str(value)) if isinstance(value, float) else str(value)
        return name in ids and (text.lstrip("0") or "0") == (ids[name].lstrip("0") or "0")

    own: dict[str, list[bool]] = {}
    texts: dict[str, list[str]] = {}
    for name, one in known.items():
        for label, value in one.record.values.items():
            if value is not None and plain_name(label) not in USUAL_COLUMNS:
                own.setdefault(label, []).append(is_own(name, value))
                if isinstance(value, str):
                    texts.setdefault(label, []).append(value)
    hidden = [
        label
        for label, found in own.items()
        if IDENTITIES.search(plain_name(label))
        or 2 * sum(found) > len(found)
        or _is_ones_own(texts.get(label, []))
    ]
    kept = {
        name: one._replace(
            record=ClinicalRecord({k: v for k, v in one.record.values.items() if k not in hidden})
        )
        for name, one in known.items()
    }
    return kept, [shown(label) for label in hidden]


def _is_ones_own(texts: Sequence[str]) -> bool:
    """Whether most of those who have a text in a column share it with nobody."""
    alone = sum(count == 1 for count in Counter(texts).values())
    return len(texts) >= LEAST_TEXTS and 2 * alone > len(texts)


def _knowing(source: Source, known: Mapping[str, Known]) -> Source:
    said = known.get(source.patient_id)
    if said is None or isinstance(source, (ChallengeFolder, Unpaired)):
        return source
    if isinstance(source, Patient):
        return replace(source, record=said.record, notes=said.notes)
    return replace(source, known=said)  # type: ignore[type-var]
