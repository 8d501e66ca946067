"""What is given to ``hmvnet predict`` is told apart."""

import json
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
from conftest import HEAD_GRID, head, tiny_ct, tiny_label, tiny_pet, write_patient
from typer.testing import CliRunner

from hmvnet.case import CaseError, ClinicalRecord
from hmvnet.cli import app
from hmvnet.exits import RefusedError
from hmvnet.phantom.dicom import write_dicom
from hmvnet.reading.inputs import Asked, ChallengeFolder, _without_identities, find_sources
from hmvnet.reading.records import HECKTOR
from hmvnet.reading.tables import Known


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
    assert not any("record" in note for note in case.notes)  # the risk says so, once


def test_a_ct_and_a_pet_with_a_record(tmp_path):
    files = [write(tmp_path / "c.mha", tiny_ct()), write(tmp_path / "p.mha", tiny_pet())]
    (tmp_path / "ehr.json").write_text(json.dumps({"Age": 70}))
    (source,) = find_sources(files, Asked(tmp_path / "ehr.json"))
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
    with pytest.raises(RefusedError, match="--record and --suv-factor do not go"):
        find_sources([write_case()], Asked(tmp_path / "ehr.json"))
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
    (source,) = find_sources([folder], Asked(needs_record=False))
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


# --- lists, BIDS, DICOM --------------------------------------------------------------------------


def test_a_csv_lists_patients_with_paths_relative_to_it(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.nii.gz", tiny_ct())
        write(tmp_path / "in" / f"{name}_pt.nii.gz", tiny_pet())
    (tmp_path / "in" / "a.json").write_text(json.dumps({"Age": 70}))
    rows = ["Patient;CT;PET;record", "007;a.nii.gz;a_pt.nii.gz;a.json", "b;b.nii.gz;b_pt.nii.gz;"]
    (tmp_path / "in" / "list.csv").write_text("\n".join(rows))
    found = find_sources([tmp_path / "in" / "list.csv"])
    assert [source.patient_id for source in found] == ["007", "b"]
    assert found[0].read().record.values == {"Age": 70.0} and not found[1].read().record.values


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("patient,ct\na,a.mha", "no column pet"),
        ("patient,ct,pet\na,a.mha,", "row 2 lacks a patient, ct or pet"),
    ],
)
def test_a_csv_that_lacks_something(tmp_path, rows, said):
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(RefusedError, match=said):
        find_sources([tmp_path / "list.csv"])


def test_bids(tmp_path):
    for subject, session in (("01", "1"), ("01", "2"), ("02", "")):
        folder, name = tmp_path / f"sub-{subject}", f"sub-{subject}"
        if session:
            folder, name = folder / f"ses-{session}", f"{name}_ses-{session}"
        write(folder / "ct" / f"{name}_ct.nii.gz", tiny_ct())
        write(folder / "pet" / f"{name}_trc-FDG_rec-nac_pet.nii.gz", tiny_pet() * 2)
        write(folder / "pet" / f"{name}_trc-FDG_rec-acdyn_pet.nii.gz", tiny_pet())
    (tmp_path / "participants.tsv").write_text("participant_id\tAge\nsub-02\t55\n")
    found = find_sources([tmp_path], Asked(tmp_path / "participants.tsv"))
    assert found.kind == "BIDS"
    names = ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    assert [source.patient_id for source in found] == names
    assert found[0].read().pet.GetPixel(20, 20, 17) == tiny_pet().GetPixel(20, 20, 17)
    assert found[2].read().record.values == {"Age": 55.0}
    write(tmp_path / "sub-02" / "ct" / "sub-02_acq-lowdose_ct.nii.gz", tiny_ct() * 2)
    (said,) = find_sources([tmp_path]).told
    assert said == "sub-02: CT sub-02_acq-lowdose_ct.nii.gz taken of 2, the first by name"


