"""A PET and a CT in DICOM."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import SimpleITK as sitk
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from fuzz.samples import Draw, File, Found, Kind, Right, Sample, changed_bytes
from fuzz.sockets import scan
from hmvnet.case import CaseError, Grid
from hmvnet.phantom.dicom import suv_to_bq_per_ml, write_dicom
from hmvnet.reading.dicom import find_dicom

GRID = Grid((10, 9, 8), (5.0, 5.0, 5.0), (-20.0, 7.0, 100.0))
PATIENT = "DOE-JOHN-1950"


@lru_cache
def written() -> dict[str, bytes]:
    """The files by name, as the phantoms are written."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_dicom(GRID.image(scan("ct")), GRID.image(scan("pet")), root, PATIENT)
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.dcm"))}


@lru_cache
def stored_pet() -> np.ndarray:
    """The PET's SUV as its stored values say it."""
    files = [pydicom.dcmread(io.BytesIO(d)) for name, d in written().items() if name[:2] == "PT"]
    activity = [file.pixel_array * float(file.RescaleSlope) for file in files]
    return (np.stack(activity) / suv_to_bq_per_ml()).astype("f4")


@dataclass
class Scan(Sample):
    """Files, changed one by one when they are laid out."""

    changes: list[Callable[[str, Dataset], None]] = field(default_factory=list)
    rename: Callable[[str], str] | None = None

    def parts(self) -> Iterator[tuple[str, bytes]]:
        for name, data in written().items():
            if self.changes:
                file = pydicom.dcmread(io.BytesIO(data))
                for change in self.changes:
                    change(name, file)
                buffer = io.BytesIO()
                file.save_as(buffer)
                data = buffer.getvalue()
            yield (self.rename(name) if self.rename else name), data

    def encode(self) -> dict[str, File]:
        laid: dict[str, File] = {**dict(self.parts()), **self.files}
        return {name: content for name, content in laid.items() if content != b"gone"}


def _clean(draw: Draw) -> Scan:
    return Scan(
        {"ct": scan("ct"), "pet": stored_pet()},
        notes=1,  # SYNTHETIC
        tolerance=1e-5,
        named=("series", "PET", "CT"),
        secrets=("DOE", "JOHN", "72 kg", "3.5e8"),
    )


def _read(folder: Path, sample: Scan) -> Found:
    found = find_dicom(folder)
    if found is None or not found.scans:
        raise CaseError("no PET series")
    (one,) = found.scans
    case = one.read()
    arrays = {name: sitk.GetArrayFromImage(getattr(case, name)) for name in ("ct", "pet")}
    return Found(arrays, case.notes)


DICOM = Kind("DICOM", _clean, _read)


def _of(kind: str, change: Callable[[Dataset], object]) -> Callable[[str, Dataset], None]:
    def only(name: str, file: Dataset) -> None:
        if name.startswith(kind):
            change(file)

    return only


def _info(change: Callable[[Dataset], object]) -> Callable[[str, Dataset], None]:
    return _of("PT", lambda file: change(file.RadiopharmaceuticalInformationSequence[0]))


# --- unusual, and to be read ---------------------------------------------------------------------


@DICOM.mutation(Right.SAME)
def other_names_and_places(draw: Draw, given: Scan) -> None:
    order = draw(st.permutations(range(len(written()))))
    numbers = dict(zip(written(), order, strict=True))
    place = draw(st.sampled_from(["", "a/b/c/", "Ü ñ/", "DICOM/00000001/"]))
    ending = draw(st.sampled_from(["", ".IMA", ".dcm", ".1.2.840"]))
    given.rename = lambda name: f"{place}I{numbers[name]:05d}{ending}"


@DICOM.mutation(Right.SAME)
def other_files_beside(draw: Draw, given: Scan) -> None:
    given.files |= {
        "readme.txt": b"x" * draw(st.integers(0, 300)),
        "CT/._0001.dcm": b"\0\5\x16\7",
        "CT/short": b"DICM",
        "DICOMDIR": b"\0" * 128 + b"DICM" + b"\0" * 20,
        "zeros": bytes(draw(st.integers(0, 4000))),
    }


