"""DICOM folders as hospitals have them, built in place."""

import copy
import math
import re
import shutil
import subprocess
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import HEAD_GRID, head
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from hmvnet.case import CaseError, Grid
from hmvnet.phantom.dicom import write_dicom
from hmvnet.reading.dicom import DicomFolder, Scan, Unpaired, find_dicom

STUDY = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.3.4"}


@pytest.fixture(scope="module")
def patient(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dicom")
    ct, pet = head()
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), folder, "DOE-JOHN-1950")
    return folder


@pytest.fixture
def given(patient, tmp_path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(patient, tmp_path / "scan")


def found(folder: Path, **options) -> DicomFolder:
    result = find_dicom(folder, **options)
    assert result is not None
    return result


def only(folder: Path, **options) -> Scan:
    (scan,) = found(folder, **options).scans
    assert isinstance(scan, Scan)
    return scan


def changed(files: Path | list[Path], change) -> None:
    for path in sorted(files.iterdir()) if isinstance(files, Path) else files:
        file = pydicom.dcmread(path)
        change(file)
        file.save_as(path)


def check(case, pet_tolerance: float = 2e-4) -> None:
    """That a case is the head's images, on the head's grid."""
    ct, pet = head()
    assert Grid.of(case.ct).same_as(HEAD_GRID, 1e-3) and Grid.of(case.pet).same_as(HEAD_GRID, 1e-3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(case.ct), ct)
    np.testing.assert_allclose(sitk.GetArrayFromImage(case.pet), pet, atol=pet_tolerance)


def test_a_patient_is_read_in_hu_and_suv_and_named_by_number(patient):
    scan = only(patient)
    case = scan.read()
    check(case)
    assert case.patient_id == "patient-001" and not case.findings
    assert any("SYNTHETIC" in note for note in case.notes)
    assert "DOE" not in repr(case.notes) + repr(scan)
    assert only(patient, keep_names=True).patient_id == "DOE-JOHN-1950"


def test_files_without_extension_in_one_folder_with_others(given, tmp_path):
    mixed = tmp_path / "mixed" / "a b"
    mixed.mkdir(parents=True)
    for number, path in enumerate(sorted(given.rglob("*.dcm"))):
        shutil.copy(path, mixed / f"IM{number * 37 % 128:04d}")
    (mixed / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 20)
    (mixed / "report.pdf").write_bytes(b"%PDF-1.4 " + b"x" * 500)
    (mixed / "empty").touch()
    result = found(tmp_path / "mixed")
    check(result.scans[0].read())
    assert result.left_out == {"files that are no DICOM": 2, "files of modality unknown": 1}


def test_ten_thousand_files_that_are_no_dicom(tmp_path):
    for number in range(10_000):
        (tmp_path / f"{number}.txt").touch()
    assert find_dicom(tmp_path) is None


def test_two_patients_in_one_folder(patient, tmp_path):
    ct, pet = head()
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet + 0.5), tmp_path / "b", "ROE-JANE")
    shutil.copytree(patient, tmp_path / "a")
    first, second = found(tmp_path).scans
    assert (first.patient_id, second.patient_id) == ("patient-001", "patient-002")
    check(first.read())
    assert float(sitk.GetArrayViewFromImage(second.read().pet).min()) == pytest.approx(
        0.5, abs=1e-3
    )


def test_two_examinations_of_one_patient_get_a_number_each(patient, tmp_path):
    shutil.copytree(patient, tmp_path / "a")
    shutil.copytree(patient, tmp_path / "b")
    for series in (tmp_path / "b").iterdir():
        uid = generate_uid()
        changed(series, lambda file, uid=uid: (_uids(file, uid, "9.9.1"), _place(file, "9.9.2")))
    names = [scan.patient_id for scan in found(tmp_path).scans]
    assert names == ["patient-001-1", "patient-001-2"]


def _uids(file: Dataset, series: str, study: str) -> None:
    file.SeriesInstanceUID, file.StudyInstanceUID = series, study


