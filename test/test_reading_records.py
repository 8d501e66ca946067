from __future__ import annotations

import json
import os
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from hmvnet.case import CaseError, ClinicalRecord
from hmvnet.reading.records import (
    HECKTOR,
    ClinicalSchema,
    Column,
    clean_scalar,
    is_missing,
    parse_record,
    read_health_record,
    read_json,
)

AGE, GENDER, TOBACCO, ALCOHOL, STATUS, TREATMENT, M_STAGE, HPV = HECKTOR.columns
OPEN = Column("site", "categorical")
CONVERTED = "text where a number was expected, converted"
NOT_FINITE = "not a finite number, treated as missing"
A_BOOLEAN = "true/false read as 1/0"
MISSING_WORD = "text read as missing"


@pytest.mark.parametrize(
    ("raw", "expected", "note"),
    [
        ({"Age": "71"}, 71.0, "converted"),
        ({"Age": float("nan")}, None, "missing"),
        ({"Age": float("inf")}, None, "missing"),
        ({"Age": None}, None, None),
        ({"Age": True}, 1.0, "true/false"),
        ({"Age": [1]}, None, "single value"),
        ({"Age": {"years": 1}}, None, "an object where a single value"),
        ({"Age": " "}, None, "missing"),
        ({"Age": "M0"}, "M0", None),
        ({"Age": 10**400}, None, "missing"),
    ],
)
def test_record_cleans_values(raw, expected, note):
    record, notes = parse_record(raw, "ehr.json")
    assert record.values["Age"] == expected
    assert (note is None and not notes) or note in notes[0]
    assert "71" not in " ".join(notes)


def test_notes_hold_no_values(tmp_path):
    (tmp_path / "ehr.json").write_text('{"Age": "71", "Gender": NaN,}')
    record, notes = read_health_record(tmp_path / "ehr.json")
    assert record.values == {"Age": 71.0, "Gender": None}
    assert len(notes) == 3 and not any("71" in w for w in notes)


def test_trailing_comma_inside_a_text_is_kept(tmp_path):
    (tmp_path / "ehr.json").write_text('{"note": "a,}", "Age": 1,}')
    assert read_health_record(tmp_path / "ehr.json")[0].values == {"note": "a,}", "Age": 1.0}


@pytest.mark.parametrize(("raw", "kind"), [([1], "an array"), (5, "a number"), (None, "null")])
def test_what_is_no_object_is_refused(raw, kind):
    with pytest.raises(CaseError, match=f"ehr.json: expected a JSON object, found {kind}"):
        parse_record(raw, "ehr.json")


@pytest.mark.parametrize(
    "word",
    ["", " ", "nan", "NaN", "NA", "n/a", "None", "NULL", "unknown", "missing", "-", "?", "<NA>"]
    + ["#N/A", "-nan", "1.#IND"],
)
def test_one_list_of_words_means_missing(word):
    assert is_missing(word)
    value, note = clean_scalar(word)
    assert value is None and "read as missing" in note
    assert clean_scalar(f" {word}\n")[0] is None


@pytest.mark.parametrize("nothing", [None, pd.NA, pd.NaT, np.datetime64("NaT")])
def test_what_libraries_call_missing_is_missing(nothing):
    assert is_missing(nothing) and clean_scalar(nothing) == (None, None)


@pytest.mark.parametrize("text", ["01", "007", "1.10", "1e3", "+5", "1_0", "9" * 20, "1.00", ".5"])
def test_a_text_that_a_number_would_change_stays_a_text(text):
    assert clean_scalar(text) == (text, None)


@pytest.mark.parametrize("text", ["0", "1", "-3", "1.0", "63.5", " 71 ", "0.25"])
def test_a_text_that_is_a_plain_number_becomes_one(text):
    assert clean_scalar(text) == (float(text), CONVERTED)


