"""nnU-Net's own code, run in a process of its own (extra ``nnunet``).

It wants its folders in the environment, prints a lot, and starts processes: so every job is a
process that has its own environment and writes what nnU-Net says into a log. What this side needs
comes back in lines of JSON (``hmvnet.experiments.nnunet_job``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hmvnet.exits import Exit, RefusedError, UnfinishedError, shown
from hmvnet.progress import Progress, print_lines, show_progress

DATASET, NUMBER = "Dataset501_Compared", 501
JOB = "hmvnet.experiments.nnunet_job"
LOG = "nnunet.log"
ROOT = Path(__file__).resolve().parents[2]


def require_nnunet() -> None:
    """Raises: RefusedError: nnU-Net is not installed."""
    if find_spec("nnunetv2") is None:
        raise RefusedError(
            "nnU-Net itself is not installed, of the extra 'nnunet': pip install '.[nnunet]' in a "
            "checkout"
        )


@dataclass(frozen=True)
class Workshop:
    """Where nnU-Net works, below a folder of ours.

    Attributes:
        results: name of the folder of its trained models; another one a budget.
    """

    folder: Path
    results: str = "results"

    @property
    def raw(self) -> Path:
        """Its raw data."""
        return self.folder / "raw" / DATASET

    @property
    def trained(self) -> Path:
        """Its trained models, and what they predict."""
        return self.folder / self.results

    @property
    def log(self) -> Path:
        """All that it says."""
        return self.folder / LOG

    def environment(self) -> dict[str, str]:
        """This process's, with nnU-Net's folders.

        Its predictor takes no more threads than it may start processes, so that count is torch's.
        """
        folders = {
            "raw": self.raw.parent,
            "preprocessed": self.folder / "preprocessed",
            "results": self.trained,
        }
        packages = (str(ROOT), os.environ.get("PYTHONPATH", ""))
        own = {
            "nnUNet_def_n_proc": str(torch.get_num_threads()),
            "PYTHONPATH": os.pathsep.join(filter(None, packages)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }
        return {
            **os.environ,
            **{f"nnUNet_{name}": str(path.absolute()) for name, path in folders.items()},
            **own,
        }


def run_job(shop: Workshop, job: str, order: Mapping[str, Any], title: str) -> dict[str, Any]:
    """One of the functions of ``nnunet_job`` in a process of its own; it ends with this one.

    Args:
        order: what the function takes, in JSON's types.
        title: of its progress.

    Returns:
        What the function returned.

    Raises:
        RefusedError: it refused its input.
        UnfinishedError: time was up.
        RuntimeError: it failed; names the log.
    """
    require_nnunet()
    shop.folder.mkdir(parents=True, exist_ok=True)
    with shop.log.open("a", encoding="utf-8") as log:
        print(f"\n=== {title}: {job} {json.dumps(order)[:2000]}", file=log, flush=True)
        process = subprocess.Popen(  # noqa: S603  this package's own module
            [sys.executable, "-m", JOB, job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=shop.environment(),
            text=True,
            encoding="utf-8",
        )
        try:
            said = _follow(process, order, title)
        except BaseException:  # Ctrl-C among them
            process.kill()
            raise
        finally:
            code = process.wait()
    if code == Exit.OK and "result" in said:
        return said["result"]
    if "refused" in said:
        raise RefusedError(said["refused"])
    if "unfinished" in said:
        raise UnfinishedError(said["unfinished"])
    why = f"its process was killed (signal {-code})" if code < 0 else _last_line(shop.log)
    raise RuntimeError(f"nnU-Net failed: {title}: {why}; all that it said: {shop.log}")


def _follow(process: subprocess.Popen[str], order: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Give the order, show the progress, and return the last that was said.

    The process's standard input stays open until it ends: it ends, too, where this one does.
    """
    assert process.stdin is not None and process.stdout is not None
    print(json.dumps(order), file=process.stdin, flush=True)
    said: dict[str, Any] = {}
    begun = None
    shown_so_far: Progress | None = None
    try:
        for line in process.stdout:
            message = json.loads(line)
            if "line" in message:
                print_lines([message["line"]])
            elif "total" in message:
                if shown_so_far is None:
                    begun = show_progress(title, message["total"], message["done"])
                    shown_so_far = begun.__enter__()
                shown_so_far.note(message.get("note", ""))
                shown_so_far.reach(message["done"])
            else:
                said = message
    finally:
        if begun is not None:
            begun.__exit__(None, None, None)
    return said


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return shown(next((line for line in reversed(lines) if line.strip()), "nothing was said"), 200)
