"""Phantoms as DICOM: a CT in HU and a PET in Bq/mL whose header gives the known SUV."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

from hmvnet.case import SYNTHETIC, Grid
from hmvnet.files import replacing

# Nobody's: the dose and the weight from which SUV follows, and times that tell how much is left.
WEIGHT_KG, HEIGHT_M, DOSE_BQ, HALF_LIFE_S = 72.0, 1.75, 3.5e8, 6586.2
DAY, INJECTED, SCANNED, UPTAKE_S = "20250102", "090000.00", "100000.00", 3600.0
FRAME_MS = 120_000


def suv_to_bq_per_ml() -> float:
    """What a SUV is multiplied by to be the Bq/mL that these files hold."""
    return DOSE_BQ * math.exp(-math.log(2) * UPTAKE_S / HALF_LIFE_S) / (1000 * WEIGHT_KG)


def write_dicom(ct: sitk.Image, pet: sitk.Image, folder: Path, patient_id: str) -> None:
    """A CT in HU and a PET in SUV as ``CT`` and ``PT`` under ``folder``, each whole or not at all.

    The PET is stored in Bq/mL with a rescale slope a slice, decay-corrected to the scan's start.
    """
    common = _study(patient_id)
    hounsfield = np.rint(sitk.GetArrayViewFromImage(ct)).astype(np.int16)
    write_series(hounsfield, Grid.of(ct), folder / "CT", {**common, **CT_TAGS})
    activity = np.clip(sitk.GetArrayViewFromImage(pet), 0, None) * suv_to_bq_per_ml()
    write_series(activity, Grid.of(pet), folder / "PT", {**common, **pet_tags()})


def write_series(
    array: np.ndarray, grid: Grid, folder: Path, tags: Mapping[str, object], number: int = 0
) -> None:
    """One series, a file a slice; the folder appears whole or not at all.

    Args:
        array: ``[z, y, x]``; whole numbers are stored as they are, others with a slope a slice.
        tags: by keyword, on top of what every image has; ``Modality`` and a study among them.
        number: of the series; 0: 2 for CT, 3 for PET.
    """
    modality = str(tags["Modality"])
    number = number or {"CT": 2, "PT": 3}[modality]
    uid = generate_uid(entropy_srcs=[str(tags["StudyInstanceUID"]), modality, str(number)])
    with replacing(folder) as temporary:
        temporary.mkdir()
        for index, plane in enumerate(array):
            stored, slope = plane, 1.0
            if plane.dtype.kind == "f":
                slope = max(float(plane.max()), 1e-3) / 32767
                stored = np.rint(plane / slope).astype(np.int16)
            file = _file(modality, generate_uid(entropy_srcs=[uid, str(index)]))
            of_series = {"SeriesInstanceUID": uid, "SeriesNumber": number}
            for keyword, value in {**of_series, **tags}.items():
                setattr(file, keyword, value)
            _place(file, grid, index)
            _fill(file, stored, slope)
            if modality == "PT":
                file.ImageIndex = index + 1
                file.NumberOfSlices = len(array)
            file.save_as(temporary / f"{index + 1:04d}.dcm", enforce_file_format=True)


def _file(modality: str, uid: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = (
        CTImageStorage if modality == "CT" else PositronEmissionTomographyImageStorage
    )
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, UID(uid)
    return file


def _place(file: Dataset, grid: Grid, index: int) -> None:
    position = grid.points(np.array([[0, 0, index]]))[0]
    file.ImagePositionPatient = [_text(v) for v in position]
    file.ImageOrientationPatient = [_text(v) for v in grid.axes.T[:2].ravel()]
    file.PixelSpacing = [_text(grid.spacing[1]), _text(grid.spacing[0])]
    file.SliceThickness = _text(grid.spacing[2])
    file.InstanceNumber = index + 1


def _text(value: float) -> str:
    """A decimal string, at most 16 characters."""
    return f"{value:.10g}"[:16]


def _fill(file: Dataset, stored: np.ndarray, slope: float) -> None:
    file.Rows, file.Columns = stored.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit = 15
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    file.RescaleSlope, file.RescaleIntercept = f"{slope:.10g}", "0"
    file.PixelData = np.ascontiguousarray(stored).tobytes()


def _study(patient_id: str) -> dict[str, object]:
    study = generate_uid(entropy_srcs=["hmvnet phantom", patient_id])
    return {
        "PatientID": patient_id,
        "PatientName": f"SYNTHETIC^{patient_id}"[:64],
        "PatientBirthDate": "",
        "PatientSex": "O",
        "PatientWeight": f"{WEIGHT_KG:g}",
        "PatientSize": f"{HEIGHT_M:g}",
        "QualityControlSubject": "YES",  # it was a phantom
        "StudyInstanceUID": study,
        "StudyID": "1",
        "StudyDate": DAY,
        "StudyTime": INJECTED,
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyDescription": "SYNTHETIC phantom",
        "FrameOfReferenceUID": generate_uid(entropy_srcs=[study, "frame of reference"]),
        "PositionReferenceIndicator": "",
        "BodyPartExamined": "HEADNECK",
        "Manufacturer": "hmvnet phantom",
        "ImageComments": SYNTHETIC,
        "AcquisitionNumber": 1,
    }


CT_TAGS: dict[str, object] = {
    "Modality": "CT",
    "ImageType": ["DERIVED", "PRIMARY", "AXIAL"],
    "SeriesDate": DAY,
    "SeriesTime": "095500.00",
    "AcquisitionDate": DAY,
    "AcquisitionTime": "095500.00",
    "PatientPosition": "HFS",
    "KVP": "120",
}


def pet_tags() -> dict[str, object]:
    """What a PET's files hold besides their slice."""
    info = Dataset()
    info.Radiopharmaceutical = "Fluorodeoxyglucose F^18^"
    info.RadiopharmaceuticalStartTime = INJECTED
    info.RadiopharmaceuticalStartDateTime = DAY + INJECTED
    info.RadionuclideTotalDose = f"{DOSE_BQ:.10g}"
    info.RadionuclideHalfLife = f"{HALF_LIFE_S:g}"
    info.RadionuclidePositronFraction = "0.967"
    info.RadionuclideCodeSequence = [_code("77004003", "^18^Fluorine")]
    info.RadiopharmaceuticalCodeSequence = [_code("35321007", "Fluorodeoxyglucose F^18^")]
    return {
        "Modality": "PT",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SeriesDate": DAY,
        "SeriesTime": SCANNED,
        "AcquisitionDate": DAY,
        "AcquisitionTime": SCANNED,
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN", "SCAT", "NORM", "RAN", "DTIM"],
        "CountsSource": "EMISSION",
        "SeriesType": ["STATIC", "IMAGE"],
        "FrameReferenceTime": f"{FRAME_MS / 2:g}",
        "ActualFrameDuration": str(FRAME_MS),
        "CollimatorType": "NONE",
        "DecayFactor": "1",
        "AttenuationCorrectionMethod": "none",
        "ScatterCorrectionMethod": "none",
        "ReconstructionMethod": "none",
        "RandomsCorrectionMethod": "NONE",
        "PatientOrientationCodeSequence": [_code("102538003", "recumbent", SUPINE)],
        "PatientGantryRelationshipCodeSequence": [_code("102540001", "headfirst")],
        "RadiopharmaceuticalInformationSequence": [info],
    }


def _code(value: str, meaning: str, modifier: Dataset | None = None) -> Dataset:
    """A code of SNOMED CT."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    if modifier is not None:
        code.PatientOrientationModifierCodeSequence = [modifier]
    return code


SUPINE = _code("40199007", "supine")
