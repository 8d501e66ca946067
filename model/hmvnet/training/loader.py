"""Batches drawn ahead of the loop, so that a GPU need not wait for them.

In threads, where nothing is copied, or beside a GPU in processes: what draws a patch holds Python's
lock for a part of its time (while it reads a stored volume, some 10 ms a patch of 96 voxels, and
between any two calls), so that beyond a few threads more of them draw no more, and the loop, which
has to launch the network's kernels, waits for the lock as well. Processes leave what they drew in
files of the folder for temporary ones; /dev/shm is not needed. What a batch holds depends on its
number alone, so that it is the same in either, and however many there are.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Barrier, get_ident
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from hmvnet.exits import end_with_parent
from hmvnet.progress import print_lines

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]  # image [b, 2, z, y, x] and label [b, z, y, x]
Arrays = tuple[np.ndarray, np.ndarray]  # image [b, z, y, x, 2] and label [b, z, y, x]
MOST_WORKERS = 12  # where the machine decides


def worker_count(asked: int, device: torch.device, processes: int = 1) -> int:
    """How many draw ahead for this process; 0: the loop draws itself.

    Args:
        asked: -1: none where the network runs on the CPU, which they would take from it; beside a
            GPU one a core, shared by the training's processes, but one.
    """
    if asked >= 0:
        return asked
    if device.type != "cuda":
        return 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_WORKERS, max(1, (usable or 1) // processes - 1))


def in_processes(asked: str, device: torch.device) -> bool:
    """Whether those that draw ahead are processes.

    Args:
        asked: ``threads``, ``processes``, or ``auto``: processes beside a GPU.
    """
    return asked == "processes" or (asked == "auto" and device.type == "cuda")


class Ahead(Generic[T]):
    """``draw(number)`` for numbers in a row, computed ahead; ``with`` ends its threads.

    Asking for a number that does not follow forgets what was computed ahead and goes on from there.

    Args:
        draw: called in the threads, each with one thread of torch's; may be called for numbers
            that nobody asks for.
        workers: threads; 0: drawn when asked for.
    """

    def __init__(self, draw: Callable[[int], T], workers: int) -> None:
        self._draw = draw
        self._depth = workers + 1
        self._pending: dict[int, Future[T]] = {}
        self._pool: ThreadPoolExecutor | None = None
        if workers:
            self._pool = pool = ThreadPoolExecutor(workers, "draw")
            _calm(pool, workers)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, number: int) -> T:
        """What ``draw(number)`` returns or raises."""
        if not self._pool:
            with one_thread():
                return self._draw(number)
        wanted = range(number, number + self._depth)
        if number not in self._pending:
            for future in self._pending.values():
                future.cancel()
            self._pending.clear()
        for n in wanted:
            if n not in self._pending:
                self._pending[n] = self._pool.submit(self._draw, n)
        return self._pending.pop(number).result()


@contextmanager
def side_by_side(workers: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that have one of torch's each; what is left at the end of ``with`` is not begun."""
    pool = ThreadPoolExecutor(workers, name)
    _calm(pool, workers)
    try:
        yield pool
    except (KeyboardInterrupt, SystemExit):  # no thread can be left in the middle of its work
        print_lines([f"{name}: what is in work is finished, the rest is not begun"])
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _calm(pool: ThreadPoolExecutor, workers: int) -> None:
    """Give each thread of the pool one of torch's, and leave the others as they are.

    torch's count is of a thread and, for threads that begin later, of the process.
    """
    threads = torch.get_num_threads()
    together = Barrier(workers)  # so that each is started, and has one of these

    def one() -> None:
        together.wait()
        torch.get_num_threads()  # a thread's first call takes the process's number
        torch.set_num_threads(1)

    try:
        for started in [pool.submit(one) for _ in range(workers)]:
            started.result()
    except BaseException:  # no room for a thread, which the others would wait for
        together.abort()
        pool.shutdown(cancel_futures=True)
        raise
    torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's, as in the pool: sums have one order, to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Processes(Generic[T]):
    """``draw(number)`` in a process of its own; ``with`` ends them. To be called from threads.

    Each is a pool of one: a process reads what it is given after its imports only, and where that
    is more than a pipe holds, a pool does not start the next one until then; and one that is killed
    while it reads leaves the others of a pool waiting for ever. What was drawn comes
    by way of a file, which is deleted once it is read and seldom reaches the disk: a pipe for all
    took four times as long over two patches of 128 voxels as an H200 did to learn from them.

    Args:
        draw: pickled; returns a tuple of arrays.
        workers: processes; each has one thread of torch's.
    """

    def __init__(self, draw: Callable[[int], T], workers: int) -> None:
        self._folder = TemporaryDirectory(prefix="hmvnet-draw-")
        spawn, given = get_context("spawn"), (draw, self._folder.name)
        self._pools = [ProcessPoolExecutor(1, spawn, _begin, given) for _ in range(workers)]
        self._idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for pool in self._pools:
            self._idle.put(pool)

    def __enter__(self) -> Processes[T]:
        return self

    def __exit__(self, *exception: Any) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def __call__(self, number: int) -> T:
        """What ``draw(number)`` returns or raises.

        Raises:
            RuntimeError: a process ended.
        """
        file = Path(self._folder.name, f"{number}-{get_ident()}")
        pool = self._idle.get()
        try:
            count = pool.submit(_in_process, number, file).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that draws patches has ended: by the error above, or it was killed; "
                "where memory is short, fewer training.workers need less"
            ) from error
        finally:
            self._idle.put(pool)
        with file.open("rb") as drawn:
            arrays = tuple(np.load(drawn, allow_pickle=False) for _ in range(count))
        file.unlink()
        return cast("T", arrays)


_draw: Callable[[int], Any]  # of a process


def _begin(draw: Callable[[int], Any], folder: str) -> None:
    """Ready a process: it ends with the one it draws for, which alone is asked to leave.

    Args:
        folder: of what is drawn; it does not outlive them.
    """
    global _draw
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)
    end_with_parent(partial(shutil.rmtree, folder, ignore_errors=True))
    torch.set_num_threads(1)
    _draw = draw


def _in_process(number: int, file: Path) -> int:
    """Draw into a file; how many arrays there are.

    Raises:
        OSError: there is no room for it.
    """
    arrays = _draw(number)
    try:
        with file.open("wb") as drawn:
            for array in arrays:
                np.save(drawn, array, allow_pickle=False)
    except OSError as error:  # numpy's own does not name the file
        raise OSError(
            f"{file.parent}: a drawn batch cannot be written ({error.strerror or error}); TMPDIR "
            "says where there is room"
        ) from error
    return len(arrays)


def stacked(samples: Iterable[tuple[Tensor, Tensor]]) -> Arrays:
    """Samples as a batch, channels last."""
    images, labels = (torch.stack(part) for part in zip(*samples))
    return images.movedim(1, -1).contiguous().numpy(), labels.numpy()


def ready(batch: Arrays, device: torch.device) -> Batch:
    """A batch as tensors, in pinned memory where it goes to a GPU."""
    images, labels = (torch.from_numpy(part) for part in batch)
    images = images.movedim(-1, 1)
    if device.type != "cuda":
        return images, labels
    with torch.cuda.device(device):  # else a thread would open the first GPU
        return images.pin_memory(), labels.pin_memory()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch where the network is; nobody waits for a copy from pinned memory."""
    image, label = batch
    return image.to(device, non_blocking=True), label.to(device, non_blocking=True)
