"""Inputs that once failed for others, in public, with their siblings: found with ``-k case_08``.

Each is built here as it was reported. Others of the same list are tested where they belong:
directions nearly orthonormal (01) in test_reading_nifti, a quoted task (13) and an ASCII terminal
(14) in test_container, two trainings on one cache (16) in test_training_cache, a cut checkpoint
(20) in test_training_engine.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from pathlib import Path

import pytest
import SimpleITK as sitk
from conftest import tiny_ct, tiny_label, tiny_pet, write_patient

from hmvnet.case import CaseError, Outcome
from hmvnet.reading.challenge import read_case
from hmvnet.reading.folder import find_patients, find_scans
from hmvnet.reading.images import read_image
from hmvnet.reading.outcomes import TableNames

JUNK = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        \xff\xfe" + b"\0" * 200  # AppleDouble


# --- 04: slope 0 means no scaling at all ---------------------------------------------------------


def with_scaling(path: Path, slope: float, intercept: float) -> Path:
    """A NIfTI file with another scl_slope and scl_inter in its header, which stands at byte 112."""
    sitk.WriteImage(tiny_ct(), str(path))
    compressed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    struct.pack_into("<ff", data, 112, slope, intercept)
    path.write_bytes(gzip.compress(bytes(data), 1) if compressed else bytes(data))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        (0.0, -1024.0, (-1000, 30)),  # the case
        (0.0, 0.0, (-1000, 30)),
        (0.0, float("nan"), (-1000, 30)),
        (float("nan"), -1024.0, (-1000, 30)),
        (1.0, -1024.0, (-2024, -994)),  # a slope that is one counts
    ],
)
def test_case_04_a_slope_of_zero_scales_nothing(tmp_path, suffix, slope, intercept, expected):
    image, _ = read_image(with_scaling(tmp_path / f"a{suffix}", slope, intercept))
    array = sitk.GetArrayViewFromImage(image)
    assert (array.min(), array.max()) == expected


# --- 08: what operating systems leave beside data ------------------------------------------------


def leave(root: Path, name) -> None:
    """A companion of every file; ``name`` makes its name of the file's."""
    for path in [p for p in root.rglob("*") if p.is_file() and p.suffix != ".json"]:
        path.with_name(name(path.name)).write_bytes(JUNK)


BACKUP, COPY = "a backup or temporary file", "a copy of what lies beside it"
COMPANIONS = {  # made by whom, their names, and what is said of them
    "a Mac": (lambda name: f"._{name}", ""),
    "a Mac's folder view": (lambda name: ".DS_Store", ""),
    "Windows' pictures": (lambda name: "Thumbs.db", BACKUP),
    "Windows' folder view": (lambda name: "desktop.ini", BACKUP),
    "an editor": (lambda name: f"{name}~", BACKUP),
    "a backup": (lambda name: f"{name}.bak", BACKUP),
    "half a download": (lambda name: f"{name}.part", BACKUP),
    "a spreadsheet's lock": (lambda name: f"~${name}", BACKUP),
    "a merge": (lambda name: f"{name}.orig", BACKUP),
    "a Mac's copy": (lambda name: name.replace(".", " copy.", 1), COPY),
    "Windows' copy": (lambda name: name.replace(".", " - Copy.", 1), COPY),
    "a second download": (lambda name: name.replace(".", " (1).", 1), COPY),
    "a second download of .gz": (lambda name: " (1).".join(name.rsplit(".", 1)), COPY),
    "a shared drive's copy": (lambda name: f"Copy of {name}", COPY),
}


@pytest.mark.parametrize("layout", ["2025", "plain", "2022", "nnunet"])
@pytest.mark.parametrize("kind", COMPANIONS)
def test_case_08_companions_are_nobodys(tmp_path, layout, kind):
    for name in ("P-0", "P-1"):
        write_patient(tmp_path, name, layout)
    (tmp_path / "table.csv").write_text("PatientID,Age,Relapse,RFS\nP-0,61,1,300\nP-1,70,0,900\n")
    before, scans = find_patients(tmp_path), find_scans(tmp_path)
    assert [p.patient_id for p in before] == ["P-0", "P-1"] and not before.left_out
    name, why = COMPANIONS[kind]
    leave(tmp_path, name)
    found = find_patients(tmp_path)
    assert found.patients == before.patients and find_scans(tmp_path).patients == scans.patients
    assert {reason for _, reason in found.left_out} == ({why} if why else set())


def test_case_08_companions_in_a_challenge_folder(write_case):
    root = write_case()
    leave(root, COMPANIONS["a Mac"][0])
    assert read_case(root).ct.GetSize() == tiny_ct().GetSize()


