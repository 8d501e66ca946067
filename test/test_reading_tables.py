from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hmvnet.bundle import fingerprint
from hmvnet.case import Outcome
from hmvnet.reading import frames
from hmvnet.reading.names import LeftOut
from hmvnet.reading.outcomes import TableNames
from hmvnet.reading.records import clean_scalar
from hmvnet.reading.tables import (
    OutcomeTable,
    match_names,
    read_outcome_table,
    read_records,
    read_tables,
)
from hmvnet.table_files import write_table

NAMES = {"patient": "id", "time": "RFS", "event": "Relapse"}


def outcomes_in(*paths: Path, **names) -> OutcomeTable:
    return read_outcome_table(paths, TableNames(**names))


def test_outcome_table(tmp_path: Path) -> None:
    first, second = tmp_path / "clinical.csv", tmp_path / "targets.csv"
    first.write_text("id,age\n001,60\n002,61\n003,62\n004,63\n")
    second.write_text("id,relapse,days,last\n002,yes,100,400\n001,no,,500\n003,,,300\n")
    outcomes = outcomes_in(
        first, second, patient="id", time="days", event="relapse", follow_up="last"
    )
    assert outcomes.ids == ("001", "002")
    assert outcomes.columns == ("age",)
    assert [dict(r.values) for r in outcomes.records] == [{"age": 60.0}, {"age": 61.0}]
    assert outcomes.outcomes == (Outcome(500.0, False), Outcome(100.0, True))
    assert outcomes.notes == (
        "targets.csv: holds 3 of the 4 patients",
        "2 values without an outcome, left out",
    )


