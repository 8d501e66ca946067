from __future__ import annotations

from pathlib import Path

import pytest

from hmvnet.case import Outcome
from hmvnet.reading.outcomes import TableNames
from hmvnet.reading.tables import read_outcome_table, read_tables
from hmvnet.settings_file import load_settings

NAMES = TableNames("id", "end", "event", start_date="start")
HEAD = "id,start,end,event,age\n"


def outcomes_of(folder: Path, rows: str, names: TableNames = NAMES, head: str = HEAD):
    path = folder / "a.csv"
    path.write_text(head + rows)
    return read_outcome_table([path], names)


def refusal(folder: Path, rows: str, names: TableNames = NAMES, head: str = HEAD) -> str:
    with pytest.raises(ValueError) as caught:
        outcomes_of(folder, rows, names, head)
    return str(caught.value).removeprefix(f"{folder}/")


def test_follow_up_is_the_days_between_two_dates(tmp_path: Path) -> None:
    rows = "1,2020-01-01,2021-01-01,1,60\n2,28/02/2019,2019-03-01,0,61\n3,20200501,2020-05-01,0,62"
    found = outcomes_of(tmp_path, rows)
    assert found.outcomes == (Outcome(366.0, True), Outcome(1.0, False), Outcome(0.0, False))
    assert found.columns == ("age",) and dict(found.records[0].values) == {"age": 60.0}


def test_dates_of_a_form(tmp_path: Path) -> None:
    rows = "1,03/04/2020,04/05/2020,1,60\n2,01/12/2019,2020-01-01,0,61\n"
    assert refusal(tmp_path, rows) == (
        "a.csv: row 2, column 'start': day and month may be either; clinical.date_format says "
        "which, %d/%m/%Y or %m/%d/%Y"
    )
    days = {}
    for form in ("%d/%m/%Y", "%m/%d/%Y"):
        names = TableNames("id", "end", "event", start_date="start", date_format=form)
        days[form] = [outcome.days for outcome in outcomes_of(tmp_path, rows, names).outcomes]
    assert days == {"%d/%m/%Y": [31.0, 31.0], "%m/%d/%Y": [32.0, 354.0]}


def test_dates_without_separators_keep_their_zeros(tmp_path: Path) -> None:
    names = TableNames("id", "end", "event", start_date="start", date_format="%d%m%Y")
    found = outcomes_of(tmp_path, "1,03042020,04042020,1,60\n2,13042020,14042020,0,6\n", names)
    assert [outcome.days for outcome in found.outcomes] == [1.0, 1.0]


def test_the_last_contact_where_the_end_is_given_for_events_only(tmp_path: Path) -> None:
    names = TableNames("id", "relapsed", "event", "seen", start_date="start")
    head = "id,start,relapsed,event,seen\n"
    rows = "1,2020-01-01,2020-01-31,1,2024-01-01\n2,2020-01-01,,0,2020-03-01\n"
    found = outcomes_of(tmp_path, rows, names, head)
    assert found.outcomes == (Outcome(30.0, True), Outcome(60.0, False))
    assert found.columns == ()
    said = refusal(tmp_path, "1,2020-01-01,2020-01-31,1,\n2,2020-01-01,,0,\n", names, head)
    assert said == "a.csv: row 3, column 'seen': no date, and 'event' is given"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2020-01-02,2020-01-01,1", "column 'end': a date before that of 'start'"),
        (",2020-01-01,0", "column 'start': no date, and 'event' is given"),
        ("2020-01-02,,1", "column 'end': no date, and 'event' is given"),
        ("2020-01-02,unknown,1", "column 'end': no date, and 'event' is given"),
        ("2021-02-29,2022-01-01,1", "column 'start': a date that there never was"),
        ("2020-01-02,soon,1", "column 'end': no date as in YYYY-MM-DD"),
        ("2020-01-02,31/02/2020,", "column 'end': a date that there never was"),
        ("43831,2020-01-01,0", "column 'start': a number where a date is expected"),
    ],
)
def test_dates_that_cannot_be_used_are_refused_by_row_and_column(tmp_path, row, said) -> None:
    for blank, number in (("", 3), (",,,,\n", 4)):  # as a spreadsheet counts rows
        found = refusal(tmp_path, f"1,2020-01-01,2021-01-01,1,60\n{blank}2,{row},61\n")
        assert found.startswith(f"a.csv: row {number}, {said}")
        assert not any(cell in found for cell in row.split(",") if len(cell) > 4)
    (tmp_path / "b.csv").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="row 4, column"):
        read_tables(tmp_path, names=NAMES)


