"""A prediction as DICOM objects of the patient's study: SEG, structured report, RTSTRUCT.

SEG and report are built by highdicom (the extra ``dicom``); an RTSTRUCT, which it has not, here.
Each lesion is a segment, a group of measurements and a region, and has the same tracking id in
all three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)
from scipy import ndimage
from skimage.measure import find_contours

from hmvnet import __version__
from hmvnet.bundle import Manifest
from hmvnet.case import CLASSES, GTVN, GTVP, Grid
from hmvnet.files import replacing
from hmvnet.imaging.components import bounding_box
from hmvnet.imaging.resample import labels_onto
from hmvnet.lesions.table import Lesion
from hmvnet.pipeline import Prediction
from hmvnet.reading.series import MAKER, MODEL, Series, open_dicom, quietly, volume_files
from hmvnet.writing.folder import RTSTRUCT, SEG, SR

SERIES_NUMBERS = {SEG: 9001, SR: 9002, RTSTRUCT: 9003}
COLOURS = {GTVP: (230, 60, 60), 2: (60, 140, 230)}  # of contours, RGB
MOST_LESIONS = 255
# What an object of the study has to have, if without a value.
MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class _Source:
    """What all three objects are made of.

    Attributes:
        numbers: the lesions' numbers on the CT's grid, uint8 ``[z, y, x]``.
        lesions: by these numbers; those that have no voxel on the CT's grid are left out.
        sources: headers of the CT's files.
        places: for each slice of the grid, which source it is of, and its frame there.
    """

    grid: Grid
    numbers: np.ndarray
    lesions: dict[int, Lesion]
    sources: Sequence[Dataset]
    places: list[tuple[int, int | None]]
    manifest: Manifest
    made: datetime

    def uid(self, *words: str) -> UID:
        """The same for the same scan, bundle, moment and words."""
        series = str(self.sources[0].SeriesInstanceUID)
        return generate_uid(entropy_srcs=[series, self.manifest.name, str(self.made), *words])

    def instance(self, file: str) -> dict[str, Any]:
        """What highdicom asks for of every object: where it lies, and who made it."""
        return {
            "series_instance_uid": self.uid(file, "series"),
            "series_number": SERIES_NUMBERS[file],
            "sop_instance_uid": self.uid(file),
            "instance_number": 1,
            "manufacturer": MAKER,
            "manufacturer_model_name": MODEL,
            "software_versions": __version__,
            "device_serial_number": "0",
        }

    def name(self, number: int) -> str:
        return f"{CLASSES[self.lesions[number].label]} {number}"


def dicom_writers(
    prediction: Prediction, manifest: Manifest, ct: Series, folder: Path
) -> dict[Path, Callable[[], object]]:
    """What writes each object into ``folder``; nothing where no lesion was found.

    Args:
        ct: the series that the prediction's CT was read from.

    Raises:
        ModuleNotFoundError: highdicom is not installed.
    """
    import highdicom  # noqa: F401  # asked for before any patient's result is there

    if not prediction.lesions:
        return {}
    made = _made_of(prediction, manifest, ct)
    seg: list[Dataset] = []  # the report refers to it
    return {
        folder / SEG: lambda: seg.append(_written(lambda: _segmentation(made), folder / SEG)),
        folder / SR: lambda: _written(lambda: _report(made, next(iter(seg), None)), folder / SR),
        folder / RTSTRUCT: lambda: _written(lambda: _structures(made), folder / RTSTRUCT),
    }


def _made_of(prediction: Prediction, manifest: Manifest, ct: Series) -> _Source:
    grid = Grid.of(prediction.mask)
    on_ct = numbers_on(grid, prediction)
    there = set(np.unique(on_ct).tolist())
    files = volume_files(ct)
    paths = list(dict.fromkeys(path for path, _ in files))
    with quietly():
        sources = [open_dicom(path, stop_before_pixels=True) for path in paths]
        for source in sources:
            for keyword in MAY_BE_EMPTY:
                source.setdefault(keyword, "")
            if "SpecificCharacterSet" in source:  # not all that DICOM allows may be handed on
                source.decode()
                source.SpecificCharacterSet = "ISO_IR 192"
    places = [(paths.index(path), frame) for path, frame in files]
    return _Source(
        grid,
        on_ct,
        {number: lesion for number, lesion in enumerate(prediction.lesions, 1) if number in there},
        sources,
        places,
        manifest,
        datetime.now(),
    )


def numbers_on(grid: Grid, prediction: Prediction) -> np.ndarray:
    """The lesions' numbers of exactly the mask's voxels, uint8 ``[z, y, x]``.

    Lesions are numbered on the working grid. A corrected mask is the CT's own, and has been there
    and back: its voxels have the number of the nearest one of their class.

    Raises:
        ValueError: of a class that the mask has no lesion is numbered.
    """
    numbers = np.minimum(prediction.numbers, MOST_LESIONS).astype(np.uint8)
    on_ct = labels_onto(numbers, prediction.segmentation.volume.grid, grid)
    mask = sitk.GetArrayViewFromImage(prediction.mask)
    out = np.zeros_like(on_ct)
    for kind in (GTVP, GTVN):
        own = [n for n, lesion in enumerate(prediction.lesions, 1) if lesion.label == kind]
        inside, numbered = mask == kind, np.isin(on_ct, own)
        if (inside == numbered).all():
            out[inside] = on_ct[inside]
            continue
        if not inside.any():
            continue
        if not numbered.any():
            raise ValueError(
                f"{CLASSES[kind]} has {inside.sum()} voxels on the CT's grid, none of which is of "
                "a lesion on the working grid"
            )
        box = bounding_box(inside | numbered)
        nearest = ndimage.distance_transform_edt(
            ~numbered[box], grid.spacing[::-1], return_distances=False, return_indices=True
        )
        out[box][inside[box]] = on_ct[box][tuple(nearest)][inside[box]]
    return out


def _written(make: Callable[[], Dataset], path: Path) -> Dataset:
    with quietly(), replacing(path) as temporary:
        try:
            file = make()
        except (OSError, NotImplementedError):
            raise
        except Exception as error:  # whose text may hold what the tags say of the patient
            kind = type(error).__name__
            raise ValueError(f"the CT's own tags make no valid object of it ({kind})") from None
        file.save_as(temporary, enforce_file_format=True)
    return file


# --- segmentation --------------------------------------------------------------------------------


def _segmentation(made: _Source) -> Dataset:
    if len(made.sources) > 1 and any(frame is not None for _, frame in made.places):
        raise NotImplementedError("a SEG of a CT in several multi-frame files")
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import (
        SegmentAlgorithmTypeValues,
        Segmentation,
        SegmentationTypeValues,
        SegmentDescription,
    )

    algorithm = AlgorithmIdentificationSequence(
        name="HM-VNet",
        version=__version__,
        family=codes.DCM.ArtificialIntelligence,
        parameters={"bundle": made.manifest.name},
    )
    descriptions, planes = [], np.zeros(made.numbers.shape, np.uint8)
    for place, number in enumerate(made.lesions, start=1):
        is_primary = made.lesions[number].label == GTVP
        planes[made.numbers == number] = place
        descriptions.append(
            SegmentDescription(
                segment_number=place,
                segment_label=made.name(number),
                segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                segmented_property_type=(
                    codes.SCT.NeoplasmPrimary if is_primary else codes.SCT.NeoplasmSecondary
                ),
                anatomic_regions=(
                    None if is_primary else [codes.SCT.StructureOfLymphNodeOfHeadAndNeck]
                ),
                algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                tracking_uid=made.uid("lesion", str(number)),
                tracking_id=made.name(number),
            )
        )
    frames = np.empty_like(planes)
    frames[[place if frame is None else frame for place, frame in made.places]] = planes
    return Segmentation(
        source_images=made.sources,
        pixel_array=frames,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        **made.instance(SEG),
        content_label="GTV",
        content_description="GTVp and GTVn; research software, not for clinical use",
        series_description="HM-VNet GTVp, GTVn (research)",
    )


# --- structured report ---------------------------------------------------------------------------


def _report(made: _Source, segmentation: Dataset | None) -> Dataset:
    """TID 1500: a group of measurements for each lesion."""
    if segmentation is None:
        raise NotImplementedError("it refers to the SEG, which is not there")
    from highdicom import sr

    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=made.uid("device"), name="HM-VNet", manufacturer_name=MAKER, model_name=MODEL
        ),
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept(
            "450436003", "SCT", "Positron emission tomography with computed tomography"
        ),
        imaging_measurements=[
            _group(made, number, place, segmentation)
            for place, number in enumerate(made.lesions, start=1)
        ],
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.Comprehensive3DSR(
        evidence=[segmentation, *made.sources],
        content=report,
        **made.instance(SR),
        series_description="HM-VNet measurements (research)",
    )


def _group(made: _Source, number: int, place: int, segmentation: Dataset) -> Any:
    from highdicom import sr

    lesion = made.lesions[number]
    is_primary = lesion.label == GTVP
    suv = sr.CodedConcept("{SUVbw}g/ml", "UCUM", "Standardized Uptake Value body weight")
    ml = sr.CodedConcept("ml", "UCUM", "milliliter")
    grams = sr.CodedConcept("g", "UCUM", "gram")
    diameter = sr.CodedConcept("L0JK", "IBSI", "Maximum 3D diameter")
    each = [
        (codes.SCT.Volume, lesion.volume_ml, ml, None),
        (diameter, lesion.diameter_mm, codes.UCUM.Millimeter, None),
        (codes.DCM.Suvbw, lesion.suv_max, suv, codes.SCT.Maximum),
        (codes.DCM.Suvbw, lesion.suv_mean, suv, codes.SCT.Mean),
        (codes.DCM.PeakValueWithinROI, lesion.suv_peak, suv, None),
        (codes.DCM.MetabolicVolume, lesion.mtv41_ml, ml, None),
        (codes.DCM.TotalLesionGlycolysis, lesion.tlg, grams, None),
    ]
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=made.uid("lesion", str(number)), identifier=made.name(number)
        ),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=place,
            source_series=sr.SourceSeriesForSegmentation(made.sources[0].SeriesInstanceUID),
        ),
        finding_type=codes.SCT.NeoplasmPrimary if is_primary else codes.SCT.NeoplasmSecondary,
        measurements=[
            sr.Measurement(name=name, value=float(f"{value:.6g}"), unit=unit, derivation=how)
            for name, value, unit, how in each
        ],
    )


# --- structure set -------------------------------------------------------------------------------


def _structures(made: _Source) -> Dataset:
    """An RTSTRUCT: closed planar contours around each lesion's voxels, slice by slice."""
    first = made.sources[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = made.uid(RTSTRUCT)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = RTStructureSetStorage, made.uid(RTSTRUCT)
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
        *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
        *("FrameOfReferenceUID", "PositionReferenceIndicator", "SpecificCharacterSet"),
    ):
        if keyword in first:
            setattr(file, keyword, first.get(keyword))
    file.Modality, file.Manufacturer, file.ManufacturerModelName = "RTSTRUCT", MAKER, MODEL
    file.SoftwareVersions = __version__
    file.SeriesInstanceUID = made.uid(RTSTRUCT, "series")
    file.SeriesNumber, file.InstanceNumber = SERIES_NUMBERS[RTSTRUCT], 1
    file.SeriesDescription, file.OperatorsName = "HM-VNet GTVp, GTVn (research)", ""
    file.StructureSetLabel, file.ApprovalStatus = "HM-VNet", "UNAPPROVED"
    file.StructureSetDate = made.made.strftime("%Y%m%d")
    file.StructureSetTime = made.made.strftime("%H%M%S")
    file.ReferencedFrameOfReferenceSequence = [_frame_of_reference(made)]
    regions, contours, observations = [], [], []
    for place, number in enumerate(made.lesions, start=1):
        region, contour, observation = Dataset(), Dataset(), Dataset()
        region.ROINumber, region.ROIName = place, made.name(number)
        region.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        region.ROIGenerationAlgorithm = "AUTOMATIC"
        contour.ReferencedROINumber = place
        contour.ROIDisplayColor = list(COLOURS[made.lesions[number].label])
        contour.ContourSequence = _contours(made, number)
        observation.ObservationNumber = observation.ReferencedROINumber = place
        observation.RTROIInterpretedType, observation.ROIInterpreter = "GTV", ""
        regions.append(region)
        contours.append(contour)
        observations.append(observation)
    file.StructureSetROISequence = regions
    file.ROIContourSequence = contours
    file.RTROIObservationsSequence = observations
    return file


def _image_reference(made: _Source, index: int) -> Dataset:
    """A slice of the grid as a reference to its image."""
    reference, (place, frame) = Dataset(), made.places[index]
    source = made.sources[place]
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frame is not None:
        reference.ReferencedFrameNumber = frame + 1
    return reference


def _frame_of_reference(made: _Source) -> Dataset:
    first = made.sources[0]
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_image_reference(made, i) for i in range(len(made.places))]
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # the study, a class long retired
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _contours(made: _Source, number: int) -> list[Dataset]:
    """Around the voxels' centres half-way to those outside; holes are contours of their own."""
    found = []
    for z in np.flatnonzero((made.numbers == number).any(axis=(1, 2))):
        plane = np.pad(made.numbers[z] == number, 1).astype(float)
        for line in find_contours(plane, 0.5):
            y, x = (line[:-1] - 1).T  # the last point is the first
            points = made.grid.points(np.stack([x, y, np.full_like(x, z)], axis=1))
            contour = Dataset()
            contour.ContourImageSequence = [_image_reference(made, int(z))]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{v:.10g}"[:16] for v in points.ravel()]
            found.append(contour)
    return found
