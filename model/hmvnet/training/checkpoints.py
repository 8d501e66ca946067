"""What a training is between two steps, on disk and back: it goes on from there bit for bit."""

from __future__ import annotations

import errno
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pandas as pd
import torch
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hmvnet.files import replacing
from hmvnet.table_files import write_table

CHECKPOINT = "checkpoint.pt"
# What torch and zipfile say of a damaged file; of one that cannot be read the system says OSError.
DAMAGED = (EOFError, RuntimeError, UnpicklingError, zipfile.BadZipFile)


@dataclass
class History:
    """What was measured on the way: rows of ``{"step": ..., name: value}``, and the seconds.

    Attributes:
        seconds: by the clock on the wall, of all that the loop did.
        spent: after each step the cost of the steps so far, in seconds of ``train``'s clock; the
            data's preparation is counted, validations and checkpoints are not. Empty, or short,
            where a checkpoint without it was resumed.
    """

    seconds: float = 0.0
    spent: list[float] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)


@dataclass
class State:
    """What a training is between two steps: all that its checkpoint holds.

    Attributes:
        key: ``hmvnet.files.digest`` of the data and settings that the losses hang on.
        network: as optimised, without the wrappers of Fabric and DDP.
        average: its exponential moving average.
        precision: Fabric's plugin, which holds the gradient scaler of fp16.
        step: how many steps are done.
    """

    key: str
    network: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    precision: Precision
    history: History = field(default_factory=History)
    step: int = 0

    @property
    def scaled(self) -> bool:
        """Whether a gradient scaler is at work (fp16)."""
        return isinstance(self.precision, MixedPrecision) and self.precision.scaler is not None

    def save(self, run: Path) -> None:
        """Write the history's tables under ``run``, then the checkpoint, which stands for both."""
        state: dict[str, Any] = {
            "key": self.key,
            "step": self.step,
            "precision": self.precision.state_dict(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.history.losses,
            "validations": self.history.validations,
            "seconds": self.history.seconds,
            "spent": self.history.spent,
        }
        # From the history rather than a logger, which would forget the steps before a resume; and
        # first, since nothing comes after the checkpoint of the last step.
        tables = {"losses": self.history.losses, "validations": self.history.validations}
        for name, rows in tables.items():
            if rows:
                write_table(pd.DataFrame(rows), run / f"{name}.csv")
        with replacing(run / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def resume(self, run: Path) -> None:
        """Become what the checkpoint under ``run`` holds; nothing happens where there is none.

        Raises:
            ValueError: it is damaged, or of another network, other settings or other data.
            OSError: it cannot be read.
        """
        path = run / CHECKPOINT
        if not path.exists():
            return
        try:
            state = _load(path)
        except DAMAGED as error:
            raise ValueError(
                f"{path}: the checkpoint is cut or damaged; remove it to start anew, or put a "
                "whole one in its place"
            ) from error
        if state.get("key") != self.key:
            raise ValueError(
                f"{path}: the checkpoint of another network, other settings, other data or "
                "an earlier version; use another --run, or remove it"
            )
        if state["precision"]:  # none where it ran in another precision: the scaler starts anew
            self.precision.load_state_dict(state["precision"])
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            for group in state["optimizer"]["param_groups"]:  # of another device, perhaps
                group["fused"] = self.optimizer.defaults.get("fused")
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path}: checkpoint of another network or settings: {error}"
            ) from error
        self.step = int(state["step"])
        self.history.losses[:] = state["losses"]
        self.history.validations[:] = state["validations"]
        self.history.seconds = float(state["seconds"])
        self.history.spent[:] = state.get("spent", [])


def is_finished(run: Path, key: str, steps: int) -> bool:
    """Whether the checkpoint under ``run`` is of a training of this key after its last step."""
    state = _of_key(run, key)
    return state is not None and state.get("step") == steps


def costs_so_far(run: Path, key: str) -> list[float]:
    """``History.spent`` of the checkpoint under ``run``; empty where none is of this key."""
    state = _of_key(run, key)
    return list(state.get("spent", [])) if state else []


def fork(source: Path, key: str, run: Path, new_key: str) -> None:
    """A checkpoint under ``run`` from which a training of ``new_key`` goes on where another stands.

    Args:
        source: the other training's folder, which stays as it is.
        key: the other training's.

    Raises:
        ValueError: there is no whole checkpoint of that key.
    """
    state = _of_key(source, key)
    if state is None:
        raise ValueError(f"{source / CHECKPOINT}: missing, damaged, or of another training")
    with replacing(run / CHECKPOINT) as temporary:
        torch.save({**state, "key": new_key}, temporary)


def _of_key(run: Path, key: str) -> dict[str, Any] | None:
    """The whole checkpoint of this key under ``run``; None where there is none.

    Raises:
        OSError: there is one that cannot be read.
    """
    try:
        state = _load(run / CHECKPOINT)
    except (FileNotFoundError, *DAMAGED):
        return None
    return state if state.get("key") == key else None


def _load(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:  # first, so that what the system says is not of its content
        try:
            with zipfile.ZipFile(file) as archive:  # torch does not look at its checksums
                damaged = archive.testzip()
        except (OSError, ValueError) as error:  # sent before the beginning by a wrong offset
            if getattr(error, "errno", None) not in (None, errno.EINVAL):
                raise
            raise zipfile.BadZipFile(str(error)) from error
    if damaged:
        raise zipfile.BadZipFile(damaged)
    # To the CPU: each tensor is copied to the device of the one that it replaces.
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise zipfile.BadZipFile(f"holds a {type(state).__name__}, expected a dict")
    return state