@pytest.mark.parametrize("name", ["P-0 copy", "P-0 (1)", "Copy of P-0", "P-0.bak", "__MACOSX"])
def test_case_08_a_copied_folder_is_no_patient(tmp_path, name):
    write_patient(tmp_path, "P-0", "plain")
    shutil.copytree(tmp_path / "P-0", tmp_path / name)
    found = find_patients(tmp_path)
    assert [p.patient_id for p in found] == ["P-0"]
    assert any(line.startswith(f"left out: {name}:") for line in found.summary())


def test_case_08_a_copy_of_a_tables_folder_is_not_read(tmp_path):
    write_patient(tmp_path, "P-0")
    (tmp_path / "Task 1" / "t.csv").write_text("PatientID,Age\nP-0,61\n")
    shutil.copytree(tmp_path / "Task 1", tmp_path / "Task 1 copy")
    (tmp_path / "Task 1 copy" / "u.csv").write_text("PatientID,Age\nP-0,16\n")
    (patient,) = find_patients(tmp_path)
    assert patient.record.values["Age"] == 61


def test_case_08_a_number_in_brackets_is_a_name_where_nothing_is_without_it(tmp_path):
    """Windows numbers renamed files so: they are patients, and a table's only download is it."""
    for name in ("P (1)", "P (2)"):
        write_patient(tmp_path, name, "nnunet")
    (tmp_path / "table (1).csv").write_text("PatientID,Age\nP (1),61\nP (2),70\n")
    found = find_patients(tmp_path)
    assert [p.record.values["Age"] for p in found] == [61, 70] and not found.left_out


# --- 10: tables as spreadsheets save them --------------------------------------------------------

HEAD, ROWS = "PatientID,Age,Relapse,RFS\n", "A-1,61,1,300\nA-2,70,0,900\n"
TABLES = {
    "good": (HEAD + ROWS, "utf-8"),
    "semicolon": ((HEAD + ROWS).replace(",", ";"), "utf-8"),
    "tab": ((HEAD + ROWS).replace(",", "\t"), "utf-8"),
    "utf16": (HEAD + ROWS, "utf-16"),
    "latin1": (HEAD.strip() + ",Town\nA-1,61,1,300,K\u00f6ln\nA-2,70,0,900,x\n", "latin-1"),
    "blanks_in_header": ("PatientID, Age, Relapse, RFS\n" + ROWS, "utf-8"),
    "blanks_in_ids": (HEAD + "A-1 ,61,1,300\nA-2 ,70,0,900\n", "utf-8"),
    "id_column_named_otherwise": (HEAD.replace("PatientID", "Patient ID") + ROWS, "utf-8"),
    "blank_rows": (HEAD + ROWS + ",,,\n,,,\n", "utf-8"),
    # Siblings.
    "id_column_as_R_names_it": (HEAD.replace("PatientID", "Patient.ID") + ROWS, "utf-8"),
    "rows_quoted_whole": (HEAD + ROWS.replace("A-1", '"A-1"'), "utf-8-sig"),
}


def small_patients(root: Path, *names: str) -> None:
    for name in names:
        for suffix in ("__CT", "__PT", ""):
            path = root / name / f"{name}{suffix}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")  # tables are joined before an image is read


@pytest.mark.parametrize("ending", [".csv", ".CSV"])
@pytest.mark.parametrize("kind", TABLES)
def test_case_10_a_table_is_used_as_it_is_saved(tmp_path, kind, ending):
    small_patients(tmp_path, "A-1", "A-2")
    text, encoding = TABLES[kind]
    (tmp_path / f"table{ending}").write_bytes(text.encode(encoding))
    found = find_patients(tmp_path)
    assert [p.record.values["Age"] for p in found] == [61, 70]
    assert [p.outcome for p in found] == [Outcome(300, True), Outcome(900, False)]


def test_case_10_an_empty_table_is_an_error_that_names_it(tmp_path):
    small_patients(tmp_path, "A-1")
    (tmp_path / "table.csv").write_text("")
    with pytest.raises(ValueError, match=r"table\.csv: .*holds no rows"):
        find_patients(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("centres.csv", "centre,scanner\n1,a\n"),
        ("table.xls", "PK"),
        ("table.tsv", "PatientID\tAge\nA-1\t61\n"),
    ],
)
def test_case_10_a_table_that_is_not_used_is_said(tmp_path, name, text):
    small_patients(tmp_path, "A-1")
    (tmp_path / name).write_text(text)
    for found in (find_patients(tmp_path), find_scans(tmp_path)):
        assert any(f"left out: {name}: a table" in line for line in found.summary())


# --- 11: codes of an event -----------------------------------------------------------------------


def coded(root: Path, codes: tuple[str, str]) -> list[bool]:
    """Twelve patients, every third with an event; codes for none and for one."""
    ids = [f"A-{i:02d}" for i in range(12)]
    small_patients(root, *ids)
    relapsed = [i % 3 == 0 for i in range(12)]
    rows = [f"{n},{55 + i},{codes[relapsed[i]]},{300 + 40 * i}" for i, n in enumerate(ids)]
    (root / "t.csv").write_text("\n".join(["PatientID,Age,Relapse,RFS", *rows]) + "\n")
    return relapsed


