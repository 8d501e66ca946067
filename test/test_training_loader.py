import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
import torch
from conftest import ROOT

from hmvnet.training import loader
from hmvnet.training.loader import (
    Ahead,
    Processes,
    in_processes,
    ready,
    stacked,
    to_device,
    worker_count,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def drawing_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("draw")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_numbers_come_in_the_order_asked_for(workers):
    def draw(number):
        time.sleep(0.002 * (number % 3))  # the later may be done first
        return number * number

    with Ahead(draw, workers) as ahead:
        asked = [0, 1, 2, 3, 4, 0, 1, 2, 7, 8, 9, 9, 3]
        assert [ahead(n) for n in asked] == [n * n for n in asked]
    assert not drawing_threads()


def test_where_no_thread_can_be_started_nobody_waits_for_it(monkeypatch):
    start, left = threading.Thread.start, [2]

    def limited(self):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Ahead(lambda n: n, 3)
    assert not drawing_threads()


def test_no_more_is_drawn_ahead_than_there_is_room_for():
    drawn = []
    with Ahead(lambda n: drawn.append(n), 2) as ahead:
        ahead(0)
        ahead(1)
        time.sleep(0.05)
    assert sorted(drawn) == [0, 1, 2, 3]


def test_what_a_thread_raises_is_raised_where_it_is_asked_for():
    def draw(number):
        if number == 2:
            raise MemoryError("patch 2 is too large")
        return number

    with pytest.raises(MemoryError, match="patch 2 is too large"), Ahead(draw, 2) as ahead:
        assert [ahead(0), ahead(1)] == [0, 1]
        ahead(2)
    assert not drawing_threads()


def test_a_loop_that_ends_early_waits_for_no_more_than_what_is_being_drawn():
    begun = []

    def draw(number):
        begun.append(number)
        time.sleep(0.02)
        return number

    with pytest.raises(RuntimeError, match="enough"), Ahead(draw, 1) as ahead:
        ahead(0)
        raise RuntimeError("enough")
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count and not drawing_threads()


def test_every_patch_is_drawn_with_one_thread_of_torch():
    """Sums are then added in one order, and the loop keeps its own threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for workers in (0, 2):
            with Ahead(lambda n: torch.get_num_threads(), workers) as ahead:
                assert [ahead(n) for n in range(4)] == [1] * 4
            assert torch.get_num_threads() == 2
        later = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


def test_how_many_threads_there_are(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    assert worker_count(-1, CPU) == 0 and worker_count(3, CPU) == 3
    assert worker_count(-1, GPU) == 7 and worker_count(0, GPU) == 0
    assert worker_count(-1, GPU, processes=4) == 1 and worker_count(-1, GPU, processes=8) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert worker_count(-1, GPU) == 12


def test_beside_a_gpu_they_are_processes():
    assert in_processes("auto", GPU) and not in_processes("auto", CPU)
    assert in_processes("processes", CPU) and not in_processes("threads", GPU)


def test_a_batch_on_the_cpu_stays_where_it_is():
    samples = [(torch.rand(2, 4, 5, 6), torch.ones(4, 5, 6, dtype=torch.uint8)) for _ in range(3)]
    batch = ready(stacked(samples), CPU)
    assert batch[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(batch[0][1], samples[1][0]) and batch[1].shape == (3, 4, 5, 6)
    assert to_device(batch, CPU)[0] is batch[0]


def squared(number: int) -> tuple[np.ndarray, ...]:
    if number == 3:
        raise OSError("patch 3: the cached volume cannot be read any more")
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return tuple(map(np.array, (number * number, os.getpid(), torch.get_num_threads())))


def test_processes_draw_what_is_asked_for_and_end():
    with Processes(squared, 2) as drawn, Ahead(drawn, 2) as ahead:
        found = [[int(value) for value in ahead(n)] for n in range(3)]
        assert [one[0] for one in found] == [0, 1, 4] and {one[2] for one in found} == {1}
        assert os.getpid() not in {one[1] for one in found}
        with pytest.raises(OSError, match="patch 3: the cached volume"):
            ahead(3)
        with pytest.raises(RuntimeError, match=r"was killed.* fewer training\.workers"):
            ahead(5)
    for _, pid, _ in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class Meeting:
    """Waits, where it is unpickled, for the others of its kind to be started as well."""

    def __init__(self, folder, others: int) -> None:
        self.folder, self.others = folder, others

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state
        (self.folder / str(os.getpid())).touch()
        for _ in range(600):
            if len(list(self.folder.iterdir())) >= self.others:
                return
            time.sleep(0.1)
        raise TimeoutError("the others are not started")


class Large:
    """Draws numbers; more than a pipe holds, which comes after the meeting."""

    def __init__(self, folder, workers: int) -> None:
        self.meeting = Meeting(folder, workers)
        self.volume = np.zeros(2**21, np.uint8)

    def __call__(self, number: int) -> tuple[np.ndarray, ...]:
        return np.full((64, 64, 64, 2), number, np.float32), np.zeros(3, np.uint8)


def test_processes_are_started_together_and_what_they_draw_leaves_nothing(tmp_path, monkeypatch):
    files, met = tmp_path / "files", tmp_path / "met"
    files.mkdir(), met.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(files))
    with Processes(Large(met, 2), 2) as drawn, Ahead(drawn, 2) as ahead:
        for number in range(6):
            patch, label = ahead(number)
            assert label.dtype == np.uint8 and label.shape == (3,)
            assert patch.dtype == np.float32 and (patch == number).all() and patch.flags.writeable
        assert len(list(files.rglob("*"))) <= 1 + 3  # the folder, and what is drawn ahead
    assert not list(files.iterdir())


def test_what_cannot_be_written_names_the_folder_and_the_way_out(tmp_path):
    loader._draw = lambda number: (np.zeros(3),)
    with pytest.raises(OSError, match=r"gone: a drawn batch cannot be written \(No such.*TMPDIR"):
        loader._in_process(0, tmp_path / "gone" / "0-1")


FED = """
import sys, time
import numpy as np
from hmvnet.training.loader import Processes

def draw(number):
    return (np.zeros(3),)

if __name__ == "__main__":
    with Processes(draw, 2) as drawn:
        drawn(0)
        print("ready", flush=True)
        time.sleep(600)
"""


def test_processes_of_one_that_is_killed_leave_nothing(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "fed.py").write_text(FED)
    environment = {"PYTHONPATH": str(ROOT / "model"), "TMPDIR": str(tmp_path / "files")}
    run = subprocess.Popen(
        [sys.executable, tmp_path / "fed.py"],
        stdout=subprocess.PIPE,
        env=os.environ | environment,
        text=True,
    )
    assert run.stdout and run.stdout.readline() == "ready\n"
    assert list((tmp_path / "files").glob("hmvnet-draw-*"))
    run.kill()
    run.wait(timeout=60)
    run.stdout.close()
    for _ in range(600):
        if not list((tmp_path / "files").glob("hmvnet-draw-*")):
            break
        time.sleep(0.1)
    assert not list((tmp_path / "files").glob("hmvnet-draw-*"))


KILLED = """
import sys, time
from hmvnet.exits import ending
from hmvnet.training.loader import Ahead

def work():
    with Ahead(lambda n: time.sleep(0.01), 2) as ahead:
        print("ready", flush=True)
        for n in range(10**6):
            ahead(n)

sys.exit(ending(work))
"""


def test_sigterm_ends_the_threads_too():
    environment = os.environ | {"PYTHONPATH": str(ROOT / "model")}
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert run.stdout and run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 143
    run.stdout.close()
