"""What commands keep for the next one: folders in use, stored results, things made once.

The only home of each.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from hmvnet.exits import RefusedError
from hmvnet.files import digest, remove, replacing, write_text

P = ParamSpec("P")
T = TypeVar("T")

CLAIM = ".lock"  # in a folder that a command keeps its state in
# Which process of a distributed training this is, for torchrun, Fabric's own launcher and Slurm.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


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
                remove(folder)
        lock.release()


def claiming_run(work: Callable[P, T]) -> Callable[P, T]:
    """A function whose argument ``run``, a folder, is ``claimed`` while it works."""
    signature = inspect.signature(work)

    @wraps(work)
    def alone(*args: P.args, **options: P.kwargs) -> T:
        with claimed(signature.bind(*args, **options).arguments["run"]):
            return work(*args, **options)

    return alone


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


def made_once(path: Path, load: Callable[[], T | None], make: Callable[[], T]) -> T:
    """What ``load`` finds under ``path``, or what ``make`` makes there.

    Of processes that come together one makes it, and the others wait.
    """
    from filelock import FileLock  # torch brings it; the container does without

    if (found := load()) is not None:
        return found
    with FileLock(path.with_suffix(".lock")):
        return make() if (found := load()) is None else found