def _place(file: Dataset, frame: str) -> None:
    file.FrameOfReferenceUID = frame


# --- which series --------------------------------------------------------------------------------


def _another(given: Path, name: str, copied: str, change=lambda file: None, number=9) -> str:
    """A series more, copied from ``copied`` and changed; its UID."""
    uid = generate_uid()
    shutil.copytree(given / copied, given / name)

    def all_of_it(file: Dataset) -> None:
        file.SeriesInstanceUID, file.SeriesNumber = uid, number
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        change(file)

    changed(given / name, all_of_it)
    return uid


def test_of_several_pets_the_attenuation_corrected_is_taken_and_said(given):
    nac = _another(given, "NAC", "PT", lambda f: setattr(f, "CorrectedImage", ["DECY", "NORM"]))
    scan = only(given)
    assert scan.pet.number == "3" and "PET series 3 (" in scan.notes[0]
    check(scan.read())
    _, codes = scan.notes[0].split(" chosen of 2: ")
    (other,) = set(re.findall(r"(\w{8}) \(", codes)) - {scan.pet.code}
    for name in (nac, other):  # the UID is shown nowhere, its code is
        with pytest.raises(CaseError, match="does not hold ATTN"):
            only(given, series=[name]).read()
    assert nac not in scan.notes[0]


def test_of_several_cts_the_one_that_covers_the_pet_is_taken(given):
    def away(file):
        x, y, z = file.ImagePositionPatient
        file.ImagePositionPatient = [x, y, z + 150]

    thorax = _another(given, "A", "CT", away, number=1)
    check(only(given).read())
    assert only(given, series=[thorax]).ct.number == "1"


def test_a_localiser_or_a_screen_shot_is_no_ct(given):
    for path in sorted((given / "CT").iterdir())[2:]:
        path.unlink()
    (scan,) = found(given).scans
    assert isinstance(scan, Unpaired)
    assert found(given).left_out["CT series of fewer than 5 slices"] == 1
    changed(
        given / "CT", lambda file: setattr(file, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])
    )
    assert found(given).left_out["localisers"] == 2


def test_no_pet_series(given):
    shutil.rmtree(given / "PT")
    result = found(given)
    assert not result.scans and result.left_out == {"CT series without a PET": 1}


def test_pet_and_ct_of_different_frames_of_reference(given):
    changed(given / "PT", lambda file: _place(file, "7.7.7"))
    (scan,) = found(given).scans
    with pytest.raises(CaseError, match="no CT in its study and frame of reference"):
        scan.read()


@pytest.mark.parametrize("code", ["C-B1031", "35321007"])
def test_fdg_by_its_code_alone(given, code):
    def name(file) -> None:
        info, item = file.RadiopharmaceuticalInformationSequence[0], pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "Glucose"
        info.Radiopharmaceutical, info.RadiopharmaceuticalCodeSequence = "", [item]

    changed(given / "PT", name)
    assert only(given).read().findings == ()


@pytest.mark.parametrize("tracer", ["PSMA-1007", "FDG", "F-18"])
def test_another_tracer_is_to_be_reviewed(given, tracer):
    def injected(file):
        info = file.RadiopharmaceuticalInformationSequence[0]
        info.Radiopharmaceutical, info.RadiopharmaceuticalCodeSequence = tracer, []

    changed(given / "PT", injected)
    codes = [finding.code for finding in only(given).read().findings]
    assert codes == (["not-fdg"] if tracer == "PSMA-1007" else [])


# --- slices --------------------------------------------------------------------------------------


def test_slices_sent_twice_are_used_once_and_said(given):
    for number, path in enumerate(sorted((given / "CT").iterdir())[:7]):
        shutil.copy(path, given / "CT" / f"again{number}")
    case = only(given).read()
    check(case)
    assert "CT series 2: 7 images are there twice" in case.notes


def test_slices_missing(given):
    for path in sorted((given / "CT").iterdir())[30:32]:
        path.unlink()
    with pytest.raises(CaseError, match=r"2 slices are missing .* 30 and 31 of 62 are 12\.00 mm"):
        only(given).read()


