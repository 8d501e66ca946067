"""One series of DICOM images: its slices in space, and its voxels in the scanner's unit."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset, FileDataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hmvnet.case import CaseError, Grid
from hmvnet.files import digest
from hmvnet.reading.headers import MAX_VOXELS, checked_grid
from hmvnet.reading.suv import PRIVATE_TAGS, parse_datetime, words, zone_of

CODE = 8  # characters
PREAMBLE = 128
SAME_AXES, SAME_PLACE_MM = 1e-3, 0.1
# Units of an enhanced PET, the best first, as those of a single-frame one: Units and SUVType.
MAPPED_UNITS: dict[str, tuple[str, str | None]] = {
    "bq/ml": ("BQML", None),
    "{suvbw}g/ml": ("GML", "BW"),
    "{counts}": ("CNTS", None),
}
SPACING_JITTER = 0.02  # of the distance of slices

# What tells series apart, and all that SUV needs; a header is much longer.
TAGS = [
    "SOPInstanceUID",
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "Units",
    "SUVType",
    "DecayCorrection",
    "CorrectedImage",
    "AttenuationCorrected",
    "DecayCorrected",
    "DecayCorrectionDateTime",
    "PatientSex",
    "PatientWeight",
    "PatientSize",
    "SeriesDate",
    "SeriesTime",
    "StudyDate",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "FrameReferenceTime",
    "ActualFrameDuration",
    "RadiopharmaceuticalInformationSequence",
    "ImageComments",
    "TimezoneOffsetFromUTC",
    "ReferencedFrameOfReferenceSequence",
    "ReferencedSeriesSequence",
    "ManufacturerModelName",
]
KEPT: list[int] = [*(tag for tag in map(tag_for_keyword, TAGS) if tag), *PRIVATE_TAGS]
# What our own DICOM objects say of who made them.
MAKER, MODEL = "HM-VNet (open source)", "hmvnet"


@dataclass(frozen=True)
class Slice:
    """One plane of an image: a file, or a frame of one.

    Attributes:
        position: LPS mm of its first voxel's centre.
        axes: unit vectors along a row and along a column, ``[2, 3]``.
        spacing: mm along a row (x) and along a column (y).
        size: voxels along x and y.
        header: what SUV needs, as a single-frame image has it.
        frame: of a file with several, counted from 0.
    """

    path: Path
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    size: tuple[int, int]
    slope: float
    intercept: float
    header: Dataset
    frame: int | None = None

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.axes[0], self.axes[1])


@dataclass(frozen=True)
class Series:
    """One series of images, its slices from the patient's one end to the other's.

    Attributes:
        number: as the scanner counted it; ``?`` where the file does not say.
    """

    uid: str
    modality: str
    number: str
    slices: tuple[Slice, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{'PET' if self.modality == 'PT' else self.modality} series {self.number}"

    @property
    def code(self) -> str:
        """What tells it from others of the same number, and is no identity as its UID is."""
        return digest(self.uid)[:CODE]

    @property
    def header(self) -> Dataset:
        """Its first slice's."""
        return self.slices[0].header

    @property
    def is_corrected(self) -> bool:
        """Whether a PET is corrected for attenuation, or does not say."""
        corrected = words(self.header.get("CorrectedImage"))
        return not corrected or "ATTN" in corrected

    @property
    def length_mm(self) -> float:
        """From its first slice to its last."""
        return float(np.linalg.norm(self.slices[-1].position - self.slices[0].position))

    def __str__(self) -> str:
        return f"{self.name} ({len(self.slices)} slices)"

    @cached_property
    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound in LPS mm, of voxel centres."""
        ends = []
        for one in (self.slices[0], self.slices[-1]):
            steps = (np.array(one.size) - 1) * one.spacing
            ends += [one.position + i * steps[0] * one.axes[0] for i in (0, 1)]
            ends += [ends[-1] + steps[1] * one.axes[1], ends[-2] + steps[1] * one.axes[1]]
        return np.min(ends, axis=0), np.max(ends, axis=0)

    def overlap(self, other: Series) -> float:
        """The share of ``other``'s box that lies in this one's."""
        low, high = (
            f(a, b) for f, a, b in zip((np.maximum, np.minimum), self.extent, other.extent)
        )
        whole = np.maximum(other.extent[1] - other.extent[0], 1.0)
        return float(np.prod(np.clip(high - low, 0, whole) / whole))


# --- files to slices ------------------------------------------------------------------------------


@contextmanager
def quietly() -> Iterator[None]:
    """What pydicom and highdicom warn of in a patient's tags holds what these say of the patient.

    Values are looked at when they are asked for, long after a file is read.
    """
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def read_header(path: Path) -> Dataset | None:
    """What is needed of a file's header; None for a file that is no DICOM."""
    try:
        with path.open("rb") as file:
            start = file.read(PREAMBLE + 4)
        # Files without the preamble begin with a group of low number in either byte order.
        bare = start[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")
        if start[PREAMBLE:] != b"DICM" and not bare:
            return None
        with quietly():
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=KEPT, force=bare)
    except Exception:  # pydicom raises many kinds for damaged files; a zip's, a text's bytes too
        return None


