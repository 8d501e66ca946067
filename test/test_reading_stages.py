"""T and N as tables write them, and the folder of HECKTOR 2026."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import tiny_ct, tiny_pet

from hmvnet.case import Stage
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.reading.folder import find_patients, find_scans
from hmvnet.reading.images import write_image
from hmvnet.reading.records import HECKTOR, HECKTOR_2026
from hmvnet.reading.stages import parse_stage

NAMES = (
    "HECKTOR_2026_Training_Task.csv",
    "HECKTOR_2026_Training.csv",
    "HECKTOR_2026_training_data.csv",
)


@pytest.mark.parametrize(
    ("value", "axis", "stage"),
    [
        ("T1", "T", "T1"),
        ("T4a", "T", "T4"),
        ("4b", "T", "T4"),
        (4.0, "T", "T4"),
        ("cT2", "T", "T2"),
        ("ypT3 (m)", "T", "T3"),
        ("t1a1", "T", "T1"),
        ("N2b", "N", "N2"),
        ("N2a-c", "N", "N2"),
        ("N0", "N", "N0"),
        (0.0, "N", "N0"),
        ("T0", "T", None),
        ("Tis", "T", None),
        ("Tx", "T", None),
        ("NX", "N", None),
        ("", "T", None),
        (None, "N", None),
    ],
)
def test_every_spelling_of_a_stage(value, axis: str, stage: str | None) -> None:
    assert parse_stage(value, axis) == stage


@pytest.mark.parametrize(
    ("value", "axis"),
    [("T5", "T"), ("N4", "N"), ("N1", "T"), ("III", "T"), (2.5, "N"), (-1.0, "T")],
)
def test_what_is_no_stage_is_refused(value, axis: str) -> None:
    with pytest.raises(ValueError, match=f"not a {axis} stage"):
        parse_stage(value, axis)


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three patients in the layout of 2026, their table under each of its names."""
    for number in (1, 2, 3):
        place = tmp_path / f"CHUM-00{number}"
        place.mkdir()
        write_image(tiny_ct(), place / f"{place.name}__CT.nii.gz", 1)
        write_image(tiny_pet(), place / f"{place.name}__PT.nii.gz", 1)
    (tmp_path / request.param).touch()
    return tmp_path


def table(folder: Path, text: str) -> None:
    (path,) = folder.glob("*.csv")
    path.write_text(text)


@pytest.mark.parametrize("names", ["T-stage,N-stage", "T_stage,N_stage"])
def test_both_spellings_of_the_columns(folder: Path, names: str) -> None:
    table(
        folder,
        f"PatientID,Age,Treatment,{names},RFS,Relapse\n"
        "CHUM-001,61,2,T4a,2,100,1\nCHUM-002,,1,T0,N2b,200,0\nCHUM-003,50,0,,Nx,300,0\n",
    )
    found = find_patients(folder, need_labels=False)
    assert [p.stage for p in found] == [Stage("T4", "N2"), Stage(None, "N2"), Stage()]
    told = "\n".join(found.summary())
    assert "T stages: T4 (1); not for staging: 2 with T0, Tx or nothing" in told
    assert "N stages: N2 (2); not for staging: 1 with Nx or nothing" in told
    cleaned, notes = HECKTOR_2026.clean([p.record for p in found])
    assert cleaned["Treatment"] == ["2", "1", "0"] and "M-stage" not in cleaned
    assert not any("Treatment" in note for note in notes)


def test_a_cell_that_is_no_stage_is_named(folder: Path) -> None:
    table(folder, "PatientID,T-stage,N-stage\nCHUM-001,T2,N1\nCHUM-002,III,N1\nCHUM-003,T1,N1\n")
    with pytest.raises(
        ValueError,
        match="column 'T-stage' holds 1 value other than T0 to T4 or Tx, the first in row 3",
    ):
        find_patients(folder, need_labels=False)
    assert len(find_scans(folder)) == 3  # who predicts does not need them


def test_two_columns_of_one_stage_are_refused(folder: Path) -> None:
    table(folder, "PatientID,T-stage,T_stage\nCHUM-001,T2,T1\n")
    with pytest.raises(ValueError, match=r"columns \['T-stage'\] more than once"):
        find_patients(folder, need_labels=False)


def test_the_table_of_factors_makes_suv(folder: Path) -> None:
    table(folder, "PatientID,T-stage\nCHUM-001,T2\nCHUM-002,T1\n")
    (folder / "suv_conversion_tags.csv").write_text(
        "pid,weight,dose,factor\nCHUM-002,70,3e8,2e-4\n"
    )
    found = find_patients(folder, need_labels=False)
    assert [p.suv_factor for p in found] == [None, 2e-4, None]
    assert found[0].stage == Stage("T2", None)


def test_factors_that_differ_are_refused(folder: Path) -> None:
    table(folder, "PatientID,T-stage\nCHUM-001,T2\n")
    path = folder / "suv_conversion_tags.csv"
    path.write_text("pid,factor\nCHUM-002,2e-4\nCHUM-002,2e-4\n")
    assert find_patients(folder, need_labels=False)[1].suv_factor == 2e-4
    path.write_text("pid,factor\nCHUM-002,2e-4\n\nCHUM-002,9e-4\n")
    with pytest.raises(ValueError, match="row 4 has another factor than a row of the same pid"):
        find_patients(folder, need_labels=False)


def test_two_columns_of_factors_are_refused(folder: Path) -> None:
    table(folder, "PatientID,T-stage\nCHUM-001,T2\n")
    (folder / "suv_conversion_tags.csv").write_text("pid,DecayFactor,factor\nCHUM-002,0.6,1\n")
    with pytest.raises(ValueError, match="expected a pid and one factor"):
        find_patients(folder, need_labels=False)


def test_a_cell_that_is_no_stage_is_named_by_its_line(folder: Path) -> None:
    table(folder, "PatientID,T-stage\n\n\nCHUM-001,T2\nCHUM-002,high\n")
    with pytest.raises(ValueError, match="the first in row 5"):
        find_patients(folder, need_labels=False)


def test_the_schema_of_2025_bears_that_nobody_has_an_m_stage(folder: Path) -> None:
    table(folder, "PatientID,Age\nCHUM-001,61\nCHUM-002,44\nCHUM-003,50\n")
    records = [p.record for p in find_patients(folder, need_labels=False)]
    values = ClinicalEncoder(HECKTOR).fit(records).transform(records)
    assert values.shape[0] == 3 and (values == values).all()
