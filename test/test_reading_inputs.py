"""What is given to ``hmvnet predict`` is told apart."""

import json
from pathlib import Path

import pytest
import SimpleITK as sitk
from conftest import tiny_ct, tiny_label, tiny_pet, write_patient

from hmvnet.case import CaseError
from hmvnet.exits import RefusedError
from hmvnet.reading.inputs import ChallengeFolder, find_sources


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)
    return path


def test_a_challenge_folder_is_named_after_its_case(write_case, tmp_path):
    (source,) = find_sources([write_case(folder="phantom-1/input")])
    assert source.patient_id == "phantom-1"
    assert source.read().record.values["Age"] == 62
    (source,) = find_sources([write_case(folder="other")])
    assert source.patient_id == "other"


@pytest.mark.parametrize(
    ("ct", "pet", "name"),
    [
        ("P1__CT.nii.gz", "P1__PT.nii.gz", "P1"),
        ("P2_0000.nii", "P2_0001.nii", "P2"),
        ("scan.mha", "pet.mha", "scan"),
        ("a.b_CT.mha", "pet.mha", "a.b"),
    ],
)
def test_a_ct_and_a_pet(tmp_path, ct, pet, name):
    files = [write(tmp_path / ct, tiny_ct()), write(tmp_path / pet, tiny_pet())]
    (source,) = find_sources(files)
    assert source.patient_id == name
    case = source.read()
    assert case.ct.GetSize() == tiny_ct().GetSize() and not case.record.values
    assert any("no health record" in note for note in case.notes)


def test_a_ct_and_a_pet_with_a_record(tmp_path):
    files = [write(tmp_path / "c.mha", tiny_ct()), write(tmp_path / "p.mha", tiny_pet())]
    (tmp_path / "ehr.json").write_text(json.dumps({"Age": 70}))
    (source,) = find_sources(files, tmp_path / "ehr.json")
    assert source.read().record.values == {"Age": 70.0}


@pytest.mark.parametrize("folder", ["imagesTs", "imagesTr"])
def test_nnunet_folders(tmp_path, folder):
    for name in ("b", "a"):
        write(tmp_path / folder / f"{name}_0000.nii.gz", tiny_ct())
        write(tmp_path / folder / f"{name}_0001.nii.gz", tiny_pet())
    assert [s.patient_id for s in find_sources([tmp_path])] == ["a", "b"]


def test_a_hectorlike_folder_without_labels(tmp_path):
    for name in ("MDA-1", "MDA-2"):
        write(tmp_path / "Task 1" / name / f"{name}__CT.nii.gz", tiny_ct())
        write(tmp_path / "Task 1" / name / f"{name}__PT.nii.gz", tiny_pet())
    sources = find_sources([tmp_path])
    assert [s.patient_id for s in sources] == ["MDA-1", "MDA-2"]
    assert sources[0].read().truth is None


def test_what_cannot_be_told_apart_is_refused(tmp_path, write_case):
    ct = write(tmp_path / "ct.mha", tiny_ct())
    with pytest.raises(RefusedError, match="nowhere: no such file or folder"):
        find_sources([tmp_path / "nowhere"])
    with pytest.raises(RefusedError, match="expected one folder, or a CT file and a PET file"):
        find_sources([ct])
    with pytest.raises(RefusedError, match="expected one folder, or a CT file and a PET file"):
        find_sources([ct, ct, ct])
    (tmp_path / "ehr.json").write_text("{}")
    with pytest.raises(RefusedError, match="--record goes with a CT and a PET"):
        find_sources([write_case()], tmp_path / "ehr.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no patients"):
        find_sources([tmp_path / "empty"])


def test_files_that_are_no_images_are_refused_when_read(tmp_path):
    (tmp_path / "ct.mha").write_text("nonsense")
    (tmp_path / "pet.mha").write_text("nonsense")
    (source,) = find_sources([tmp_path / "ct.mha", tmp_path / "pet.mha"])
    with pytest.raises(CaseError, match=r"ct\.mha"):
        source.read()


def test_labels_and_outcomes_beside_the_scans_are_not_looked_at(tmp_path):
    """Predictions once failed for labels of value 3 and events coded 1 and 2, and use neither."""
    write_patient(tmp_path, "A-1", "plain", label=tiny_label() * 3)
    (tmp_path / "table.csv").write_text("PatientID,Age,Relapse,RFS\nA-1,61,2,12 months\n")
    (source,) = find_sources([tmp_path])
    case = source.read()
    assert case.truth is None and case.outcome is None and dict(case.record.values) == {"Age": 61.0}


def test_training_and_test_images_side_by_side_are_told_apart_by_the_user(tmp_path):
    for folder in ("imagesTr", "imagesTs"):
        write(tmp_path / folder / f"{folder}1_0000.nii.gz", tiny_ct())
        write(tmp_path / folder / f"{folder}1_0001.nii.gz", tiny_pet())
    with pytest.raises(ValueError, match="imagesTr and imagesTs: name one of them"):
        find_sources([tmp_path])
    (source,) = find_sources([tmp_path / "imagesTs"])
    assert source.patient_id == "imagesTs1" and source.read().ct.GetSize() == tiny_ct().GetSize()


def test_a_damaged_record_is_refused_where_a_risk_is_wanted(write_case):
    folder = write_case(ehr="nonsense")
    with pytest.raises(CaseError, match=r"ehr\.json: not valid JSON"):
        find_sources([folder])[0].read()
    (source,) = find_sources([folder], needs_record=False)
    assert any("not needed" in note for note in source.read().notes)


def test_the_platforms_own_input_folder_has_a_name():
    assert ChallengeFolder(Path("/input")).patient_id == "input"


def test_a_ct_called_ct_is_named_after_its_folder(tmp_path):
    """Two patients' CT.nii.gz would otherwise be one patient."""
    pet = write(tmp_path / "p.mha", tiny_pet())
    for name in ("a", "b"):
        ct = write(tmp_path / name / "CT.nii.gz", tiny_ct())
        assert find_sources([ct, pet])[0].patient_id == name


def test_one_file_twice_is_refused(tmp_path):
    ct = write(tmp_path / "ct.mha", tiny_ct())
    with pytest.raises(RefusedError, match="as CT and as PET"):
        find_sources([ct, ct])


@pytest.mark.parametrize(
    ("layout", "pet"), [("plain", "A-1__PT.nii.gz"), ("nnunet", "A-1_0001.nii.gz")]
)
def test_a_patient_without_pet_is_refused_alone(tmp_path, layout, pet):
    for name in ("A-1", "A-2"):
        write_patient(tmp_path, name, layout)
    next(tmp_path.rglob(pet)).unlink()
    first, second = find_sources([tmp_path])
    with pytest.raises(CaseError, match="image file not found"):
        first.read()
    assert second.read().patient_id == "A-2"
