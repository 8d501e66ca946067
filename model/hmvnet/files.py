"""Files that are written whole or not at all, folders in use, digests. The only home of each."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import psutil

from hmvnet.exits import RefusedError

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_BYTES = 1 << 20
SHORT = 16  # hexadecimal digits of a digest: 64 bits, enough to tell states apart
MACHINE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
LEFTOVER = re.compile(
    r"\.(?P<kind>part|old)-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-\d+\.(?P<name>.+)", re.DOTALL
)
ABANDONED_S = 24 * 3600.0  # nobody writes for so long without a change
CLAIM = ".lock"  # in a folder that a command keeps its state in
# Which process of a distributed training this is, for torchrun, Fabric's own launcher and Slurm.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, a file or a folder, that takes the place of ``path`` at the end.

    It lies in the same folder and ends like ``path``, so that writers which look at the suffix see
    the right one. Missing parents are made, and what killed processes left of writing ``path`` is
    cleared. When the block raises, what it wrote is removed and ``path`` is as it was.

    Raises:
        OSError: names ``path`` where the disk was at fault, whatever its writer raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent, path.name)
    mark = f"{MACHINE}-{os.getpid()}-{threading.get_ident()}"
    temporary, old = (path.with_name(f".{kind}-{mark}.{path.name}") for kind in ("part", "old"))
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir() and not temporary.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is there, expected a file", str(path))
        _put(temporary, path, old)
    except Exception as error:
        if fault := _fault_of_disk(error, temporary, path):
            raise fault from error
        raise
    finally:
        _remove(temporary)


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
    """In the place of ``path``, which goes to ``old`` first where it is a folder that holds files.

    Another process may put its own there at any time: the last one stays.
    """
    try:
        while True:
            try:
                return os.replace(temporary, path)
            except OSError as error:  # a folder cannot be renamed over one that holds something
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not path.is_dir():
                    raise
            _remove(old)
            with suppress(FileNotFoundError):
                os.replace(path, old)
    finally:
        _put_back(old, path)


def _put_back(old: Path, path: Path) -> None:
    """A folder moved away goes back, unless another has its place."""
    if path.exists():
        _remove(old)
    else:
        with suppress(OSError):  # it was not moved at all, or the disk does not let it back now
            os.replace(old, path)


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
            _put_back(path, path.with_name(found["name"]))
        else:
            _remove(path)


def _at_work(found: re.Match[str], path: Path) -> bool:
    """Whether who writes this may still be there; another machine's processes cannot be seen."""
    if found["machine"] == MACHINE and not psutil.pid_exists(int(found["process"])):
        return False
    try:
        return time.time() - path.lstat().st_ctime < ABANDONED_S
    except OSError:  # gone meanwhile
        return True


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder is no other command's while the block runs.

    It is made if it is not there, and does not stay when the block leaves nothing in it.

    The lock is the operating system's: it ends with its process, however that ends. Of a
    distributed training's processes the first holds it for all.

    Raises:
        RefusedError: another command has it.
    """
    from filelock import FileLock, Timeout  # torch brings it; the container does without

    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if any(os.environ.get(name, "0") != "0" for name in RANKS):
        yield
        return
    lock = FileLock(folder / CLAIM)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RefusedError(
            f"{folder}: another command is at work in this folder; wait for its end, or use "
            "another --run"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            if made and [path.name for path in folder.iterdir()] == [CLAIM]:
                _remove(folder)
        lock.release()


def claiming_run(work: Callable[P, T]) -> Callable[P, T]:
    """A function whose argument ``run``, a folder, is ``claimed`` while it works."""
    signature = inspect.signature(work)

    @wraps(work)
    def alone(*args: P.args, **options: P.kwargs) -> T:
        with claimed(signature.bind(*args, **options).arguments["run"]):
            return work(*args, **options)

    return alone


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sorted, without names that start with a dot: a Mac's companions, half-written files."""
    return sorted(path for path in paths if not path.name.startswith("."))


def write_text(text: str, path: Path) -> None:
    """UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An ``.npz`` file for ``read_arrays``, whole or not at all."""
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays, content=_digest_of(arrays))  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What ``write_arrays`` wrote; None where it is gone, cut, or another bit than was written."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        content = str(arrays.pop("content"))
    except Exception:  # numpy, zipfile and zlib raise many kinds for a damaged file
        return None
    return arrays if content == _digest_of(arrays) else None


def _digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    return digest(*(value for pair in sorted(arrays.items()) for value in pair))


def write_state(path: Path, key: str, values: Mapping[str, Any]) -> None:
    """JSON for ``read_state``, whole or not at all.

    Args:
        key: ``digest`` of what the values hang on.
    """
    write_text(json.dumps({"key": key, "content": digest(values), **values}), path)


def read_state(path: Path, key: str) -> dict[str, Any] | None:
    """What ``write_state`` wrote; None where it is of another key, gone, cut or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("key"), values.pop("content")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return values if found == (key, digest(values)) else None


def made_once(path: Path, load: Callable[[], T | None], make: Callable[[], T]) -> T:
    """What ``load`` finds under ``path``, or what ``make`` makes there.

    Of processes that come together one makes it, and the others wait.
    """
    from filelock import FileLock  # torch brings it; the container does without

    if (found := load()) is not None:
        return found
    with FileLock(path.with_suffix(".lock")):
        return make() if (found := load()) is None else found


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
