"""Files that are written whole or not at all, folders in use, digests. The only home of each."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from hmvnet.exits import RefusedError

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_BYTES = 1 << 20
SHORT = 16  # hexadecimal digits of a digest: 64 bits, enough to tell states apart
CLAIM = ".lock"  # in a folder that a command keeps its state in
# Which process of a distributed training this is, for torchrun, Fabric's own launcher and Slurm.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


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


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder is no other command's while the block runs; it is made if it is not there.

    The lock is the operating system's: it ends with its process, however that ends. Of a
    distributed training's processes the first holds it for all.

    Raises:
        RefusedError: another command has it.
    """
    from filelock import FileLock, Timeout  # torch brings it; the container does without

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
