"""DICOM folders: which PET and CT belong together, and their voxels in SUV and HU.

What a folder holds is found by the files' content, whatever their names: series of one or many
patients, mixed with others and with files that are no DICOM. What is said of a patient holds no
name, id or date: a series is named by its modality and number, an image by its number in it.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset

from hmvnet.case import Case, CaseError, Finding, Grid
from hmvnet.files import digest
from hmvnet.reading.archive import unzipped
from hmvnet.reading.checks import checked_case
from hmvnet.reading.contours import read_truth
from hmvnet.reading.headers import remarked
from hmvnet.reading.names import first
from hmvnet.reading.series import (
    MODEL,
    Series,
    Slice,
    drawn_on,
    quietly,
    read_header,
    read_series,
    slices_of,
)
from hmvnet.reading.suv import SuvScale, number, parse_date, parse_time, suv_scale, words
from hmvnet.reading.tables import Known

USUAL_UPTAKE_MIN = 20, 240  # of FDG; guidelines ask for 60 (EANM: 55 to 75)
FEWEST_SLICES = 5  # of a scan; localisers and screen shots have fewer
F18_S = 6586.2
FDG_WORDS, FDG_CODES = (
    ("FDG", "DEOXYGLUC", "DESOXYGLUC"),
    ("C-B1031", "35321007"),
)


@dataclass(frozen=True)
class Scan:
    """A PET and the CT that goes with it. Nothing but headers is read yet.

    Attributes:
        notes: which series were chosen among several.
        drawn: RTSTRUCT and SEG files that belong to the CT.
        known: what a table says of the patient.
        suv_factor: what PET values are multiplied by; None: as the headers say.
        numbered: whether ``patient_id`` is a number, and none of the files.
        keeps: what must not go away before the files are read.
    """

    patient_id: str
    ct: Series
    pet: Series
    notes: tuple[str, ...] = ()
    drawn: tuple[Path, ...] = field(default=(), repr=False)
    known: Known | None = None
    suv_factor: float | None = None
    numbered: bool = False
    keeps: object = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.ct}, {self.pet}"

    def __getstate__(self) -> dict[str, Any]:
        """What another process is handed; the files stay where this one keeps them."""
        return vars(self) | {"keeps": None}

    @property
    def origin(self) -> str:
        """What tells this scan from another of the same number, and names nobody."""
        return digest(self.ct.uid, self.pet.uid, self.suv_factor)

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read of the disk."""
        return tuple(one.path for series in (self.ct, self.pet) for one in series.slices)

    @property
    def examination(self) -> str:
        """What tells this examination from others, and names nobody."""
        header = self.ct.header
        return digest(
            *(str(header.get(uid)) for uid in ("StudyInstanceUID", "FrameOfReferenceUID"))
        )

    @property
    def file_id(self) -> str:
        """The patient's id in the files; it is not to be written or said."""
        return str(self.ct.header.get("PatientID") or "").strip()

    @quietly()
    def read(self) -> Case:
        """The images, CT in HU and PET in SUV.

        Raises:
            CaseError: slices that are missing, doubled, tilted or unreadable, a PET that cannot be
                made SUV; as ``checked_case``.
        """
        ct, notes = read_series(self.ct)
        scale = suv_scale([one.header for one in self.pet.slices], self.suv_factor)
        pet, notes2 = read_series(self.pet, scale.factors)
        findings = tuple(_tracer(self.pet)) or tuple(_uptake(scale))
        comments = str(self.ct.header.get("ImageComments") or "")
        notes = (*self.notes, *remarked(comments, self.ct.name), *notes, *notes2, *scale.notes)
        said = self.known or Known()
        return checked_case(
            self.patient_id,
            ct,
            pet,
            record=said.record,
            notes=(*notes, *said.notes),
            findings=findings,
        )

    def read_with_truth(self, names: Mapping[str, int] | None = None) -> Case:
        """The images, with what is drawn on the CT as truth; as ``read`` where nothing is.

        Args:
            names: as for ``hmvnet.reading.contours.label_of``.

        Raises:
            CaseError: as ``read`` and ``read_truth``, or several files draw GTVp or GTVn.
        """
        case = self.read()
        read = [read_truth(path, Grid.of(case.ct), names) for path in self.drawn]
        found = [truth for truth, _ in read if truth is not None]
        if len(found) > 1:
            raise CaseError(
                f"{len(found)} RTSTRUCT or SEG files draw GTVp or GTVn, expected one (remove the "
                "others, or name the contours)"
            )
        notes = (*case.notes, *(note for _, notes in read for note in notes))
        return replace(case, truth=found[0] if found else None, notes=notes)


@dataclass(frozen=True)
class Unpaired:
    """A PET for which there is no CT."""

    patient_id: str
    why: str
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return self.why

    def read(self) -> Case:
        """Raises: CaseError, always."""
        raise CaseError(self.why)


@dataclass(frozen=True)
class DicomFolder:
    """What a folder of DICOM files holds.

    Attributes:
        scans: a PET with its CT, or without one.
        left_out: what is not used, and how often it is there.
    """

    scans: tuple[Scan | Unpaired, ...]
    left_out: dict[str, int]