def test_dicom_folders_and_zips(tmp_path):
    ct, pet = head()
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path / "in" / "x", "DOE-JOHN")
    (tmp_path / "records.csv").write_text("PatientID;Age\npatient-001;61\n")
    found = find_sources([tmp_path / "in"], Asked(tmp_path / "records.csv"))
    assert found.kind == "DICOM" and found[0].read().record.values == {"Age": 61.0}
    listing = list(found.listing())
    assert listing[-1] == "patient-001: CT series 2 (64 slices), PET series 3 (64 slices)"
    assert "DOE" not in " ".join(listing)
    zipped = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "in"))
    assert find_sources([zipped])[0].read().ct.GetSize() == HEAD_GRID.size
    assert find_sources([zipped], Asked(keep_names=True))[0].patient_id == "DOE-JOHN"
    shutil.rmtree(tmp_path / "in" / "x" / "PT")
    with pytest.raises(RefusedError, match="no PET series; found 1 CT series without a PET"):
        find_sources([tmp_path / "in"])


def test_an_id_that_is_a_small_number_hides_no_column(tmp_path):
    """Anonymised patients are 1 and 2, and so is much of what a table says."""
    ct, pet = head()
    for own in "12":
        write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path / "in" / own, own)
    (tmp_path / "records.csv").write_text(
        "PatientID,Age,Tobacco,hpv_status,Packs,Case\n1,61,1,0,2,1\n2,58,0,1,1,2\n"
    )
    sources = find_sources([tmp_path / "in"], Asked(tmp_path / "records.csv"))
    records = [source.known.record for source in sources]
    values, _ = HECKTOR.clean(records)
    assert values["Tobacco Consumption"] == ["1", "0"] and values["HPV Status"] == ["0", "1"]
    assert [dict(record.values)["Packs"] for record in records] == [2.0, 1.0]
    assert any("left out, as they say who a patient is: columns Case" in s for s in sources.told)


def test_columns_that_say_who_somebody_is_are_told_by_their_names_and_texts():
    def known(i):
        values = {"Initials": "JD", "Hospital No": 123.0 + i, "Geburtsdatum": "03.02.1950"}
        values |= {"seen": f"on day {i} by the dentist", "Site": f"site {i % 2}", "Packs": 3.0 + i}
        return Known(ClinicalRecord(values))

    table = {f"P{i}": known(i) for i in range(8)}
    kept, hidden = _without_identities(table, {})
    assert set(hidden) == {"Initials", "Hospital No", "Geburtsdatum", "seen"}
    assert set(kept["P3"].record.values) == {"Site", "Packs"}


def test_a_listing_says_nothing_of_what_a_record_holds(tmp_path):
    write_patient(tmp_path, "A-1")
    write_patient(tmp_path, "A-2")
    (tmp_path / "EHR.csv").write_text("PatientID,Age,Gender\nA-1,61.5,1\n")
    found = find_sources([tmp_path])
    assert found.kind == "data folder" and found[0].record.values["Age"] == 61.5
    assert list(found.listing())[-2:] == [
        "A-1: A-1__CT.nii.gz, A-1__PT.nii.gz, a health record",
        "A-2: A-2__CT.nii.gz, A-2__PT.nii.gz",
    ]
    columns, *patients = list(found.listing())[-3:]
    assert columns == "of the health records: Age, Gender"  # what a table has, of nobody
    for shown in (*patients, repr(found[0])):
        assert "61.5" not in shown and "Gender" not in shown


def test_a_folder_above_what_is_meant_says_so(write_case, tmp_path):
    folder = write_case(folder="phantom-1/input")
    with pytest.raises(
        RefusedError, match=r"expected .*phantom-1/input, a grand-challenge input; no"
    ):
        find_sources([folder.parent])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedError, match=r"images/ct and images/pet, or sub-\* of BIDS"):
        find_sources([tmp_path / "empty"])


