"""Tables as files, in which no text is a spreadsheet's formula or markup. Their only home."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmvnet.files import write_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

# A text that a spreadsheet would run as a formula (OWASP, "CSV injection"), perhaps made harmless
# before; but not a number, nor an interval such as "+0.01 (-0.02 to +0.04)".
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|nan|inf)"
_NUMBERS = re.compile(rf"{_NUMBER}( \({_NUMBER} to {_NUMBER}\))?")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """A table without its index as CSV, in which no text is a spreadsheet's formula."""
    write_text(_with_texts(table, _no_formula).to_csv(index=False), path)


def write_markdown(table: pd.DataFrame, path: Path, floatfmt: str = "g", title: str = "") -> None:
    """A table without its index as Markdown, in which no text is markup, below its title."""
    shown = _with_texts(table, _no_markup)
    above = f"{_no_markup(title)}\n\n" if title else ""
    write_text(f"{above}{shown.to_markdown(index=False, floatfmt=floatfmt)}\n", path)


def table_text(table: pd.DataFrame, width: int) -> str:
    """A table without its index in lines of at most ``width`` characters, where that can be.

    As it is where it fits; else turned over, a column a row; else a block a row, whose first cell
    stands above the others that are not empty.
    """
    if table.empty:
        return ""
    first = table.columns[0]
    turned = table.set_index(first).T.rename_axis(index=None, columns=None)
    turned.insert(0, first, turned.index, allow_duplicates=True)
    for one in (table, turned):
        text = one.to_string(index=False)
        if max(map(len, text.splitlines())) <= width:
            return text
    wide = max(len(str(name)) for name in table.columns)
    blocks = []
    for _, row in table.astype(object).iterrows():
        rest = [(name, str(cell)) for name, cell in row.items() if name != first and cell != ""]
        lines = [f"  {name:<{wide}}  {cell}" for name, cell in rest]
        blocks.append("\n".join([str(row[first]), *lines]))
    return "\n".join(blocks)


def print_frame(table: pd.DataFrame, console: Console) -> None:
    """A table without its index, as ``table_text`` has it, at the console's width."""
    text = table_text(table, console.width)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def text_of_cell(cell: str) -> str:
    """What a cell said before ``write_table`` made it harmless."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def read_texts(path: Path) -> list[dict[str, str]]:
    """The rows of a table of ``write_table`` as they were given to it, by column; all are texts.

    Raises:
        ValueError: it is no table: not UTF-8, a quote that is left open, a column without a name,
            or a row with more cells than there are columns.
        OSError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval="", strict=True)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not readable as a table ({error})") from error
    if "" in (reader.fieldnames or []):
        raise ValueError(f"{path}: a column has no name")
    if any("" in row for row in rows):
        raise ValueError(f"{path}: a row has more cells than there are columns")
    return [{text_of_cell(k): text_of_cell(v) for k, v in row.items()} for row in rows]


def kept_rows(
    path: Path, column: str, key: str
) -> tuple[list[dict[Any, Any]], list[dict[Any, Any]]]:
    """The rows of a table of ``write_table`` that have a digest in a column, and all others.

    Both are empty where there is no such table.
    """
    if not path.is_file():
        return [], []
    import pandas as pd

    # A digest may look like a number, at some of which pandas' own parser ends the process.
    table = pd.read_csv(path, dtype={column: str}, float_precision="round_trip")
    rows = table.to_dict("records")
    mine = [row for row in rows if row.get(column) == key]
    return mine, [row for row in rows if row.get(column) != key]


def _with_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Texts and names of columns changed; numbers stay numbers."""
    changed = table.rename(columns=lambda name: change(str(name)))
    for name in changed.select_dtypes(exclude=["number", "bool"]):
        column = changed[name]
        changed[name] = column.map(lambda cell: change(cell) if isinstance(cell, str) else cell)
    return changed


def _is_formula(cell: str) -> bool:
    return bool(_FORMULA.match(cell)) and not _NUMBERS.fullmatch(cell)


def _no_formula(cell: str) -> str:
    cell = f"'{cell}" if _is_formula(cell) else cell
    return cell.replace("\r", " ")  # which pandas does not quote, and readers take for a row's end


def _no_markup(cell: str) -> str:
    return escape(" ".join(cell.split()), quote=False).replace("|", "\\|")