@quietly()
def find_dicom(
    root: Path,
    *,
    keep_names: bool = False,
    series: Sequence[str] = (),
    suv_factor: float | None = None,
) -> DicomFolder | None:
    """The PET/CTs of a folder, or a zip of one; None where it holds no DICOM at all.

    Args:
        keep_names: patients are named as in the files, not ``patient-001``, ...
        series: UIDs, or codes as the notes have them, of series to be used rather than others of
            their modality.
        suv_factor: what PET values are multiplied by, in the place of what the headers say.

    Raises:
        CaseError: a zip that is not readable, leads out of itself or inflates beyond measure.
    """
    keeps = None
    if root.is_file():
        keeps, root = unzipped(root)
    found, drawn, left_out = _find_series(root)
    if not found and not drawn and set(left_out) <= {NO_DICOM}:
        return None
    groups = defaultdict(list)
    for one in found:
        groups[_examination(one)].append(one)
    numbers: dict[str, int] = {}
    scans: list[Scan | Unpaired] = []
    if absent := set(series) - {name for one in found for name in (one.uid, one.code)}:
        raise CaseError(
            f"--series: {len(absent)} of {len(series)} are of no PET or CT here, expected UIDs, or "
            f"codes: {first([f'{one.code} ({one.name})' for one in found])}"
        )
    for key, members in sorted(groups.items()):
        if not any(one.modality == "PT" for one in members):
            left_out["CT series without a PET"] += len(members)
            continue
        number = numbers.setdefault(key[0], len(numbers) + 1)
        name = _file_name(key[0]) if keep_names else f"patient-{number:03d}"
        scan = _pair(name, members, series)
        if isinstance(scan, Scan):
            drawings = tuple(_drawn_on(scan.ct, drawn, found))
            scan = replace(
                scan,
                numbered=not keep_names,
                drawn=drawings,
                suv_factor=suv_factor,
                keeps=keeps,
            )
        scans.append(scan)
    used = {path for scan in scans if isinstance(scan, Scan) for path in scan.drawn}
    if other := {one.path for one in drawn} - used:
        left_out["files of contours or labels of no scan here"] += len(other)
    return DicomFolder(tuple(_told_apart(scans)), dict(left_out))


def _told_apart(scans: list[Scan | Unpaired]) -> Iterator[Scan | Unpaired]:
    """Several examinations of one patient get a number each."""
    counts, seen = Counter(scan.patient_id for scan in scans), Counter[str]()
    taken = {name for name, count in counts.items() if count == 1}
    for scan in scans:
        name = scan.patient_id
        if counts[name] == 1:
            yield scan
            continue
        seen[name] += 1
        while f"{name}-{seen[name]}" in taken:
            seen[name] += 1
        yield replace(scan, patient_id=f"{name}-{seen[name]}")


def _file_name(patient: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in patient).strip("._")
    return kept or "patient"


def _examination(one: Series) -> tuple[str, str, str]:
    """What PET and CT of one examination share: the patient, and the frame of reference."""
    header = one.header
    study = str(header.get("StudyInstanceUID") or "")
    return str(header.get("PatientID") or study), study, str(header.get("FrameOfReferenceUID"))


# --- files to series -----------------------------------------------------------------------------

