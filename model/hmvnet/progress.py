"""How far long work has come: a bar on a terminal, plain lines everywhere else, on stderr.

A log file or a batch job's output wants lines of text now and then, without escape codes. The
lines tell what is done, what the work noted last and the time left.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from hmvnet.exits import one_line

T = TypeVar("T")

# A line every 5% of the work, but not sooner than 5 s and no later than 30 s after the last one.
LINE_SHARE, SOONEST_S, LATEST_S = 0.05, 5.0, 30.0
TOLD = 3  # patients of whom the same is told
_FILE = re.compile(r"^\S.*?\.(nii\.gz|nii|mha|tiff?): ")  # whose note it is


class Progress:
    """How far work has come, as the work itself reports it; this one shows nothing.

    Attributes:
        done: how much is done, in the unit of the total.
    """

    def __init__(self, done: int = 0) -> None:
        self.done = done

    def begin(self, done: int) -> None:
        """So much was done before; the pace counts from here."""
        self.done = done

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """So much is done in all."""
        self.done = done

    def note(self, text: str) -> None:
        """What to show beside the count from now on, e.g. the loss."""

    def say(self, text: str) -> None:
        """A line that stays, e.g. the figures of a validation."""


class Bar(Progress):
    """A bar of rich, for terminals."""

    def __init__(self, bars: RichProgress, task: TaskID, done: int = 0) -> None:
        super().__init__(done)
        self.bars, self.task = bars, task

    def begin(self, done: int) -> None:
        super().begin(done)
        self.bars.reset(self.task, completed=done)

    def reach(self, done: int) -> None:
        super().reach(done)
        self.bars.update(self.task, completed=done)

    def note(self, text: str) -> None:
        self.bars.update(self.task, note=text)

    def say(self, text: str) -> None:
        self.bars.console.print(text, markup=False)


class Lines(Progress):
    """Plain lines on stderr, at the pace that ``LINE_SHARE`` and its neighbours set."""

    def __init__(
        self,
        title: str,
        total: int | None = None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(done)
        self.title, self.total, self.clock = title, total, clock
        self.text = ""
        self.begin(done)

    def begin(self, done: int) -> None:
        super().begin(done)
        self.began = self.printed_at = self.clock()
        self.start = self.printed = done

    def reach(self, done: int) -> None:
        super().reach(done)
        since = self.clock() - self.printed_at
        enough = self.total is not None and done - self.printed >= LINE_SHARE * self.total
        if since >= LATEST_S or (since >= SOONEST_S and enough):
            self._print()

    def note(self, text: str) -> None:
        self.text = text

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """A last line, of where the work ended."""
        if self.done != self.printed:
            self._print()

    def _print(self) -> None:
        parts = [f"{self.title}: {self.done}"]
        if self.total:
            parts = [f"{parts[0]}/{self.total} ({100 * self.done // self.total}%)"]
        if self.text:
            parts.append(self.text)
        parts.append(self._time())
        self.say(", ".join(parts))
        self.printed, self.printed_at = self.done, self.clock()

    def _time(self) -> str:
        """The time left at the pace so far, or taken where nothing is left or the total unknown."""
        taken, count = self.clock() - self.began, self.done - self.start
        if self.total is None or not 0 < count < self.total - self.start:
            return f"took {_clock_text(taken)}"
        return f"{_clock_text(taken / count * (self.total - self.done))} left"


def _clock_text(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def show_progress(
    title: str, total: int | None = None, done: int = 0, quiet: bool = False
) -> Iterator[Progress]:
    """Shows how far a piece of work has come while it runs.

    Args:
        title: names the work.
        total: how much there is to do, in any unit; None: unknown.
        done: how much of it was done before.
        quiet: show nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield Progress(done)
    elif console.is_interactive:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with RichProgress(*columns, console=console) as bars:
            yield Bar(bars, bars.add_task(title, total=total, completed=done, note=""), done)
    else:
        lines = Lines(title, total, done)
        try:
            yield lines
        finally:
            lines.close()


def track(
    iterable: Iterable[T], title: str, total: int | None = None, quiet: bool = False
) -> Iterator[T]:
    """The same items, shown as they are worked through.

    Args:
        total: how many there are; None: as many as ``len`` says, where it can.
        quiet: show nothing.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with show_progress(title, total, quiet=quiet) as progress:
        for item in iterable:
            yield item
            progress.advance()


def print_lines(lines: Iterable[str]) -> None:
    """Lines on stderr, without markup."""
    for line in lines:
        print(one_line(line), file=sys.stderr, flush=True)


class Remarks:
    """What reading had to say of each patient: told as it comes, and summed at the end.

    Of what is said of many patients the first few are told, and the others counted.
    """

    def __init__(self) -> None:
        self._patients: dict[str, set[str]] = {}

    def tell(self, patient_id: str, notes: Iterable[str]) -> None:
        """Lines on standard error, each once a patient."""
        for note in notes:
            text = _FILE.sub("", note)
            patients = self._patients.setdefault(text, set())
            if patient_id not in patients:
                patients.add(patient_id)
                if len(patients) <= TOLD:
                    print_lines([f"note: patient {patient_id}: {one_line(text)}"])

    def summary(self) -> list[str]:
        """A line for each text: of how many patients it was said; then as if nothing was."""
        told, self._patients = self._patients, {}
        return [
            f"note on {len(ids)} patient{'s' * (len(ids) > 1)}: {one_line(text)}"
            for text, ids in told.items()
        ]


REMARKS = Remarks()  # of the command that runs


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """What a person should know before reading the figures, a line each."""
    for note in notes:
        console.print(f"[yellow]note[/] {escape(one_line(note))}")
