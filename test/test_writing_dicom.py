"""DICOM objects of a prediction, read back by what did not write them."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import HEAD_GRID, head, run_cohort
from skimage.draw import polygon2mask

from hmvnet.bundle import load_bundle
from hmvnet.case import Grid
from hmvnet.exits import Exit, RefusedError
from hmvnet.imaging.resample import labels_onto
from hmvnet.lesions.table import numbered_lesions
from hmvnet.phantom.dicom import write_dicom
from hmvnet.pipeline import Pipeline
from hmvnet.reading import contours
from hmvnet.reading.contours import read_truth
from hmvnet.reading.dicom import OURS, find_dicom
from hmvnet.reading.inputs import find_sources
from hmvnet.segmentation.ensemble import NetworkOutput, pick_device
from hmvnet.writing.dicom import dicom_writers, numbers_on
from hmvnet.writing.folder import write_optional

hd = pytest.importorskip("highdicom")


class Painted:
    """An ensemble that finds a primary and two nodes in the head, whatever it is given."""

    on_ct = False

    def __init__(self, members):
        self.members = members

    def __call__(self, scan):
        suv = scan.volume.scaled[1] * 10 + 10
        labels = np.where(suv > 9, 1, np.where(suv > 7.5, 2, 0))
        labels[suv < 7.5] = 0
        one_hot = np.stack([labels == k for k in range(3)]).astype(np.float32)
        return NetworkOutput(one_hot)


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    ct, pet = head()
    folder = tmp_path_factory.mktemp("scan")
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), folder, "DOE-JOHN")
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny_bundle) -> Pipeline:
    pipeline = Pipeline(load_bundle(tiny_bundle), pick_device("cpu"), needs_risk=False)
    pipeline.segmenter.ensemble = Painted(pipeline.segmenter.ensemble.members)
    return pipeline


@pytest.fixture(scope="module")
def written(scan, pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    result = run_cohort(find_sources([scan]), pipeline, out, picture=False, dicom=True)
    assert result.code == Exit.OK and result.done == ["patient-001"]
    return out / "patient-001"


def test_a_label_map_is_read_like_a_frame_a_segment(written, scan, tmp_path):
    """Newer software writes one map of the segments' numbers (DICOM supplement 243)."""
    seg = hd.seg.segread(written / "seg.dcm")
    sources = [pydicom.dcmread(file) for file in sorted((scan / "CT").iterdir())]
    uids = [source.SOPInstanceUID for source in sources]
    made = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=seg.get_pixels_by_source_instance(uids, combine_segments=True),
        segmentation_type="LABELMAP",
        segment_descriptions=[seg.get_segment_description(n) for n in seg.segment_numbers],
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="maker",
        manufacturer_model_name="model",
        software_versions="1",
        device_serial_number="1",
    )
    made.save_as(tmp_path / "map.dcm")
    grid = Grid.of(sitk.ReadImage(str(written / "mask.nii.gz")))
    truth, notes = read_truth(tmp_path / "map.dcm", grid)
    assert truth is not None and notes == read_truth(written / "seg.dcm", grid)[1]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(truth), mask_of(written))


def test_of_an_atlas_only_what_counts_is_moved_to_the_ct(written, monkeypatch):
    """A segmenter's SEG may hold a hundred organs."""
    grid = Grid.of(sitk.ReadImage(str(written / "mask.nii.gz")))
    moved, onto = [], contours._onto
    monkeypatch.setattr(contours, "_onto", lambda *given: moved.append(1) or onto(*given))
    read_truth(written / "seg.dcm", grid)
    every = len(moved)
    truth, notes = read_truth(written / "seg.dcm", grid, {"spleen": 1})
    assert truth is None and len(moved) == every > 0 and "contours not used" in notes[0]


