from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hmvnet.case import ClinicalRecord
from hmvnet.clinical import (
    HECKTOR,
    ClinicalEncoder,
    ClinicalSchema,
    Column,
    clean_value,
    read_outcome_table,
)

AGE, GENDER, TOBACCO, ALCOHOL, STATUS, TREATMENT, M_STAGE, HPV = HECKTOR.columns


def training_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Age": [50.0, 60.0, 70.0, np.nan],
            "Gender": [0, 1, 1, 1],
            "Tobacco Consumption": [0.0, 1.0, np.nan, 1.0],
            "Alcohol Consumption": [0, 1, 0, 1],
            "Performance Status": [0, 1, 2, 1],
            "Treatment": [1, 1, 1, 1],
            "M-stage": ["M0", "M0", "M1", "Mx"],
            "HPV Status": [np.nan, 1.0, 0.0, np.nan],
            "CenterID": [1, 2, 3, 4],
        }
    )


def encoded(encoder: ClinicalEncoder, **values: object) -> dict[str, float]:
    record = {"Age": 60, "Gender": 1, "Performance Status": 1, "M-stage": "M0", **values}
    vector, _ = encoder.transform_record(record)
    return dict(zip(encoder.feature_names_, vector.tolist(), strict=True))


@pytest.fixture
def encoder() -> ClinicalEncoder:
    return ClinicalEncoder(HECKTOR).fit(training_table())


@pytest.mark.parametrize(
    ("column", "raw", "value", "note"),
    [
        (AGE, 63, 63.0, None),
        (AGE, np.int64(63), 63.0, None),
        (AGE, "63", 63.0, "as text, read as a number"),
        (AGE, " 63,5 ", 63.5, "as text, read as a number"),
        (AGE, "063Y", 63.0, "as text, read as a number"),
        (AGE, "756 months", 63.0, "in months, converted to years"),
        (AGE, 756, 63.0, "in months, converted to years"),
        (AGE, 63 * 365.25, 63.0, "in days, converted to years"),
        (AGE, -4, None, "outside 15 to 110 years, treated as missing"),
        (AGE, 1e9, None, "outside 15 to 110 years, treated as missing"),
        (AGE, np.inf, None, "not a finite number, treated as missing"),
        (AGE, "old", None, "not a number, treated as missing"),
        (AGE, [63], None, "not a number, treated as missing"),
        (AGE, np.nan, None, None),
        (AGE, "N/A", None, None),
        (AGE, pd.NA, None, None),
        (STATUS, "1.0", 1.0, "as text, read as a number"),
        (STATUS, 7, None, "outside 0 to 4 ECOG, treated as missing"),
        (GENDER, 1, "1", None),
        (GENDER, 1.0, "1", None),
        (GENDER, True, "1", None),
        (GENDER, "1", "1", "as text, read as a code"),
        (GENDER, " 1.0", "1", "as text, read as a code"),
        (GENDER, "male", "M", "as text, read as a code"),
        (GENDER, 3, None, "with an unknown code, treated as missing"),
        (TOBACCO, "Yes", "1", "as text, read as a code"),
        (M_STAGE, "M0", "M0", None),
        (M_STAGE, " m0 ", "M0", "as text, read as a code"),
        (M_STAGE, "MX", "Mx", "as text, read as a code"),
        (M_STAGE, 1, "M1", None),
        (M_STAGE, "M7", None, "with an unknown code, treated as missing"),
        (M_STAGE, None, None, None),
        (HPV, "unknown", None, None),
    ],
)
def test_clean_value(column: Column, raw: object, value: object, note: str | None) -> None:
    found, repair = clean_value(column, raw)
    assert found == (pytest.approx(value) if isinstance(value, float) else value)
    assert repair == note


def test_layout(encoder: ClinicalEncoder) -> None:
    assert encoder.feature_names_ == (
        "Age",
        "Age=missing",
        "Gender=1",
        "Tobacco Consumption=0",
        "Tobacco Consumption=1",
        "Tobacco Consumption=missing",
        "Alcohol Consumption=1",
        "Performance Status",
        "M-stage=M0",
        "M-stage=M1",
        "M-stage=Mx",
        "HPV Status=0",
        "HPV Status=1",
        "HPV Status=missing",
    )
    assert "Treatment: the same in all training patients, left out" in encoder.report_


def test_every_output_column_varies_in_training(encoder: ClinicalEncoder) -> None:
    x = encoder.transform(training_table())
    assert x.dtype == np.float32
    assert x.shape == (4, len(encoder.feature_names_))
    assert np.isfinite(x).all()
    assert (x.std(axis=0) > 0).all()


