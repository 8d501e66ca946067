"""Batches drawn ahead of the loop in background threads, so that a GPU need not wait for them.

Threads rather than processes: nothing is pickled, /dev/shm is not needed, the process's CPU time
holds all of it, and what they do is numpy's and torch's, which let other threads run meanwhile
(``hmvnet.training.cache.Stored`` does not, some 10 ms a patch of 96 voxels). On two busy cores two
threads gave a patch in 70 to 90 ms, two processes that send it through a pipe in 84 to 101. What a
batch holds depends on its number alone, so that it is the same however many threads there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]  # image [b, 2, z, y, x] and label [b, z, y, x]
MOST_WORKERS = 8  # where the machine decides: beyond, threads wait for each other


def worker_count(asked: int, device: torch.device, processes: int = 1) -> int:
    """How many threads draw ahead on this process; 0: the loop draws itself.

    Args:
        asked: -1: none where the network runs on the CPU, which the threads would take from it;
            beside a GPU a thread a core, shared by the training's processes, but one.
    """
    if asked >= 0:
        return asked
    if device.type != "cuda":
        return 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_WORKERS, max(1, (usable or 1) // processes - 1))


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
        self._pool = ThreadPoolExecutor(workers, "draw") if workers else None
        if self._pool:
            _calm(self._pool, workers)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    for started in [pool.submit(one) for _ in range(workers)]:
        started.result()
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


def stacked(samples: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Batch:
    """Samples as a batch, channels last; in pinned memory where it goes to a GPU."""
    images, labels = (torch.stack(part) for part in zip(*samples))
    images = images.contiguous(memory_format=torch.channels_last_3d)
    if device.type != "cuda":
        return images, labels
    with torch.cuda.device(device):  # else a thread would open the first GPU
        return images.pin_memory(), labels.pin_memory()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch where the network is; nobody waits for a copy from pinned memory."""
    image, label = batch
    return image.to(device, non_blocking=True), label.to(device, non_blocking=True)
