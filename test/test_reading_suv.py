"""SUV of DICOM against files whose SUV is known (test/data/SOURCE.md)."""

import json
import re
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import DataElement, Dataset

from hmvnet.case import CaseError
from hmvnet.reading.suv import (
    body_surface_cm2,
    ideal_body_kg,
    lean_body_james_kg,
    lean_body_janma_kg,
    parse_date,
    parse_datetime,
    parse_time,
    suv_scale,
)

DATA = Path(__file__).parent / "data"
OBJECTS = [
    *("0_0", "1_0", "2_0", "2_1", "2_2", "2_3", "2_4", "2_5", "3_0", "3_1", "3_2", "3_3", "3_4"),
    *("4_0", "4_1", "4_2", "5_0"),
]
# DRO_2_3 is stored to 0.01 only, and the two before it cut off below 0.001 and 0.002.
EXPECTED = {"2_3": (0.19, 0.985, 3.98)}
TOLERANCE = {"2_1": 0.0013, "2_2": 0.0021, "2_3": 0.005}
EXPECTED_FACTORS = json.loads((DATA / "suv/vendor_headers/expected.json").read_text())


def unpacked(archive: Path, folder: Path) -> Path:
    shutil.unpack_archive(archive, folder)
    return folder


def read(folder: Path) -> list[Dataset]:
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    return sorted(files, key=lambda file: float(file.ImagePositionPatient[2]))


def values(files: list[Dataset], factors) -> np.ndarray:
    planes = [f.pixel_array * float(f.RescaleSlope) + float(f.RescaleIntercept) for f in files]
    return np.stack(planes) * np.reshape(factors, (-1, 1, 1))


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Path:
    return unpacked(DATA / "suv/ibsi_suv_dro.tar.xz", tmp_path_factory.mktemp("dro")) / "DRO"


@pytest.fixture
def default(objects) -> list[Dataset]:
    """The slices of DRO_0_0, without pixels: BQML, START."""
    files = sorted((objects / "DRO_0_0/PT").iterdir())[:3]
    return [pydicom.dcmread(file, stop_before_pixels=True) for file in files]


@pytest.mark.parametrize("name", OBJECTS)
def test_reference_objects_of_the_ibsi(objects, name):
    folder = objects / f"DRO_{name}"
    files = read(folder / "PT")
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(next((folder / "mask").iterdir())))) > 0
    suv = values(files, suv_scale(files).factors)[mask]
    found = (suv.min(), np.median(suv), suv.max())
    expected = EXPECTED.get(name, (0.2, 1.0, 4.0))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE.get(name, 0.0005))


