"""Tables of patients, ``.csv``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from fuzz.records import secrets
from fuzz.samples import Draw, Found, Kind, OneFile, Right, changed_bytes, several
from hmvnet.reading.tables import read_tables

Cell = float | int | str | None


@dataclass
class Table(OneFile):
    """Columns of cells, and how they are written."""

    columns: dict[str, list[Cell]] = field(default_factory=dict)
    separator: str = ","
    decimal: str = "."
    end: str = "\n"
    encoding: str = "utf-8"
    before: str = ""
    quoted: bool = False
    write: Callable[[str], str] = str
    asked: list[str] | None = None  # patients, where the values do not say them

    def cell(self, value: Cell) -> str:
        text = "" if value is None else str(value)
        if isinstance(value, float):
            text = text.replace(".", self.decimal)
        text = self.write(text)
        if self.quoted or self.separator in text or '"' in text:
            text = '"' + text.replace('"', '""') + '"'
        return text

    def lines(self) -> list[str]:
        rows = [list(self.columns), *map(list, zip(*self.columns.values()))]
        return [self.separator.join(map(self.cell, row)) for row in rows]

    def parts(self) -> bytes:
        text = self.before + self.end.join(self.lines()) + self.end
        return text.encode(self.encoding)

    def names(self) -> list[str]:
        return list(self.values) if self.asked is None else self.asked

    def renamed(self, name: str, new: str) -> None:
        self.columns = {new if n == name else n: cells for n, cells in self.columns.items()}


def _clean(draw: Draw) -> Table:
    count = draw(st.integers(3, 6))
    columns: dict[str, list[Cell]] = {"PatientID": [f"A-{n:03d}" for n in range(count)]}
    columns["Age"] = [draw(secrets) for _ in range(count)]
    columns["Gender"] = [draw(st.integers(0, 1)) for _ in range(count)]
    columns["Town"] = [draw(st.sampled_from(["Köln", "Paris", "a b"])) for _ in range(count)]
    columns["Relapse"] = [draw(st.integers(0, 1)) for _ in range(count)]
    columns["RFS"] = [draw(secrets) for _ in range(count)]
    return _meaning(
        Table(
            {},
            name="table.csv",
            named=("table.csv",),
            columns=columns,
            secrets=tuple(str(v) for name in ("Age", "RFS") for v in columns[name]),
        )
    )


def _meaning(table: Table) -> Table:
    """The values as its cells say them."""
    table.values = {}
    for name, *cells in zip(*table.columns.values()):
        row = dict(zip(list(table.columns)[1:], cells))
        outcome = (float(row.pop("RFS")), bool(row.pop("Relapse")))
        record = {k: float(v) if isinstance(v, (int, float)) else v for k, v in row.items()}
        table.values[name] = {"record": record, "days": outcome[0], "event": outcome[1]}
    return table


def _read(folder: Path, sample: Table) -> Found:
    known = read_tables(folder, sample.names())
    found = {
        name: {"record": dict(one.record.values)}
        | ({"days": one.outcome.days, "event": one.outcome.event} if one.outcome else {})
        for name, one in known.items()
    }
    return Found(found, tuple(note for one in known.values() for note in one.notes))


CSV = Kind("table", _clean, _read, refusals=(ValueError,))


@CSV.mutation(Right.SAME)
def another_separator(draw: Draw, table: Table) -> None:
    table.separator = draw(st.sampled_from(";\t|"))
    table.decimal = draw(st.sampled_from(".,"))
    if draw(st.booleans()):
        table.before = f"sep={table.separator}\n"


@CSV.mutation(Right.SAME)
def another_encoding(draw: Draw, table: Table) -> None:
    table.columns["Town"][0] = "Köln"
    _meaning(table)
    table.encoding = draw(
        st.sampled_from(["utf-8-sig", "utf-16", "latin-1", "cp1252", "utf-16-le"])
    )
    table.end = draw(st.sampled_from(["\n", "\r\n", "\r"]))


@CSV.mutation(Right.SAME)
def blank_rows(draw: Draw, table: Table) -> None:
    blank = draw(st.sampled_from(["", "   ", ",,,,,", '"",""', "\t"]))
    lines = [line for each in table.lines() for line in (each, blank)]
    table.content = "\n".join([blank, *lines]).encode()


@CSV.mutation(Right.SAME)
def quoted_cells(draw: Draw, table: Table) -> None:
    table.quoted = True
    table.columns["Town"][0] = draw(st.sampled_from(['a, "b"', "c;d", "e\nf", ";;", "1,5 km"]))
    _meaning(table)


@CSV.mutation(Right.SAME)
def columns_in_any_order(draw: Draw, table: Table) -> None:
    table.columns = dict(draw(st.permutations(list(table.columns.items()))))


@CSV.mutation(Right.SAME)
def rows_in_any_order(draw: Draw, table: Table) -> None:
    rows = draw(st.permutations(list(zip(*table.columns.values()))))
    table.columns = dict(zip(table.columns, map(list, zip(*rows))))


@CSV.mutation(Right.SAME)
def blanks_around_cells(draw: Draw, table: Table) -> None:
    form = draw(st.sampled_from([" {}", "{}  ", "   {} "]))
    table.write = form.format


@CSV.mutation(Right.SAME)
def other_names_of_columns(draw: Draw, table: Table) -> None:
    names = ["patient_id", "Patient ID", "PATIENTID", "Subject", "case id", "ID", "Patient-Id"]
    table.renamed("PatientID", draw(st.sampled_from(names)))
    table.renamed("Relapse", draw(st.sampled_from(["relapse", "RELAPSE", " Relapse"])))


@CSV.mutation(Right.SAME)
def whole_numbers_with_a_point(draw: Draw, table: Table) -> None:
    for name in ("Gender", "Relapse"):
        table.columns[name] = [float(v or 0) for v in table.columns[name]]


@CSV.mutation(Right.SAME)
def more_columns(draw: Draw, table: Table) -> None:
    count = len(table.columns["Age"])
    table.columns |= {"Größe": [1.5] * count, "Notes": ["x, y"] * count, "none": [None] * count}
    _meaning(table)


@CSV.mutation(Right.SAME)
def more_rows(draw: Draw, table: Table) -> None:
    """Of patients without images: not asked for."""
    for name, cells in table.columns.items():
        cells.append("B-1" if name == "PatientID" else 1)


@CSV.mutation(Right.SAME)
def separators_at_the_end(draw: Draw, table: Table) -> None:
    table.content = "\n".join(line + "," for line in table.lines()).encode()


@CSV.mutation(Right.SAME)
def words_for_events(draw: Draw, table: Table) -> None:
    no, yes = draw(st.sampled_from([("no", "yes"), ("False", "True"), ("alive", "Dead")]))
    table.columns["Relapse"] = [yes if v else no for v in table.columns["Relapse"]]


@CSV.mutation(Right.SAME)
def nothing_known(draw: Draw, table: Table) -> None:
    """Cells that are empty, or of a word for it."""
    index = draw(st.integers(0, len(table.columns["Age"]) - 1))
    table.columns["Age"][index] = draw(st.sampled_from([None, "NA", "n/a", "NaN", "-", "unknown"]))
    for name, value in zip(table.names(), table.columns["Age"]):
        table.values[name]["record"]["Age"] = value if isinstance(value, float) else None


@CSV.mutation(Right.SAME)
def a_table_of_something_else_beside(draw: Draw, table: Table) -> None:
    table.files |= {"other.csv": b"what,where\na,b\n", "._table.csv": b"\0\5\x16\7\xff"}


@CSV.mutation(Right.SAME)
def numbers_as_names(draw: Draw, table: Table) -> None:
    table.columns["PatientID"] = [f"{n:03d}" for n in range(len(table.columns["Age"]))]
    _meaning(table)


@CSV.mutation(Right.REPAIRED)
def names_without_their_zeros(draw: Draw, table: Table) -> None:
    numbers_as_names_of = range(1, len(table.columns["Age"]) + 1)
    table.columns["PatientID"] = [f"{n:03d}" for n in numbers_as_names_of]
    _meaning(table)
    table.columns["PatientID"] = [str(n) for n in numbers_as_names_of]


@CSV.mutation(Right.REFUSED)
def an_event_of_another_code(draw: Draw, table: Table) -> None:
    wrong = draw(st.sampled_from([2, -1, "perhaps", 0.5, "2024-01-01", "x"]))
    table.columns["Relapse"][draw(st.integers(0, 2))] = wrong


@CSV.mutation(Right.REFUSED)
def a_time_that_is_none(draw: Draw, table: Table) -> None:
    wrong = draw(st.sampled_from([-1, "12 months", "2024-01-01", "soon", "1e3x", "inf"]))
    table.columns["RFS"][draw(st.integers(0, 2))] = wrong


@CSV.mutation(Right.REFUSED)
def a_patient_twice(draw: Draw, table: Table) -> None:
    table.columns["PatientID"][1] = draw(st.sampled_from(["A-000", " A-000", "A-000 "]))
    table.columns["Town"][1] = "Oslo"


@CSV.mutation(Right.REPAIRED)
def a_row_twice(draw: Draw, table: Table) -> None:
    for cells in table.columns.values():
        cells.append(cells[0])


@CSV.mutation(Right.REFUSED)
def a_row_without_a_name(draw: Draw, table: Table) -> None:
    table.columns["PatientID"][draw(st.integers(0, 2))] = draw(st.sampled_from([None, "  "]))


@CSV.mutation(Right.REFUSED)
def a_column_twice(draw: Draw, table: Table) -> None:
    old = draw(st.sampled_from(["Gender", "Town"]))
    table.renamed(old, draw(st.sampled_from(["Age ", " RFS", "rfs", " Relapse"])))


@CSV.mutation(Right.REFUSED)
def a_row_too_long(draw: Draw, table: Table) -> None:
    lines = table.lines()
    lines[draw(st.integers(1, len(lines) - 1))] += ",7"
    table.content = "\n".join(lines).encode()


@CSV.mutation(Right.REFUSED)
def a_quote_without_end(draw: Draw, table: Table) -> None:
    table.content = table.data() + b'"B-1'


@CSV.mutation(Right.REFUSED)
def nobody_of_ours(draw: Draw, table: Table) -> None:
    table.columns["PatientID"] = [f"C{n}" for n in range(len(table.columns["Age"]))]


@CSV.mutation(Right.REFUSED)
def outcomes_of_nobody(draw: Draw, table: Table) -> None:
    table.renamed("PatientID", draw(st.sampled_from(["who", "number", "Town2"])))


@CSV.mutation(Right.REFUSED)
def no_text(draw: Draw, table: Table) -> None:
    at = draw(st.integers(0, len(table.data())))
    table.content = table.data()[:at] + b"\0\x07\xff\x01" + table.data()[at:]


@CSV.mutation(Right.REFUSED)
def nothing_in_it(draw: Draw, table: Table) -> None:
    table.content = draw(st.sampled_from([b"", b"\n\n", b"\xef\xbb\xbf", b" , ,\n", b"\xff\xfe"]))


@CSV.mutation(Right.EITHER)
def any_bytes(draw: Draw, table: Table) -> None:
    table.bounded = True
    table.content = changed_bytes(draw, table.parts())
    names, table.values = table.names(), {}
    table.asked = names


@CSV.mutation(Right.SAME)
def several_at_once(draw: Draw, table: Table) -> None:
    several(
        draw,
        table,
        another_encoding,
        more_columns,
        another_separator,
        words_for_events,
        more_rows,
        other_names_of_columns,
        rows_in_any_order,
        columns_in_any_order,
    )
