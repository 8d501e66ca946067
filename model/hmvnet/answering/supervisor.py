"""A run that ends with a valid answer whatever becomes of it.

The least answer of all is written first, from the images' headers. Then another process works on
a better one and puts its files in the place of those. If it is killed, crashes or takes too long, a
process that asks for less takes its turn; and if the platform ends the whole run, there is an
answer already.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hmvnet.answering.places import grid_of_answer
from hmvnet.exits import Exit, note
from hmvnet.files import clear_leftovers
from hmvnet.writing.challenge import OutputFolder

# The commonest of cancers of the oropharynx, by AJCC's 7th edition: where nothing is known.
COMMONEST_T, COMMONEST_N = "T2", "N2"
USUAL_RFS = 0.0  # until a survival model says what is usual
LEAST_S = 1.0  # that an attempt is started for


@dataclass(frozen=True)
class Way:
    """How an attempt goes about its work.

    Attributes:
        name: for the attempt's command line.
        until: share of the time budget after which it is ended.
        environment: that it gets beside the run's own.
    """

    name: str
    until: float
    environment: Mapping[str, str]


# Everything; one network on the CPU, one thread; no network.
WHOLE, FRUGAL, PLAIN = "whole", "frugal", "plain"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
WAYS = (Way(WHOLE, 0.6, {}), Way(FRUGAL, 0.85, ONE_THREAD), Way(PLAIN, 1.0, ONE_THREAD))

Command = Callable[[Way], Sequence[str]]


def last_resort(input_dir: Path, output: OutputFolder, task: str) -> None:
    """Write what can be said without reading a voxel: no lesion, and what is usual.

    Raises:
        OSError, CaseError: the output folder cannot be written.
    """
    wanted = output.interface.paths(task)
    if output.interface.mask in wanted:
        grid, whose = grid_of_answer(input_dir)
        if whose != "CT":
            note(f"the CT's header cannot be read: the mask is given on the grid of {whose}")
        output.write_mask(grid.image(np.zeros(grid.shape, np.uint8)))
    if output.interface.stages:
        output.write_stages(COMMONEST_T, COMMONEST_N)
    if task in ("2", "both"):
        output.write_rfs(USUAL_RFS)


def supervise(command: Command, output: OutputFolder, budget_s: float) -> Exit:
    """Try one way after the other until an attempt ends well; the exit code is 0 in any case.

    Args:
        command: of an attempt, by its way; it exits with 0 where it has given its best.
        output: with the last resort's files in it.
        budget_s: seconds for all attempts, from now.
    """
    began = time.monotonic()
    for way in WAYS:
        left = way.until * budget_s - (time.monotonic() - began)
        if left < LEAST_S:
            continue
        code = _attempt(command(way), way, left)
        for path in output.root.glob("**/"):  # what it was writing when it was ended
            clear_leftovers(path)
        if code == Exit.OK:
            return Exit.OK
        if code is None:
            note("told to stop: what was written so far is the answer")
            return Exit.OK
    note("no attempt ended well: the least answer stands")
    return Exit.OK


def _attempt(command: Sequence[str], way: Way, seconds: float) -> int | None:
    """The exit code of an attempt; None where this process was told to stop meanwhile."""
    # The package may be a checkout's: the attempt is to find it as this process did.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        **way.environment,
    }
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment)  # noqa: S603  our own
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        note(f"attempt '{way.name}' ended: it took longer than {seconds:.0f} s")
        return Exit.UNFINISHED
    except (SystemExit, KeyboardInterrupt):  # SIGTERM's, by hmvnet.exits
        return None
    finally:
        process.kill()
        process.wait()
    if code != Exit.OK:
        by = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        note(f"attempt '{way.name}' ended with {by} after {time.monotonic() - began:.0f} s")
    return code


def python_command(module: str, *arguments: str) -> list[str]:
    """A command that runs one of the package's modules with this Python."""
    return [sys.executable, "-m", module, *arguments]