@pytest.mark.parametrize(
    "raw", [1, 2.5, True, "71", "01", "M0", "nan", " ", None, np.float32(3), [1], pd.NA, "-0.0"]
)
def test_what_is_clean_stays_as_it_is(raw):
    value, _ = clean_scalar(raw)
    assert clean_scalar(value) == (value, None)


@pytest.mark.parametrize(
    ("column", "raw", "value", "note"),
    [
        (AGE, 63, 63.0, None),
        (AGE, np.int64(63), 63.0, None),
        (AGE, "63", 63.0, CONVERTED),
        (AGE, " 63,5 ", 63.5, "as text, read as a number"),
        (AGE, "63.50", 63.5, "as text, read as a number"),
        (AGE, "063Y", 63.0, "as text, read as a number"),
        (AGE, "063", 63.0, "as text, read as a number"),
        (AGE, "756 months", 63.0, "in months, converted to years"),
        (AGE, 756, 63.0, "in months, converted to years"),
        (AGE, 63 * 365.25, 63.0, "in days, converted to years"),
        (AGE, -4, None, "outside 15 to 110 years, treated as missing"),
        (AGE, 1e9, None, "outside 15 to 110 years, treated as missing"),
        (AGE, np.inf, None, NOT_FINITE),
        (AGE, "old", None, "not a number, treated as missing"),
        (AGE, [63], None, "an array where a single value was expected, treated as missing"),
        (AGE, np.nan, None, NOT_FINITE),
        (AGE, "N/A", None, MISSING_WORD),
        (AGE, pd.NA, None, None),
        (STATUS, "1.0", 1.0, CONVERTED),
        (STATUS, ".5", 0.5, "as text, read as a number"),
        (STATUS, 7, None, "outside 0 to 4 ECOG, treated as missing"),
        (GENDER, 1, "1", None),
        (GENDER, 1.0, "1", None),
        (GENDER, True, "1", A_BOOLEAN),
        (GENDER, np.True_, "1", A_BOOLEAN),
        (GENDER, "1", "1", CONVERTED),
        (GENDER, " 1.0", "1", CONVERTED),
        (GENDER, "01", "1", "as text, read as a code"),
        (GENDER, "male", "M", "as text, read as a code"),
        (GENDER, 3, None, "with an unknown code, treated as missing"),
        (GENDER, "1a", None, "with an unknown code, treated as missing"),
        (TOBACCO, "Yes", "1", "as text, read as a code"),
        (M_STAGE, "M0", "M0", None),
        (M_STAGE, " m0 ", "M0", "as text, read as a code"),
        (M_STAGE, "MX", "Mx", "as text, read as a code"),
        (M_STAGE, 1, "M1", None),
        (M_STAGE, "M7", None, "with an unknown code, treated as missing"),
        (M_STAGE, None, None, None),
        (M_STAGE, "?", None, MISSING_WORD),
        (HPV, "unknown", None, MISSING_WORD),
        (HPV, "-", None, MISSING_WORD),
        (OPEN, "01", "01", "as text, read as a code"),
        (OPEN, 1.0, "1", None),
        (OPEN, "1.10", "1.10", None),
        (OPEN, " pT4a ", "pT4a", None),
    ],
)
def test_from_what_is_written_to_what_it_means(
    column: Column, raw: object, value: object, note: str | None
) -> None:
    """The two steps in a row; at most one of them has to repair something."""
    scalar, cleaned = clean_scalar(raw)
    found, interpreted = column.interpret(scalar)
    assert found == (pytest.approx(value) if isinstance(value, float) else value)
    assert [n for n in (cleaned, interpreted) if n] == ([note] if note else [])