@pytest.mark.parametrize(
    ("unit", "days"), [("days", 1.0), ("weeks", 7.0), ("months", 30.4375), ("years", 365.25)]
)
def test_times_in_another_unit_are_days(unit, days, tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("id,time,event\na,2,1\nb,3.5,0\n")
    columns = {"patient": "id", "time": "time", "event": "event"}
    found = outcomes_in(path, **columns, time_unit=unit)
    assert [outcome.days for outcome in found.outcomes] == [2 * days, 3.5 * days]
    path.write_text("id,time,event\na,2020-01-01,1\n")
    with pytest.raises(ValueError, match=f"other than a number of {unit}"):
        outcomes_in(path, **columns, time_unit=unit)
    with pytest.raises(ValueError, match="time unit 'moons': expected one of days, weeks"):
        outcomes_in(path, **columns, time_unit="moons")


def test_outcome_table_names_what_is_wrong(tmp_path: Path) -> None:
    path, twice = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text("id,RFS,Relapse\n1,10,0\n")
    twice.write_text("id,x\n1,10\n1,11\n")
    with pytest.raises(ValueError, match=r"a.csv: no column \['Recurrence'\]"):
        outcomes_in(path, **(NAMES | {"event": "Recurrence"}))
    with pytest.raises(ValueError, match=r"b.csv: rows 2 and 3 are of one patient and differ"):
        outcomes_in(path, twice, **NAMES)
    with pytest.raises(ValueError, match=r"a.csv: columns .* earlier table"):
        outcomes_in(path, path, **NAMES)
    with pytest.raises(ValueError, match=r"none.csv: not readable"):
        outcomes_in(tmp_path / "none.csv", **NAMES)
    twice.write_text("id,x,x \n1,10,11\n")
    with pytest.raises(ValueError, match=r"b.csv: .*columns \['x'\] more than once"):
        outcomes_in(path, twice, **NAMES)


@pytest.mark.parametrize(
    "text", ["01", "1.0", "71", " M0 ", "-", "?", "unknown", "NA", "#N/A", "nan", "", "yes", "1e3"]
)
def test_a_cell_is_cleaned_as_a_json_value(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    # The second row makes it a column of texts.
    path.write_text(f"id,RFS,Relapse,x\n1,10,0,{text}\n2,10,1,word\n")
    record = outcomes_in(path, **NAMES).records[0]
    assert record.values["x"] == clean_scalar(text)[0]


def test_codes_of_a_table_are_the_categories_they_were(tmp_path: Path) -> None:
    """A column of digits is one of numbers, zeros or not; beside a word the texts stay."""
    path = tmp_path / "a.csv"
    path.write_text("id,RFS,Relapse,digits,mixed\n1,10,0,01,01\n2,10,1,02,2a\n3,5,1,,1\n")
    records = outcomes_in(path, **NAMES).records
    assert [r.values["digits"] for r in records] == [1.0, 2.0, None]
    assert [r.values["mixed"] for r in records] == ["01", "2a", 1.0]


def test_notes_on_cells_are_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,RFS,Relapse,x\n1,10,0,63\n2,10,1,old\n3,10,1,64\n4,10,1,\n5,9,0,?\n")
    assert outcomes_in(path, **NAMES).notes == (
        "a.csv: field 'x': text where a number was expected, converted (2 values)",
        "a.csv: field 'x': text read as missing (1 value)",
    )


def test_the_table_of_the_higher_task_wins_where_it_says_something(tmp_path: Path) -> None:
    for task, text in {
        "Task 1": "PatientID,Age,Gender,Site\n001,60,1,a\n002,61,0,b\n",
        "Task 2": "PatientID,Age,Gender,RFS,Relapse\n001,62,,100,1\n003,70,-,,0\n",
    }.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / f"table {task}.csv").write_text(text)
    (tmp_path / "notes.csv").write_text("who,what\na,b\na,c\n")
    found = read_tables(tmp_path)
    assert list(found) == ["001", "002", "003"]
    assert {name: dict(known.record.values) for name, known in found.items()} == {
        "001": {"Age": 62.0, "Gender": 1.0, "Site": "a"},
        "002": {"Age": 61.0, "Gender": 0.0, "Site": "b"},
        "003": {"Age": 70.0, "Gender": None},
    }
    assert [known.outcome for known in found.values()] == [Outcome(100.0, True), None, None]


@pytest.mark.parametrize(
    ("event", "days", "outcome"),
    [
        ("1", "812", Outcome(812.0, True)),
        ("0.0", "812.5", Outcome(812.5, False)),
        ("yes", "10", Outcome(10.0, True)),
        ("Dead", "10", Outcome(10.0, True)),
        ("alive", "10", Outcome(10.0, False)),
        ("False", "10", Outcome(10.0, False)),
        ("", "10", None),
        ("1", "", None),
        ("unknown", "10", None),
    ],
)
def test_outcomes_beside_the_patients(tmp_path: Path, event: str, days: str, outcome) -> None:
    (tmp_path / "a.csv").write_text(f"PatientID,RFS,Relapse\nA-1,{days},{event}\n")
    known = read_tables(tmp_path)["A-1"]
    assert known.outcome == outcome and not known.record.values


@pytest.mark.parametrize("days", ["long", "-3", "12 months"])
def test_a_time_that_is_no_number_of_days_is_refused(tmp_path: Path, days: str) -> None:
    """Left out without a word it would cost its patient."""
    (tmp_path / "a.csv").write_text(f"PatientID,RFS,Relapse\nA-1,10,1\nA-2,{days},0\n")
    with pytest.raises(ValueError, match=r"a.csv: column 'RFS' holds 1 value other than a number"):
        read_tables(tmp_path)
    assert set(read_records(tmp_path)) == {"A-1", "A-2"}


@pytest.mark.parametrize("code", ["2", "-1", "perhaps"])
def test_an_event_of_another_code_is_refused(tmp_path: Path, code: str) -> None:
    """1 = censored and 2 = relapse, as R's survival has it, would turn the outcomes round."""
    path = tmp_path / "a.csv"
    path.write_text(f"PatientID,RFS,Relapse\nA-1,10,1\nA-2,20,{code}\n")
    message = r"a.csv: column 'Relapse' holds 1 value other than 0/1"
    with pytest.raises(ValueError, match=message):
        read_tables(tmp_path)
    with pytest.raises(ValueError, match=message):
        outcomes_in(path, **(NAMES | {"patient": "PatientID"}))


def test_names_are_texts_without_outer_blanks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("PatientID, Age\n001 ,60\n002,61\n")
    assert {k: dict(v.record.values) for k, v in read_tables(tmp_path).items()} == {
        "001": {"Age": 60.0},
        "002": {"Age": 61.0},
    }
    (tmp_path / "b.csv").write_text("PatientID,Age\n001,60\n001 ,61\n")
    with pytest.raises(ValueError, match=r"b.csv: rows 2 and 3 are of one patient and differ"):
        read_tables(tmp_path)


def test_a_table_without_missing_cells_is_the_same_as_by_pandas(tmp_path: Path) -> None:
    frame = pd.DataFrame({"PatientID": ["A", "B"], "Age": [60.25, 1 / 3], "Sex": ["F", "M"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    found = read_tables(tmp_path)
    assert [dict(found[name].record.values) for name in "AB"] == [
        {"Age": 60.25, "Sex": "F"},
        {"Age": 1 / 3, "Sex": "M"},
    ]


HEAD, ROWS = "PatientID,Age,Relapse,RFS\n", "A-1,61.5,1,300\nA-2,70,0,900\n"
SPREADSHEETS = {
    "as it is": (HEAD + ROWS, "utf-8"),
    "marked": (HEAD + ROWS, "utf-8-sig"),
    "semicolons": ((HEAD + ROWS).replace(",", ";"), "utf-8"),
    "decimal commas": ((HEAD + ROWS).replace(",", ";").replace(".", ","), "utf-8"),
    "tabs": ((HEAD + ROWS).replace(",", "\t"), "utf-8"),
    "bars": ((HEAD + ROWS).replace(",", "|"), "utf-8"),
    "separator said": ("sep=;\r\n" + (HEAD + ROWS).replace(",", ";"), "utf-8"),
    "utf-16": (HEAD + ROWS, "utf-16"),
    "utf-16 unmarked": (HEAD + ROWS, "utf-16-le"),
    "utf-16 unmarked, big endian": (HEAD + ROWS, "utf-16-be"),
    "latin-1": (HEAD.strip() + ",Town\n" + ROWS.replace("300", "300,K\u00f6ln"), "latin-1"),
    "blanks in header": (HEAD.replace(",", " , ") + ROWS, "utf-8"),
    "blanks in names": (HEAD + ROWS.replace("A-1", " A-1 "), "utf-8"),
    "blanks before quotes": (HEAD + ROWS.replace(",61.5", ', "61.5"'), "utf-8"),
    "Patient ID": (HEAD.replace("PatientID", "Patient ID") + ROWS, "utf-8"),
    "id": (HEAD.replace("PatientID", "id") + ROWS, "utf-8"),
    "upper case": (HEAD.upper().replace("AGE", "Age") + ROWS, "utf-8"),
    "blank rows": ("\n,,,\n" + HEAD + ",,,\n" + ROWS + ",,,\n\n", "utf-8"),
    "separators at the end of rows": (HEAD + ROWS.replace("\n", ",\n"), "utf-8"),
    "numbered rows": (",PatientID,Age,Relapse,RFS\n0,A-1,61.5,1,300\n1,A-2,70,0,900\n", "utf-8"),
    "Windows' line ends": ((HEAD + ROWS).replace("\n", "\r\n"), "utf-8"),
    "old Macs' line ends": ((HEAD + ROWS).replace("\n", "\r"), "utf-8"),
    "columns in another order": (
        "RFS,Age,PatientID,Relapse\n300,61.5,A-1,1\n900,70,A-2,0\n",
        "utf-8",
    ),
}


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_a_table_is_read_as_a_spreadsheet_saves_it(tmp_path: Path, kind: str) -> None:
    text, encoding = SPREADSHEETS[kind]
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    found = read_tables(tmp_path, ["A-1", "A-2"])
    assert [known.record.values["Age"] for known in found.values()] == [61.5, 70.0]
    outcomes = [known.outcome for known in found.values()]
    assert outcomes == [Outcome(300.0, True), Outcome(900.0, False)]
    if kind == "latin-1":
        assert found["A-1"].record.values["Town"] == "K\u00f6ln"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv: not readable as a CSV table: it holds no rows"),
        ("\n,,\n", "a.csv: not readable as a CSV table: it holds no rows"),
        ("\0\5\x16\7" + "x" * 40, "a.csv: not readable as a CSV table: not readable as text"),
        (HEAD + "A-1,61,1,300,7\n", "a.csv: .*row 2 has 5 cells, the header 4"),
        (HEAD + 'A-1,"61,1,300\n', "a.csv: not readable as a CSV table: unexpected end of data"),
        (HEAD + ROWS + ",60,1,5\n", "a.csv: 1 rows without a name in column 'PatientID'"),
        (
            HEAD + ROWS.replace("A-", "B-"),
            "a.csv: names none of the patients; found .*'A-0', expected 'A-0'",
        ),
        (HEAD.replace("PatientID", "Who") + ROWS, r"a.csv: outcomes without a column of patients"),
        (
            HEAD.replace("Age", "Patient_ID") + ROWS,
            r"a.csv: columns \['PatientID'\] more than once",
        ),
        # A comma that may part thousands: 1,234 days or 1.234?
        ("PatientID;Relapse;RFS\nA-1;1;1,234\n", "a.csv: column 'RFS' holds 1 value other than"),
        (
            "PatientID;Relapse;RFS;Age\nA-1;1;1.234;62,5\nA-2;0;812;58,1\n",
            r"columns \['Age'\] have decimal commas and columns \['RFS'\] points that may part",
        ),
        # A decimal comma beside a decimal point.
        ("PatientID;Relapse;RFS\nA-1;1;1,5\nA-2;0;2.5\n", "a.csv: column 'RFS' holds 1 value"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text, newline="")
    with pytest.raises(ValueError, match=message):
        read_tables(tmp_path, ["A-1", "A-2"])


def test_a_table_beyond_all_measure_is_refused_unread(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.csv").write_text(HEAD + ROWS)
    monkeypatch.setattr(frames, "MOST_BYTES", len(HEAD + ROWS))
    assert len(read_tables(tmp_path)) == 2
    monkeypatch.setattr(frames, "MOST_BYTES", len(HEAD + ROWS) - 1)
    with pytest.raises(ValueError, match=r"a\.csv: .* bytes, expected at most"):
        read_tables(tmp_path)


def test_companions_of_a_mac_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD + ROWS)
    (tmp_path / "._a.csv").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X\xff\xfe")
    assert set(read_tables(tmp_path)) == {"A-1", "A-2"}


@pytest.mark.parametrize(
    ("wanted", "found", "pairs"),
    [
        (["001", "002"], ["1", "2"], {"001": "1", "002": "2"}),
        (["001", "1"], ["1"], {"1": "1"}),  # 001 is another patient
        (["001"], ["1", "01"], {}),
        (["1", "01"], ["001"], {}),
        (["7"], ["7.0"], {"7": "7.0"}),
        (["000"], ["0"], {"000": "0"}),
        (["A-1"], ["A-01"], {}),
        (["1"], ["10", "2"], {}),
    ],
)
def test_numbers_as_names_match_where_that_is_unambiguous(wanted, found, pairs) -> None:
    assert match_names(wanted, found) == pairs


def test_a_match_without_leading_zeros_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("PatientID,Age,Relapse,RFS\n1,61,1,300\n2,70,0,900\n")
    found = read_tables(tmp_path, ["001", "2", "x"])
    assert found["001"].record.values["Age"] == 61 and set(found) == {"001", "2"}
    assert found["001"].notes == ("a.csv: the row of '1' is used",) and found["2"].notes == ()
    (tmp_path / "b.csv").write_text("PatientID,HPV\n01,1\n")
    outcomes = outcomes_in(
        tmp_path / "a.csv", tmp_path / "b.csv", **(NAMES | {"patient": "PatientID"})
    )
    assert outcomes.records[0].values["HPV"] == 1
    assert outcomes.notes == (
        "b.csv: 1 value of 'PatientID' matched without their leading zeros",
        "b.csv: holds 1 of the 2 patients",
    )


@pytest.mark.parametrize("name", ["NA", "nan", "null", "1e5", "0012"])
def test_names_are_what_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text(f"PatientID,Age\n{name},60\n")
    assert list(read_tables(tmp_path)) == [name]


def test_a_date_for_a_time_is_refused_and_a_negative_time_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,RFS,Relapse,last\n1,-7,1,9\n2,5,0,9\n")
    found = outcomes_in(path, **NAMES)
    assert found.ids == ("2",) and found.notes == ("1 value without an outcome, left out",)
    for rows in ("1,2024-03-01,1,9\n", "1,12 months,1,9\n", "1,,0,01/02/2024\n"):
        path.write_text("id,RFS,Relapse,last\n" + rows)
        with pytest.raises(ValueError, match=r"a.csv: column '\w+' holds 1 value other than"):
            outcomes_in(path, **NAMES, follow_up="last")


def test_columns_by_other_names_beside_images(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "Fall,id,days,died,last seen\nA-1,x,300,2,310\nA-2,y,,1,900\n", encoding="utf-8"
    )
    names = TableNames("Fall", "days", "died", "last seen", {"1": "0", "2": "1"})
    found = read_tables(tmp_path, ["A-1", "A-2"], names)
    assert [k.outcome for k in found.values()] == [Outcome(300.0, True), Outcome(900.0, False)]
    assert [dict(k.record.values) for k in found.values()] == [{"id": "x"}, {"id": "y"}]


@pytest.mark.parametrize(
    "codes", [{"1": "0", "yes": "1"}, {"1": "0", "01": "1"}, {"d": "0", "D": "1"}]
)
def test_codes_of_an_event_that_contradict_each_other_are_refused(codes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="two of them mean the same"):
        TableNames(event_codes=codes)


def test_a_column_named_in_the_settings_that_no_table_has_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("PatientID,RFS,Relapse\nA-1,300,1\n")
    (tmp_path / "b.csv").write_text("PatientID,Dead At\nA-1,300\n")
    assert read_tables(tmp_path, ["A-1"], TableNames(time="dead_at"))["A-1"].outcome
    for name in ("patient", "time", "event", "follow_up"):
        with pytest.raises(ValueError, match=r"no table with a column \['wrong'\]"):
            read_tables(tmp_path, ["A-1"], TableNames(**{name: "wrong"}))
    (tmp_path / "empty").mkdir()
    assert read_tables(tmp_path / "empty", ["A-1"], TableNames(event="wrong")) == {}


@pytest.mark.parametrize("codes", [{"1": "0", "2": "1"}, {"01": "0", "02": "1"}])
def test_codes_of_an_event_in_tables_alone(tmp_path: Path, codes: dict[str, str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,RFS,Relapse\n1,10,1\n2,20,2\n3,30,\n")
    found = outcomes_in(path, **NAMES, event_codes=codes)
    assert found.outcomes == (Outcome(10.0, False), Outcome(20.0, True))
    path.write_text("id,RFS,Relapse\n1,10,1\n2,20,0\n")
    with pytest.raises(ValueError, match=r"column 'Relapse' holds 1 value other than 0?1, 0?2"):
        outcomes_in(path, **NAMES, event_codes=codes)


@pytest.mark.parametrize(
    "text",
    [
        "A-1,71,812,1\nA-2,64,300,0\n",  # no header
        "A-1,71,812,71\nA-2,64,300,0\n",
        "PatientID,Relapse,RFS\nA-1,7181,812\n",
        "PatientID,Relapse,RFS\nA-1,1,7181 d\n",
        "PatientID,Relapse,RFS\nA-1,1,812,7181\n",
        'PatientID,Relapse,RFS\nA-1,1,"7181\n',
        "PatientID,Relapse,RFS\nA-1,1,7181\nA-1,1,812\n",
        "PatientID,Relapse,RFS\n,7181,812\n",
        "Relapse,RFS,71\n1,812,7181\n",
    ],
)
def test_no_message_holds_a_patients_value(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    messages = []
    names = NAMES | {"patient": "PatientID"}
    for read in (lambda: read_tables(tmp_path), lambda: outcomes_in(path, **names)):
        try:
            read()
        except ValueError as error:
            messages.append(str(error))
    messages = [message.replace(str(tmp_path), "") for message in messages]
    assert messages and not any("71" in m or "812" in m for m in messages)


@pytest.mark.parametrize("name", ["=1+1", "+A", "-1x", "@b", "'=1", "<script>", "a;b", 'c"d'])
def test_a_table_that_we_wrote_is_read_as_it_was(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"PatientID": [name], "Site": ["=x()"], "RFS": [-0.0], "Relapse": [1]})
    write_table(table, tmp_path / "a.csv")
    known = read_tables(tmp_path, [name])[name]
    assert dict(known.record.values) == {"Site": "=x()"} and known.outcome == Outcome(0.0, True)


def test_a_table_of_nobody_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("A-1,71,812,1\nA-2,64,300,0\n")  # no header
    left_out: list[LeftOut] = []
    assert read_tables(tmp_path, ["A-1"], left_out=left_out) == {}
    assert left_out == [(tmp_path / "a.csv", "a table without a column PatientID")]


@pytest.mark.parametrize("none", ["none", "None", "NA", "-"])
def test_a_code_of_the_event_may_be_a_word_for_missing(tmp_path: Path, none: str) -> None:
    (tmp_path / "a.csv").write_text(
        f"PatientID,RFS,Relapse,Site\na,100,{none},-\nb,110,local,x\nc,90,,y\n"
    )
    names = TableNames(event_codes={none.lower(): "0", "local": "1", "distant": "1"})
    found = read_tables(tmp_path, None, names)
    assert found["a"].outcome == Outcome(100.0, False)
    assert found["b"].outcome == Outcome(110.0, True) and found["c"].outcome is None
    assert found["a"].record.values == {"Site": None}
    table = outcomes_in(tmp_path / "a.csv", patient="PatientID", event_codes=names.event_codes)
    assert table.ids == ("a", "b") and [one.event for one in table.outcomes] == [False, True]


def test_codes_are_compared_as_they_are_declared(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("PatientID,RFS,Relapse\na,100,No\nb,110,Recurrence\n")
    names = TableNames(event_codes={"recurrence": "1", "no": "0"})
    found = read_tables(tmp_path, None, names)
    assert [known.outcome.event for known in found.values()] == [False, True]


def test_an_outcome_is_not_put_together_of_two_tables_that_differ(tmp_path: Path) -> None:
    (tmp_path / "Task_1.csv").write_text("PatientID,RFS,Relapse\nA,100,1\nB,50,0\n")
    (tmp_path / "Task_2.csv").write_text("PatientID,RFS,Relapse\nB,50,0\nA,,0\n")
    with pytest.raises(
        ValueError, match=r"Task_2.csv: row 3, column 'Relapse': another value than in Task_1.csv"
    ):
        read_tables(tmp_path)
    assert list(read_records(tmp_path)) == ["A", "B"]


def test_names_are_the_same_however_a_letter_is_composed(tmp_path: Path) -> None:
    """A Mac writes the names of folders decomposed, a table has them composed."""
    (tmp_path / "a.csv").write_text("PatientID,RFS,Relapse\nM\u00fcller-1,100,1\n", "utf-8")
    folder = "Mu\u0308ller-1"
    assert read_tables(tmp_path, [folder])[folder].outcome == Outcome(100.0, True)
    assert fingerprint(folder) == fingerprint("M\u00fcller-1")
