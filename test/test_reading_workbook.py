from __future__ import annotations

import re
import sys
import zipfile
from datetime import date, datetime
from pathlib import Path

import pytest
import SimpleITK as sitk
from conftest import tiny_ct, tiny_pet

from hmvnet.case import Outcome
from hmvnet.reading import workbook
from hmvnet.reading.inputs import Asked, find_sources
from hmvnet.reading.names import LeftOut
from hmvnet.reading.outcomes import TableNames
from hmvnet.reading.tables import read_outcome_table, read_records, read_tables
from hmvnet.reading.workbook import NoReaderError, read_sheet

openpyxl = pytest.importorskip("openpyxl")
HEAD = ("PatientID", "Age", "Relapse", "RFS")
ROWS = (HEAD, ("A-1", 61.5, 1, 300), ("A-2", 70, 0, 900.0))


def save(path: Path, *sheets, change=None) -> Path:
    """A workbook of sheets, each rows of cells; ``change`` is called with the workbook before."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets, 1):
        sheet = book.create_sheet(f"Sheet {number}")
        for row in rows:
            sheet.append(row)
    if change:
        change(book)
    book.save(path)
    return path


def calculated(path: Path, values: dict[str, str]) -> None:
    """Give formulas the values that a spreadsheet program would have left beside them."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    for cell, value in values.items():
        kind = ' t="str"' if value == "" or not value[0].isdigit() else ""
        kind = ' t="e"' if value.startswith("#") else kind
        pattern = rf'<c r="{cell}"([^>]*)><f>(.*?)</f><v ?/?>(</v>)?</c>'
        new = rf'<c r="{cell}"{kind}><f>\2</f><v>{value}</v></c>'
        text, count = re.subn(pattern, new, parts[name].decode())
        assert count == 1
        parts[name] = text.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for part, data in parts.items():
            archive.writestr(part, data)


def test_a_workbook_is_read_as_the_same_table_in_csv(tmp_path: Path) -> None:
    save(tmp_path / "a.xlsx", ROWS)
    found = read_tables(tmp_path, ["A-1", "A-2"])
    assert [dict(known.record.values) for known in found.values()] == [{"Age": 61.5}, {"Age": 70.0}]
    assert [known.outcome for known in found.values()] == [
        Outcome(300.0, True),
        Outcome(900.0, False),
    ]
    names = TableNames()
    table = read_outcome_table([tmp_path / "a.xlsx"], names)
    assert table.outcomes == (Outcome(300.0, True), Outcome(900.0, False))


def test_cells_as_texts(tmp_path: Path) -> None:
    cells = [1, 2.0, 0.1, True, None, " x ", date(2020, 4, 3), datetime(2020, 4, 3, 7, 30)]
    path = save(tmp_path / "a.xlsx", [cells, [], [7]], change=lambda b: shown_as_007(b, "A3"))
    assert read_sheet(path) == [
        ["1", "2", "0.1", "TRUE", "", " x ", "2020-04-03", "2020-04-03 07:30:00"],
        [""] * 8,
        ["007", *[""] * 7],
    ]


def shown_as_007(book, cell: str) -> None:
    book.worksheets[0][cell].number_format = "000"


def test_dates_of_a_workbook_that_counts_from_1904(tmp_path: Path) -> None:
    def early(book) -> None:
        book.epoch = openpyxl.utils.datetime.CALENDAR_MAC_1904

    path = save(tmp_path / "a.xlsx", [[date(2020, 4, 3)]], change=early)
    assert read_sheet(path) == [["2020-04-03"]]


def test_date_cells_are_dates_whatever_the_texts_are(tmp_path: Path) -> None:
    rows = [
        ("id", "start", "end", "event"),
        ("1", date(2020, 4, 3), "04.05.2020", "alive"),
        ("2", "03.04.2020", date(2020, 4, 13), "dead"),
        (),
        ("3", 43924, date(2020, 4, 5), "dead"),
    ]
    names = TableNames("id", "end", "event", start_date="start", date_format="%d.%m.%Y")
    path = save(tmp_path / "a.xlsx", rows[:4])
    found = read_outcome_table([path], names)
    assert found.outcomes == (Outcome(31.0, False), Outcome(10.0, True))
    with pytest.raises(ValueError, match=r"a.xlsx: row 5, column 'start': a number where"):
        read_outcome_table([save(path, rows)], names)
    names = TableNames("id", "end", "event", start_date="start", date_format="excel")
    found = read_outcome_table([save(path, [rows[0], rows[4]])], names)
    assert found.outcomes == (Outcome(2.0, True),)  # 43924 is 2020-04-03


def test_the_only_sheet_that_holds_something(tmp_path: Path) -> None:
    def hidden(book) -> None:
        book.worksheets[2].sheet_state = "hidden"

    path = save(tmp_path / "a.xlsx", [], ROWS, [("lists", "of words")], change=hidden)
    assert read_sheet(path)[1] == ["A-1", "61.5", "1", "300"]
    assert read_sheet(path, "Sheet 3") == [["lists", "of words"]]