@pytest.mark.parametrize(
    ("column", "text", "value", "note"),
    [
        (AGE, "63", 63.0, "as text, read as a number"),
        (AGE, np.inf, None, NOT_FINITE),
        (AGE, np.nan, None, None),
        (AGE, "N/A", None, None),
        (AGE, pd.NA, None, None),
        (STATUS, "1.0", 1.0, "as text, read as a number"),
        (GENDER, True, "1", None),
        (GENDER, "1", "1", "as text, read as a code"),
        (GENDER, " 1.0", "1", "as text, read as a code"),
        (M_STAGE, " m0 ", "M0", "as text, read as a code"),
        (HPV, "unknown", None, None),
    ],
)
def test_a_column_reads_a_value_that_nobody_cleaned(column, text, value, note):
    assert column.interpret(text) == (value, note)


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
    rows = zip([14.0, 135.0, 12.0], ["Larynx", "oropharynx", "nose"], [1, 2, 3], strict=True)
    records = [ClinicalRecord({"Haemoglobin": h, "site": s, "grade": g}) for h, s, g in rows]
    cleaned, notes = schema.clean(records)
    assert cleaned["Haemoglobin"] == [14.0, 13.5, 12.0]
    assert cleaned["site"] == ["larynx", "oropharynx", None]
    assert cleaned["grade"] == ["1", "2", "3"]
    assert "Haemoglobin: 1 value in g/L, converted to g/dL" in notes


def test_columns_are_found_in_all_records_at_once() -> None:
    """A field that one record lacks is missing there; the exact name goes before another name."""
    records = [
        ClinicalRecord({"tobacco": 1.0}),
        ClinicalRecord({}),
        ClinicalRecord({"tobacco": 0.0, "AGE": 60.0}),
    ]
    cleaned, notes = HECKTOR.clean(records)
    assert cleaned["Tobacco Consumption"] == ["1", None, "0"]
    assert cleaned["Age"] == [None, None, 60.0]
    assert "Tobacco Consumption: read from column 'tobacco'" in notes
    assert "Gender: no such column, treated as missing" in notes
    exact = ClinicalRecord({"tobacco": 1.0, "Tobacco Consumption": 0.0})
    assert HECKTOR.clean([exact])[0]["Tobacco Consumption"] == ["0"]


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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_a_record_in_another_encoding_is_read(tmp_path, encoding):
    path = tmp_path / "ehr.json"
    path.write_bytes('{"Age": 63, "Town": "K\u00f6ln"}'.encode(encoding))
    record, notes = read_health_record(path)
    assert dict(record.values) == {"Age": 63.0, "Town": "K\u00f6ln"}
    assert len(notes) == (encoding != "utf-8-sig") and all("expected UTF-8" in n for n in notes)


def test_a_record_of_no_text_is_refused(tmp_path):
    path = tmp_path / "ehr.json"
    path.write_bytes(b"\0\5\x16\7 Mac OS X \xff")
    with pytest.raises(CaseError, match=r"ehr.json: not readable as text"):
        read_health_record(path)


@pytest.mark.parametrize("digits", ["1" * 400, "-" + "9" * 5000])
def test_a_whole_number_that_no_number_holds_is_missing(tmp_path, digits):
    """Beyond 4300 digits Python's int raises."""
    (tmp_path / "ehr.json").write_text(f'{{"Age": {digits}, "Gender": 1}}')
    record, notes = read_health_record(tmp_path / "ehr.json")
    assert dict(record.values) == {"Age": None, "Gender": 1.0}
    assert notes == (f"ehr.json: field 'Age': {NOT_FINITE}",)


@pytest.mark.parametrize("first", ["Age", " Age ", r"\u0041ge"])
def test_a_field_that_is_there_twice_is_said(tmp_path, first):
    (tmp_path / "ehr.json").write_text(f'{{"{first}": 71.25, "Gender": 1, "Age": 62}}')
    record, notes = read_health_record(tmp_path / "ehr.json")
    assert dict(record.values) == {"Age": 62.0, "Gender": 1.0}
    assert len(notes) == 1 and "'Age' more than once, the last is used" in notes[0]