def events(found) -> list[bool | None]:
    return [p.outcome and p.outcome.event for p in found]


@pytest.mark.parametrize("codes", [("1", "2"), ("2", "1"), ("-1", "9"), ("0", "2"), ("L", "D")])
def test_case_11_unknown_codes_are_refused(tmp_path, codes):
    coded(tmp_path, codes)
    with pytest.raises(ValueError, match=r"t\.csv: column 'Relapse' holds \d+ values other than"):
        find_patients(tmp_path)
    assert len(find_scans(tmp_path)) == 12


@pytest.mark.parametrize(
    "codes", [("0", "1"), ("No", "Yes"), ("FALSE", "TRUE"), ("alive", "dead"), ("0.0", "1.0")]
)
def test_case_11_known_codes(tmp_path, codes):
    assert (
        events(find_patients(tmp_path)) == relapsed if (relapsed := coded(tmp_path, codes)) else 0
    )


@pytest.mark.parametrize(
    "codes",
    [
        ("1", "2"),
        ("2", "1"),
        ("-1", "9"),
        ("no evidence", "With Tumour"),
        ("Yes", "No"),
        ("1", "0"),
    ],
)
def test_case_11_codes_that_are_said(tmp_path, codes):
    relapsed = coded(tmp_path, codes)
    names = TableNames(event_codes={codes[0].lower(): "0", codes[1].upper(): "1"})
    assert events(find_patients(tmp_path, names)) == relapsed


def test_case_11_a_code_beside_those_that_are_said_is_refused(tmp_path):
    coded(tmp_path, ("1", "0"))
    with pytest.raises(ValueError, match="holds 4 values other than 1, 2"):
        find_patients(tmp_path, TableNames(event_codes={"1": "0", "2": "1"}))


# --- 18: channels and classes by name ------------------------------------------------------------


def exchanged(root: Path, names=("PET", "CT"), folder: str = "Tr") -> None:
    """An nnU-Net data set whose channel 0 is PET, and whose labels are GTVn 1, GTVp 2."""
    label = sitk.ChangeLabel(tiny_label(), {1: 2, 2: 1})
    for path, image in {
        f"images{folder}/C_000_0000": tiny_pet(),
        f"images{folder}/C_000_0001": tiny_ct(),
        f"labels{folder}/C_000": label,
    }.items():
        file = root / f"{path}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(file))
    description = {
        "channel_names": dict(enumerate(names)),
        "labels": {"background": 0, "GTVn": 1, "GTVp": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))


@pytest.mark.parametrize("names", [("PET", "CT"), ("pt", "ct"), ("noNorm", "CT"), ("SUV", "CT")])
def test_case_18_channels_and_classes_by_name(tmp_path, names):
    exchanged(tmp_path, names)
    case = find_patients(tmp_path)[0].read()
    assert sitk.GetArrayViewFromImage(case.ct).min() == -1000
    assert sitk.GetArrayViewFromImage(case.pet).max() == 8
    expected = sitk.GetArrayFromImage(tiny_label())
    assert (sitk.GetArrayFromImage(case.truth) == expected).all()


@pytest.mark.parametrize("given", ["", "imagesTs"])
def test_case_18_in_prediction_too(tmp_path, given):
    exchanged(tmp_path, folder="Ts")
    (patient,) = find_scans(tmp_path / given)
    case = patient.read()
    assert sitk.GetArrayViewFromImage(case.ct).min() == -1000 and case.truth is None
    (tmp_path / "imagesTs" / "C_000_0000.nii.gz").unlink()  # the PET
    (patient,) = find_scans(tmp_path / given)
    with pytest.raises(CaseError, match=r"C_000_0000\.nii\.gz: image file not found"):
        patient.read()


def test_case_18_classes_do_not_matter_in_prediction(tmp_path):
    exchanged(tmp_path, folder="Ts")
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["labels"] = {"background": 0, "liver": 1, "spleen": [1, 2]}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert find_scans(tmp_path)[0].ct.name == "C_000_0001.nii.gz"


def test_case_18_channels_that_are_nobodys_are_refused(tmp_path):
    exchanged(tmp_path, ("T1", "T2"))
    with pytest.raises(ValueError, match="expected one named CT and one named PET"):
        find_patients(tmp_path)


def test_case_19_corrected_labels_are_another_state(tmp_path):
    write_patient(tmp_path, "A-1", "plain")
    (before,) = find_patients(tmp_path)
    state = before.state()
    write_patient(tmp_path, "A-1", "plain", label=tiny_label() * 0)
    (after,) = find_patients(tmp_path)
    assert state != after.state()
