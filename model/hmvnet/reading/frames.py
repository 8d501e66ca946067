"""Files of tables to data frames: CSV as any spreadsheet saves it, and Excel workbooks.

A CSV may be UTF-8, UTF-16 or Latin-1; have commas, semicolons, tabs or bars; decimal commas where
no comma separates; blanks around names, blank rows.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from hmvnet.case import plain_name
from hmvnet.files import read_bounded
from hmvnet.reading import workbook
from hmvnet.reading.records import NUMBER
from hmvnet.reading.text import decode
from hmvnet.table_files import text_of_cell

MOST_BYTES = 1 << 27  # of a CSV table
SEPARATORS = ",;\t|"
OLD_EXCEL = ".xls"


class _Row(NamedTuple):
    """Cells without outer blanks, up to the last that is not empty, and the row's number."""

    number: int
    cells: list[str]


def is_workbook(path: Path) -> bool:
    """Whether it is named as an Excel workbook that can be read."""
    return path.suffix.lower() in workbook.SUFFIXES


def read_frame(
    path: Path, patient: Sequence[str], *, texts: Sequence[str] = (), sheet: str = ""
) -> pd.DataFrame:
    """A table with its cells as pandas reads them; texts have no outer blanks.

    Args:
        path: an Excel workbook (``.xlsx``, ``.xlsm``); of any other name: CSV.
        patient: names that the column of patients may have; its cells stay texts.
        texts: names of further columns that stay texts, with NaN for empty cells.
        sheet: of a workbook; as ``read_sheet``.

    Returns:
        Its index has each row's number in the file as a spreadsheet program counts it.

    Raises:
        ValueError: names the file, and what was found and expected.
    """
    kind = "an Excel table" if is_workbook(path) else "a CSV table"
    try:
        rows, decimal_commas = _rows_of(path, patient, sheet)
        header, *body = rows
        for row in body:
            if len(row.cells) > len(header.cells):
                raise ValueError(
                    f"row {row.number} has {len(row.cells)} cells, the header {len(header.cells)}"
                )
        keep = [i for i, name in enumerate(header.cells) if name]
        names = [header.cells[i] for i in keep]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{listed(twice)} more than once")
        cells = [[row.cells[i] if i < len(row.cells) else "" for i in keep] for row in body]
        buffer = io.StringIO()
        csv.writer(buffer).writerows([names, *cells])
        buffer.seek(0)
        if decimal_commas:
            _refuse_two_points(names, cells)
        decimal = "," if decimal_commas and _has_decimal_commas(cells) else "."
        # pandas' own parser of floats ends the process at some cells, as 41e680880517066a.
        frame = pd.read_csv(
            buffer, decimal=decimal, skip_blank_lines=False, float_precision="round_trip"
        )
    except workbook.NoReaderError as error:
        raise workbook.NoReaderError(f"{path}: {error}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not readable as {kind}: {error}") from error
    frame.index = pd.Index([row.number for row in body])
    whose, written = ({plain_name(name) for name in given} for given in (patient, texts))
    for index, name in enumerate(names):
        if plain_name(name) in whose | written:  # as written: "001" and "NA" may be names
            column = pd.Series([row[index] for row in cells], index=frame.index, dtype=object)
            frame[name] = column if plain_name(name) in whose else column.replace("", None)
    return frame


def listed(columns: Iterable[str]) -> str:
    """Names of columns; but not a patient's values where the first row is no header."""
    names = list(columns)
    if any(NUMBER.fullmatch(name) for name in names):
        return f"{len(names)} columns, numbers among their names (is the first row a header?)"
    return f"columns {names}"


def _rows_of(path: Path, patient: Sequence[str], sheet: str) -> tuple[list[_Row], bool]:
    """The rows that hold something, the header first; whether commas in them may be decimal."""
    if path.suffix.lower() == OLD_EXCEL:
        raise ValueError("the format of Excel before 2007; save it as .xlsx or CSV")
    if is_workbook(path):
        rows = list(_holding(workbook.read_sheet(path, sheet)))
        if not rows:
            raise ValueError("it holds no rows")
        return rows, True
    text, _ = decode(read_bounded(path, MOST_BYTES))
    rows, separator = _csv_rows(text, patient)
    return rows, separator != ","


def _csv_rows(text: str, patient: Sequence[str]) -> tuple[list[_Row], str]:
    """The rows that hold something, and the separator that they have.

    It is the one that leaves the patients' column alone in its cell of the header, or else makes
    most columns.
    """
    separators = SEPARATORS
    if said := re.match(r"sep=(.)\r?\n", text):  # a spreadsheet's way to say it
        separators, text = said[1], text[said.end() :]
    if not re.search(r"\w", text):
        raise ValueError("it holds no rows")
    known = {plain_name(name) for name in patient}

    def worth(separator: str) -> tuple[bool, int]:
        try:
            header = next(_parsed(text, separator), _Row(1, [])).cells
        except csv.Error:  # of quotes, where it separates nothing
            return False, 0
        return any(plain_name(cell) in known for cell in header), len(header)

    separator = max(separators, key=worth)
    return list(_parsed(text, separator)), separator


def _parsed(text: str, separator: str) -> Iterator[_Row]:
    lines = io.StringIO(text, newline="")
    return _holding(csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True))


def _holding(rows: Iterable[Sequence[str]]) -> Iterator[_Row]:
    """The rows that hold something."""
    for number, row in enumerate(rows, 1):
        cells = [text_of_cell(cell.strip()) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield _Row(number, cells)


def _refuse_two_points(names: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Refuse decimal commas beside points that may part thousands: 1.234 days, or 1234?

    Raises:
        ValueError: names the columns.
    """
    decimal, parted = (
        [n for n, *column in zip(names, *body) if any(re.fullmatch(form, c) for c in column)]
        for form in (r"[-+]?\d+,(\d{1,2}|\d{4,})", r"[-+]?[1-9]\d{0,2}(\.\d{3})+")
    )
    if decimal and parted:
        raise ValueError(
            f"{listed(decimal)} have decimal commas and {listed(parted)} points that may part "
            "thousands; expected one mark for decimals, and none for thousands"
        )


def _has_decimal_commas(body: Iterable[Sequence[str]]) -> bool:
    """Whether commas in numbers are decimal: not if points are, or all could part thousands."""
    cells = [cell for row in body for cell in row]
    commas = [m for cell in cells if (m := re.fullmatch(r"[-+]?\d+,(\d+)", cell))]
    points = any(re.fullmatch(r"[-+]?\d+\.\d+", cell) for cell in cells)
    return not points and any(len(m[1]) != 3 for m in commas)
