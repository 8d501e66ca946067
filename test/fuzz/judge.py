"""An input is read, and what comes out is held against what is right."""

from __future__ import annotations

import contextlib
import signal
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fuzz.samples import Found, Input, Right
from fuzz.volumes import quiet
from hmvnet.case import Grid

MOST_BYTES = 96 << 20  # of memory, for an input that asks for more than it holds
MOST_SECONDS = 20  # before a reader hangs


class Fault(Enum):
    """What is wrong with what came out; the table's columns."""

    SILENT = "silent wrong results"
    REFUSAL = "false refusals"
    CRASH = "crashes"
    WORDS = "wrong words"  # a refusal or a note that does not say what it should


@dataclass(frozen=True)
class Verdict:
    """The outcome that was right, and what was wrong instead, if anything."""

    fault: Fault | None = None
    why: str = ""


def judge(given: Input) -> Verdict:
    """Lay out an input, read it and compare."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "input"
        folder.mkdir()
        given.sample.lay(folder)
        before = _listing(Path(scratch))
        try:
            with _bounded(given.sample.bounded):
                found = given.kind.read(folder, given.sample)
        except given.kind.refusals as error:
            verdict = _refused(given, error)
        except Exception as error:
            verdict = Verdict(Fault.CRASH, f"{type(error).__name__}: {error}")
        else:
            verdict = _read(given, found)
        if _listing(Path(scratch)) != before:
            return Verdict(Fault.CRASH, "something was written beside the input")
        return verdict


def _refused(given: Input, error: Exception) -> Verdict:
    message = str(error)
    if given.right not in (Right.REFUSED, Right.EITHER):
        return Verdict(Fault.REFUSAL, message)
    if "\n" in message:
        return Verdict(Fault.WORDS, f"several lines: {message}")
    if len(message) > 1000:
        return Verdict(Fault.WORDS, f"a line of {len(message)} characters")
    if not any(name in message for name in given.sample.named):
        return Verdict(Fault.WORDS, f"none of {given.sample.named} is named: {message}")
    return _discreet(given, (message,))


def _read(given: Input, found: Found) -> Verdict:
    if given.right is Right.REFUSED:
        return Verdict(Fault.SILENT, f"it is read, notes {list(found.notes)}")
    more = len(found.notes) - given.sample.notes
    if given.right is Right.EITHER and (more or not given.sample.values):
        return _discreet(given, found.notes)
    for name in {**given.sample.values, **found.values}:
        ours, right = found.values.get(name), given.sample.values.get(name)
        if not same(ours, right, given.sample.tolerance):
            return Verdict(Fault.SILENT, f"{name}: found {_brief(ours)}, right is {_brief(right)}")
    if given.right is Right.SAME and more:
        return Verdict(Fault.WORDS, f"notes {list(found.notes)}, expected {given.sample.notes}")
    if given.right is Right.REPAIRED and more <= 0:
        return Verdict(Fault.SILENT, "a repair without a note")
    return _discreet(given, found.notes)


def _discreet(given: Input, lines: tuple[str, ...]) -> Verdict:
    words = " ".join(lines)
    if any("\n" in line for line in lines):
        return Verdict(Fault.WORDS, f"a note of several lines: {list(lines)}")
    told = [secret for secret in given.sample.secrets if secret in words]
    return Verdict(Fault.WORDS, f"it tells {told}: {words}") if told else Verdict()


def same(found: Any, right: Any, tolerance: float = 0.0) -> bool:
    """Whether two values are the same: arrays and grids too, numbers within a tolerance."""
    if isinstance(right, Grid):
        return isinstance(found, Grid) and found.same_as(right, max(1e-3, 10 * tolerance))
    if isinstance(right, np.ndarray):
        return np.shape(found) == right.shape and np.allclose(
            found, right, rtol=tolerance, atol=tolerance, equal_nan=True
        )
    if isinstance(right, Mapping):
        return (
            isinstance(found, Mapping)
            and found.keys() == right.keys()
            and all(same(found[key], right[key], tolerance) for key in right)
        )
    if isinstance(right, float):
        return isinstance(found, float) and bool(np.isclose(found, right, rtol=max(tolerance, 0)))
    return type(found) is type(right) and found == right


def _brief(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 200 else f"{text[:200]}..."


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), (state := path.lstat()).st_size, state.st_mtime_ns)
        for path in folder.rglob("*")
    )


@contextlib.contextmanager
def _bounded(memory: bool) -> Iterator[None]:
    """Ends what hangs, and watches the memory where that is wanted."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"no end after {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    if memory:
        tracemalloc.start()
    try:
        with quiet():
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if memory:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            if peak > MOST_BYTES:
                raise AssertionError(f"{peak >> 20} MiB of memory")
