"""The training loop shared by segmentation and prognosis, on Lightning Fabric.

What a step sees depends on its number alone (data and augmentation are drawn from the seed and
the sample's number), so a resumed run repeats an uninterrupted one bit for bit, and several
processes with parts of a batch compute what one does with the whole.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import Logger, TensorBoardLogger
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hmvnet.exits import leave_where_asked
from hmvnet.files import replacing
from hmvnet.progress import show_progress
from hmvnet.table_files import write_table
from hmvnet.training.schedule import ENDLESS, cosine, warm_ema

CHECKPOINT = "checkpoint.pt"
# What torch and zipfile say of a damaged file.
DAMAGED = (EOFError, OSError, RuntimeError, UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True)
class LoopSettings:
    """How to optimise; the same names as in ``config.xml``.

    Less than ``TrainingSettings``, because the survival model's network, which has settings of its
    own and no patches or norms, is trained by the same loop.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    clip_norm: float
    ema_decay: float
    checkpoint_every: int
    validate_every: int


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
                f"{path}: the checkpoint of another network, other settings or other data; use "
                "another --run, or remove it"
            )
        if state["precision"]:  # none where it ran in another precision: the scaler starts anew
            self.precision.load_state_dict(state["precision"])
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
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
    """The whole checkpoint of this key under ``run``; None where there is none."""
    try:
        state = _load(run / CHECKPOINT)
    except DAMAGED:
        return None
    return state if state.get("key") == key else None


def _load(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch does not look at its checksums
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)
    # To the CPU: each tensor is copied to the device of the one that it replaces.
    return torch.load(path, map_location="cpu", weights_only=True)


def make_fabric(run: Path, precision: str = "auto", devices: int | str = "auto") -> Fabric:
    """A launched Fabric that logs to TensorBoard under ``run``.

    ``torchrun`` and Slurm are recognised by Fabric itself. ``auto`` precision is bf16 where the
    GPU has it, fp16 (with Fabric's gradient scaler, which skips steps with inf) on older ones, and
    full precision on the CPU.
    """
    if precision == "auto":
        precision = "32-true"
        if torch.cuda.is_available():
            precision = "bf16-mixed" if torch.cuda.is_bf16_supported(False) else "16-mixed"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    loggers: list[Logger] = [TensorBoardLogger(run, name="logs", version="")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator="auto",
            devices=devices if torch.cuda.is_available() else world,
            precision=precision,  # type: ignore[arg-type]
            loggers=loggers,
        )
        fabric.launch()
    return fabric


