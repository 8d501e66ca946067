"""RTSTRUCT as truth; SEG is read back in test_writing_dicom."""

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import HEAD_GRID, head
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage
from typer.testing import CliRunner

from hmvnet.case import CaseError, Grid
from hmvnet.cli import app, main
from hmvnet.phantom.dicom import write_dicom
from hmvnet.reading.contours import label_of, parse_names, read_mask, read_truth
from hmvnet.reading.folder import find_patients
from hmvnet.reading.inputs import find_sources


def segment(path, planes, spacing=None, thickness=3.0):
    """A SEG of one node, a square on each plane (mm along z), with no more than has to be there."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SegmentationStorage, "1.9"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = SegmentationStorage, "1.9", "SEG"
    described, shared, measures, axes, number = (Dataset() for _ in range(5))
    described.SegmentNumber, described.SegmentLabel = 1, "GTVn"
    file.SegmentSequence, file.SegmentationType = [described], "BINARY"
    measures.PixelSpacing, measures.SliceThickness = [2, 2], thickness
    if spacing:
        measures.SpacingBetweenSlices = spacing
    axes.ImageOrientationPatient, number.ReferencedSegmentNumber = [1, 0, 0, 0, 1, 0], 1
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [axes]
    shared.SegmentIdentificationSequence = [number]
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = [shared], []
    for z in planes:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient, frame.PlanePositionSequence = [0, 0, z], [place]
        file.PerFrameFunctionalGroupsSequence.append(frame)
    file.NumberOfFrames, file.Rows, file.Columns = len(planes), 16, 16
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 1, 1, 0, 0
    drawn = np.zeros((len(planes), 16, 16), np.uint8)
    drawn[:, 4:8, 4:8] = 1
    file.PixelData = np.packbits(drawn.ravel(), bitorder="little").tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("planes", "how"),
    [
        ([9, 12, 15], {}),
        ([9, 15, 24], {}),
        ([9, 33], {}),  # two nodes of a slice each
        ([9, 33], {"thickness": 5.0}),  # than which slices lie closer
        ([9, 15, 24], {"spacing": 3.0}),
    ],
)
def test_a_seg_marks_the_slices_that_it_has_frames_of(tmp_path, planes, how):
    grid = Grid((16, 16, 30), (2.0, 2.0, 3.0))
    truth, _ = read_truth(segment(tmp_path / "seg.dcm", planes, **how), grid)
    labels = sitk.GetArrayFromImage(truth)
    assert np.flatnonzero(labels.any(axis=(1, 2))).tolist() == [z // 3 for z in planes]
    assert (labels == 2).sum() == 16 * len(planes)


@pytest.mark.parametrize(
    ("ct_mm", "planes", "thickness", "slices"),
    [
        (4.0, [40, 48, 56], 8.0, [*range(9, 15)]),  # adjacent, of a series with thicker slices
        (1.0, [10, 13, 16, 22], 3.0, [*range(9, 18), 21, 22, 23]),
        (2.0, [10, 12.5, 15, 17.5], 1.0, [*range(5, 10)]),  # gaps between the slices
        (2.0, [10, 13, 16, 19], 2.0, [*range(5, 11)]),
        (2.0, [10, 12.5, 17.5], 2.5, [5, 6, 9]),  # one is left out
        (2.0, [10.5, 35.5], 2.5, [5, 18]),  # a node each
    ],
)
def test_a_segs_slices_are_as_thick_as_they_follow_each_other(
    tmp_path, ct_mm, planes, thickness, slices
):
    grid = Grid((16, 16, 30), (2.0, 2.0, ct_mm))
    truth, _ = read_truth(segment(tmp_path / "seg.dcm", planes, thickness=thickness), grid)
    labels = sitk.GetArrayFromImage(truth)
    assert np.flatnonzero(labels.any(axis=(1, 2))).tolist() == slices


SQUARE = [(10, 10), (20, 10), (20, 20), (10, 20)]  # x and y of voxels
HOLE = [(13, 13), (17, 13), (17, 17), (13, 17)]


def structures(path, regions, series="1.2", frame="1.2.3.4"):
    """An RTSTRUCT whose regions are (name, [(z, points), ...]) in voxels of HEAD_GRID."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, "1.9"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = RTStructureSetStorage, "1.9", "RTSTRUCT"
    reference, study, place = Dataset(), Dataset(), Dataset()
    reference.SeriesInstanceUID = series
    study.RTReferencedSeriesSequence = [reference]
    place.FrameOfReferenceUID, place.RTReferencedStudySequence = frame, [study]
    file.ReferencedFrameOfReferenceSequence = [place]
    rois, contours = [], []
    for number, (name, drawn) in enumerate(regions, start=1):
        roi, contour = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contour.ReferencedROINumber, contour.ContourSequence = number, []
        for z, points in drawn:
            one, index = Dataset(), [(x, y, z) for x, y in points]
            one.ContourGeometricType, one.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            one.ContourData = [f"{v:g}" for v in HEAD_GRID.points(np.array(index)).ravel()]
            contour.ContourSequence.append(one)
        rois.append(roi)
        contours.append(contour)
    file.StructureSetROISequence, file.ROIContourSequence = rois, contours
    file.save_as(path, enforce_file_format=True)
    return path