def open_dicom(path: Path, **options: Any) -> FileDataset:
    """A DICOM file, also one without preamble and file meta (``read_header`` has told it).

    Args:
        options: of ``pydicom.dcmread``.

    Raises:
        Exception: pydicom raises many kinds for damaged files.
    """
    file = pydicom.dcmread(path, force=True, **options)
    if "TransferSyntaxUID" not in file.file_meta:
        implicit, little = file.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return file


def drawn_on(header: Dataset) -> tuple[str, list[str]] | None:
    """What an RTSTRUCT or SEG was drawn on: frame of reference, and series; None for all else."""
    if header.get("Modality") == "SEG":
        series = header.get("ReferencedSeriesSequence") or ()
        return str(header.get("FrameOfReferenceUID")), [str(s.SeriesInstanceUID) for s in series]
    frames = header.get("ReferencedFrameOfReferenceSequence")
    if header.get("Modality") != "RTSTRUCT" or not frames:
        return None
    return str(frames[0].get("FrameOfReferenceUID")), [
        str(series.SeriesInstanceUID)
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    ]


def slices_of(path: Path, header: Dataset) -> list[Slice]:
    """A file's planes; none where it does not say where they lie."""
    if "PerFrameFunctionalGroupsSequence" in header:
        frames = header.PerFrameFunctionalGroupsSequence
        each = [_flattened(header, frame) for frame in frames]
        found = [_slice(path, one, number) for number, one in enumerate(each)]
    else:
        found = [_slice(path, header, None)]
    return [one for one in found if one is not None]


