"""Files that are written whole or not at all, read within bounds, and digests.

The only home of each.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import psutil

from hmvnet.exits import RefusedError

CHUNK_BYTES = 1 << 20
SHORT = 16  # hexadecimal digits of a digest: 64 bits, enough to tell states apart


def _machine() -> str:
    """Whose processes can be seen: of this host, and on Linux of this container.

    Containers may be given one host's name, and see none of each other's processes.
    """
    named = socket.gethostname()
    with suppress(OSError):
        named += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(named.encode()).hexdigest()[:8]


MACHINE = _machine()
LEFTOVER = re.compile(
    r"\.(?P<kind>part|old)-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-\d+\.(?P<name>.+)", re.DOTALL
)
ABANDONED_S = 24 * 3600.0  # nobody writes for so long without a change


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, a file or a folder, that takes the place of ``path`` at the end.

    It lies in the same folder and ends like ``path``, so that writers which look at the suffix see
    the right one. Missing parents are made, and what killed processes left of writing ``path`` is
    cleared. A link is replaced and never followed. When the block raises, what it wrote is removed
    and ``path`` is as it was. A file is on the disk before it takes the place.

    Raises:
        OSError: names ``path`` where the disk was at fault, whatever its writer raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent, path.name)
    mark = f"{MACHINE}-{os.getpid()}-{threading.get_ident()}"
    temporary, old = (path.with_name(f".{kind}-{mark}.{path.name}") for kind in ("part", "old"))
    remove(temporary)
    try:
        yield temporary
        if temporary.is_file():  # a full or distant disk may say so only now
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir() and not temporary.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is there, expected a file", str(path))
        _put(temporary, path, old)
    except Exception as error:
        if fault := _fault_of_disk(error, temporary, path):
            raise fault from error
        raise
    finally:
        remove(temporary)


def _fault_of_disk(error: Exception, temporary: Path, path: Path) -> OSError | None:
    """What the disk says where a writer failed on it; None where it takes more.

    Writers in C++ raise errors that do not say what happened, so a little more is written.
    """
    if isinstance(error, OSError) and error.errno:
        ours = error.filename is None or str(error.filename).startswith(str(temporary))
        return OSError(error.errno, os.strerror(error.errno), str(path)) if ours else None
    try:
        with (temporary / "more" if temporary.is_dir() else temporary).open("ab") as file:
            file.write(bytes(CHUNK_BYTES))
    except OSError as fault:
        return OSError(fault.errno, os.strerror(fault.errno or errno.EIO), str(path))
    return None


def _put(temporary: Path, path: Path, old: Path) -> None:
    """In the place of ``path``, which goes to ``old`` first where a folder cannot replace it.

    Another process may put its own there at any time: the last one stays.
    """
    try:
        while True:
            try:
                return os.replace(temporary, path)
            except OSError as error:  # of a folder: over one that holds something, or over a link
                there = path.is_dir() or (path.is_symlink() and temporary.is_dir())
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not there:
                    raise
            remove(old)
            with suppress(FileNotFoundError):
                os.replace(path, old)
    finally:
        _put_back(old, path)


def _put_back(old: Path, path: Path) -> None:
    """A folder moved away goes back, unless another has its place, or takes it meanwhile."""
    while not path.exists():
        try:
            return os.replace(old, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                return None  # it was not moved at all, or the disk does not let it back now
    return remove(old)


def is_leftover(path: Path) -> bool:
    """Whether this is what ``replacing`` is writing, or left when its process was killed."""
    return LEFTOVER.fullmatch(path.name) is not None


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in a folder; a last good state that they left comes back.

    What a living process is writing stays. For readers of folders that ``replacing`` writes: a kill
    between its two renames leaves the old folder under another name.

    Args:
        name: of the file or folder that was to be written; None: of any.
    """
    try:
        paths = list(folder.iterdir())
    except OSError:  # no such folder, or none of ours
        return
    for path in paths:
        found = LEFTOVER.fullmatch(path.name)
        if not found or name not in (None, found["name"]) or _at_work(found, path):
            continue
        if found["kind"] == "old":
            _put_back(path, folder / found["name"])
        else:
            with suppress(OSError):  # a folder that can only be read
                remove(path)


def _at_work(found: re.Match[str], path: Path) -> bool:
    """Whether who writes this may still be there; another machine's processes cannot be seen."""
    if found["machine"] == MACHINE and not psutil.pid_exists(int(found["process"])):
        return False
    try:
        return time.time() - path.lstat().st_ctime < ABANDONED_S
    except OSError:  # gone meanwhile
        return True


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
    """Whether ``root / relative`` is a path, and below ``root`` when links are followed.

    Of what is to be replaced ask for its parent: a link in its own place is not followed.
    """
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
        # Names of files are what they are on the disk, whatever the locale made of them.
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


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


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it; nothing happens where there is none."""
    try:
        _remove_once(path)
    except BaseException:  # SIGTERM's, say: nothing is left behind for that
        _remove_once(path)
        raise


def _remove_once(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