def test_numbers_are_standardised_and_missing_is_the_median(encoder: ClinicalEncoder) -> None:
    observed = np.array([50.0, 60.0, 70.0])
    assert encoded(encoder, Age=70)["Age"] == pytest.approx(10 / observed.std())
    missing = encoded(encoder, Age=None)
    assert missing["Age"] == pytest.approx(0.0)
    assert (missing["Age=missing"], encoded(encoder, Age=70)["Age=missing"]) == (1.0, 0.0)


def test_missing_is_a_category_where_training_had_it(encoder: ClinicalEncoder) -> None:
    row = encoded(encoder, **{"HPV Status": None})
    assert [row[f"HPV Status={k}"] for k in ("0", "1", "missing")] == [0.0, 0.0, 1.0]


def test_missing_is_neutral_where_training_had_none(encoder: ClinicalEncoder) -> None:
    row = encoded(encoder, Gender=None, **{"M-stage": None})
    assert row["Gender=1"] == pytest.approx(0.75)
    assert [row[f"M-stage={k}"] for k in ("M0", "M1", "Mx")] == [0.5, 0.25, 0.25]


def test_category_not_seen_in_training_is_missing_and_reported(encoder: ClinicalEncoder) -> None:
    vector, notes = encoder.transform_record({"Gender": "F"})
    row = dict(zip(encoder.feature_names_, vector, strict=True))
    assert row["Gender=1"] == pytest.approx(0.75)
    assert "Gender: 1 value with a category not seen in training, treated as missing" in notes


def test_nothing_of_a_test_patient_changes_the_encoder(encoder: ClinicalEncoder) -> None:
    before = json.dumps(encoder.state())
    encoder.transform(training_table().assign(Age=99.0, Gender="F"))
    assert json.dumps(encoder.state()) == before


def test_notes_count_and_hold_no_patient_value() -> None:
    table = training_table().astype(object)
    table["Age"] = [612.0, 731, "sixty-six-and-a-half", None]
    table["M-stage"] = ["M0 ", "M9x", "M9x", "M1"]
    notes = ClinicalEncoder(HECKTOR).fit(table).report_
    assert "Age: 2 values in months, converted to years" in notes
    assert "Age: 1 value not a number, treated as missing" in notes
    assert "M-stage: 2 values with an unknown code, treated as missing" in notes
    assert "M-stage: 1 value as text, read as a code" in notes
    assert not any(text in note for note in notes for text in ("612", "731", "sixty", "M9x"))


def test_age_in_months_encodes_as_in_years(encoder: ClinicalEncoder) -> None:
    years, months = (encoder.transform(training_table().assign(Age=a)) for a in (55, 55 * 12))
    np.testing.assert_allclose(years, months, atol=1e-6)


def test_columns_are_found_by_their_other_names() -> None:
    renamed = training_table().rename(
        columns={"Tobacco Consumption": "Tobacco", "M-stage": "m_stage", "Age": "AGE"}
    )
    encoder = ClinicalEncoder(HECKTOR).fit(renamed)
    expected = ClinicalEncoder(HECKTOR).fit(training_table())
    np.testing.assert_array_equal(encoder.transform(renamed), expected.transform(training_table()))
    assert "M-stage: read from column 'm_stage'" in encoder.report_


def test_column_that_is_not_there_is_missing(encoder: ClinicalEncoder) -> None:
    vector, notes = encoder.transform_record({})
    assert np.isfinite(vector).all()
    assert "Age: no such column, treated as missing" in notes


def test_the_centre_is_no_feature(encoder: ClinicalEncoder) -> None:
    assert not any("enter" in name for name in encoder.feature_names_)
    moved = training_table().assign(CenterID=7)
    np.testing.assert_array_equal(encoder.transform(moved), encoder.transform(training_table()))


def test_record_and_table_agree(encoder: ClinicalEncoder) -> None:
    table = training_table()
    for row, expected in zip(table.to_dict("records"), encoder.transform(table), strict=True):
        record, _ = ClinicalRecord.parse(row, "ehr.json")
        np.testing.assert_array_equal(encoder.transform_record(record)[0], expected)
        np.testing.assert_array_equal(encoder.transform_record(row)[0], expected)


