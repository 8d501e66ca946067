"""Files that are written whole or not at all, read within bounds, and digests.

The only home of each.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from hmvnet.exits import RefusedError

CHUNK_BYTES = 1 << 20
SHORT = 16  # hexadecimal digits of a digest: 64 bits, enough to tell states apart


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, a file or a folder, that takes the place of ``path`` at the end.

    It lies in the same folder and ends like ``path``, so that writers which look at the suffix see
    the right one. Missing parents are made. When the block raises, what it wrote is removed and
    ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".part-{mark}.{path.name}")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir() and not temporary.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is there, expected a file", str(path))
        if path.is_dir():  # a folder cannot be renamed over one that holds something
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


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sorted, without names that start with a dot: a Mac's companions, half-written files."""
    return sorted(path for path in paths if not path.name.startswith("."))


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