def test_objects_of_a_corrected_mask_are_that_mask():
    """Pixels finer than the working grid: the way there and back loses a tenth of small lesions."""
    ct = Grid((100, 100, 24), (0.488, 0.488, 3.0), (-24.0, -24.0, -36.0))
    work = Grid((60, 60, 80), (1.0, 1.0, 1.0), (-29.7, -29.7, -39.6))
    places = ct.points(np.argwhere(np.ones(ct.shape))[:, ::-1]).reshape(*ct.shape, 3)
    mask = np.zeros(ct.shape, np.uint8)
    for label, centre in ((1, (3, 2, 1)), (2, (-12, -9, 15)), (2, (-12, 12, -15))):
        mask[np.linalg.norm(places - centre, axis=-1) <= 5] = label
    labels = labels_onto(mask, ct, work)
    lesions, numbers = numbered_lesions(labels, labels * 0.0, labels * 1.0, (1.0, 1.0, 1.0))
    segmentation = SimpleNamespace(volume=SimpleNamespace(grid=work))
    made = numbers_on(
        ct,
        SimpleNamespace(
            mask=ct.image(mask), numbers=numbers, lesions=lesions, segmentation=segmentation
        ),
    )
    assert len(lesions) == 3 and (labels_onto(labels, work, ct) != mask).sum() > 50
    np.testing.assert_array_equal(made > 0, mask > 0)
    for number, lesion in enumerate(lesions, start=1):
        assert set(np.unique(mask[made == number])) == {lesion.label}
    assert len({(made[:12] == 2).any(), (made[:12] == 3).any()}) == 2  # one node a half
    # A node of one voxel within the primary is lost on the way there: no number of the primary's.
    alone = (mask == 1).astype(np.uint8)
    label = labels_onto(alone, ct, work)
    lesions, numbers = numbered_lesions(label, label * 0.0, label * 1.0, (1.0, 1.0, 1.0))
    alone[tuple(np.argwhere(alone)[alone.sum() // 2])] = 2
    drawn = SimpleNamespace(
        mask=ct.image(alone), numbers=numbers, lesions=lesions, segmentation=segmentation
    )
    with pytest.raises(ValueError, match="GTVn has 1 voxels on the CT's grid, none of which is of"):
        numbers_on(ct, drawn)


@pytest.fixture(scope="module")
def frames(scan, tmp_path_factory) -> Path:
    """The scan with an enhanced CT of one frame a file."""
    folder = tmp_path_factory.mktemp("frames") / "scan"
    shutil.copytree(scan, folder)
    for path in sorted((folder / "CT").iterdir()):
        file = pydicom.dcmread(path)
        shared, frame, place, axes, measures, values = (pydicom.Dataset() for _ in range(6))
        place.ImagePositionPatient = file.ImagePositionPatient
        axes.ImageOrientationPatient = file.ImageOrientationPatient
        measures.PixelSpacing = file.PixelSpacing
        values.RescaleSlope, values.RescaleIntercept = file.RescaleSlope, file.RescaleIntercept
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [axes], [measures]
        shared.PixelValueTransformationSequence = [values]
        frame.PlanePositionSequence = [place]
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(file, keyword)
        file.SharedFunctionalGroupsSequence = [shared]
        file.PerFrameFunctionalGroupsSequence, file.NumberOfFrames = [frame], 1
        file.save_as(path)
    return folder


def test_of_a_ct_in_several_multi_frame_files_contours_refer_to_their_own(frames, pipeline):
    (source,) = find_sources([frames])
    places = {
        str(file.SOPInstanceUID): float(
            file.PerFrameFunctionalGroupsSequence[0]
            .PlanePositionSequence[0]
            .ImagePositionPatient[2]
        )
        for file in map(pydicom.dcmread, (frames / "CT").iterdir())
    }
    prediction = pipeline(source.read())
    writers = dicom_writers(prediction, pipeline.manifest, source.ct, frames)
    problems = write_optional(writers)
    assert {path.name: text.split(": ", 1)[1] for path, text in problems.items()} == {
        "seg.dcm": "NotImplementedError: a SEG of a CT in several multi-frame files",
        "report.dcm": "NotImplementedError: it refers to the SEG, which is not there",
    }
    file = pydicom.dcmread(frames / "rtstruct.dcm")
    count = 0
    for region in file.ROIContourSequence:
        for contour in region.ContourSequence:
            (image,) = contour.ContourImageSequence
            assert places[image.ReferencedSOPInstanceUID] == pytest.approx(contour.ContourData[2])
            assert image.ReferencedFrameNumber == 1
            count += 1
    assert count > 10


def mask_of(folder: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "mask.nii.gz")))


def test_the_segmentation_has_a_segment_a_lesion_with_the_masks_voxels(written, scan):
    seg = hd.seg.segread(written / "seg.dcm")
    mask = mask_of(written)
    assert seg.number_of_segments >= 2 and set(np.unique(mask)) == {0, 1, 2}
    files = sorted((scan / "CT").iterdir())
    uids = [pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in files]
    frames = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(frames > 0, mask > 0)
    for number in seg.segment_numbers:
        segment = seg.get_segment_description(number)
        code = segment.segmented_property_type.value
        kind = {"372087000": 1, "14799000": 2}[code]
        assert set(np.unique(mask[frames == number])) == {kind}
        assert segment.tracking_id.startswith("GTVp" if kind == 1 else "GTVn")
    assert seg.PatientID == "DOE-JOHN"  # of the patient's study
    assert str(seg.FrameOfReferenceUID) == str(pydicom.dcmread(files[0]).FrameOfReferenceUID)


def test_the_report_has_the_lesions_measurements_under_the_same_ids(written):
    import pandas as pd

    table = pd.read_csv(written / "lesions.csv")
    report, seg = hd.sr.srread(written / "report.dcm"), hd.seg.segread(written / "seg.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(table)
    for group, row, number in zip(groups, table.to_dict("records"), seg.segment_numbers):
        assert group.tracking_uid == seg.get_segment_description(number).tracking_uid
        found = {
            (m.name.meaning, m.derivation.meaning if m.derivation else ""): m.value
            for m in group.get_measurements()
        }
        expected = {
            ("Volume", ""): row["volume_ml"],
            ("Maximum 3D diameter", ""): row["diameter_mm"],
            ("SUVbw", "Maximum"): row["suv_max"],
            ("SUVbw", "Mean"): row["suv_mean"],
            ("Peak Value Within ROI", ""): row["suv_peak"],
            ("Metabolic Volume", ""): row["mtv41_ml"],
            ("Total Lesion Glycolysis", ""): row["tlg"],
        }
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_structure_set_gives_the_mask_back(written):
    file, mask = pydicom.dcmread(written / "rtstruct.dcm"), mask_of(written)
    grid = Grid.of(sitk.ReadImage(str(written / "mask.nii.gz")))
    drawn = np.zeros(mask.shape, bool)
    for roi in file.ROIContourSequence:
        for contour in roi.ContourSequence:
            points = grid.indices(np.reshape(np.array(contour.ContourData, float), (-1, 3)))
            z = round(float(points[:, 2].mean()))
            drawn[z] ^= polygon2mask(mask.shape[1:], points[:, [1, 0]])
    both = (drawn & (mask > 0)).sum()
    assert 2 * both / (drawn.sum() + (mask > 0).sum()) > 0.98
    names = [roi.ROIName for roi in file.StructureSetROISequence]
    assert names[0] == "GTVp 1" and all(name[:4] in ("GTVp", "GTVn") for name in names)


@pytest.mark.parametrize(
    "characters",
    ["ISO_IR 192", "ISO 2022 IR 100", ["", "ISO 2022 IR 87"], ["", "ISO 2022 IR 149"]]
    + [["ISO_IR 13", "ISO 2022 IR 87"]],
)
def test_names_in_any_characters_that_dicom_has(scan, pipeline, tmp_path, characters):
    name = {"87": "Yamada^Tarou=山田^太郎", "49": "Hong^Gildong=洪^吉洞=홍^길동"}
    called = name.get(str(characters[-1])[-2:], "Müller^Jürgen")
    folder = shutil.copytree(scan, tmp_path / "scan")
    for path in (folder / "CT").iterdir():
        file = pydicom.dcmread(path)
        file.update({"SpecificCharacterSet": characters, "PatientName": called})
        file.save_as(path)
    result = run_cohort(find_sources([folder]), pipeline, tmp_path, picture=False, dicom=True)
    assert result.code == Exit.OK, result.failures
    for file in ("seg.dcm", "report.dcm", "rtstruct.dcm"):
        assert str(pydicom.dcmread(tmp_path / "patient-001" / file).PatientName) == called


@pytest.mark.parametrize("file", ["seg.dcm", "rtstruct.dcm"])
def test_what_we_drew_is_not_learnt_from(written, scan, tmp_path, file):
    """It comes back with the study from a PACS that it was sent to."""
    folder = shutil.copytree(scan, tmp_path / "scan")
    shutil.copy(written / file, folder)
    found = find_dicom(folder)
    (one,) = found.scans
    assert one.drawn == () and one.read_with_truth().truth is None
    assert found.left_out == {OURS: 1}
    drawn = pydicom.dcmread(folder / file)
    drawn.ManufacturerModelName = "a viewer in which it was corrected"
    drawn.save_as(folder / file)
    (one,) = find_dicom(folder).scans
    assert one.read_with_truth().truth is not None


@pytest.mark.parametrize("name", ["seg.dcm", "rtstruct.dcm"])
def test_what_is_written_is_read_as_truth(written, name):
    image = sitk.ReadImage(str(written / "mask.nii.gz"))
    truth, notes = read_truth(written / name, Grid.of(image))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(truth), mask_of(written))
    assert "GTVp 1 is GTVp" in notes[0]


@pytest.mark.parametrize("name", ["seg.dcm", "report.dcm", "rtstruct.dcm"])
def test_dciodvfy_finds_no_error(written, name):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", written / name], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr, done.stderr


def test_dicom_objects_need_a_dicom_input(tiny_bundle, tmp_path, write_case):
    pipeline = Pipeline(load_bundle(tiny_bundle), pick_device("cpu"), needs_risk=False)
    with pytest.raises(RefusedError, match="no patient is read from DICOM"):
        run_cohort(find_sources([write_case()]), pipeline, tmp_path / "out", dicom=True)


def test_a_ct_without_names_and_one_of_tags_that_make_no_object(scan, tiny_bundle, tmp_path):
    """What its error says holds nothing of the patient."""
    pipeline = Pipeline(load_bundle(tiny_bundle), pick_device("cpu"), needs_risk=False)
    pipeline.segmenter.ensemble = Painted(pipeline.segmenter.ensemble.members)
    for name, value in (("anonymous", None), ("SMITHDAY", "SMITHDAY")):
        folder = shutil.copytree(scan, tmp_path / name)
        for path in (folder / "CT").iterdir():
            file = pydicom.dcmread(path)
            for keyword in ("PatientName", "AccessionNumber", "StudyID", "PatientBirthDate"):
                delattr(file, keyword)
            if value:
                with pydicom.config.disable_value_validation():
                    file.PatientBirthDate = value
            file.save_as(path)
        result = run_cohort(
            find_sources([folder]), pipeline, tmp_path / f"out-{name}", picture=False, dicom=True
        )
        assert result.code == (Exit.INCOMPLETE if value else Exit.OK), result.failures
        assert "SMITH" not in str(result.failures)