def labels(path, given=None) -> np.ndarray:
    truth, _ = read_truth(path, HEAD_GRID, given)
    return sitk.GetArrayFromImage(truth)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *(("GTVp", 1), ("GTV_T", 1), ("gtv-primary", 1), ("GTV", 1), ("GTV_Mass_CT", 1)),
        *(("GTVn", 2), ("GTV N1", 2), ("GTVn_left", 2), ("gtv_nodes", 2), ("GTVLN", 2)),
        *(
            ("GTVnx", None),
            ("GTV_NX", None),
            ("notGTVn", None),
            ("PTV-GTVn", None),
            ("GTVp+n", None),
        ),
        *(("GTV total", None), ("GTVp_old", None), ("GTVp+5mm", None), ("GTV_PET", None)),
        *(("CTV", None), ("Brain", None), ("PTV70", None), ("Parotid_L", None), ("", None)),
    ],
)
def test_names_of_contours(name, label):
    assert label_of(name) == label


def test_names_that_are_given_count_alone():
    given = parse_names(["Tumour = x=gtvp", "LN 1=GTVn"])
    assert given == {"Tumour = x": 1, "LN 1": 2}
    assert label_of("tumour = X", given) == 1 and label_of("GTVp", given) is None
    for wrong in ("GTVp", "=gtvp", "a=ctv"):
        with pytest.raises(ValueError, match="expected name=gtvp or name=gtvn"):
            parse_names([wrong])


def test_voxels_inside_and_holes_and_overlaps(tmp_path):
    regions = [
        ("GTVn", [(7, SQUARE)]),
        ("GTVp", [(5, SQUARE), (5, HOLE), (7, HOLE)]),
        ("Brain", [(9, SQUARE)]),
    ]
    path = structures(tmp_path / "a.dcm", regions)
    found = labels(path)
    assert found[5, 12, 12] == 1 and found[5, 15, 15] == 0 and found[5, 25, 25] == 0
    assert found[7, 12, 12] == 2 and found[7, 15, 15] == 1  # where both are, the primary counts
    assert not found[6].any() and not found[9].any()
    _, notes = read_truth(path, HEAD_GRID)
    assert notes == (
        "contours: GTVn is GTVn, GTVp is GTVp",
        "contours of GTVp leave out 1 slices between others, which stay empty",
        "contours not used: Brain",
    )


def test_a_contour_of_all_beside_those_of_its_parts_is_refused(tmp_path):
    """Every node would be a GTVp; whoever says which contours count is read."""
    regions = [
        ("GTVn", [(7, SQUARE)]),
        ("GTVp", [(5, SQUARE)]),
        ("GTV", [(5, SQUARE), (7, SQUARE)]),
    ]
    for drawn in (regions, regions[::-1], [regions[0], regions[2]]):
        path = structures(tmp_path / "a.dcm", drawn)
        with pytest.raises(CaseError, match="contours of GTV: they hold most of GTVn"):
            labels(path)
    found = labels(structures(tmp_path / "b.dcm", regions), {"GTVp": 1, "GTVn": 2})
    assert set(found[7].ravel()) == {0, 2} and set(found[5].ravel()) == {0, 1}


def test_no_name_that_counts(tmp_path):
    truth, notes = read_truth(structures(tmp_path / "a.dcm", [("Brain", [(5, SQUARE)])]), HEAD_GRID)
    assert truth is None and notes == ("contours not used: Brain",)


