"""Many patients in several processes: of this machine, or of a Dask cluster that is there.

Each process loads the bundle once and reads one patient while it predicts another. A process that
dies loses nothing: its patients go to others, and one that a process died of again when it was
alone is a failure of that patient. Dask's ``distributed`` does the work (the extra ``cluster``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from hmvnet import __version__
from hmvnet.bundle import Manifest, state_of
from hmvnet.cohort import Order, Outcome, Read, predict_patient, read_source
from hmvnet.exits import RefusedError, fault
from hmvnet.pipeline import Pipeline, adjusted_bundle, load_pipeline
from hmvnet.progress import print_lines
from hmvnet.reading.inputs import Source
from hmvnet.segmentation.ensemble import pick_device

if TYPE_CHECKING:
    from distributed import Client

READING = 2  # patients that a process has: one is predicted, one is read
FEWEST_AHEAD = 64  # patients handed over at a time; a cluster that grows with its queue sees one
CONNECT_S = 30
DIED = "the process at work on it died, also with no other patient (out of memory, or killed)"


@dataclass(frozen=True)
class Recipe:
    """How a process loads its pipeline.

    Attributes:
        weights, device, overrides: as for ``hmvnet.pipeline.load_pipeline``.
        made: the digest of version and manifest that it has to have.
        threads: of torch and SimpleITK; 0: as the process's environment says.
        token: a file that it has to see: that of a storage that is shared.
    """

    weights: str | None
    device: str
    overrides: tuple[str, ...]
    made: str
    threads: int = 0
    token: Path | None = None


class Workers:
    """Processes of Dask, here or elsewhere, as a :class:`hmvnet.cohort.Crew`."""

    def __init__(
        self,
        weights: str | None = None,
        device: str = "auto",
        overrides: Sequence[str] = (),
        *,
        count: int = 0,
        scheduler: str = "",
    ) -> None:
        """Nothing is started yet.

        Args:
            weights, device, overrides: as for ``hmvnet.pipeline.load_pipeline``.
            count: processes to start on this machine, which share its cores evenly.
            scheduler: in their place the address of a Dask scheduler, ``tcp://host:8786``. Its
                processes see inputs and outputs, and perhaps weights, under the same paths.

        Raises:
            ModuleNotFoundError: ``distributed`` is not installed.
            RefusedError: as ``load_pipeline``.
        """
        import distributed  # noqa: F401

        if scheduler and weights and "://" not in weights:
            weights = str(Path(weights).absolute())
        self.manifest: Manifest = adjusted_bundle(weights, overrides)[0].manifest
        if not scheduler:
            pick_device(device)
        self.count, self.scheduler = count, scheduler
        self.recipe = Recipe(weights, device, tuple(overrides), state_of(self.manifest))

    def predict(self, sources: Sequence[Source], order: Order) -> Generator[Outcome, None, None]:
        """Each source's outcome, as they end.

        Raises:
            RefusedError: no scheduler answers, a process has another bundle or does not see the
                output folder, or a zip is unpacked where the others cannot see it.
            OSError: the scheduler is gone.
        """
        if not sources:
            return
        with ExitStack() as stack:
            if self.scheduler:
                if any(getattr(source, "keeps", None) for source in sources):
                    raise RefusedError(
                        "a zip is unpacked on this machine only: unpack it on the shared storage"
                    )
                token = stack.enter_context(shared_token(order.output))
                recipe = replace(self.recipe, token=token)
                client = stack.enter_context(connected(self.scheduler))
            else:
                count = min(self.count, len(sources))
                threads = max(1, _cores() // count)
                recipe = replace(self.recipe, threads=threads)
                client = stack.enter_context(_local(count, threads))

            def submit(source: Source) -> Any:
                return client.submit(_work, source, recipe, order, pure=False)

            yield from _outcomes(client, sources, submit)


# --- in a worker process -------------------------------------------------------------------------

_LOADING, _PREDICTING = Lock(), Lock()


def _work(source: Source, recipe: Recipe, order: Order) -> Outcome:
    """One patient: read while another is predicted, then predicted while another is read.

    Raises:
        RefusedError: the process cannot do any patient as it has to be done.
    """
    with _LOADING:
        pipeline = _pipeline(recipe)
    read: Future[Read] = Future()
    try:
        read.set_result(read_source(source, pipeline.manifest, order))
    except Exception as error:
        read.set_exception(error)
    with _PREDICTING:  # memory is for one, and pictures are not drawn by two threads
        outcome = predict_patient(source, pipeline, order, read.result)
    return replace(outcome, prediction=None)


@lru_cache(maxsize=1)
def _pipeline(recipe: Recipe) -> Pipeline:
    import torch
    from distributed import get_worker

    name = get_worker().name
    if recipe.token and not recipe.token.exists():
        raise RefusedError(
            f"worker {name} does not see {recipe.token.parent}: with --scheduler the output folder "
            "is on storage that all machines share, under one path"
        )
    if recipe.threads:
        import SimpleITK as sitk

        torch.set_num_threads(recipe.threads)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(recipe.threads)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = device_of(recipe.device, str(name), count)
    pipeline = load_pipeline(recipe.weights, device, recipe.overrides)
    if state_of(pipeline.manifest) != recipe.made:
        raise RefusedError(
            f"worker {name} has another bundle or another version of hmvnet ({__version__} there): "
            "expected those of the machine that asks"
        )
    return pipeline


def device_of(asked: str, name: str, gpus: int) -> str:
    """The device of a worker: those that are numbered take the GPUs in turn.

    Args:
        asked: ``auto``, or a device that all are to use.
        name: of the worker; those of this machine are named by their numbers.
        gpus: how many it sees.
    """
    return f"cuda:{int(name) % gpus}" if asked == "auto" and gpus > 1 and name.isdigit() else asked


# --- in the process that asks --------------------------------------------------------------------


def _outcomes(
    client: Client, sources: Sequence[Source], submit: Callable[[Source], Any]
) -> Generator[Outcome, None, None]:
    """Outcomes as they come; patients of whom processes died are tried again, each alone."""
    from distributed import as_completed

    waiting, running = iter(sources), as_completed()
    names: dict[str, Source] = {}
    suspects: list[Source] = []

    def hand_over() -> None:
        ahead = max(FEWEST_AHEAD, 4 * sum(client.nthreads().values()))
        while len(names) < ahead and (source := next(waiting, None)) is not None:
            future = submit(source)
            names[future.key] = source
            running.add(future)

    try:
        hand_over()
        for future in running:
            source = names.pop(future.key)
            outcome = _outcome_of(future, source)
            if outcome is None:
                suspects.append(source)
            else:
                yield outcome
            hand_over()
        for source in suspects:
            future = submit(source)
            names[future.key] = source
            yield _outcome_of(future, source) or Outcome(source.patient_id, "failed", DIED)
            del names[future.key]
    finally:
        if names and client.status == "running":  # whoever asked was interrupted
            client.cancel([future for future in client.futures])


def _outcome_of(future: Any, source: Source) -> Outcome | None:
    """What became of a patient; None where the processes at work on it died.

    Raises:
        RefusedError: as ``_work``.
        OSError: the scheduler is gone.
    """
    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        return future.result()
    except (CancelledError, asyncio.CancelledError, CommClosedError) as error:
        raise OSError("the Dask scheduler is gone; --continue goes on") from error
    except RefusedError:
        raise
    except KilledWorker:
        return None
    except Exception as error:
        return Outcome(source.patient_id, "failed", fault(error))


@contextmanager
def _local(count: int, threads: int) -> Iterator[Client]:
    """Processes of this machine; nobody else can reach them, and none outlives this one."""
    import dask
    from distributed import Client, LocalCluster

    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings = {
        # Dask has memory given back at once, and large volumes are then paged in again and again.
        "distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": None},
        "distributed.scheduler.allowed-failures": 1,
        "distributed.scheduler.worker-saturation": 1.0,  # nobody waits in a process that may die
        "distributed.worker.memory.terminate": False,  # how much a patient needs is not shared out
        "distributed.worker.profile.enabled": False,  # it costs as much as small patients
    }
    for name in list(logging.root.manager.loggerDict):  # what they say of processes that died
        if name.startswith("distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=READING,
            memory_limit=0,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            env={name: str(threads) for name in variables},
            security=True,  # or any user of the machine could run code as this one
            preload=["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
        )
    with cluster, Client(cluster) as client:
        yield client


@contextmanager
def connected(address: str) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError) as error:
        raise RefusedError(
            f"--scheduler {address}: no Dask scheduler answers there ({fault(error)})"
        ) from error
    with client:
        if not client.nthreads():
            print_lines([f"note: waiting for a worker of {address}"])
        yield client


@contextmanager
def shared_token(folder: Path) -> Iterator[Path]:
    """A file in a folder, by which another machine's process knows that it sees the same one."""
    path = folder.absolute() / f".shared-{uuid.uuid4().hex}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _cores() -> int:
    """Cores that this process may use, or as many as the environment says."""
    from dask.system import CPU_COUNT

    return threads_asked_for() or CPU_COUNT


def threads_asked_for() -> int:
    """As ``OMP_NUM_THREADS`` says; 0 where it does not."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() else 0