def _slice(path: Path, header: Dataset, frame: int | None) -> Slice | None:
    try:
        position = np.array([float(v) for v in header.ImagePositionPatient]).reshape(3)
        axes = np.array([float(v) for v in header.ImageOrientationPatient]).reshape(2, 3)
        down, across = (float(v) for v in header.PixelSpacing)
        size = int(header.Columns), int(header.Rows)
        slope, intercept = (
            float(default if (value := header.get(keyword)) is None else value)
            for keyword, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
    except (AttributeError, TypeError, ValueError):
        return None
    if not np.isfinite([*position, *axes.ravel(), down, across]).all():  # in no order then
        return None
    return Slice(path, position, axes, (across, down), size, slope, intercept, header, frame)


def _flattened(header: Dataset, frame: Dataset) -> Dataset:
    """A frame of an enhanced image as a single-frame one would have it."""
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    one = Dataset()
    for keyword in TAGS:
        if keyword in header and "FunctionalGroups" not in keyword:
            setattr(one, keyword, header.get(keyword))
    for sequence, keywords in (
        ("PlanePositionSequence", ("ImagePositionPatient",)),
        ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
        ("PixelMeasuresSequence", ("PixelSpacing",)),
        ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept")),
        ("FrameContentSequence", ("FrameReferenceDateTime",)),
    ):
        for group in (shared[0], frame):
            for item in (group.get(sequence) or [])[:1]:
                for keyword in keywords:
                    if keyword in item:
                        setattr(one, keyword, item.get(keyword))
    mappings = [
        (str(units[0].get("CodeValue") or "").lower(), item)
        for group in (frame, shared[0])
        for item in group.get("RealWorldValueMappingSequence") or ()
        if (units := item.get("MeasurementUnitsCodeSequence"))
    ]
    if mappings and one.get("Units") is None:
        order = [*MAPPED_UNITS, *(code for code, _ in mappings)]
        code, item = min(mappings, key=lambda found: order.index(found[0]))
        known = MAPPED_UNITS.get(code)
        one.Units, one.SUVType = known or (code, None)
        if known and "RealWorldValueSlope" in item:  # of stored values (PS3.3, C.7.6.16.2.11)
            one.RescaleSlope = item.RealWorldValueSlope
            one.RescaleIntercept = item.get("RealWorldValueIntercept") or 0
    if one.get("AttenuationCorrected"):
        one.CorrectedImage = ["ATTN"] if one.AttenuationCorrected == "YES" else ["NONE"]
    if one.get("DecayCorrected") == "YES":
        moment = parse_datetime(one.get("DecayCorrectionDateTime"), zone_of(header))
        day, clock = (moment.strftime(f) if moment else "" for f in ("%Y%m%d", "%H%M%S.%f"))
        one.DecayCorrection, one.SeriesDate, one.SeriesTime = "START", day, clock
        one.AcquisitionDateTime = day + clock
    elif one.get("DecayCorrected") == "NO":
        one.DecayCorrection = "NONE"
        one.AcquisitionDateTime = one.get("FrameReferenceDateTime")
        one.ActualFrameDuration = 1  # ms: the reference is when the values were reached
    return one


# --- slices to images ----------------------------------------------------------------------------


def read_series(
    series: Series, factors: Sequence[float] | None = None
) -> tuple[sitk.Image, tuple[str, ...]]:
    """A series' voxels, rescaled, and notes on what was left out.

    Args:
        factors: what each slice's rescaled values are multiplied by; values are float32 then. A CT
            in whole HU stays int16.

    Raises:
        CaseError: slices that do not make up a volume, or a file that is not readable.
    """
    chosen, notes = _without_doubles(series)
    grid = _grid(series, [series.slices[i] for i in chosen])
    whole = factors is None and all(
        one.slope == 1 and float(one.intercept).is_integer() for one in series.slices
    )
    volume = np.empty(grid.shape, np.int16 if whole else np.float32)
    files: dict[Path, np.ndarray] = {}
    for number, index in enumerate(chosen, start=1):
        one = series.slices[index]
        if one.path not in files:
            files.clear()  # frames of a file follow each other
            files[one.path] = _stored(one, f"{series.name}, image {number}")
        stored = files[one.path] if one.frame is None else files[one.path][one.frame]
        if stored.shape != grid.shape[1:]:
            raise CaseError(
                f"{series.name}, image {number}: {stored.shape[1]} x {stored.shape[0]} pixels, "
                f"expected {grid.size[0]} x {grid.size[1]} as in the others"
            )
        if not math.isfinite(one.slope * one.intercept) or one.slope == 0:
            raise CaseError(f"{series.name}, image {number}: RescaleSlope is 0 or no number")
        values = stored * np.float64(one.slope) + one.intercept
        if volume.dtype == np.int16 and (values.min() < -32768 or values.max() > 32767):
            volume = volume.astype(np.int32)  # padding that two bytes do not hold
        volume[number - 1] = values if factors is None else values * factors[index]
    return grid.image(volume), notes


def volume_files(series: Series) -> list[tuple[Path, int | None]]:
    """The file, and the frame in it, of each of the volume's slices as ``read_series`` has them."""
    chosen, _ = _without_doubles(series)
    return [(series.slices[i].path, series.slices[i].frame) for i in chosen]


def _without_doubles(series: Series) -> tuple[list[int], tuple[str, ...]]:
    """Which slices to use: of the same image sent twice, one."""
    chosen: list[int] = []
    seen: set[tuple[object, ...]] = set()
    for index, one in enumerate(series.slices):
        key = str(one.header.get("SOPInstanceUID")), one.frame, *one.position.tolist()
        if key not in seen:
            seen.add(key)
            chosen.append(index)
    doubled = len(series.slices) - len(chosen)
    return chosen, (f"{series.name}: {doubled} images are there twice",) if doubled else ()


def _grid(series: Series, slices: Sequence[Slice]) -> Grid:
    """The lattice that a series' slices make up.

    Raises:
        CaseError: they do not, and how.
    """
    first, name = slices[0], series.name
    if len(slices) < 2:
        raise CaseError(f"{name}: one image, expected a stack")
    if any(np.abs(one.axes - first.axes).max() > SAME_AXES for one in slices):
        raise CaseError(f"{name}: images of different orientation, expected one stack of slices")
    if any(one.size != first.size for one in slices) or any(
        not np.allclose(one.spacing, first.spacing, rtol=1e-3) for one in slices
    ):
        raise CaseError(f"{name}: images of different size or pixel spacing, expected one")
    if math.prod(first.size) * len(slices) > MAX_VOXELS:
        raise CaseError(
            f"{name}: {len(slices)} images of {first.size} pixels, expected at most 2^30"
        )
    steps = np.diff([one.position for one in slices], axis=0)
    apart = steps @ first.normal
    distance = float(np.median(apart))
    if same := int((apart < SAME_PLACE_MM).sum()):
        raise CaseError(
            f"{name}: {same} of {len(slices)} images lie where another does (several phases or "
            "reconstructions?), expected one a place"
        )
    # Beside the normal through the first slice: a little from one to the next may be centimetres
    # at the last, and a quarter of a pixel at the last is nothing.
    way = np.array([one.position for one in slices]) - first.position
    depth = way @ first.normal
    aside = np.linalg.norm(way - depth[:, None] * first.normal, axis=1)
    between = np.linalg.norm(steps - apart[:, None] * first.normal, axis=1)
    if between.max() > SAME_PLACE_MM or aside.max() > max(SAME_PLACE_MM, min(first.spacing) / 4):
        tilt = math.degrees(math.atan2(aside[at := int(aside.argmax())], depth[at]))
        raise CaseError(f"{name}: slices are tilted by {tilt:.1f} degrees, expected upright ones")
    off = np.abs(apart - distance)
    if off.max() > max(SPACING_JITTER * distance, SAME_PLACE_MM / 5):
        missing = int(np.rint(apart / distance - 1).clip(0).sum())
        at = int(off.argmax()) + 1
        what = f"{missing} slices are missing" if missing else "slices are unevenly spaced"
        raise CaseError(
            f"{name}: {what} (between image {at} and {at + 1} of {len(slices)} are "
            f"{apart[at - 1]:.2f} mm, elsewhere {distance:.2f})"
        )
    length = float((slices[-1].position - first.position) @ first.normal)
    spacing = (*first.spacing, length / (len(slices) - 1))
    direction = np.stack([*first.axes, first.normal], axis=1)
    grid, _ = checked_grid(
        (*first.size, len(slices)),
        spacing,
        tuple(first.position.tolist()),
        tuple(direction.ravel().tolist()),
        name,
    )
    return grid


def _stored(one: Slice, name: str) -> np.ndarray:
    """A file's stored pixels, ``[y, x]``, or ``[frame, y, x]`` where it counts frames."""
    try:
        with pydicom.config.disable_value_validation():
            file = open_dicom(one.path)
            compressed = file.file_meta.TransferSyntaxUID.is_compressed
            array = _decompressed(file) if compressed else file.pixel_array
            return array if one.frame is None else array.reshape(-1, *array.shape[-2:])
    except Exception as error:  # pydicom and GDCM raise many kinds for damaged files
        raise CaseError(f"{name}: cut, damaged or of an unknown transfer syntax") from error


def _decompressed(file: Dataset) -> np.ndarray:
    """Stored pixels of any transfer syntax that GDCM knows.

    GDCM rescales what it reads: with a slope of 1 it gives what was stored.
    """
    file.RescaleSlope, file.RescaleIntercept = 1, 0
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword in file:  # an enhanced image has its slopes there
            delattr(file, keyword)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.dcm")
        file.save_as(path)
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    several = int(file.get("NumberOfFrames") or 1) > 1
    return array if several else array.reshape(array.shape[-2:])