@pytest.mark.parametrize(("z", "said"), [(5.5, "between the slices"), (90, "outside the CT")])
def test_contours_in_no_slice(tmp_path, z, said):
    with pytest.raises(CaseError, match=said):
        labels(structures(tmp_path / "a.dcm", [("GTVp", [(z, SQUARE)])]))


def drawn_on_every(step: int, path):
    """A cone that grows by a voxel a slice, from slice 10 to 28."""
    cone = [
        (z, [(20 - w, 20 - w), (20 + w, 20 - w), (20 + w, 20 + w), (20 - w, 20 + w)])
        for z in range(10, 29, step)
        for w in [(z - 4) / 2]
    ]
    return read_truth(structures(path, [("GTVp", cone)]), HEAD_GRID)


@pytest.mark.parametrize("step", [2, 3])
def test_slices_between_sparse_contours_are_interpolated_and_that_is_said(tmp_path, step):
    """Striped masks were trained on, and none of what lies between would have been tumour."""
    whole, notes = drawn_on_every(1, tmp_path / "whole.dcm")
    assert notes == ("contours: GTVp is GTVp",)
    sparse, notes = drawn_on_every(step, tmp_path / "sparse.dcm")
    assert notes[1:] == (
        f"contours of GTVp leave out {19 - len(range(10, 29, step))} slices between others, which "
        "are interpolated",
    )
    whole, sparse = map(sitk.GetArrayFromImage, (whole, sparse))
    assert 2 * (whole & sparse).sum() / (whole.sum() + sparse.sum()) > 0.98
    np.testing.assert_array_equal(sparse[10:29:step], whole[10:29:step])
    assert sparse[10:29].any(axis=(1, 2)).all() and not sparse[:10].any() and not sparse[29:].any()


@pytest.mark.parametrize(
    ("planes", "expected"),
    [
        ([*range(10, 14), *range(20, 24), 26, 28], None),  # mostly on every slice
        ([*range(10, 17, 2), *range(40, 47, 2)], [*range(10, 17), *range(40, 47)]),
        ([5, 17, 29, 41], None),  # four lesions of a slice each
        (
            [10, 12, 14, 31, 33, 35, 50, 52, 54],  # of three nodes
            [*range(10, 15), *range(31, 36), *range(50, 55)],
        ),
    ],
)
def test_slices_between_lesions_stay_empty(tmp_path, planes, expected):
    path = structures(tmp_path / "a.dcm", [("GTVn", [(z, SQUARE) for z in planes])])
    assert np.flatnonzero(labels(path).any(axis=(1, 2))).tolist() == (expected or planes)
    mask, notes = read_mask(path, HEAD_GRID)  # a corrected one says it too
    assert np.array_equal(sitk.GetArrayFromImage(mask), labels(path))
    assert any("which are interpolated" in note for note in notes) == bool(expected)


def test_a_region_that_does_not_count_may_lie_anywhere_and_an_empty_one_is_said(tmp_path):
    regions = [("Couch", [(900, SQUARE)]), ("GTVp", [(5, SQUARE)]), ("GTVn", [])]
    truth, notes = read_truth(structures(tmp_path / "a.dcm", regions), HEAD_GRID)
    assert set(np.unique(sitk.GetArrayViewFromImage(truth))) == {0, 1}
    assert notes == ("contours: GTVp is GTVp", "contours not used: Couch, GTVn (empty)")


def test_a_damaged_file(tmp_path):
    path = structures(tmp_path / "a.dcm", [("GTVp", [(5, SQUARE)])])
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(CaseError, match="cut, damaged, or neither"):
        labels(path)


def test_a_dicom_folder_becomes_a_data_folder_to_train_on(tmp_path):
    ct, pet = head()
    source = tmp_path / "in"
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), source, "DOE-JOHN")
    (scan,) = find_sources([source])
    frame = str(scan.ct.header.FrameOfReferenceUID)
    structures(source / "rt.dcm", [("Primary", [(30, SQUARE)])], scan.ct.uid, frame)
    structures(source / "pet.dcm", [("Primary", [(30, HOLE)])], scan.pet.uid, frame)
    (tmp_path / "records.csv").write_text("PatientID,Age\npatient-001,61\n")
    words = ["convert", source, "-o", tmp_path / "out", "--record", tmp_path / "records.csv"]
    done = CliRunner().invoke(app, [*map(str, words), "--contour", "primary=gtvp"])
    assert done.exit_code == 0, done.output
    (patient,) = find_patients(tmp_path / "out")
    case = patient.read()
    assert case.record.values == {"Age": 61.0} and patient.patient_id == "patient-001"
    np.testing.assert_array_equal(sitk.GetArrayFromImage(case.ct), ct)
    truth = sitk.GetArrayFromImage(case.truth)
    assert truth[30, 15, 15] == 1 and truth.sum() == truth[30].sum() == 11 * 11