class Log:
    """TensorBoard's log. It is optional: where it cannot be written, that is said once."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.broken = False

    def __enter__(self) -> Log:
        self._hook, threading.excepthook = threading.excepthook, self._of_thread
        return self

    def __call__(self, row: Mapping[str, float], step: int) -> None:
        """Log the figures of a step."""
        self._try(lambda: self.fabric.log_dict(row, step))

    def __exit__(self, *_: object) -> None:
        for logger in self.fabric.loggers:
            self._try(lambda logger=logger: logger.finalize("success"))  # type: ignore[misc]
        threading.excepthook = self._hook

    def _try(self, write: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            write()
        except Exception as error:  # the training goes on, whatever it is
            leave_where_asked()
            self.broken = True
            why = error.__cause__ or error  # the logger takes all for values that it does not know
            text = " ".join(f"{type(why).__name__}: {why}".split())
            print(f"warning: log not written: {text}", file=sys.stderr)

    def _of_thread(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, whose failure it raises with the next row."""
        if not type(failed.thread).__module__.startswith("tensorboard"):
            self._hook(failed)


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, then a cosine to 1% of the peak."""
    return cosine(step, settings.learning_rate, settings.warmup_steps, settings.steps)


def train(
    fabric: Fabric,
    network: nn.Module,
    settings: LoopSettings,
    loss_of_step: Callable[[nn.Module, int], Mapping[str, Tensor]],
    run: Path,
    *,
    key: str,
    before_step: Callable[[nn.Module, int], None] = lambda network, step: None,
    validate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    title: str = "train",
    quiet: bool = False,
    stop: Callable[[int], bool] = lambda step: False,
    rate: Callable[[int], float] | None = None,
    ema_warmup: bool = False,
    clock: Callable[[], float] | None = None,
    history: History | None = None,
) -> tuple[nn.Module, History]:
    """Optimise ``network`` and return its exponential moving average, and the history.

    Args:
        loss_of_step: the losses of a step, ``total`` among them; gets the network and the step.
        run: folder of the checkpoint and the logs; a checkpoint found there is resumed.
        key: ``hmvnet.files.digest`` of the data and settings that the losses hang on.
        before_step: readies the network for a step, after it was put into training mode and before
            its losses; gets what ``loss_of_step`` gets.
        validate: figures of the averaged network after so many steps; called on every process,
            since the networks are equal on all of them.
        quiet: do not show the progress.
        stop: asked after every step; true ends the run early, with a checkpoint.
        rate: the learning rate of a step, from 0; None: ``learning_rate``.
        ema_warmup: the average's decay rises with the steps to ``ema_decay``
            (``hmvnet.training.schedule.warm_ema``), so that short trainings are not averaged with
            their beginning.
        clock: seconds by which steps are charged; None: ``work_clock`` of the device.
        history: filled as the loop goes, where ``stop`` has to see it.

    Raises:
        ValueError: the checkpoint is of another network, other settings or other data.
        RuntimeError: the loss is no longer finite.
    """
    ema = warm_ema if ema_warmup else get_ema_multi_avg_fn
    average = AveragedModel(network, multi_avg_fn=ema(settings.ema_decay))
    wrapped, optimizer = fabric.setup(network, _optimizer(network, settings))
    precision = fabric.strategy.precision
    history = history or History()
    state = State(key, network, average.to(fabric.device), optimizer, precision, history)
    state.resume(run)
    rate = rate or partial(learning_rate, settings=settings)
    clock = clock or work_clock(fabric.device)
    total = None if settings.steps == ENDLESS else settings.steps
    spent = history.spent[-1] if history.spent else 0.0
    before, began = history.seconds, time.monotonic()
    silent = quiet or fabric.global_rank != 0
    with show_progress(title, total, state.step, silent) as progress, Log(fabric) as log:
        for step in range(state.step, settings.steps):
            started = clock()
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            wrapped.train()
            before_step(wrapped, step)
            losses = loss_of_step(wrapped, step)
            _descend(fabric, wrapped, state, losses["total"], settings.clip_norm)
            row = {
                name: float(fabric.all_reduce(value.detach(), reduce_op="mean"))  # type: ignore
                for name, value in losses.items()
            }
            spent += clock() - started
            history.spent.append(spent)
            if not math.isfinite(row["total"]):
                raise RuntimeError(f"{title}: the loss became {row['total']} at step {step}")
            history.losses.append({"step": step, **row})
            log(row, step)
            progress.note(_note(history))
            progress.advance()
            done = state.step = step + 1
            if validate and (done % settings.validate_every == 0 or done == settings.steps):
                figures = dict(validate(average.module, done))
                history.validations.append({"step": done, **figures})
                log({f"validation/{k}": v for k, v in figures.items()}, step)
                progress.say(f"step {done}: " + _text(figures))
            # One process decides for all: their clocks differ.
            last = bool(fabric.broadcast(done == settings.steps or stop(done)))
            history.seconds = before + time.monotonic() - began
            if last or done % settings.checkpoint_every == 0:
                if fabric.global_rank == 0:
                    state.save(run)
                fabric.barrier()
            if last:
                break
    return average.module, history


def work_clock(device: torch.device) -> Callable[[], float]:
    """Seconds by which work on a device is charged.

    On a CPU those that all threads of this process computed, so that what else the machine does is
    not charged; on a GPU the wall's, since the CPU waits for it.
    """
    return time.perf_counter if device.type == "cuda" else time.process_time


def _optimizer(network: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """AdamW; biases and the weights of norms do not decay."""
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": settings.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )


def _descend(
    fabric: Fabric, wrapped: nn.Module, state: State, total: Tensor, clip_norm: float
) -> None:
    """One step down the gradient of ``total`` and on with the average; none where it is inf."""
    optimizer = state.optimizer
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(total)
    norm = fabric.clip_gradients(wrapped, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    finite = norm is None or bool(torch.isfinite(norm))
    if finite or state.scaled:  # fp16's scaler skips the step itself, and must know
        optimizer.step()
    if finite:
        state.average.update_parameters(state.network)


def _note(history: History) -> str:
    recent = history.losses[-20:]
    return f"loss {sum(r['total'] for r in recent) / len(recent):.4f}"


def _text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