def test_several_sheets_are_listed_and_one_can_be_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xlsx", [("PatientID", "Age"), ("A-1", 20)], ROWS)
    with pytest.raises(ValueError, match=r"a.xlsx: .* 2 sheets hold something, 'Sheet 1', 'Sheet"):
        read_tables(tmp_path)
    assert read_records(path, sheet="Sheet 1")["A-1"].record.values == {"Age": 20.0}
    assert len(read_tables(tmp_path, names=TableNames(sheet=" Sheet 2"))) == 2
    with pytest.raises(ValueError, match=r"no sheet 'Data', found 'Sheet 1', 'Sheet 2'"):
        read_tables(tmp_path, names=TableNames(sheet="Data"))


def test_formulas_count_with_what_they_gave(tmp_path: Path) -> None:
    rows = [("PatientID", "Age", "Site"), ("A-1", "=60+1", "=A1"), ("A-2", 70, '=""')]
    path = save(tmp_path / "a.xlsx", rows)
    with pytest.raises(ValueError, match=r"'Sheet 1', cell B2: a formula without a value"):
        read_records(path)
    calculated(path, {"B2": "61", "C2": "neck", "C3": ""})
    found = read_records(path)
    assert dict(found["A-1"].record.values) == {"Age": 61.0, "Site": "neck"}
    assert dict(found["A-2"].record.values) == {"Age": 70.0, "Site": None}
    save(path, rows[:2])
    calculated(path, {"B2": "#N/A", "C2": "neck"})
    assert read_records(path)["A-1"].record.values["Age"] is None
    save(path, rows[:2])
    calculated(path, {"B2": "#DIV/0!", "C2": "neck"})
    with pytest.raises(ValueError, match=r"'Sheet 1', cell B2: an error of its formula"):
        read_records(path)


def test_merged_cells_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xlsx", ROWS, change=lambda b: b.worksheets[0].merge_cells("A2:A3"))
    with pytest.raises(ValueError, match=r"sheet 'Sheet 1' has merged cells, A2:A3 among them"):
        read_records(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK", "no workbook as in .xlsx, or one under a password"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "no workbook as in .xlsx, or one under a password"),
        (b"", "no workbook as in .xlsx"),
    ],
)
def test_what_is_no_workbook(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.xlsx: not readable as an Excel table: {said}"):
        read_tables(tmp_path)


def test_damaged_parts_of_a_workbook(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xlsx", ROWS)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for name, data in parts.items():
        for other in (data[: len(data) // 2], b"", None):
            changed = parts | {name: other}
            with zipfile.ZipFile(path, "w") as archive:
                for part, content in changed.items():
                    if content is not None:
                        archive.writestr(part, content)
            try:
                rows = read_sheet(path)
            except ValueError as error:
                assert "\n" not in str(error)
            else:  # a part that says nothing of cells
                assert len(rows) == 3


def test_a_workbook_beyond_all_measure(tmp_path: Path, monkeypatch) -> None:
    path = save(tmp_path / "a.xlsx", ROWS)

    def far(book) -> None:
        book.worksheets[0]["XFD1048576"] = 1

    with pytest.raises(ValueError, match="spans 1048576 rows and 16384 columns, expected at most"):
        read_sheet(save(tmp_path / "b.xlsx", ROWS, change=far))
    monkeypatch.setattr(workbook, "MOST_BYTES", 2 * path.stat().st_size)
    with pytest.raises(ValueError, match=r"bytes unpacked, expected at most"):
        read_sheet(save(path, [("x" * 100_000,)]))


def test_without_openpyxl_its_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    path = save(tmp_path / "a.xlsx", ROWS)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(NoReaderError, match=r"a.xlsx: .*needs openpyxl \(hmvnet's extra excel"):
        read_outcome_table([path])
    left_out: list[LeftOut] = []
    assert read_tables(tmp_path, left_out=left_out) == {}
    assert left_out[0].path == path and "needs openpyxl" in left_out[0].why


def test_old_workbooks(tmp_path: Path) -> None:
    path = tmp_path / "a.xls"
    path.write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(ValueError, match=r"a.xls: .*before 2007; save it as .xlsx or CSV"):
        read_outcome_table([path])
    left_out: list[LeftOut] = []
    assert read_tables(tmp_path, left_out=left_out) == {}
    assert left_out == [(path, "a table of Excel before 2007: save it as .xlsx or CSV")]


def test_patients_and_records_of_workbooks_are_predicted(tmp_path: Path) -> None:
    sitk.WriteImage(tiny_ct(), tmp_path / "a.nii.gz")
    sitk.WriteImage(tiny_pet(), tmp_path / "a_pt.nii.gz")
    rows = [("patient", "ct", "pet"), ("007", "a.nii.gz", "a_pt.nii.gz")]
    listed = save(tmp_path / "list.xlsx", rows)
    records = save(tmp_path / "records.xlsx", [("PatientID", "Age"), ("007", 71)], [("notes",)])
    with pytest.raises(ValueError, match=r"2 sheets hold something.*--sheet"):
        find_sources([listed], Asked(records))
    asked = Asked(save(records, [("PatientID", "Age"), ("007", 71)]))
    (source,) = find_sources([listed], asked)
    assert source.patient_id == "007" and source.read().record.values == {"Age": 71.0}