@DICOM.mutation(Right.SAME)
def another_transfer_syntax(draw: Draw, given: Scan) -> None:
    syntax = draw(st.sampled_from([ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]))
    given.changes.append(lambda _, file: setattr(file.file_meta, "TransferSyntaxUID", syntax))


@DICOM.mutation(Right.SAME)
def compressed(draw: Draw, given: Scan) -> None:
    given.changes.append(lambda _, file: file.compress(RLELossless, generate_instance_uid=False))


@DICOM.mutation(Right.SAME)
def stored_with_an_intercept(draw: Draw, given: Scan) -> None:
    intercept = draw(st.sampled_from([-1100, -8192, -2000]))

    def change(file: Dataset) -> None:
        file.PixelData = (file.pixel_array.astype(int) - intercept).astype("<u2").tobytes()
        file.PixelRepresentation, file.RescaleIntercept = 0, intercept

    given.changes.append(_of("CT", change))


@DICOM.mutation(Right.SAME)
def numbers_in_another_order(draw: Draw, given: Scan) -> None:
    def change(name: str, file: Dataset) -> None:
        file.InstanceNumber = 1000 - 7 * int(file.InstanceNumber)
        del file.SliceThickness

    given.changes.append(change)


@DICOM.mutation(Right.SAME)
def times_said_otherwise(draw: Draw, given: Scan) -> None:
    how = draw(st.integers(0, 3))

    def change(info: Dataset) -> None:
        if how == 0:
            del info.RadiopharmaceuticalStartDateTime
        elif how == 1:
            del info.RadiopharmaceuticalStartTime
        elif how == 2:
            info.RadiopharmaceuticalStartDateTime = "19000101090000.00"
        else:
            info.RadiopharmaceuticalStartTime = "0900"

    given.changes.append(_info(change))


@DICOM.mutation(Right.SAME)
def private_and_odd_elements(draw: Draw, given: Scan) -> None:
    name = draw(st.sampled_from(["Ü^Ñ", "", "X" * 64, "^^^^"]))

    def change(_: str, file: Dataset) -> None:
        block = file.private_block(0x0011, "SOMEBODY", create=True)
        block.add_new(0x01, "LO", "x" * 60)
        file.PatientName, file.SpecificCharacterSet = name, "ISO_IR 192"

    given.changes.append(change)


@DICOM.mutation(Right.SAME)
def decay_corrected_to_the_injection(draw: Draw, given: Scan) -> None:
    def change(file: Dataset) -> None:
        file.DecayCorrection = "ADMIN"
        share = 2 ** (-3600 / 6586.2)
        file.RescaleSlope = f"{float(file.RescaleSlope) / share:.10g}"

    given.changes.append(_of("PT", change))


@DICOM.mutation(Right.REPAIRED)
def slices_sent_twice(draw: Draw, given: Scan) -> None:
    names = draw(st.sets(st.sampled_from(sorted(written())), min_size=1, max_size=6))
    given.files |= {f"again/{i}": written()[name] for i, name in enumerate(sorted(names))}


@DICOM.mutation(Right.REPAIRED)
def a_dose_in_megabecquerel(draw: Draw, given: Scan) -> None:
    given.changes.append(_info(lambda info: setattr(info, "RadionuclideTotalDose", "350")))


@DICOM.mutation(Right.REPAIRED)
def another_series_beside(draw: Draw, given: Scan) -> None:
    """A PET without attenuation correction, under another number."""
    uid = generate_uid(entropy_srcs=["another"])
    for name, data in written().items():
        if name.startswith("PT"):
            file = pydicom.dcmread(io.BytesIO(data))
            file.SeriesInstanceUID, file.CorrectedImage = uid, ["DECY", "NORM"]
            file.SOPInstanceUID = generate_uid(entropy_srcs=[uid, name])
            buffer = io.BytesIO()
            file.save_as(buffer)
            given.files[f"NAC/{name}"] = buffer.getvalue()


