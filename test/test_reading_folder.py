import json
from pathlib import Path

import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import tiny_label, write_patient

from hmvnet.case import CaseError
from hmvnet.reading.folder import Found, find_patients, find_scans
from hmvnet.reading.names import LeftOut


@pytest.mark.parametrize("layout", ["2025", "plain", "2022", "nnunet"])
def test_layouts(tmp_path, layout):
    for name in ("CHUM-002", "CHUM-001"):
        write_patient(tmp_path, name, layout)
    patients = find_patients(tmp_path)
    assert [p.patient_id for p in patients] == ["CHUM-001", "CHUM-002"]
    case = patients[0].read()
    assert case.truth is not None and case.truth.GetSize() == case.ct.GetSize()
    assert patients[0].centre == "CHUM"


def test_a_phantoms_true_risk_is_no_health_record(tmp_path):
    write_patient(tmp_path, "A-1", "plain")
    (tmp_path / "table.csv").write_text("PatientID,Age\nA-1,60\n")
    (tmp_path / "truth.csv").write_text("PatientID,linear_predictor,RFS,Relapse\nA-1,1.5,100,1\n")
    (patient,) = find_patients(tmp_path)
    assert dict(patient.record.values) == {"Age": 60} and patient.outcome is None


def test_tables_are_joined(tmp_path):
    write_patient(tmp_path, "MDA-001")
    (tmp_path / "Task 2").mkdir()
    rows = {"PatientID": ["MDA-001"], "CenterID": [7], "Age": [61], "Relapse": [1], "RFS": [812]}
    pd.DataFrame(rows).to_csv(tmp_path / "Task 2" / "HECKTOR_2025_Training_Task_2.csv", index=False)
    (patient,) = find_patients(tmp_path)
    assert patient.outcome.days == 812 and patient.outcome.event
    assert patient.record.values == {"CenterID": 7.0, "Age": 61.0} and patient.centre == "7"


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        find_patients(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no patients"):
        find_patients(tmp_path)
    write_patient(tmp_path, "A-1", label=None)
    with pytest.raises(ValueError, match="1 patients without a label: A-1"):
        find_patients(tmp_path)
    assert len(find_patients(tmp_path, need_labels=False)) == 1
    (tmp_path / "Task 1" / "A-1" / "A-1__PT.nii.gz").unlink()
    with pytest.raises(ValueError, match="patient A-1: PET image is missing"):
        find_patients(tmp_path)


def test_label_with_other_values_is_refused(tmp_path):
    write_patient(tmp_path, "A-1", label=tiny_label() * 3)
    with pytest.raises(CaseError, match="label values"):
        find_patients(tmp_path)[0].read()


@pytest.mark.parametrize("layout", ["2025", "plain", "2022", "nnunet"])
def test_names_that_start_with_a_dot_are_nobodys(tmp_path, layout):
    write_patient(tmp_path, "A-1", layout)
    (tmp_path / "table.csv").write_text("PatientID,Age\nA-1,60\n")
    for file in [p for p in tmp_path.rglob("*") if p.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\xff")
    assert [p.patient_id for p in find_patients(tmp_path)] == ["A-1"]
    assert [p.patient_id for p in find_scans(tmp_path)] == ["A-1"]


def test_a_record_found_without_leading_zeros_is_said_with_the_case(tmp_path):
    write_patient(tmp_path, "007", "plain")
    (tmp_path / "table.csv").write_text("PatientID,Age\n7,60\n")
    for (patient,) in (find_patients(tmp_path), find_scans(tmp_path)):
        case = patient.read()
        assert case.record.values == {"Age": 60.0}
        assert "table.csv: the row of '7' is used" in case.notes


def nnunet_folder(root, dataset, exchanged=False):
    write_patient(root, "A-1", "nnunet")
    if exchanged:
        ct, pet = (root / "imagesTr" / f"A-1_000{i}.nii.gz" for i in (0, 1))
        ct.rename(root / "c")
        pet.rename(ct)
        (root / "c").rename(pet)
    (root / "dataset.json").write_text(json.dumps(dataset))
    return root


@pytest.mark.parametrize("key", ["channel_names", "modality"])
@pytest.mark.parametrize("names", [["PET", "CT"], ["noNorm", "CT"], ["SUV", "ct"]])
def test_channels_are_taken_by_name(tmp_path, key, names):
    root = nnunet_folder(tmp_path, {key: {"0": names[0], "1": names[1]}}, exchanged=True)
    (patient,) = find_patients(root)
    case = patient.read()
    assert sitk.GetArrayViewFromImage(case.ct).min() < -500
    assert patient.ct.name == "A-1_0001.nii.gz" and patient.patient_id == "A-1"


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "GTVn": 1, "GTVp": 2},
        {"0": "background", "1": "GTVn", "2": "GTVp"},  # nnU-Net's first version
    ],
)
def test_classes_are_taken_by_name(tmp_path, labels):
    stored = sitk.GetArrayFromImage(tiny_label())
    (patient,) = find_patients(nnunet_folder(tmp_path, {"labels": labels}))
    found = sitk.GetArrayFromImage(patient.read().truth)
    assert ((found == 1) == (stored == 2)).all() and ((found == 2) == (stored == 1)).all()
    (tmp_path / "dataset.json").unlink()
    (plain,) = find_patients(tmp_path)
    assert (sitk.GetArrayFromImage(plain.read().truth) == stored).all()
    assert plain.state() != patient.state()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"channel_names": {"0": "T1", "1": "T2"}}, "expected one named CT and one named PET"),
        ({"channel_names": {"0": "CT", "1": "CT"}}, "expected one named CT and one named PET"),
        ({"channel_names": ["CT", "PET"]}, "not readable as nnU-Net's dataset.json"),
        ({"labels": {"a": 1, "b": 2}}, r"classes \['a', 'b'\], expected GTVp and GTVn"),
        ({"labels": {"whole": [1, 2], "GTVp": 1}}, "not readable as nnU-Net's dataset.json"),
        ([], "not readable as nnU-Net's dataset.json"),
    ],
)
def test_a_dataset_json_of_something_else_is_refused(tmp_path, dataset, message):
    with pytest.raises(ValueError, match=message):
        find_patients(nnunet_folder(tmp_path, dataset))


