import os
import signal
from dataclasses import dataclass, replace

import pytest

from hmvnet.exits import Exit, RefusedError, UnfinishedError
from hmvnet.experiments.budget_jobs import Cluster, Ended, InTurn, Processes, run_units
from hmvnet.experiments.budgets import Budget


@dataclass(frozen=True)
class Work:
    """As much of a unit as handing over needs."""

    network: str
    budget: Budget
    fold: int = 0
    deadline: float = float("inf")
    quiet: bool = False

    @property
    def chain(self):
        return self.network, self.fold

    def missing(self):
        return [] if self.network == "done" else ["windows"]

    def __str__(self) -> str:
        return f"{self.network}, fold{self.fold}, {self.budget}"


class Recorder:
    """Ends the oldest of the trainings begun."""

    def __init__(self, slots: int, failing: str = "") -> None:
        self.slots, self.failing = slots, failing
        self.begun: list[Work] = []
        self.running: list[Work] = []

    def start(self, unit: Work) -> None:
        assert unit.chain not in [one.chain for one in self.running]
        self.begun.append(unit)
        self.running.append(unit)
        assert len(self.running) <= self.slots

    def next(self) -> Ended:
        unit = self.running.pop(0)
        return Ended(unit, Exit.FAULT if unit.network == self.failing else Exit.OK)


ALL = [Work(name, Budget(minutes)) for name in ("a", "b") for minutes in (10, 3)]


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_small_budgets_come_first_and_a_trunk_is_never_used_twice_at_once(slots):
    hands = Recorder(slots)
    ended = list(run_units([*ALL, Work("done", Budget(1))], hands))
    assert len(ended) == 4 and [unit.budget.amount for unit in hands.begun] == [3, 3, 10, 10]


def test_after_a_failure_the_other_trunks_go_on():
    hands = Recorder(2, failing="a")
    ended = [(e.unit.network, e.unit.budget.amount, e.code) for e in run_units(ALL, hands)]
    assert ended == [("a", 3, 1), ("b", 3, 0), ("b", 10, 0)]


def test_when_time_is_up_nothing_more_is_begun():
    hands = Recorder(1)
    ended = list(run_units([replace(unit, deadline=0.0) for unit in ALL], hands))
    assert not hands.begun and {one.code for one in ended} == {Exit.UNFINISHED}


def work(unit: Work) -> None:
    """Ends as the unit's name says."""
    if unit.network == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if unit.network == "refused":
        raise RefusedError("no such thing")
    if unit.network == "unfinished":
        raise UnfinishedError("time was up")
    if unit.network == "broken":
        raise KeyError("x")


EXPECTED = {"fine": 0, "refused": 2, "unfinished": 75, "broken": 1}


def test_one_after_the_other_each_ends_in_its_own_way(capfd):
    units = [Work(name, Budget(1)) for name in EXPECTED]
    ended = {one.unit.network: one for one in run_units(units, InTurn(work))}
    assert {name: one.code for name, one in ended.items()} == EXPECTED
    assert ended["broken"].why == "KeyError: 'x'" and ended["refused"].why == "no such thing"
    assert "Traceback" in capfd.readouterr().err


def test_a_process_that_dies_takes_no_other_with_it(capfd):
    hands = Processes(2, work)
    units = [Work(name, Budget(1)) for name in ("killed", "refused")]
    ended = {one.unit.network: one for one in run_units(units, hands)}
    assert {name: one.code for name, one in ended.items()} == {
        "killed": -signal.SIGKILL,
        "refused": 2,
    }
    assert "killed (signal 9)" in ended["killed"].why
    assert "refused, fold0, 1 min: no such thing" in capfd.readouterr().err


def test_workers_of_several_threads_are_refused(tmp_path):
    class Client:
        def nthreads(self):
            return {"tcp://one:1": 1, "tcp://two:1": 4}

    with pytest.raises(RefusedError, match="tcp://two:1 has 4 threads, expected 1"):
        Cluster(Client(), 0, tmp_path)
