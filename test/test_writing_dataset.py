"""Cases as a data folder."""

from __future__ import annotations

import shutil

import pytest
from conftest import tiny_ct, tiny_label, tiny_pet

from hmvnet.case import CaseError, ClinicalRecord
from hmvnet.exits import RefusedError
from hmvnet.reading.checks import checked_case
from hmvnet.reading.folder import find_patients
from hmvnet.writing import dataset
from hmvnet.writing.dataset import TABLE, DataFolder


def case(name: str, factor: float = 1.0, **values):
    pet = tiny_pet() * factor
    record = ClinicalRecord(values)
    return checked_case(name, tiny_ct(), pet, record=record, truth=tiny_label())


def test_what_is_there_stays_and_is_read_again(tmp_path):
    """Rows of earlier calls too, and what a table makes harmless is so once."""
    assert DataFolder(tmp_path).write(case("A-1", Age=61.0))
    again = DataFolder(tmp_path)
    assert not again.write(case("A-1", Age=61.0))
    assert again.write(case("B-2", Gender="=F")) and again.write(case("C-3"))
    table = (tmp_path / TABLE).read_text()
    assert DataFolder(tmp_path).write(case("D-4", Age=50.0))
    assert (tmp_path / TABLE).read_text() == f"{table}D-4,50.0,\n"
    known = {one.patient_id: one.record.values for one in find_patients(tmp_path)}
    assert [known[name].get("Age") for name in ("A-1", "C-3", "D-4")] == [61.0, None, 50.0]
    DataFolder(tmp_path).write(case("A-1", Age=62.0))  # its record was mended
    (first, *_) = find_patients(tmp_path)
    assert first.record.values["Age"] == 62.0


def test_a_row_of_who_had_the_name_before_is_not_inherited(tmp_path, monkeypatch):
    DataFolder(tmp_path).write(case("patient-001", Age=61.0))
    table = (tmp_path / TABLE).read_text()
    shutil.rmtree(tmp_path / "patient-001")
    for one in (case("patient-001"), case("patient-001", Age=70.0)):
        with pytest.raises(CaseError, match=r"records.csv has a row of this name, of which there"):
            DataFolder(tmp_path).write(one)
    assert (tmp_path / TABLE).read_text() == table and not (tmp_path / "patient-001").exists()
    (tmp_path / TABLE).unlink()
    DataFolder(tmp_path).write(case("patient-001"))
    (only,) = find_patients(tmp_path)
    assert not only.record.values

    def full(*_):
        raise OSError(28, "no space left")

    monkeypatch.setattr(dataset, "write_image", full)
    with pytest.raises(OSError, match="No space"):
        DataFolder(tmp_path).write(case("patient-002", Age=70.0))
    assert not (tmp_path / TABLE).exists()


def test_what_somebody_entered_beside_a_record_stays(tmp_path):
    DataFolder(tmp_path).write(case("A", Age=61.0))
    (tmp_path / TABLE).write_text("PatientID,Age,RFS,Relapse\nA,61,400,1\n")
    assert not DataFolder(tmp_path).write(case("A", Age=62.0))
    assert not DataFolder(tmp_path).write(case("A"))
    (only,) = find_patients(tmp_path)
    assert only.record.values["Age"] == 62.0
    assert (only.outcome.days, only.outcome.event) == (400.0, True)


def test_two_calls_on_one_folder_keep_each_others_rows(tmp_path):
    first, second = DataFolder(tmp_path), DataFolder(tmp_path)
    first.write(case("A", Age=61.0))
    second.write(case("B", Age=62.0))
    assert [one.record.values["Age"] for one in find_patients(tmp_path)] == [61.0, 62.0]


def test_other_images_under_a_patients_name_are_not_taken_for_these(tmp_path):
    """Names of DICOM patients are numbers: in a folder that has grown they are others'."""
    DataFolder(tmp_path).write(case("patient-001", Age=61.0))
    with pytest.raises(CaseError, match="patient-001 is there, and holds other images"):
        DataFolder(tmp_path).write(case("patient-001", factor=2, Age=30.0))
    without = checked_case("patient-001", tiny_ct(), tiny_pet())
    with pytest.raises(CaseError, match="holds other images"):
        DataFolder(tmp_path).write(without)
    (only,) = find_patients(tmp_path)
    assert only.record.values == {"Age": 61.0}
    (tmp_path / "B").write_text("notes")
    with pytest.raises(CaseError, match="holds other images"):
        DataFolder(tmp_path).write(case("B"))


STRANGE = (
    *("name,Age\nA,60\n", "PatientID,Age\n,60\n", "\xff"),
    *("PatientID\nA,1\n", "PatientID,Age\nA,60\nA,70\n"),
)


@pytest.mark.parametrize("text", STRANGE)
def test_a_table_that_is_not_ours_is_refused(tmp_path, text):
    (tmp_path / TABLE).write_text(text, "latin-1")
    with pytest.raises(RefusedError, match=TABLE):
        DataFolder(tmp_path)
    assert (tmp_path / TABLE).read_text("latin-1") == text