# --- to be refused -------------------------------------------------------------------------------


@DICOM.mutation(Right.REFUSED)
def slices_missing(draw: Draw, given: Scan) -> None:
    kind = draw(st.sampled_from(["CT", "PT"]))
    for number in draw(st.sets(st.integers(2, 7), min_size=1, max_size=2)):
        given.files[f"{kind}/{number:04d}.dcm"] = b"gone"
    given.named = ("missing", "unevenly")


@DICOM.mutation(Right.REFUSED)
def a_slice_cut_in_its_pixels(draw: Draw, given: Scan) -> None:
    name = draw(st.sampled_from(sorted(written())))
    given.files[name] = written()[name][: -draw(st.integers(1, 150))]


@DICOM.mutation(Right.REFUSED)
def no_suv(draw: Draw, given: Scan) -> None:
    keyword, value = draw(
        st.sampled_from(
            [
                ("PatientWeight", "0"),
                ("PatientWeight", ""),
                ("PatientWeight", "-70"),
                ("PatientWeight", "70000"),
                ("Units", "PROPCNTS"),
                ("Units", ""),
                ("DecayCorrection", ""),
                ("CorrectedImage", "NORM"),
                ("AcquisitionTime", ""),
            ]
        )
    )
    given.changes.append(_of("PT", lambda file: setattr(file, keyword, value)))
    given.named = (keyword,)


@DICOM.mutation(Right.REFUSED)
def no_dose(draw: Draw, given: Scan) -> None:
    keyword, value = draw(
        st.sampled_from(
            [
                ("RadionuclideTotalDose", "0"),
                ("RadionuclideTotalDose", "-3.5e8"),
                ("RadionuclideTotalDose", ""),
                ("RadionuclideHalfLife", "0"),
                ("RadionuclideHalfLife", ""),
            ]
        )
    )
    given.changes.append(_info(lambda info: setattr(info, keyword, value)))
    given.named = (keyword,)


@DICOM.mutation(Right.REFUSED)
def a_stack_that_is_none(draw: Draw, given: Scan) -> None:
    kind, how = draw(st.sampled_from(["CT", "PT"])), draw(st.integers(0, 3))

    def change(file: Dataset) -> None:
        x, y, z = map(float, file.ImagePositionPatient)
        odd = int(file.InstanceNumber) == 4
        if how == 0:
            file.ImagePositionPatient = [x, y + 0.3 * z, z]
        elif how == 1 and odd:
            file.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
        elif how == 2 and odd:
            file.PixelSpacing = [4, 5]
        elif how == 3 and odd:
            file.ImagePositionPatient = [x, y, z + 5]

    given.changes.append(_of(kind, change))


@DICOM.mutation(Right.REFUSED)
def another_frame_of_reference(draw: Draw, given: Scan) -> None:
    given.changes.append(_of("PT", lambda file: setattr(file, "FrameOfReferenceUID", "1.2.3")))


@DICOM.mutation(Right.REFUSED)
def one_of_both_alone(draw: Draw, given: Scan) -> None:
    kind = draw(st.sampled_from(["CT", "PT"]))
    given.files |= {name: b"gone" for name in written() if name.startswith(kind)}


# --- whatever comes out, nothing crashes ---------------------------------------------------------


@DICOM.mutation(Right.EITHER)
def any_bytes_of_a_header(draw: Draw, given: Scan) -> None:
    name = draw(st.sampled_from(sorted(written())))
    data = written()[name]
    given.files[name] = changed_bytes(draw, data, 0, len(data) - 180)
    given.values, given.secrets = {}, ()


@DICOM.mutation(Right.EITHER)
def cut_anywhere(draw: Draw, given: Scan) -> None:
    name = draw(st.sampled_from(sorted(written())))
    data = written()[name]
    given.files[name] = data[: draw(st.integers(0, len(data) - 181))]
    given.values, given.secrets = {}, ()