def test_a_name_that_no_contour_has_is_said(tmp_path, capsys):
    """Nodes under a name with a slip were background, to be learnt as such, and the end was 0."""
    ct, pet = head()
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path / "in", "DOE-JOHN")
    (scan,) = find_sources([tmp_path / "in"])
    frame = str(scan.ct.header.FrameOfReferenceUID)
    regions = [("Primary", [(30, SQUARE)]), ("LN 1", [(34, SQUARE)])]
    structures(tmp_path / "in" / "rt.dcm", regions, scan.ct.uid, frame)
    words = ["convert", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    names = ["--contour", "primary=gtvp", "--contour", "LN1=gtvn"]
    with pytest.raises(SystemExit) as end:
        main([*words, *names])
    assert end.value.code == 2
    assert "--contour: no patient has contours of the name LN1" in capsys.readouterr().err
    words[-1] = str(tmp_path / "again")
    with pytest.raises(SystemExit) as end:
        main([*words, *names[:3], "ln 1=gtvn"])
    assert end.value.code == 0 and "no patient has contours" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["convert", str(tmp_path / "again"), "-o", str(tmp_path / "other"), *names])
    assert end.value.code == 2 and not (tmp_path / "other").exists()
    assert (
        "--contour is of RTSTRUCT and SEG, and data folder is no DICOM" in capsys.readouterr().err
    )


def test_a_corrected_mask_of_another_scan_is_refused(tmp_path):
    """Its slices may lie where this scan's do."""
    ct, pet = head()
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path / "in", "DOE-JOHN")
    (scan,) = find_sources([tmp_path / "in"])
    frame = str(scan.ct.header.FrameOfReferenceUID)
    drawn = [("GTVp", [(30, SQUARE)])]
    for series, place in ((scan.ct.uid, frame), ("9.9", frame), (scan.ct.uid, "9.9.9")):
        own = structures(tmp_path / "own.dcm", drawn, series, place)
        assert sitk.GetArrayFromImage(read_mask(own, HEAD_GRID, scan.ct)[0]).sum() == 11 * 11
    another = structures(tmp_path / "another.dcm", drawn, "9.9", "9.9.9")
    with pytest.raises(CaseError, match=r"another\.dcm: drawn in another frame of reference"):
        read_mask(another, HEAD_GRID, scan.ct)
    read_mask(another, HEAD_GRID)  # of a CT that is no DICOM nobody knows


def test_a_contour_that_is_there_twice_is_no_hole(tmp_path):
    once = [(z, SQUARE) for z in range(5, 10)]
    whole = labels(structures(tmp_path / "once.dcm", [("GTVp", once)]))
    twice = structures(tmp_path / "twice.dcm", [("GTVp", [*once, *once[:2]])])
    truth, notes = read_truth(twice, HEAD_GRID)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(truth), whole)
    assert any("contours of GTVp: 2 are there twice, and taken once" in note for note in notes)


def test_contours_on_a_series_that_got_another_uid_still_belong(tmp_path):
    ct, pet = head()
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path, "x")
    (scan,) = find_sources([tmp_path])
    frame = str(scan.ct.header.FrameOfReferenceUID)
    structures(tmp_path / "rt.dcm", [("GTVp", [(30, SQUARE)])], "9.9.9", frame)
    structures(tmp_path / "other.dcm", [("GTVp", [(30, SQUARE)])], "9.9.9", "8.8.8")
    (scan,) = inputs = find_sources([tmp_path])
    assert scan.drawn == (tmp_path / "rt.dcm",)
    assert inputs.told[0].endswith("1 PET/CT examinations in DICOM, 1 files of contours or labels")
    assert inputs.told[-1] == "left out: 1 files of contours or labels of no scan here"
    structures(tmp_path / "rt2.dcm", [("GTVp", [(30, SQUARE)])], "9.9.9", frame)
    (scan,) = find_sources([tmp_path])
    with pytest.raises(CaseError, match="2 RTSTRUCT or SEG files draw"):
        scan.read_with_truth()
