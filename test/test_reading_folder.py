import pandas as pd
import pytest
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