def test_slices_unevenly_spaced(given):
    def squeeze(file):
        x, y, z = map(float, file.ImagePositionPatient)
        file.ImagePositionPatient = [x, y, z + 1.5 * (file.InstanceNumber > 20)]

    changed(given / "CT", squeeze)
    with pytest.raises(CaseError, match="unevenly spaced"):
        only(given).read()


def test_several_images_in_one_place(given):
    phase = sorted((given / "CT").iterdir())[:10]
    for path in phase:
        file = pydicom.dcmread(path)
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        file.save_as(given / "CT" / f"phase2-{path.name}")
    with pytest.raises(CaseError, match="10 of 74 images lie where another does"):
        only(given).read()


def test_gantry_tilt(given):
    def tilt(file):
        x, y, z = map(float, file.ImagePositionPatient)
        file.ImagePositionPatient = [x, y + 0.2 * z, z]

    changed(given / "CT", tilt)
    with pytest.raises(CaseError, match=r"tilted by 11\.3 degrees"):
        only(given).read()


def test_a_small_tilt_that_is_millimetres_at_the_last_slice(given):
    """Less from one slice to the next than is borne; 63 of them are 6 mm."""
    changed(given / "CT", _sheared(0.095 / 4))
    with pytest.raises(CaseError, match=r"tilted by 1\.4 degrees"):
        only(given).read()


def test_positions_that_are_rounded_are_no_tilt(given):
    changed(given / "CT", _sheared(0.002 / 4))  # an eighth of a millimetre at the last
    only(given).read()


def _sheared(by: float):
    def change(file):
        x, y, z = map(float, file.ImagePositionPatient)
        file.ImagePositionPatient = [x, y + by * z, z]

    return change


def test_philips_factor_in_a_further_block_is_read_of_files(given):
    def counts(file: Dataset) -> None:
        file.Units = "CNTS"
        for owner, value in (("SOMEBODY ELSE", "4.0"), ("Philips PET Private Group", "0.5")):
            file.private_block(0x7053, owner, create=True).add_new(0x00, "DS", value)

    before = sitk.GetArrayFromImage(only(given, suv_factor=0.5).read().pet)
    changed(given / "PT", counts)
    case = only(given).read()
    np.testing.assert_allclose(sitk.GetArrayFromImage(case.pet), before)
    assert any("(7053,1000)" in note for note in case.notes)


@pytest.mark.parametrize("folder", ["CT", "PT"])
def test_a_page_of_the_scanners_is_left_out_and_counted(given, folder):
    page = pydicom.dcmread(sorted((given / folder).iterdir())[0])
    del page.ImagePositionPatient
    page.SeriesInstanceUID, page.SOPInstanceUID = generate_uid(), generate_uid()
    page.save_as(given / "page.dcm")
    result = found(given)
    check(only(given).read())
    assert result.left_out == {f"{folder} images that do not say where they lie": 1}


def test_mixed_orientations_and_sizes(given):
    one = [sorted((given / "CT").iterdir())[5]]
    changed(one, lambda f: setattr(f, "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]))
    with pytest.raises(CaseError, match="different orientation"):
        only(given).read()
    changed(
        one,
        lambda f: (
            setattr(f, "ImageOrientationPatient", [1, 0, 0, 0, 1, 0]),
            setattr(f, "PixelSpacing", [2, 2]),
        ),
    )
    with pytest.raises(CaseError, match="different size or pixel spacing"):
        only(given).read()


def test_slices_stored_from_head_to_feet_and_obliquely(tmp_path):
    """The patient lies otherwise in space: the same voxels in the same places."""
    ct, pet = head()
    turn = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3).GetMatrix(), (3, 3))
    axes = turn @ np.diag([1, -1, -1])
    grid = Grid(HEAD_GRID.size, HEAD_GRID.spacing, (5.0, 6.0, 7.0), tuple(axes.ravel().tolist()))
    write_dicom(grid.image(ct), grid.image(pet), tmp_path, "x")
    case = only(tmp_path).read()
    assert Grid.of(case.ct).same_as(grid, 1e-2)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(case.ct), ct)


