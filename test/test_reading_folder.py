import json

import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import tiny_label, write_patient

from hmvnet.case import CaseError
from hmvnet.reading.folder import find_patients, find_scans


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