# What tells series apart.
IDENTITY = ("SeriesInstanceUID", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
NO_DICOM = "files that are no DICOM"
OURS = "files of contours or labels that HM-VNet made, which are no truth"


@dataclass(frozen=True)
class _Drawing:
    """An RTSTRUCT or SEG, the frame of reference and the series that it was drawn on."""

    path: Path
    frame: str
    series: list[str]


def _drawn_on(ct: Series, drawn: Sequence[_Drawing], found: Sequence[Series]) -> list[Path]:
    """What was drawn on a CT, or else in its place on a series that is not there.

    Anonymisation and export give series other UIDs, and do not always say so to what is drawn.
    """
    here = [one.path for one in drawn if ct.uid in one.series]
    known, frame = {one.uid for one in found}, str(ct.header.get("FrameOfReferenceUID") or "")
    if not frame:
        return here
    return here or [o.path for o in drawn if o.frame == frame and not known & set(o.series)]


def _find_series(root: Path) -> tuple[list[Series], list[_Drawing], Counter[str]]:
    """The PET and CT series under a folder, what is drawn on each, and a count of all else."""
    members: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    drawn: list[_Drawing] = []
    left_out: Counter[str] = Counter()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            header = read_header(path)
            if header is None:
                left_out[NO_DICOM] += 1
                continue
            if (place := drawn_on(header)) is not None:
                if header.get("ManufacturerModelName") == MODEL:
                    left_out[OURS] += 1
                    continue
                drawn.append(_Drawing(path, *place))
                continue
            if why := _unused(header):
                left_out[why] += 1
                continue
            # One UID may be there for two patients, where somebody gave it by hand.
            ids = [str(header.get(keyword) or "") for keyword in IDENTITY]
            if planes := slices_of(path, header):
                members[tuple(ids)] += planes
            else:  # a page of the scanner's, say
                left_out[f"{header.Modality} images that do not say where they lie"] += 1
    series = []
    for (uid, *_), slices in members.items():
        modality = str(slices[0].header.Modality)
        if len(slices) < FEWEST_SLICES:
            left_out[f"{modality} series of fewer than {FEWEST_SLICES} slices"] += 1
            continue
        number = str(slices[0].header.get("SeriesNumber") or "")
        number = number if number.isdigit() else "?"  # a text may name somebody
        normal = slices[0].normal
        slices.sort(key=lambda one: float(one.position @ normal))
        series.append(Series(uid, modality, number, tuple(slices)))
    return series, drawn, left_out


def _unused(header: Dataset) -> str:
    """Why a file is no slice of a PET or CT; empty where it is one."""
    modality = str(header.get("Modality") or "")
    if modality not in ("CT", "PT"):
        return f"files of modality {modality or 'unknown'}"
    if header.get("Rows") is None or header.get("SeriesInstanceUID") is None:
        return f"{modality} files without an image"
    if header.get("SamplesPerPixel", 1) != 1:
        return f"{modality} files in colour"
    if "LOCALIZER" in words(header.get("ImageType")):
        return "localisers"
    return ""


# --- series to scans -----------------------------------------------------------------------------


def _pair(name: str, members: list[Series], wanted: Sequence[str]) -> Scan | Unpaired:
    """The PET and the CT of one examination that are to be used, with what was chosen."""
    pets = [one for one in members if one.modality == "PT"]
    cts = [one for one in members if one.modality == "CT"]
    pet = _chosen(
        pets, wanted, lambda one: (one.is_corrected, round(one.length_mm), len(one.slices))
    )
    if not cts:
        return Unpaired(
            name, f"{pet.name}: no CT in its study and frame of reference, expected one"
        )
    begun = _time_of(pet)
    ct = _chosen(
        cts,
        wanted,
        lambda one: (
            round(one.overlap(pet), 1),
            "ORIGINAL" in words(one.header.get("ImageType")),
            -abs(_time_of(one) - begun),
            len(one.slices),
        ),
    )
    notes = [
        f"{one.name} ({one.code}) chosen of {len(among)}: "
        + ", ".join(f"{other.code} ({len(other.slices)} slices)" for other in among)
        for one, among in ((pet, pets), (ct, cts))
        if len(among) > 1
    ]
    if not (pet.header.get("FrameOfReferenceUID") or ct.header.get("FrameOfReferenceUID")):
        notes.append("PET and CT name no frame of reference: taken for one and the same")
    return Scan(name, ct, pet, tuple(notes))


def _chosen(among: list[Series], wanted: Sequence[str], worth: Any) -> Series:
    named = [one for one in among if {one.uid, one.code} & set(wanted)]
    return max(named or among, key=lambda one: (worth(one), one.uid))


def _time_of(one: Series) -> float:
    """Seconds from a day long ago to when a series began; 0 where it does not say."""
    header = one.header
    clock = parse_time(header.get("AcquisitionTime") or header.get("SeriesTime"))
    day = parse_date(header.get("AcquisitionDate") or header.get("SeriesDate"))
    if clock is None:
        return 0.0
    begun = datetime.combine(day or date(2000, 1, 1), clock)
    return (begun - datetime(2000, 1, 1)).total_seconds()


def _uptake(scale: SuvScale) -> Iterator[Finding]:
    """Whether FDG was imaged at a time at which nobody does: the times are made up, then."""
    if scale.uptake_s is None:
        return
    minutes, (least, most) = round(scale.uptake_s / 60), USUAL_UPTAKE_MIN
    if not least <= minutes <= most:
        yield Finding(
            "uptake-time",
            f"PET: {minutes} minutes from injection to scan, expected {least} to {most}: "
            "SUV hang on them",
        )


def _tracer(pet: Series) -> Iterator[Finding]:
    """Whether what was injected is something else than FDG, as far as the file says."""
    info = (pet.header.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0]
    half_life = number(info.get("RadionuclideHalfLife"))
    codes = info.get("RadiopharmaceuticalCodeSequence") or ()
    said = [info.get("Radiopharmaceutical"), *(code.get("CodeMeaning") for code in codes)]
    named = " ".join(str(text or "") for text in said).upper().strip()
    is_fdg = any(word in named for word in FDG_WORDS) or any(
        str(code.get("CodeValue")) in FDG_CODES for code in codes
    )
    # Many files name the nuclide alone; what has another half-life is no FDG whatever it says.
    other_nuclide = half_life is not None and abs(half_life / F18_S - 1) > 0.05
    only_nuclide = named.replace("-", "").strip("^ ") in ("", "F18", "18F")
    if other_nuclide or not (is_fdg or only_nuclide):
        yield Finding("not-fdg", f"{pet.name}: the tracer is not FDG, as far as the file says")