def test_an_image_cut_short(given):
    path = sorted((given / "PT").iterdir())[10]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CaseError, match="PET series 3, image 11: cut, damaged"):
        only(given).read()


@pytest.mark.parametrize("weight", ["0", ""])
def test_a_weight_of_0_or_none_is_named(given, weight):
    changed(given / "PT", lambda file: setattr(file, "PatientWeight", weight))
    with pytest.raises(CaseError, match=r"PatientWeight \(0010,1030\)"):
        only(given).read()
    case = only(given, suv_factor=1.0 / 3500).read()
    assert any("as given" in note for note in case.notes)


@pytest.mark.parametrize("written", [b"72.5", b"6586.2"], ids=["weight", "half-life"])
def test_a_number_with_a_decimal_comma_is_one(given, written):
    changed(given / "PT", lambda file: setattr(file, "PatientWeight", "72.5"))
    read = [only(given).read()]
    for path in (given / "PT").iterdir():
        assert path.read_bytes().count(written) == 1
        path.write_bytes(path.read_bytes().replace(written, written.replace(b".", b",")))
    read.append(only(given).read())
    first, second = (sitk.GetArrayFromImage(case.pet) for case in read)
    np.testing.assert_array_equal(first, second)
    only(given, suv_factor=1.0).read()  # as the refusal of other headers advises


# --- how pixels are stored -----------------------------------------------------------------------


def test_rle(given):
    for series in given.iterdir():
        changed(series, lambda file: file.compress(RLELossless, generate_instance_uid=False))
    check(only(given).read())


def test_jpeg_ls(given):
    pytest.importorskip("jpeg_ls")
    for series in given.iterdir():
        changed(series, lambda file: file.compress(JPEGLSLossless, generate_instance_uid=False))
    check(only(given).read())


@pytest.mark.parametrize(
    ("compressor", "syntax"), [("JPEG2000", JPEG2000Lossless), ("JPEG", JPEGLosslessSV1)]
)
def test_jpeg_of_gdcm(given, tmp_path, compressor, syntax):
    """Compressed by GDCM, the pixels put into our files."""
    for path in sorted((given / "CT").iterdir()):
        file = pydicom.dcmread(path)
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(tmp_path / "one.dcm"))
        writer.Execute(sitk.GetImageFromArray(file.pixel_array))
        packed = pydicom.dcmread(tmp_path / "one.dcm")
        assert packed.file_meta.TransferSyntaxUID == syntax
        file.file_meta.TransferSyntaxUID = syntax
        file.PixelData = packed.PixelData
        file["PixelData"].VR, file["PixelData"].is_undefined_length = "OB", True
        file.save_as(path)
    check(only(given).read())


@pytest.mark.parametrize("words", [["+e1"], ["+el", "+sv", "6"]])
def test_jpeg_lossless_of_dcmtk(given, words):
    """As scanners and archives send it: predictor 1 (.4.70), or another (.4.57)."""
    if not shutil.which("dcmcjpeg"):
        pytest.skip("dcmcjpeg (Debian's dcmtk) is not installed")
    for path in given.rglob("*"):
        if path.is_file():
            subprocess.run(["dcmcjpeg", *words, path, path], check=True)
    first = pydicom.dcmread(next((given / "CT").iterdir()))
    assert first.file_meta.TransferSyntaxUID in (JPEGLosslessSV1, JPEGLossless)
    check(only(given).read())