@pytest.mark.parametrize(
    ("name", "told"),
    [("a\nb", "a b"), ("\x1b[2J", r"\x1b[2J"), ("\ud800", r"\ud800"), ("x" * 500, "x" * 60)],
)
def test_a_fields_name_is_told_in_one_line(tmp_path, name, told):
    (tmp_path / "ehr.json").write_text(json.dumps({name: "5", "Gender": 1}))
    record, notes = read_health_record(tmp_path / "ehr.json")
    assert record.values[name] == 5.0 and notes == (f"ehr.json: field '{told}': {CONVERTED}",)


@pytest.mark.parametrize("depth", [50_000, 400_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_that_is_too_deep_is_refused(tmp_path, depth, opening):
    (tmp_path / "ehr.json").write_text((opening * depth)[: 1 << 20])
    with pytest.raises(CaseError, match=r"ehr.json: not valid JSON \(nesting\)"):
        read_health_record(tmp_path / "ehr.json")


@pytest.mark.timeout(60)
def test_a_text_without_an_end_is_refused_at_once(tmp_path):
    """The search for trailing commas once took the square of its length: hours for 1 MB."""
    (tmp_path / "ehr.json").write_text('{"a": "' + r"\"" * 500_000)
    with pytest.raises(CaseError, match="not valid JSON"):
        read_health_record(tmp_path / "ehr.json")


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "ehr.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(CaseError, match=r"ehr.json: 1073741824 bytes, expected at most 1048576"):
        read_json(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("place", ["pipe", "folder", "device"])
def test_no_file_in_a_records_place(tmp_path, place):
    path = tmp_path / "ehr.json"
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}
    make[place](path)
    with pytest.raises(CaseError, match=r"ehr.json: a folder, a pipe or a device, expected a file"):
        read_health_record(path)


def test_a_column_is_found_in_each_record_by_whatever_name_it_has_there():
    """One spelling for all once left every patient of the other table without the value."""
    records = [
        ClinicalRecord({"Tobacco": 1.0, "Age": 60.0}),
        ClinicalRecord({"tobacco consumption": 0.0, "age": 61.0}),
        ClinicalRecord({"Tobacco Consumption": None, "Tobacco": 1.0}),
        ClinicalRecord({"Tobacco Consumption": 0.0, "Tobacco": 1.0}),
    ]
    cleaned, notes = ClinicalSchema((AGE, TOBACCO)).clean(records)
    assert cleaned == {
        "Age": [60.0, 61.0, None, None],
        "Tobacco Consumption": ["1", "0", "1", "0"],
    }
    assert "Age: read from column 'age'" in notes
    assert "Tobacco Consumption: 1 value that differ between these columns, the first is used" in (
        notes
    )
    for record, said in zip(records, cleaned["Tobacco Consumption"], strict=True):
        alone, _ = ClinicalSchema((AGE, TOBACCO)).clean([record])
        assert alone["Tobacco Consumption"] == [said]


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        (Column("x", "numeric"), "1,050", None),  # 1050 or 1.05
        (Column("x", "numeric", low=100, high=1000), "1,050", None),  # neither
        (Column("x", "numeric", low=100, high=2000), "1,050", 1050.0),
        (Column("x", "numeric", low=0, high=10), "1,050", 1.05),
        (Column("x", "numeric"), "0,050", 0.05),
        (Column("x", "numeric"), "1,05", 1.05),
        (Column("x", "numeric"), "1234,567", 1234.567),
        (AGE, "63,512", 63.512),
        (AGE, "23,011", None),  # 23 years, or 63 in days
    ],
)
def test_a_comma_that_may_part_thousands_is_read_where_one_way_alone_is_plausible(
    column, text, value
):
    found, note = column.interpret(text)
    assert found == (None if value is None else pytest.approx(value))
    assert note


def test_a_word_for_missing_is_no_code():
    for raw in ({"codes": "none,left,right"}, {"codes": "0,1", "aliases": {"unknown": "0"}}):
        with pytest.raises(
            ValueError, match=r"column 'side': \['(none|unknown)'\] is read as miss"
        ):
            ClinicalSchema.from_dict({"side": {"kind": "categorical", **raw}})