def test_state_survives_json(encoder: ClinicalEncoder) -> None:
    again = ClinicalEncoder.from_state(json.loads(json.dumps(encoder.state())))
    odd = training_table().assign(Gender="F", Age=700)
    assert again.feature_names_ == encoder.feature_names_
    assert again.schema == encoder.schema
    np.testing.assert_array_equal(again.transform(odd), encoder.transform(odd))


def test_no_rows(encoder: ClinicalEncoder) -> None:
    assert encoder.transform(training_table().iloc[:0]).shape == (0, len(encoder.feature_names_))
    with pytest.raises(ValueError, match="without training patients"):
        ClinicalEncoder(HECKTOR).fit(training_table().iloc[:0])


def test_schema_of_texts_as_from_a_settings_file() -> None:
    schema = ClinicalSchema.from_dict(
        {
            "Haemoglobin": {
                "kind": "numeric",
                "low": "4",
                "high": "22",
                "unit": "g/dL",
                "other_units": {"g/L": "0.1"},
            },
            "site": {"kind": "categorical", "codes": "larynx, oropharynx"},
            "grade": {"kind": "categorical"},
        }
    )
    assert ClinicalSchema.from_dict(schema.to_dict()) == schema
    table = pd.DataFrame(
        {
            "Haemoglobin": [14.0, 135.0, 12.0],
            "site": ["Larynx", "oropharynx", "nose"],
            "grade": [1, 2, 3],
        }
    )
    cleaned, notes = schema.clean(table)
    assert cleaned["Haemoglobin"].tolist() == [14.0, 13.5, 12.0]
    assert cleaned["site"].tolist() == ["larynx", "oropharynx", None]
    assert cleaned["grade"].tolist() == ["1", "2", "3"]
    assert "Haemoglobin: 1 value in g/L, converted to g/dL" in notes


def test_hecktor_schema_survives_json() -> None:
    assert ClinicalSchema.from_dict(json.loads(json.dumps(HECKTOR.to_dict()))) == HECKTOR


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "without columns"),
        ({"Age": {"kind": "number"}}, "'Age': kind must be"),
        ({"Age": {"kind": "numeric", "hihg": 3}}, r"'Age': unknown \['hihg'\]"),
        ({"Age": {"kind": "numeric", "low": "a"}}, "'Age': could not convert"),
        ({"Age": {"kind": "numeric", "low": 9, "high": 3}}, "low 9 is above high 3"),
        ({"M": {"kind": "categorical", "codes": "a", "aliases": {"x": "b"}}}, "no codes"),
    ],
)
def test_malformed_schema_is_named(raw: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClinicalSchema.from_dict(raw)


def test_malformed_state_is_named(encoder: ClinicalEncoder) -> None:
    state = encoder.state()
    with pytest.raises(ValueError, match="encodings"):
        ClinicalEncoder.from_state({"schema": state["schema"]})
    del state["schema"]["Gender"]
    with pytest.raises(ValueError, match="'Gender'"):
        ClinicalEncoder.from_state(state)


def test_outcome_table(tmp_path: Path) -> None:
    first, second = tmp_path / "clinical.csv", tmp_path / "targets.csv"
    first.write_text("id,age\n001,60\n002,61\n003,62\n004,63\n")
    second.write_text("id,relapse,days,last\n002,yes,100,400\n001,no,,500\n003,,,300\n")
    outcomes = read_outcome_table(
        [first, second], patient="id", time="days", event="relapse", follow_up="last"
    )
    assert outcomes.table.index.tolist() == ["001", "002"]
    assert outcomes.table.columns.tolist() == ["age"]
    assert outcomes.time.tolist() == [500.0, 100.0]
    assert outcomes.event.tolist() == [False, True]
    assert outcomes.notes == ("2 values without an outcome, left out",)


def test_outcome_table_names_what_is_wrong(tmp_path: Path) -> None:
    path, twice = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text("id,RFS,Relapse\n1,10,0\n")
    twice.write_text("id,x\n1,10\n1,11\n")
    names = {"patient": "id", "time": "RFS", "event": "Relapse"}
    with pytest.raises(ValueError, match=r"a.csv: no column \['Recurrence'\]"):
        read_outcome_table([path], **(names | {"event": "Recurrence"}))
    with pytest.raises(ValueError, match=r"b.csv: a patient occurs more than once"):
        read_outcome_table([path, twice], **names)
    with pytest.raises(ValueError, match=r"a.csv: columns .* earlier table"):
        read_outcome_table([path, path], **names)
    with pytest.raises(ValueError, match=r"none.csv: not readable"):
        read_outcome_table([tmp_path / "none.csv"], **names)