def test_records_of_dicom_go_by_the_ids_in_the_files(tmp_path, monkeypatch):
    """Names are positions: a folder that has grown would give a record to another patient."""
    ct, pet = head()
    ids = ("patient-002", "0042", "007")
    for name in ids:
        write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path / "in" / name, name)
    table = tmp_path / "records.csv"

    def ages(text: str, **asked) -> tuple[dict[str, object], str]:
        table.write_text(f"PatientID;Age\n{text}")
        found = find_sources([tmp_path / "in"], Asked(table, **asked))
        told = " ".join(found.told)
        notes = " ".join(note for one in found for note in getattr(one.known, "notes", ()))
        assert "0042" not in told + notes or asked
        known = {one.patient_id: one.known.record.values["Age"] for one in found if one.known}
        return known, told

    assert [one.file_id for one in find_sources([tmp_path / "in"])] == [
        "0042",
        "007",
        "patient-002",
    ]
    # The third, and not the second, though its name is that of the row.
    known, told = ages("patient-002;61\n42;70\n")
    assert known == {"patient-001": 70.0, "patient-003": 61.0}
    assert "health records of 2 of 3 patients" in told and "numbers" not in told
    known, told = ages("patient-001;61\n")
    assert known == {"patient-001": 61.0}
    assert "1 of them by names such as patient-001, which are numbers" in told
    known, told = ages("patient-002;61\n", keep_names=True)
    assert known == {"patient-002": 61.0} and "numbers" not in told
    with pytest.raises(ValueError, match="names none of the"):
        ages("somebody;61\n")
    # What says who a patient is goes no further, unless names are kept.
    table.write_text("PatientID;Age;Nr;Surname\n42;70;0042;Mueller\n")
    found = find_sources([tmp_path / "in"], Asked(table))
    assert found[0].known.record.values == {"Age": 70.0}
    assert "columns Nr, Surname" in found.told[-1]
    kept = find_sources([tmp_path / "in"], Asked(table, keep_names=True))
    assert kept[0].known.record.values["Surname"] == "Mueller"
    # Also as a number of many digits.
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path / "long", "1234567")
    table.write_text("PatientID;Age;Nr\n1234567;70;1234567\n")
    (found,) = find_sources([tmp_path / "long"], Asked(table))
    assert found.known.record.values == {"Age": 70.0}


def test_convert_goes_on_and_writes_nobody_where_numbers_have_moved(tmp_path):
    ct, pet = head()
    words = ["convert", str(tmp_path / "in"), "-o", str(tmp_path / "out")]

    def add(name: str, factor: float) -> None:
        write_dicom(
            HEAD_GRID.image(ct), HEAD_GRID.image(pet * factor), tmp_path / "in" / name, name
        )

    add("A", 1.0)
    add("C", 0.9)
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, words).exception is not None
    add("D", 0.8)
    done = CliRunner().invoke(app, [*words, "--continue"])
    assert done.exit_code == 0 and "1 written, 2 there already" in done.output
    add("B", 0.7)  # which is the second now
    done = CliRunner().invoke(app, [*words, "--continue"])
    assert "names of DICOM patients are numbers" in str(done.exception)
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == 3


@pytest.mark.parametrize("layout", ["plain", "2025", "nnunet"])
def test_hecktors_factors_of_pets_in_bq_per_ml(tmp_path, layout):
    write_patient(tmp_path, "A-1", layout)
    write_patient(tmp_path, "A-2", layout)
    (tmp_path / "suv_conversion_tags.csv").write_text("pid,weight,dose,factor\nA-2,70,3e8,0.25\n")
    first, second = (source.read() for source in find_sources([tmp_path]))
    peaks = [sitk.GetArrayViewFromImage(case.pet).max() for case in (first, second)]
    assert peaks == [8.0, 2.0] and any("multiplied by 0.25" in note for note in second.notes)
    third = find_sources([tmp_path], Asked(suv_factor=0.5))[1].read()
    assert sitk.GetArrayViewFromImage(third.pet).max() == 4.0


def test_factors_that_are_none_are_refused(tmp_path):
    write_patient(tmp_path, "A-1", "plain")
    (tmp_path / "suv_conversion_tags.csv").write_text("pid,factor\nA-1,0\n")
    with pytest.raises(ValueError, match="no number above 0"):
        find_sources([tmp_path])
