"""An Excel workbook's sheet to rows of texts. Needs openpyxl, the extra ``excel``."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmvnet.exits import shown
from hmvnet.files import read_bounded

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

SUFFIXES = (".xlsx", ".xlsm")
MOST_BYTES = 1 << 26  # of the file, and of what its zip holds
MOST_CELLS = 1 << 21
NAMED = 10  # sheets in a message


class NoReaderError(ValueError):
    """openpyxl is not installed."""


def read_sheet(path: Path, sheet: str = "") -> list[list[str]]:
    """The rows of a workbook's sheet, blank ones too: row ``i`` of the list is row ``i + 1`` there.

    Numbers are as Python writes them, dates as in ISO 8601, truths TRUE and FALSE. A formula is
    what the spreadsheet program last made of it. Hidden rows and columns are read as others.

    Args:
        sheet: its name; empty: the only one that is not hidden and holds something.

    Raises:
        NoReaderError: openpyxl is not installed.
        ValueError: no workbook (or under a password), too large, no such sheet, several sheets that
            hold something and none named, merged cells, a formula without a value, a cell that is
            an error; says what was found and expected.
        RefusedError: as ``read_bounded``.
    """
    data = read_bounded(path, MOST_BYTES)
    _check_size(data)
    book = _loaded(data, values=False)
    chosen = _chosen(book, sheet)
    name = shown(chosen.title)
    if chosen.merged_cells.ranges:
        merged = shown(sorted(str(area) for area in chosen.merged_cells.ranges)[0])
        raise ValueError(f"sheet '{name}' has merged cells, {merged} among them; unmerge them")
    formulas = [cell for cell in _cells(chosen) if cell.data_type == "f"]
    if formulas:
        chosen = _loaded(data, values=True)[chosen.title]
        for cell in formulas:
            value = chosen[cell.coordinate]
            if value.value is None and value.data_type == "n":
                raise ValueError(
                    f"sheet '{name}', cell {cell.coordinate}: a formula without a value; open the "
                    "file in a spreadsheet program and save it"
                )
    for cell in _cells(chosen):
        if cell.data_type == "e" and cell.value != "#N/A":  # which is a word for missing
            raise ValueError(f"sheet '{name}', cell {cell.coordinate}: an error of its formula")
    return [[_text(cell) for cell in row] for row in chosen.iter_rows()]


def _check_size(data: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        raise ValueError("no workbook as in .xlsx, or one under a password") from None
    if size > MOST_BYTES:
        raise ValueError(f"a workbook of {size} bytes unpacked, expected at most {MOST_BYTES}")


def _loaded(data: bytes, values: bool) -> Workbook:
    """The workbook with its formulas, or with their values."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise NoReaderError(
            "an Excel workbook needs openpyxl (hmvnet's extra excel, pip install openpyxl); or "
            "save it as CSV"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of drop-down lists, colours and the like
        try:
            return load_workbook(io.BytesIO(data), data_only=values, keep_links=False)
        except MemoryError:
            raise
        except Exception as error:  # damaged XML ends in errors of any kind
            raise ValueError(f"a damaged workbook ({type(error).__name__})") from error


def _chosen(book: Workbook, sheet: str) -> Worksheet:
    if sheet:
        named = [one for one in book.worksheets if one.title.strip() == sheet.strip()]
        if not named:
            raise ValueError(f"no sheet '{shown(sheet)}', found {_listed(book.sheetnames)}")
        return _bounded(named[0])
    visible = [one for one in book.worksheets if one.sheet_state == "visible"]
    holding = [one for one in visible if any(cell.value is not None for cell in _cells(one))]
    if len(holding) > 1:
        names = _listed([one.title for one in holding])
        raise ValueError(
            f"{len(holding)} sheets hold something, {names}; clinical.sheet (--sheet) names one"
        )
    if not holding:
        raise ValueError("it holds no rows")
    return holding[0]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:NAMED]) + more


def _bounded(sheet: Worksheet) -> Worksheet:
    """The sheet. Raises: ValueError: a far cell makes it larger than any table is."""
    if sheet.max_row * sheet.max_column > MOST_CELLS:
        raise ValueError(
            f"sheet '{shown(sheet.title)}' spans {sheet.max_row} rows and {sheet.max_column} "
            f"columns, expected at most {MOST_CELLS} cells; delete what is empty"
        )
    return sheet


def _cells(sheet: Worksheet) -> Iterator[Any]:
    return (cell for row in _bounded(sheet).iter_rows() for cell in row)


def _text(cell: Any) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime):
        midnight = value.time() == datetime.min.time()
        return value.date().isoformat() if midnight else value.isoformat(" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and re.fullmatch("0{2,}", cell.number_format):
        return f"{value:0{len(cell.number_format)}d}"  # 7 that is shown as 007
    return str(value)