@pytest.mark.parametrize("name", EXPECTED_FACTORS["suvbw_factor"])
def test_headers_of_vendors(name):
    instances = json.loads((DATA / f"suv/vendor_headers/{name}-instances.json").read_text())
    scale = suv_scale([_header(instance) for instance in instances])
    expected = EXPECTED_FACTORS["suvbw_factor"][name]
    np.testing.assert_allclose(scale.factors, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(scale.factors, expected, rtol=EXPECTED_FACTORS["tolerance"])


def _header(instance: dict) -> Dataset:
    header, info = Dataset(), Dataset()
    for keyword, value in instance.items():
        if keyword.startswith("Radio"):
            setattr(info, keyword, value)
        elif keyword == "PhilipsPETPrivateGroup":
            for element, name in ((0, "SUVScaleFactor"), (9, "ActivityConcentrationScaleFactor")):
                if value.get(name):
                    header.add_new(0x70531000 + element, "DS", value[name])
        elif keyword == "GEPrivatePostInjectionDateTime":
            header.add_new(0x0009100D, "DT", value)
        else:
            setattr(header, keyword, value)
    header.RadiopharmaceuticalInformationSequence = [info]
    return header


def test_a_real_raw_pet_equals_the_same_pet_in_suv(tmp_path):
    """STS_001, GE: Bq/mL with a slope a slice, and what another program made of it."""
    folder = unpacked(DATA / "sts_pet/sts_001_pet.tar.xz", tmp_path)
    raw, suv = read(folder / "PET_BQML"), read(folder / "PET_GML")
    converted = values(raw, suv_scale(raw).factors)
    known = values(suv, suv_scale(suv).factors)
    assert known.max() > 5 and np.abs(converted - known).max() < 0.001


# --- what cannot be converted: the refusals of the IBSI's list, made from DRO_0_0 -----------------


def _info(files):
    return [file.RadiopharmaceuticalInformationSequence[0] for file in files]


def _set(keyword, value=None, where=lambda files: files):
    def change(files):
        for each in where(files):
            if value is None:
                delattr(each, keyword)
            else:
                setattr(each, keyword, value)

    return change


def _units(units, kind=None):
    return lambda files: [(_set("Units", units)(files), kind and _set("SUVType", kind)(files))]


def _later(files):
    """The series' time after the acquisition, so that the frames have to tell the start."""
    _set("SeriesTime", "120000")(files)
    _set("ActualFrameDuration")(files)


REFUSED = {
    "weight absent": (_set("PatientWeight"), "PatientWeight (0010,1030) is not there"),
    "weight 0": (_set("PatientWeight", "0"), "PatientWeight (0010,1030) is 0"),
    "weight in grams": (_set("PatientWeight", "70000"), "PatientWeight (0010,1030) is out of"),
    "ibw, sex absent": (
        lambda f: (_units("GML", "IBW")(f), _set("PatientSex")(f)),
        "PatientSex (0010,0040) is not there",
    ),
    "ibw, sex of another code": (
        lambda f: (_units("GML", "IBW")(f), _set("PatientSex", "X")(f)),
        "PatientSex (0010,0040) is unknown",
    ),
    "ibw, size absent": (
        lambda f: (_units("GML", "IBW")(f), _set("PatientSize")(f)),
        "PatientSize (0010,1020) is not there",
    ),
    "bsa, size 0": (
        lambda f: (_units("CM2ML")(f), _set("PatientSize", "0")(f)),
        "PatientSize (0010,1020) is 0",
    ),
    "counts without Philips' factors": (_units("CNTS"), "(7053,1000)"),
    "PROPCNTS": (_units("PROPCNTS"), "Units (0054,1001) are PROPCNTS"),
    "units absent": (_set("Units"), "Units (0054,1001) are not there"),
    "SUV type unknown": (_units("GML", "WHAT"), "SUVType (0054,1006) is unknown"),
    "dose absent": (
        _set("RadionuclideTotalDose", where=_info),
        "RadionuclideTotalDose (0018,1074) is not there",
    ),
    "dose 0": (
        _set("RadionuclideTotalDose", "0", _info),
        "RadionuclideTotalDose (0018,1074) is 0",
    ),
    "dose negative": (
        _set("RadionuclideTotalDose", "-370000000", _info),
        "RadionuclideTotalDose (0018,1074) is negative",
    ),
    "frame duration absent, where it is needed": (
        lambda f: (_later(f), _set("FrameReferenceTime", "150000")(f)),
        "ActualFrameDuration (0018,1242) is not there",
    ),
    "time of the injection absent": (
        lambda f: (
            _set("RadiopharmaceuticalStartTime", where=_info)(f),
            _set("RadiopharmaceuticalStartDateTime", where=_info)(f),
        ),
        "RadiopharmaceuticalStartDateTime (0018,1078) is not there",
    ),
    "uptake of days, its date absent": (
        lambda f: (
            _set("RadionuclideHalfLife", "282240", _info)(f),
            _set("RadiopharmaceuticalStartDateTime", where=_info)(f),
        ),
        "RadiopharmaceuticalStartDateTime (0018,1078) is not there",
    ),
    "uptake of days, its date made up": (
        lambda f: (
            _set("RadionuclideHalfLife", "282240", _info)(f),
            _set("RadiopharmaceuticalStartDateTime", "19000101100000", _info)(f),
        ),
        "RadiopharmaceuticalStartDateTime (0018,1078) is after the scan, or too long before",
    ),
    "half-life absent": (
        _set("RadionuclideHalfLife", where=_info),
        "RadionuclideHalfLife (0018,1075) is not there",
    ),
    "half-life 0": (
        _set("RadionuclideHalfLife", "0", _info),
        "RadionuclideHalfLife (0018,1075) is not above 0",
    ),
    "injection after the scan": (
        lambda f: (
            _set("RadiopharmaceuticalStartDateTime", "20250101113000", _info)(f),
            _set("RadiopharmaceuticalStartTime", "113000", _info)(f),
        ),
        "RadiopharmaceuticalStartTime (0018,1072) is after the scan",
    ),
    "no radiopharmaceutical at all": (
        _set("RadiopharmaceuticalInformationSequence"),
        "RadiopharmaceuticalInformationSequence (0054,0016) is not there",
    ),
    "decay correction absent": (_set("DecayCorrection"), "DecayCorrection (0054,1102) is not"),
    "no attenuation correction": (
        _set("CorrectedImage", ["NORM", "DECY"]),
        "CorrectedImage does not hold ATTN",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_by_the_name_of_the_tag(default, name):
    change, said = REFUSED[name]
    change(default)
    with pytest.raises(CaseError) as refused:
        suv_scale(default)
    assert said in str(refused.value) and refused.value.code == "pet-not-suv"
    said_words = set(re.split(r"[ ;,]", str(refused.value)))
    assert not {"70", "70.0", "1.75", "1.750"} & said_words  # no value of the patient's
    assert suv_scale(default, 0.5).factors == (0.5,) * 3


# --- unusual, and right --------------------------------------------------------------------------


def _factor(files) -> float:
    (factor,) = set(suv_scale(files).factors)
    return factor


@pytest.mark.parametrize(
    "change",
    [
        _set("RadiopharmaceuticalStartDateTime", where=_info),
        _set("RadiopharmaceuticalStartTime", where=_info),
        _set("RadiopharmaceuticalStartDateTime", "19000101100000.00", _info),  # anonymised
        _set("RadionuclideTotalDose", "368.08", _info),
        _set("AcquisitionDate"),
        _set("SeriesTime", "1100"),
        _set("RadiopharmaceuticalStartDateTime", "20250101100000.000000+0100", _info),
        _set("RadiopharmaceuticalStartDateTime", "20250101090000+0000", _info),  # by its time tag
        _set("CorrectedImage"),
    ],
)
def test_headers_that_say_the_same_otherwise(default, change):
    before = _factor(default)
    change(default)
    assert _factor(default) == pytest.approx(before, rel=1e-9)


def test_a_time_of_another_zone_is_made_the_files(default):
    before = _factor(default)
    for file, info in zip(default, _info(default)):
        file.TimezoneOffsetFromUTC = "+0100"
        info.RadiopharmaceuticalStartDateTime = "20250101090000.00+0000"
    assert _factor(default) == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("correction", ["START", "NONE"])
@pytest.mark.parametrize("zone", ["+0100", ""])
def test_an_acquisition_in_utc_is_made_the_files(default, correction, zone):
    """Where the file says its zone, and where its own time of the day does."""
    for file in default:
        file.DecayCorrection, file.ActualFrameDuration = correction, "120000"
    before = [*suv_scale(default).factors]
    for file in default:
        if zone:
            file.TimezoneOffsetFromUTC = zone
        hour = int(file.AcquisitionTime[:2])
        file.AcquisitionDateTime = f"20250101{hour - 1:02d}{file.AcquisitionTime[2:6]}+0000"
    scale = suv_scale(default)
    np.testing.assert_allclose(scale.factors, before, rtol=1e-9)
    assert not any("after the acquisition" in note for note in scale.notes)


def test_an_injection_before_midnight(default):
    before = _factor(default)
    for file, info in zip(default, _info(default)):
        file.SeriesTime = file.AcquisitionTime = "003000"
        info.RadiopharmaceuticalStartTime = "233000"
        del info.RadiopharmaceuticalStartDateTime
    assert _factor(default) == pytest.approx(before, rel=1e-9)


def test_a_long_lived_tracer_days_before(default):
    for info in _info(default):
        info.RadionuclideHalfLife = "282240"  # Zr-89
        info.RadiopharmaceuticalStartDateTime = "20241227110000"
    expected = 70_000 / (368_080_000 * 2 ** (-5 * 86_400 / 282_240))
    assert _factor(default) == pytest.approx(expected, rel=1e-9)


def test_ge_says_the_start_of_the_scan_in_private(default):
    before = _factor(default)
    for file in default:
        file.SeriesTime = file.AcquisitionTime = "113000"
        block = file.private_block(0x0009, "GEMS_PETD_01", create=True)
        block.add_new(0x0D, "DT", "20250101110000.00")
    assert _factor(default) == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("owner, block", [("Philips PET Private Group", 0x11), ("", 0x10)])
def test_philips_factor_is_in_the_block_that_philips_has_reserved(default, owner, block):
    """Another's block comes first, with something else at the same place."""
    for file in default:
        file.Units = "CNTS"
        if owner:
            other = file.private_block(0x7053, "SOMEBODY ELSE", create=True)
            other.add_new(0x00, "DS", "4.0")
            philips = file.private_block(0x7053, owner, create=True)
            assert philips.block_start == block << 8
            philips.add_new(0x00, "DS", "0.5")
        else:
            file.add_new(0x70530000 + (block << 8), "DS", "0.5")
    assert suv_scale(default).factors == (0.5,) * len(default)
    for file in default:
        file.add_new(0x70530000 + (block << 8), "UN", b"0.25 ")
    assert suv_scale(default).factors == (0.25,) * len(default)


def test_what_another_vendor_has_at_that_place_is_not_taken(default):
    before = _factor(default)
    for file in default:
        for group, kind, value in ((0x0009, "DT", "20250101090000.00"), (0x7053, "DS", "4.0")):
            file.private_block(group, "SOMEBODY ELSE", create=True).add_new(
                0x0D if group == 0x0009 else 0x00, kind, value
            )
    assert _factor(default) == pytest.approx(before, rel=1e-9)
    for file in default:
        file.Units = "CNTS"
    with pytest.raises(CaseError, match=r"\(7053,1000\)"):
        suv_scale(default)


def test_headers_that_contradict_themselves_are_told(default):
    """By one of two ways a factor is a sixth less, and nothing says which is right."""
    plain = suv_scale(default)
    assert not any("differ by" in note or "DECY" in note for note in plain.notes)
    hour, minute = divmod(int(str(default[0].SeriesTime)[:2]) * 60 - 30, 60)
    for file in default:
        file.SeriesTime = f"{hour:02d}{minute:02d}00"
    (note,) = set(suv_scale(default).notes) - set(plain.notes)
    assert "SeriesTime and the frames' times differ by 30 minutes" in note
    for file in default:
        file.CorrectedImage = ["NORM", "ATTN", "SCAT"]
    assert any("is START and CorrectedImage has no DECY" in n for n in suv_scale(default).notes)
    for file in default:
        file.CorrectedImage, file.DecayCorrection = ["ATTN", "DECY"], "NONE"
    assert any("is NONE and CorrectedImage has DECY" in n for n in suv_scale(default).notes)


@pytest.mark.parametrize(
    ("kind", "value"), [("UN", None), ("UN", b""), ("UN", b"20250101110000.00"), ("LO", "")]
)
def test_ges_start_of_the_scan_may_be_bare_and_empty(default, kind, value):
    before = _factor(default)
    for file in default:
        file.add(DataElement(0x0009100D, kind, value))
        if value:
            file.SeriesTime = file.AcquisitionTime = "113000"
    assert _factor(default) == pytest.approx(before, rel=1e-9)


def test_masses_and_surface_have_the_values_of_their_papers():
    assert lean_body_james_kg("M", 70, 1.75) == pytest.approx(56.52)
    assert lean_body_james_kg("F", 60, 1.65) == pytest.approx(64.2 - 148 * (60 / 165) ** 2)
    assert lean_body_janma_kg("M", 70, 1.75) == pytest.approx(9270 * 70 / (6680 + 216 * 22.857143))
    assert lean_body_janma_kg("F", 60, 1.65) == pytest.approx(9270 * 60 / (8780 + 244 * 22.038567))
    assert ideal_body_kg("M", 70, 1.75) == pytest.approx(72.38)
    assert ideal_body_kg("F", 70, 1.75) == pytest.approx(66.43)
    assert body_surface_cm2(70, 1.75) == pytest.approx(18_481, rel=1e-3)


def test_dates_and_times_of_dicom():
    assert parse_datetime("20250101100000.5") == datetime(2025, 1, 1, 10, 0, 0, 500_000)
    assert parse_datetime("20250101100000-0500") == datetime(2025, 1, 1, 10)
    assert parse_datetime("20250101100000.000000 ") == datetime(2025, 1, 1, 10)
    assert parse_date("2025.01.02").isoformat() == "2025-01-02"
    assert parse_time("0930").isoformat() == "09:30:00"
    assert parse_time("235960").second == 59
    for wrong in (None, "", "abc", "2025", "20251301", "99999999"):
        assert parse_date(wrong) is None
    for wrong in (None, "", "abc", "250000", "1", "12345"):
        assert parse_time(wrong) is None
    assert parse_datetime("20250101") is None
