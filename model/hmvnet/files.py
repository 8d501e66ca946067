"""Files that are written whole or not at all, read within bounds, tables, and digests.

The only home of each.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from hmvnet.exits import RefusedError

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 1 << 20
SHORT = 16  # hexadecimal digits of a digest: 64 bits, enough to tell states apart


# A text that a spreadsheet would run as a formula (OWASP, "CSV injection"), perhaps made harmless
# before; but not a number, nor an interval such as "+0.01 (-0.02 to +0.04)".
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|nan|inf)"
_NUMBERS = re.compile(rf"{_NUMBER}( \({_NUMBER} to {_NUMBER}\))?")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, a file or a folder, that takes the place of ``path`` at the end.

    It lies in the same folder and ends like ``path``, so that writers which look at the suffix see
    the right one. Missing parents are made. A link is replaced and never followed. When the block
    raises, what it wrote is removed and ``path`` is as it was. A file is on the disk before it
    takes the place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".part-{mark}.{path.name}")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_file():  # a full or distant disk may say so only now
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir() and not temporary.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is there, expected a file", str(path))
        # A folder cannot be renamed over a link, nor over a folder that holds something.
        if path.is_dir() or (path.is_symlink() and temporary.is_dir()):
            old = path.with_name(f".old-{mark}.{path.name}")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(old, path)
                raise
            _remove(old)
        else:
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def make_folder(path: Path) -> None:
    """Make a folder, with its parents, and try whether it can be written to.

    Raises:
        OSError: it cannot be made, or no file in it.
    """
    path.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=path):
        pass


def is_name(text: str) -> bool:
    """Whether a text is the name of one file or folder, on any system, and of a line in a log."""
    path = re.search(r"[/\\]|^[a-z]:|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", text, re.IGNORECASE)
    try:
        shown = os.fsencode(text).decode("utf-8")  # whatever the locale made of it
    except UnicodeError:
        return False
    return shown.isprintable() and text not in ("", ".", "..") and not path


def leaves(path: Path, folder: Path) -> bool:
    """Whether a path in a folder lies outside it, by ``..`` or by a link on the way to it."""
    return not path.parent.resolve().is_relative_to(folder.resolve())


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sorted, without names that start with a dot: a Mac's companions, half-written files."""
    return sorted(path for path in paths if not path.name.startswith("."))


def name_for_libraries(path: Path) -> str:
    """The path as libraries in C++ take it that expect UTF-8, whatever the locale's encoding is.

    SimpleITK ends the process where a name cannot be encoded.

    Raises:
        RefusedError: the name on the disk is not UTF-8.
    """
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: the name is not UTF-8, expected one that is") from error


def lies_inside(root: Path, relative: Path | str) -> bool:
    """Whether ``root / relative`` is a path, and below ``root`` when links are followed."""
    path = root / relative
    try:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # too long, links in a circle, a zero byte
        return False


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of what somebody put in a file's place, looked at before it is opened.

    Args:
        most: bytes that it may have.

    Raises:
        RefusedError: it is missing or not readable, no file (a pipe and a device would not end),
            or larger; names it.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise RefusedError(f"{path.name}: a folder, a pipe or a device, expected a file")
        if state.st_size > most:
            raise RefusedError(f"{path.name}: {state.st_size} bytes, expected at most {most}")
        return path.read_bytes()
    except OSError as error:
        raise RefusedError(f"{path.name}: file not found or not readable") from error


def write_text(text: str, path: Path) -> None:
    """UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """A table without its index as CSV, in which no text is a spreadsheet's formula."""
    write_text(_with_texts(table, _no_formula).to_csv(index=False), path)


def write_markdown(table: pd.DataFrame, path: Path, floatfmt: str = "g") -> None:
    """A table without its index as Markdown, in which no text is markup."""
    shown = _with_texts(table, _no_markup)
    write_text(shown.to_markdown(index=False, floatfmt=floatfmt) + "\n", path)


def text_of_cell(cell: str) -> str:
    """What a cell said before ``write_table`` made it harmless."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


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


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An ``.npz`` file, whole or not at all, also beside other processes that write the same."""
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def sha256(data: bytes | Path) -> str:
    """The SHA-256 of bytes, or of a file's content, in hexadecimal."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    found = hashlib.sha256()
    with data.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def digest(*values: Any) -> str:
    """A short hash of plain values, arrays and files' contents: what a stored result hangs on.

    Args:
        values: JSON-able values, arrays (type, shape and content count), or paths of files.
    """
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype}{value.shape}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Path):
            found.update(sha256(value).encode())
        else:
            found.update(json.dumps(value, sort_keys=True, default=str).encode())
    return found.hexdigest()[:SHORT]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