def test_a_patient_without_an_event_code_is_one_without_an_outcome(tmp_path: Path) -> None:
    found = outcomes_of(tmp_path, "1,2020-01-01,2021-01-01,1,60\n2,2020-01-01,,,61\n3,,,,62\n")
    assert found.ids == ("1",) and found.notes[0] == "2 values without an outcome, left out"


def test_dates_in_two_tables(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("id,start,age\n1,2020-01-01,60\n2,2020-01-01,61\n")
    second.write_text("id,end,event\n2,2020-01-11,1\n1,2020-01-21,0\n")
    found = read_outcome_table([first, second], NAMES)
    assert [outcome.days for outcome in found.outcomes] == [20.0, 10.0]
    second.write_text("id,end,event\n2,2019-01-11,1\n1,2020-01-21,0\n")
    with pytest.raises(ValueError, match=r"b.csv: row 2, column 'end': a date before"):
        read_outcome_table([first, second], NAMES)


def test_dates_beside_images(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("PatientID,Start,END,event\nA-1,2020-01-01,2020-01-08,1\n")
    names = TableNames(time="end", event="event", start_date="start")
    known = read_tables(tmp_path, ["A-1"], names)["A-1"]
    assert known.outcome == Outcome(7.0, True) and not known.record.values


# --- codes of the event --------------------------------------------------------------------------


def test_words_for_events(tmp_path: Path) -> None:
    codes = {"Recurrence": "1", " alive with disease": "1", "NED": "0", "lost": "0"}
    names = TableNames("id", "days", "state", event_codes=codes)
    rows = "1,10,recurrence\n2,20, Alive with disease \n3,30,ned\n4,40,LOST\n5,50,\n"
    found = outcomes_of(tmp_path, rows, names, "id,days,state\n")
    assert [outcome.event for outcome in found.outcomes] == [True, True, False, False]
    said = refusal(tmp_path, rows + "6,1,Died\n7,2,died\n8,1,7\n", names, "id,days,state\n")
    assert said == (
        "a.csv: column 'state' holds 3 values other than Recurrence,  alive with disease, NED, "
        "lost, found 'died' (2), '7' (1); clinical.event_codes says what codes stand for"
    )


@pytest.mark.parametrize("cells", [("7181", "3"), tuple("abcdef"), ("x9 y", "ok", "b")])
def test_what_may_be_a_patients_value_is_not_shown(tmp_path: Path, cells) -> None:
    rows = "".join(f"{n},10,{cell}\n" for n, cell in enumerate(cells))
    said = refusal(tmp_path, rows, TableNames("id", "days", "state"), "id,days,state\n")
    assert "found" not in said and "7181" not in said


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"start_date": "a", "time_unit": "months"}, "with a start date, expected days"),
        ({"date_format": "%d/%m/%Y"}, "no column of the start date"),
        ({"start_date": "a", "date_format": "DD.MM.YYYY"}, "expected day, month and year"),
        ({"event_codes": {"a": "0", "b": "2"}}, r"stand for \['2'\], expected 0 or 1"),
    ],
)
def test_names_that_contradict_each_other(given, said) -> None:
    with pytest.raises(ValueError, match=said):
        TableNames(**given)


def test_settings_of_dates_and_codes() -> None:
    given = ["clinical.start_date=diagnosis", "clinical.date_format=%d.%m.%Y", "clinical.sheet=All"]
    names = load_settings(None, [*given, "clinical.event_codes=NED=0, local recurrence=1"])
    names = names.clinical.table_names
    assert (names.start_date, names.date_format, names.sheet) == ("diagnosis", "%d.%m.%Y", "All")
    assert names.codes == {"ned": "0", "local recurrence": "1"}
    with pytest.raises(ValueError, match="no column of the start date"):
        load_settings(None, given[1:])


@pytest.mark.parametrize(("rows", "count"), [("", 0), ("1,2020-01-01,2020-02-01,,60\n", 1)])
def test_a_table_without_outcomes_is_refused(tmp_path: Path, rows: str, count: int) -> None:
    assert refusal(tmp_path, rows) == (f"a.csv: {count} patients, none of whom has a known outcome")