@pytest.mark.parametrize(
    "dataset",
    [
        {},
        {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "tumor": 1}},
        {"channel_names": {"0": "CT", "1": "zscore"}, "labels": {"GTVp": 1, "GTVn": 2}},
    ],
)
def test_a_dataset_json_that_says_what_is_expected(tmp_path, dataset):
    (patient,) = find_patients(nnunet_folder(tmp_path, dataset))
    assert patient.ct.name == "A-1_0000.nii.gz" and patient.classes == ()


def names_left_out(found) -> dict[str, str]:
    return {str(p.relative_to(found.root)): why for p, why in found.left_out}


def scan(folder, *names) -> None:
    """Images by these names; what is found is found before one is read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".NII", ".Nii.Gz", ".MHA"])
@pytest.mark.parametrize("layout", ["plain", "2022", "nnunet"])
def test_every_suffix_in_every_layout(tmp_path, layout, suffix):
    write_patient(tmp_path, "A-1", layout)
    for file in [p for p in tmp_path.rglob("*.nii.gz")]:
        image = sitk.ReadImage(str(file))
        file.unlink()
        plain = file.with_name(file.name.removesuffix(".nii.gz") + suffix.lower())
        sitk.WriteImage(image, str(plain))
        plain.rename(file.with_name(file.name.removesuffix(".nii.gz") + suffix))
    for found in (find_patients(tmp_path), find_scans(tmp_path)):
        (patient,) = found
        assert patient.patient_id == "A-1" and not found.left_out
        assert patient.read().ct.GetSize() == tiny_label().GetSize()


@pytest.mark.parametrize("stem", ["A-1__CT", "A-1__PT", "A-1"])
@pytest.mark.parametrize("suffix", [".nii", ".mha", ".NII.GZ"])
@pytest.mark.parametrize("layout", ["plain", "2022"])
def test_an_image_twice_is_an_error_that_names_both(tmp_path, layout, stem, suffix):
    write_patient(tmp_path, "A-1", layout)
    (path,) = tmp_path.rglob(f"{stem}.nii.gz")
    path.with_name(stem + suffix).write_bytes(b"")
    with pytest.raises(ValueError) as error:
        find_patients(tmp_path)
    assert f"{stem}.nii.gz" in str(error.value) and f"{stem}{suffix}" in str(error.value)
    if stem == "A-1":  # labels are not looked at
        assert len(find_scans(tmp_path)) == 1
    else:
        with pytest.raises(ValueError, match="expected one of them"):
            find_scans(tmp_path)


@pytest.mark.parametrize("find", [find_patients, find_scans])
@pytest.mark.parametrize(
    ("layout", "files"),
    [
        ("2022", ["A-1_0000.nii.gz", "A-1_0001.nii.gz"]),
        ("nnunet", ["A-1__CT.nii", "A-1__PT.nii"]),
        ("nnunet", ["a-1_0000.nii.gz", "a-1_0001.nii.gz"]),
    ],
)
def test_one_id_twice_is_an_error_that_names_both(tmp_path, find, layout, files):
    write_patient(tmp_path, "A-1", layout)
    scan(tmp_path / "imagesTr", *files)
    with pytest.raises(ValueError, match=f"A-1_.*nii.* and .*{files[0]}|{files[0]} and .*A-1_"):
        find(tmp_path)


def test_folders_whose_ids_differ_only_in_case_are_refused(tmp_path):
    for name in ("A-1", "a-1"):
        write_patient(tmp_path, name, "plain")
    with pytest.raises(ValueError, match=r"A-1__CT.nii.gz and .*a-1__CT.nii.gz: one patient twice"):
        find_patients(tmp_path)


@pytest.mark.parametrize(
    ("folder", "files", "why"),
    [
        ("P01", ["P01_CT.nii.gz"], "no P01__CT and P01__PT; found P01_CT.nii.gz"),
        ("P01", ["P01__ct.nii.gz"], "no P01__CT and P01__PT; found P01__ct.nii.gz"),
        ("P01", ["P1__CT.nii.gz", "P1__PT.mha"], "found P1__CT.nii.gz, P1__PT.mha"),
        ("P01", [f"{i}.nii" for i in range(9)], "0.nii, 1.nii, 2.nii, 3.nii, 4.nii and 4 more"),
        ("P01", ["P01.nii.gz"], "no P01__CT and P01__PT; found P01.nii.gz"),
        ("P01", ["1.dcm"], "no images"),
        ("P01", [], "no images"),
    ],
)
def test_a_misnamed_folder_is_said(tmp_path, folder, files, why):
    scan(tmp_path / folder, *files)
    with pytest.raises(ValueError, match="holds no patients") as error:
        find_patients(tmp_path)
    assert f"left out: {folder}: " in str(error.value) and why in str(error.value)
    write_patient(tmp_path, "A-1", "plain")
    for found in (find_patients(tmp_path), find_scans(tmp_path)):
        assert [p.patient_id for p in found] == ["A-1"]
        assert why in names_left_out(found)[folder]


@pytest.mark.parametrize(
    ("layout", "name", "why"),
    [
        ("plain", "A-1/A-1_seg.nii.gz", "none of <ID>__CT, <ID>__PT and <ID>"),
        ("plain", "A-1/A-1__CT.nii.1", "ends in none of .nii.gz, .nii, .mha"),
        ("plain", "A-1__CT.nii.gz", "an image outside a patient's folder"),
        ("2022", "imagesTr/A-2_CT.nii.gz", "none of <ID>__CT, <ID>__PT, <ID>_0000, <ID>_0001"),
        ("2022", "imagesTr/A-2__ct.nii.gz", "none of <ID>__CT"),
        ("nnunet", "imagesTr/A-1_0002.nii.gz", "none of <ID>__CT"),
        ("nnunet", "imagesTr/_0000.nii.gz", "none of <ID>__CT"),
        ("nnunet", "labelsTr/A-2.nii.gz", "a label without images"),
        ("nnunet", "A-2__CT.nii.gz", "images beside imagesTr, which is read"),
        ("nnunet", "A-2/A-2__CT.nii.gz", "images beside imagesTr, which is read"),
        ("nnunet", "imagesTs/A-2_0000.nii.gz", "images beside imagesTr, which is read"),
        ("2025", "A-2/A-2__CT.nii.gz", "images beside Task 1, which is read"),
    ],
)
def test_a_misnamed_file_is_said(tmp_path, layout, name, why):
    write_patient(tmp_path, "A-1", layout)
    scan((tmp_path / name).parent, (tmp_path / name).name)
    found = find_patients(tmp_path)
    assert [p.patient_id for p in found] == ["A-1"]
    ((left, said),) = names_left_out(found).items()
    assert left in (name, name.split("/")[0]) and why in said


def test_patients_one_folder_deeper_are_said(tmp_path):
    write_patient(tmp_path / "centre 1", "A-1", "plain")
    with pytest.raises(ValueError, match="left out: centre 1: no images, but folders in it"):
        find_patients(tmp_path)


def test_a_link_to_nothing_is_said(tmp_path):
    write_patient(tmp_path, "A-1", "plain")
    (tmp_path / "A-2").symlink_to(tmp_path / "gone")
    found = find_patients(tmp_path)
    assert names_left_out(found) == {"A-2": "a link to nothing"}
    (tmp_path / "A-1" / "A-1__PT.nii.gz").unlink()
    (tmp_path / "A-1" / "A-1__PT.nii.gz").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="patient A-1: PET image is missing"):
        find_patients(tmp_path)


def test_hectors_planning_images_are_known(tmp_path):
    write_patient(tmp_path, "A-1")
    scan(tmp_path / "Task 1" / "A-1", "A-1__CTPlanning.nii.gz", "A-1__RTDOSE.nii.gz")
    scan(tmp_path / "Task 2" / "A-1", "A-1__CT.nii.gz", "A-1__PT.nii.gz")
    assert not find_patients(tmp_path).left_out


def test_patients_of_another_task_alone_are_told(tmp_path):
    write_patient(tmp_path, "A-1")
    for name in ("A-1", "B-2"):
        scan(tmp_path / "Task 2" / name, f"{name}__CT.nii.gz", f"{name}__PT.nii.gz")
    found = find_patients(tmp_path)
    assert [one.patient_id for one in found] == ["A-1"]
    assert names_left_out(found) == {"Task 2/B-2": "images in Task 2 alone, and Task 1 is read"}


def test_suv_factors_are_counted(tmp_path):
    for name in ("A-1", "B-2"):
        write_patient(tmp_path, name, "nnunet")
    assert "SUV factor" not in find_patients(tmp_path).summary()[0]
    (tmp_path / "suv_conversion_tags.csv").write_text("pid,factor\nA-1,0.5\nC-3,2\n")
    assert ", 1 with a SUV factor" in find_patients(tmp_path).summary()[0]


def test_a_patient_with_a_pet_alone_is_no_longer_dropped(tmp_path):
    write_patient(tmp_path, "A-1", "nnunet")
    scan(tmp_path / "imagesTr", "A-2_0001.nii.gz")
    with pytest.raises(ValueError, match="patient A-2: CT image is missing"):
        find_patients(tmp_path)
    _, second = find_scans(tmp_path)
    with pytest.raises(CaseError, match=r"patient A-2: A-2_0000\.nii\.gz: image file not found"):
        second.read()


def test_a_patients_own_folder_is_one_patient(tmp_path, monkeypatch):
    write_patient(tmp_path, "A-1", "plain")
    write_patient(tmp_path, "A-2", "plain")
    (tmp_path / "A-1" / "A-1__RTDOSE.nii.gz").write_bytes(b"")
    (patient,) = find_patients(tmp_path / "A-1")
    assert patient.patient_id == "A-1" and patient.read().truth is not None
    assert len(find_patients(tmp_path)) == 2
    monkeypatch.chdir(tmp_path / "A-2")
    assert [one.patient_id for one in find_scans(Path())] == ["A-2"]


def test_an_image_that_is_missing_says_what_is_there(tmp_path):
    scan(tmp_path / "A-1", "A-1__CT.nii.gz", "A-1_PET.nii.gz")
    with pytest.raises(ValueError, match=r"A-1: PET image is missing; found A-1_PET\.nii\.gz"):
        find_patients(tmp_path)


def test_a_summary_counts_and_says_what_is_left_out(tmp_path):
    for name in ("B-1", "B-2", "C-1"):
        write_patient(tmp_path, name, "plain", label=None if name == "C-1" else ...)
    (tmp_path / "t.csv").write_text("PatientID,Age,Relapse,RFS\nB-1,61,1,300\nB-2,70,,900\n")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "notes.csv").write_text("who,what\nsomebody,something\n")
    for number in range(7):
        scan(tmp_path / f"x{number}")
    assert find_patients(tmp_path, need_labels=False).summary() == [
        f"{tmp_path}: 3 patients, 2 with a health record, 2 with a label, 1 with an outcome",
        "centres: B (2), C (1)",
        "of the health records: Age",
        "left out: Thumbs.db: a backup or temporary file",
        "left out: x0, x1, x2, x3, x4 and 2 more: no images",
        "left out: notes.csv: a table without a column PatientID",
    ]
    with pytest.raises(ValueError, match=r"1 patients without a label: C-1; left out: Thumbs\.db"):
        find_patients(tmp_path)
    first, *_ = find_scans(tmp_path).summary()
    assert first == f"{tmp_path}: 3 patients, 2 with a health record"


def test_a_summary_stays_short(tmp_path):
    for letter in "abcdefghijklmnopqrstuvwxyz":
        scan(tmp_path / "imagesTr", f"{letter}-1_0000.nii", f"{letter}-1_0001.nii")
    patients = find_patients(tmp_path, need_labels=False).patients
    left_out = tuple(LeftOut(tmp_path / str(n), f"reason {n}") for n in range(30))
    _, centres, *lines = Found(tmp_path, patients, left_out).summary()
    assert centres.startswith("centres: a (1), b (1)") and centres.endswith("t (1), 6 more")
    assert len(lines) == 11 and lines[-1] == "left out: 20 more"
