"""The trainings of a comparison, one after the other, in processes, or on a Dask cluster.

Each is done by one process of one thread (or as ``OMP_NUM_THREADS`` says), so that what one costs
does not hang on how many run beside it. One that fails, or whose process dies, is reported, and the
others go on.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hmvnet.cluster import connected, shared_token, threads_asked_for
from hmvnet.exits import (
    Exit,
    RefusedError,
    UnfinishedError,
    end_with_parent,
    ending,
    fault,
    is_out_of_memory,
)
from hmvnet.experiments.budgets import Unit, run_unit

if TYPE_CHECKING:
    from distributed import Client

REFUSALS = (RefusedError, ValueError)


@dataclass(frozen=True)
class Ended:
    """How a training ended; ``why`` is empty where it is done."""

    unit: Unit
    code: int
    why: str = ""


class Hands(Protocol):
    """Who does the trainings."""

    slots: int

    def start(self, unit: Unit) -> None:
        """Begin with a training."""

    def next(self) -> Ended:
        """Wait until one of those begun has ended."""


def run_units(units: Sequence[Unit], hands: Hands) -> Iterator[Ended]:
    """All trainings, those of small budgets first; each as it ends.

    Those that share a trunk follow one another. After one that fails, or whose time is up, those of
    larger budgets on the same trunk are left out.
    """
    waiting = sorted((u for u in units if u.missing()), key=lambda unit: unit.budget)
    busy: set[tuple[str, int]] = set()
    while waiting or busy:
        for unit in list(waiting):
            if len(busy) >= hands.slots:
                break
            if unit.chain not in busy:
                waiting.remove(unit)
                if time.time() > unit.deadline:
                    yield Ended(unit, Exit.UNFINISHED, "not begun")
                    continue
                busy.add(unit.chain)
                hands.start(unit)
        if not busy:
            break
        ended = hands.next()
        busy.remove(ended.unit.chain)
        if ended.code:
            waiting = [unit for unit in waiting if unit.chain != ended.unit.chain]
        yield ended


@contextmanager
def hands_of(jobs: int, scheduler: str, run: Path) -> Iterator[Hands]:
    """Those asked for.

    Args:
        jobs: how many trainings at a time; with a scheduler 0: as many as it has workers.
        scheduler: address of a Dask scheduler, whose workers have one thread each and see the run's
            folder and the data under the same paths.

    Raises:
        RefusedError: no scheduler answers, or its workers have several threads.
    """
    if not scheduler:
        hands: InTurn | Processes = Processes(jobs) if jobs > 1 else InTurn()
        try:
            yield hands
        finally:
            if isinstance(hands, Processes):
                hands.end()
        return
    with ExitStack() as stack:
        token = stack.enter_context(shared_token(run))
        client = stack.enter_context(connected(scheduler))
        yield Cluster(client, jobs, token)


def threads() -> int:
    """Of one training."""
    return threads_asked_for() or 1


class InTurn:
    """One after the other, in this process."""

    slots = 1

    def __init__(self, work: Callable[[Unit], None] = run_unit) -> None:
        self.work = work

    def start(self, unit: Unit) -> None:
        """Begin with a training."""
        self.unit = unit

    def next(self) -> Ended:
        """Do it."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads())
        try:
            self.work(self.unit)
        except UnfinishedError as error:
            return Ended(self.unit, Exit.UNFINISHED, str(error))
        except Exception as error:  # the others go on
            return _failed(self.unit, error)
        finally:
            torch.set_num_threads(before)
        return Ended(self.unit, Exit.OK)


def _failed(unit: Unit, error: Exception) -> Ended:
    if isinstance(error, REFUSALS):
        return Ended(unit, Exit.REFUSED, str(error))
    if not isinstance(error, OSError) and not is_out_of_memory(error):
        sys.excepthook(type(error), error, error.__traceback__)
    return Ended(unit, Exit.FAULT, fault(error))


class Processes:
    """Several at a time, each in a process of its own, which ends with this one."""

    def __init__(self, slots: int, work: Callable[[Unit], None] = run_unit) -> None:
        self.slots = slots
        self.work = work
        self.running: dict[Any, tuple[Unit, Any]] = {}

    def start(self, unit: Unit) -> None:
        """Begin with a training."""
        process = multiprocessing.get_context("spawn").Process(
            target=_in_process, args=(replace(unit, quiet=True), threads(), self.work)
        )
        process.start()
        self.running[process.sentinel] = unit, process

    def next(self) -> Ended:
        """Wait until one has ended."""
        sentinel = wait_for(list(self.running))[0]
        unit, process = self.running.pop(sentinel)
        process.join()
        code = process.exitcode
        if not code:
            return Ended(unit, Exit.OK)
        if code == Exit.UNFINISHED:
            return Ended(unit, code, "stopped; the same command goes on from there")
        why = f"its process was killed (signal {-code})" if code < 0 else "see the error above"
        return Ended(unit, code, why)

    def end(self) -> None:
        """End what still runs; it goes on from its checkpoint in the next call."""
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            process.join()


def _in_process(unit: Unit, count: int, work: Callable[[Unit], None]) -> None:
    """A training as a process's only work; its error is one line on standard error."""
    end_with_parent()
    torch.set_num_threads(count)

    def named() -> None:
        try:
            work(unit)
        except REFUSALS as error:
            raise RefusedError(f"{unit}: {error}") from error

    sys.exit(ending(named))


class Cluster:
    """On the workers of a Dask scheduler."""

    def __init__(self, client: Client, jobs: int, token: Path) -> None:
        counts = client.nthreads()
        if wrong := [name for name, count in counts.items() if count != 1]:
            raise RefusedError(
                f"Dask worker {wrong[0]} has {counts[wrong[0]]} threads, expected 1 "
                "(dask worker --nthreads 1): CPU time is counted by process"
            )
        self.client, self.token = client, token
        self.slots = jobs or max(1, len(counts))
        self.running: dict[Any, Unit] = {}

    def start(self, unit: Unit) -> None:
        """Begin with a training."""
        task = partial(_on_worker, replace(unit, quiet=True), threads(), self.token)
        self.running[self.client.submit(task, pure=False)] = unit

    def next(self) -> Ended:
        """Wait until one has ended."""
        from distributed import wait

        done = wait(list(self.running), return_when="FIRST_COMPLETED").done
        future = next(iter(done))
        unit = self.running.pop(future)
        error = future.exception()
        if error is None:
            code, why = future.result()
            return Ended(unit, code, why)
        return Ended(unit, Exit.FAULT, fault(error))


def _on_worker(unit: Unit, count: int, token: Path) -> tuple[int, str]:
    """A training on a worker: its exit code, and why."""
    if not token.exists():
        raise RefusedError(
            f"the worker does not see {token.parent}: with --scheduler the run's folder is on "
            "storage that all machines share, under one path"
        )
    torch.set_num_threads(count)
    try:
        run_unit(unit)
    except UnfinishedError as error:
        return Exit.UNFINISHED, str(error)
    except REFUSALS as error:
        return Exit.REFUSED, str(error)
    return Exit.OK, ""