def enhanced(given: Path, tags: dict, values: np.ndarray, slopes=None) -> None:
    """The PET as one enhanced file in the place of the single-frame ones."""
    first = pydicom.dcmread(sorted((given / "PT").iterdir())[0])
    shutil.rmtree(given / "PT")
    (given / "PT").mkdir()
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Units"):
        delattr(first, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept", "DecayCorrection", "CorrectedImage"):
        delattr(first, keyword)
    slopes = [values.max() / 32767] * len(values) if slopes is None else slopes
    stored = np.stack([np.rint(plane / slope) for plane, slope in zip(values, slopes)])
    shared, orientation, measures, units = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [4, 4]
    code = Dataset()
    code.CodeValue = tags.pop("units", "Bq/ml")
    units.MeasurementUnitsCodeSequence = [code]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    shared.RealWorldValueMappingSequence = [units]
    first.SharedFunctionalGroupsSequence = [shared]
    moments = tags.pop("moments", [None] * len(values))
    frames = []
    for index, (slope, moment) in enumerate(zip(slopes, moments)):
        frame, position, rescale, content = Dataset(), Dataset(), Dataset(), Dataset()
        at = HEAD_GRID.points(np.array([[0, 0, index]]))[0]
        position.ImagePositionPatient = [f"{v:g}" for v in at]
        rescale.RescaleSlope, rescale.RescaleIntercept = f"{slope:.10g}", "0"
        if moment:
            content.FrameReferenceDateTime = moment
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frame.PixelValueTransformationSequence = [rescale]
        frames.append(frame)
    first.PerFrameFunctionalGroupsSequence = frames[::-1]  # the frames need not be in order
    first.NumberOfFrames, first.PixelData = len(values), stored[::-1].astype(np.int16).tobytes()
    for keyword, value in {"AttenuationCorrected": "YES", **tags}.items():
        setattr(first, keyword, value)
    first.save_as(given / "PT" / "enhanced.dcm")


CORRECTED = {"DecayCorrected": "YES", "DecayCorrectionDateTime": "20250102100000.00"}


def _activity(given) -> np.ndarray:
    scale = [pydicom.dcmread(p) for p in sorted((given / "PT").iterdir())]
    return np.stack([f.pixel_array * float(f.RescaleSlope) for f in scale])


@pytest.mark.parametrize("several_slopes", [False, True])
@pytest.mark.parametrize("series_time", ["100000", "120000"])
def test_an_enhanced_pet(given, several_slopes, series_time):
    values = _activity(given)
    slopes = [max(float(p.max()), 1e-3) / 32767 for p in values] if several_slopes else None
    enhanced(given, {**CORRECTED, "SeriesTime": series_time}, values, slopes)
    check(only(given).read(), 5e-4)


@pytest.mark.parametrize("zone", ["", "+0000"])
def test_an_enhanced_pet_whose_moment_is_of_another_zone(given, zone):
    moment = {"": "20250102100000.00", "+0000": "20250102090000.00+0000"}[zone]
    tags = {**CORRECTED, "DecayCorrectionDateTime": moment, "TimezoneOffsetFromUTC": "+0100"}
    enhanced(given, tags, _activity(given))
    check(only(given).read(), 5e-4)


def test_enhanced_images_of_one_frame_each(given):
    values = _activity(given)
    enhanced(given, dict(CORRECTED), values)
    (path,) = (given / "PT").iterdir()
    whole = pydicom.dcmread(path)
    planes = whole.pixel_array
    path.unlink()
    for index, frame in enumerate(list(whole.PerFrameFunctionalGroupsSequence)):
        whole.PerFrameFunctionalGroupsSequence, whole.NumberOfFrames = [frame], 1
        whole.PixelData, whole.SOPInstanceUID = planes[index].tobytes(), generate_uid()
        whole.save_as(given / "PT" / f"{index}.dcm")
    check(only(given).read(), 5e-4)


@pytest.mark.parametrize("first", ["{SUVbw}g/ml", "Bq/ml"])
def test_an_enhanced_pet_whose_mapping_has_the_slope(given, first):
    """The mapping is of stored values; of several the activity's counts."""
    values = _activity(given)
    enhanced(given, {**CORRECTED}, values, [values.max() / 32767] * len(values))
    (path,) = (given / "PT").iterdir()
    file = pydicom.dcmread(path)
    mappings = []
    for unit, slope in ((first, 1.0), ("Bq/ml", values.max() / 32767)):
        mapping, code = Dataset(), Dataset()
        code.CodeValue, mapping.MeasurementUnitsCodeSequence = unit, [code]
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = float(slope), 0.0
        mappings.append(mapping)
    mappings = mappings[1:] if first == "Bq/ml" else mappings
    file.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = mappings
    for frame in file.PerFrameFunctionalGroupsSequence:
        frame.PixelValueTransformationSequence[0].RescaleSlope = "1"
    file.save_as(path)
    check(only(given).read(), 5e-4)


def test_an_enhanced_pet_in_suv(given):
    enhanced(given, {"units": "{SUVbw}g/ml", **CORRECTED}, head()[1])
    check(only(given).read(), 5e-4)


def test_an_enhanced_pet_without_decay_correction(given):
    """Each frame is as old as its reference time says."""
    half_life, values, moments = 6586.2, _activity(given), []
    for index in range(len(values)):
        values[index] *= 2 ** (-60 * index / half_life)
        moments.append(f"202501021{index // 60:01d}{index % 60:02d}00.00")
    enhanced(given, {"DecayCorrected": "NO", "moments": moments}, values)
    check(only(given).read(), 1e-3)


def test_an_enhanced_pet_without_attenuation_correction(given):
    enhanced(given, {**CORRECTED, "AttenuationCorrected": "NO"}, _activity(given))
    with pytest.raises(CaseError, match="ATTN"):
        only(given).read()


# --- zips ----------------------------------------------------------------------------------------


def test_a_zip(patient, tmp_path):
    path = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", patient))
    check(only(path).read())


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_and_file_meta(given, implicit):
    for path in given.rglob("*.dcm"):
        bare = Dataset()
        for element in pydicom.dcmread(path):
            bare.add(element)
        bare.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    check(only(given).read())


@pytest.mark.parametrize(
    ("injection", "scan", "minutes"),
    [
        ("100000", "100000", 0),
        ("090000", "100000", None),
        ("095000", "100000", 10),
        ("094018", "100000", None),  # 19.7, said as 20
    ],
)
def test_times_at_which_nobody_scans_are_to_be_reviewed(given, injection, scan, minutes):
    def change(file):
        info = file.RadiopharmaceuticalInformationSequence[0]
        info.RadiopharmaceuticalStartTime = injection
        if "RadiopharmaceuticalStartDateTime" in info:
            del info.RadiopharmaceuticalStartDateTime
        file.SeriesTime = file.AcquisitionTime = scan

    changed(given / "PT", change)
    findings = [one for one in only(given).read().findings if one.code == "uptake-time"]
    assert len(findings) == (minutes is not None)
    assert all(f"{minutes} minutes from injection" in one.text for one in findings)


def test_a_zip_with_an_entry_for_its_own_folder(patient, tmp_path):
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.writestr("./", "")
        for path in patient.rglob("*.dcm"):
            archive.write(path, f"./{path.parent.name}-{path.name}")
    check(only(tmp_path / "scan.zip").read())


def test_a_zip_whose_content_is_damaged(patient, tmp_path):
    path = tmp_path / "scan.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(patient.rglob("*.dcm"))[:3]:
            archive.write(file, file.name)
        start = archive.infolist()[1].header_offset + 60
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(CaseError, match="not readable as a zip"):
        find_dicom(path)


def test_what_a_damaged_zip_says_names_no_file_in_it(patient, tmp_path):
    path = tmp_path / "scan.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("DOE^JOHN_1950/0001.dcm", b"x" * 5000)
    content = bytearray(path.read_bytes())
    content[200:220] = b"y" * 20
    path.write_bytes(content)
    with pytest.raises(CaseError, match=r"scan\.zip: not readable as a zip: damaged") as said:
        find_dicom(path)
    assert "DOE" not in str(said.value) and said.value.__cause__ is None


def test_a_zip_that_leads_out_of_itself(tmp_path):
    for name in ("../outside", "/etc/outside", "a/../../outside", "C:\\outside"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(name, "x")
        with pytest.raises(CaseError, match="leads out of it"):
            find_dicom(tmp_path / "a.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]


def test_a_zip_that_inflates_beyond_measure(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * (300 << 20))
    with pytest.raises(CaseError, match="expected at most 200 times"):
        find_dicom(tmp_path / "a.zip")


def test_a_zip_that_is_not_readable(tmp_path, patient):
    path = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", patient))
    whole = path.read_bytes()
    for damaged in (b"PK\x03\x04" + b"x" * 100, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CaseError, match="not readable as a zip"):
            find_dicom(path)


# --- what an attack found ------------------------------------------------------------------------


def test_one_series_uid_of_two_patients_is_two_scans(given, tmp_path):
    shutil.copytree(given, tmp_path / "both" / "a")
    shutil.copytree(given, tmp_path / "both" / "b")
    for series in (tmp_path / "both" / "b").iterdir():
        changed(series, lambda file: setattr(file, "PatientID", "OTHER"))
    assert [s.patient_id for s in found(tmp_path / "both").scans] == ["patient-001", "patient-002"]


def test_names_of_examinations_are_nobody_elses(patient, tmp_path):
    for number, (name, study) in enumerate([("X", "1.1"), ("X", "1.2"), ("X-1", "1.3")]):
        shutil.copytree(patient, tmp_path / str(number))
        for series in (tmp_path / str(number)).iterdir():
            uid = generate_uid()
            changed(
                series,
                lambda file, name=name, study=study, uid=uid: (
                    setattr(file, "PatientID", name),
                    _uids(file, uid, study),
                ),
            )
    names = [scan.patient_id for scan in found(tmp_path, keep_names=True).scans]
    assert len(set(names)) == 3 and "X-1" in names


def test_a_compressed_enhanced_pet_is_rescaled_once(given):
    enhanced(given, dict(CORRECTED), _activity(given))
    changed(given / "PT", lambda f: f.compress(RLELossless, generate_instance_uid=False))
    check(only(given).read(), 5e-4)


def test_padding_beyond_two_bytes_stays_below_air(given):
    def pad(file):
        stored = file.pixel_array.copy()
        stored[:, :4] = -32768
        stored[:, 4:] += 1024
        file.PixelData, file.RescaleIntercept = stored.tobytes(), -1024

    changed(given / "CT", pad)
    case = only(given).read()
    assert sitk.GetArrayFromImage(case.ct)[:, :, :4].max() == -1000
    assert any("padding" in note for note in case.notes)


def test_unsigned_padding_that_stands_for_a_negative_value(given):
    """-2000 written into unsigned pixels: 63536."""

    def pad(file):
        stored = (file.pixel_array.astype(int) + 1024).astype(np.uint16)
        stored[:, :4] = 63536
        file.PixelData, file.RescaleIntercept, file.PixelRepresentation = stored.tobytes(), -1024, 0

    changed(given / "CT", pad)
    case = only(given).read()
    assert sitk.GetArrayFromImage(case.ct)[:, :, :4].max() == -1000
    np.testing.assert_array_equal(sitk.GetArrayFromImage(case.ct)[:, :, 4:], head()[0][:, :, 4:])
    assert [finding.code for finding in case.findings] == ["ct-repaired"]


def test_a_single_correction_is_a_word_and_not_its_letters(given):
    changed(given / "PT", lambda file: setattr(file, "CorrectedImage", "ATTN"))
    _another(given, "NAC", "PT", lambda f: setattr(f, "CorrectedImage", ["DECY"]))
    assert only(given).pet.number == "3"


@pytest.mark.parametrize("uid", ["", "1.2.3"])
def test_images_without_a_uid_of_their_own_are_no_doubles(given, uid):
    changed(given / "CT", lambda file: setattr(file, "SOPInstanceUID", uid))
    check(only(given).read())


def test_a_series_that_is_asked_for_and_not_there(given):
    with pytest.raises(
        CaseError, match=r"1 of 1 are of no PET or CT here, expected .* codes: \w{8} \("
    ):
        found(given, series=["9.9"])


def test_a_slope_of_0_and_units_that_differ(given):
    some = sorted((given / "PT").iterdir())[:5]
    changed(some, lambda file: setattr(file, "RescaleSlope", "0"))
    with pytest.raises(CaseError, match="RescaleSlope is 0"):
        only(given).read()
    changed(some, lambda f: (setattr(f, "RescaleSlope", "1"), setattr(f, "Units", "GML")))
    with pytest.raises(CaseError, match="Units is not the same in all images"):
        only(given).read()


def test_a_series_number_that_is_a_name_is_not_said(given, recwarn):
    """Nor do pydicom's warnings say what tags hold, which they do when these are looked at."""
    for series in given.iterdir():
        changed(series, lambda file: file.add_new("SeriesNumber", "LO", "SMITH"))
        changed(series, lambda file: file.add_new("StudyInstanceUID", "UI", "1.2.DOE-JOHN"))
    recwarn.clear()
    said = f"{only(given)} {found(given)} {only(given).read().notes}"
    assert "SMITH" not in said and not [str(w.message) for w in recwarn.list]


@pytest.mark.parametrize("position", ["nan\\nan\\nan", "0\\0", "inf\\0\\0"])
def test_a_slice_that_does_not_say_where_it_lies_is_missing(given, position):
    """NaN has no order; of the others none would be where it is."""
    files = sorted((given / "CT").iterdir())
    for number, path in enumerate(files):
        path.rename(path.with_name(f"{number * 37 % 64:03d}-{path.name}"))
    middle = sorted((given / "CT").iterdir())[20]

    def change(file):
        file.remove_private_tags()
        del file.ImagePositionPatient
        file.add_new("ImagePositionPatient", "DS", position.split("\\"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed([middle], change)
    folder = found(given)
    assert folder.left_out == {"CT images that do not say where they lie": 1}
    (scan,) = folder.scans
    with pytest.raises(CaseError, match=r"1 slices are missing|unevenly"):
        scan.read()


def test_what_a_number_stood_for_before_is_not_taken_for_who_has_it_now(given, tmp_path):
    first = only(given).origin
    other = _another(given, "CT2", "CT")
    assert only(given, series=[other]).origin != first and len(first) == 16


def test_the_ct_of_the_same_night_and_an_original_one(given):
    changed(given / "PT", lambda f: setattr(f, "AcquisitionTime", "000200"))
    night = [("CT", "20250101", "235800"), ("CT2", "20250102", "003500")]
    _another(given, "CT2", "CT", number=8)
    for name, day, clock in night:
        changed(
            given / name,
            lambda f, day=day, clock=clock: (
                setattr(f, "AcquisitionDate", day),
                setattr(f, "AcquisitionTime", clock),
            ),
        )
    assert only(given).ct.number == "2"
    changed(given / "CT2", lambda f: setattr(f, "ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"]))
    assert only(given).ct.number == "8"


def test_several_doses_are_refused(given):
    def twice(file):
        info = file.RadiopharmaceuticalInformationSequence[0]
        file.RadiopharmaceuticalInformationSequence = [info, copy.deepcopy(info)]

    def another(file):
        file.RadiopharmaceuticalInformationSequence[1].RadionuclideTotalDose = 1e8

    changed(given / "PT", twice)
    check(only(given).read())  # one dose, said twice
    changed(given / "PT", another)
    with pytest.raises(CaseError, match="of several doses"):
        only(given).read()


def test_what_is_corrected_to_the_injection_needs_no_half_life(given):
    def change(file):
        info = file.RadiopharmaceuticalInformationSequence[0]
        left = math.exp(-math.log(2) * 3600 / float(info.RadionuclideHalfLife))
        info.RadionuclideTotalDose = float(info.RadionuclideTotalDose) * left
        file.DecayCorrection = "ADMIN"
        del info.RadionuclideHalfLife

    changed(given / "PT", change)
    check(only(given).read())
