"""The training loop shared by segmentation and prognosis, on Lightning Fabric.

What a step sees depends on its number alone (data and augmentation are drawn from the seed and
the sample's number), so a resumed run repeats an uninterrupted one bit for bit, and several
processes with parts of a batch compute what one does with the whole.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import Logger, TensorBoardLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hmvnet.files import replacing, write_text

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class LoopSettings:
    """How to optimise; the same names as in ``config.xml``."""

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
    """What was measured on the way: rows of ``{"step": ..., name: value}``, and the seconds."""

    seconds: float = 0.0
    losses: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)


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


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, then a cosine to 1% of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - settings.warmup_steps)
    share = min(1.0, (step - settings.warmup_steps) / span)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def train(
    fabric: Fabric,
    network: nn.Module,
    settings: LoopSettings,
    loss_of_step: Callable[[nn.Module, int], Mapping[str, Tensor]],
    run: Path,
    *,
    key: str,
    validate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    title: str = "train",
    quiet: bool = False,
    stop: Callable[[int], bool] = lambda step: False,
) -> tuple[nn.Module, History]:
    """Optimise ``network`` and return its exponential moving average, and the history.

    Args:
        loss_of_step: the losses of a step, ``total`` among them; gets the network and the step.
        run: folder of the checkpoint and the logs; a checkpoint found there is resumed.
        key: :func:`hmvnet.files.digest` of the data and settings that the losses hang on.
        validate: figures of the averaged network after so many steps; called on every process,
            since the networks are equal on all of them.
        quiet: no progress bar.
        stop: asked after every step; true ends the run early, with a checkpoint.

    Raises:
        ValueError: the checkpoint is of another network, other settings or other data.
    """
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": settings.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    average = average.to(fabric.device)
    wrapped, optimizer = fabric.setup(network, optimizer)
    history = History()
    start = _resume(run, key, wrapped, average, optimizer, history, fabric)
    before, began = history.seconds, time.monotonic()
    with _progress(quiet or fabric.global_rank != 0) as progress:
        task = progress.add_task(title, total=settings.steps, completed=start, note="")
        for step in range(start, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            wrapped.train()
            losses = loss_of_step(wrapped, step)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(losses["total"])
            norm = fabric.clip_gradients(
                wrapped, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
            )
            finite = norm is None or bool(torch.isfinite(norm))
            if finite or _scaled(fabric):  # fp16's scaler skips the step itself, and must know
                optimizer.step()
            if finite:
                average.update_parameters(bare(wrapped))
            row = {
                name: float(fabric.all_reduce(value.detach(), reduce_op="mean"))  # type: ignore
                for name, value in losses.items()
            }
            if not math.isfinite(row["total"]):
                raise RuntimeError(f"{title}: the loss became {row['total']} at step {step}")
            history.losses.append({"step": step, **row})
            fabric.log_dict(row, step)
            progress.update(task, advance=1, note=_note(history))
            done = step + 1
            if validate and (done % settings.validate_every == 0 or done == settings.steps):
                figures = dict(validate(average.module, done))
                history.validations.append({"step": done, **figures})
                fabric.log_dict({f"validation/{k}": v for k, v in figures.items()}, step)
                progress.console.print(f"step {done}: " + _text(figures))
            # One process decides for all: their clocks differ.
            last = bool(fabric.broadcast(done == settings.steps or stop(done)))
            history.seconds = before + time.monotonic() - began
            if last or done % settings.checkpoint_every == 0:
                _save(run, key, done, wrapped, average, optimizer, history, fabric)
            if last:
                break
    for logger in fabric.loggers:
        logger.finalize("success")
    return average.module, history


def bare(wrapped: nn.Module) -> nn.Module:
    """The network itself, without the wrappers of Fabric and DDP."""
    module = getattr(wrapped, "module", wrapped)
    return getattr(module, "module", module)


def _progress(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, disable=quiet)


def _note(history: History) -> str:
    recent = history.losses[-20:]
    return f"loss {sum(r['total'] for r in recent) / len(recent):.4f}"


def _text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _scaled(fabric: Fabric) -> bool:
    """Whether a gradient scaler is at work (fp16)."""
    return getattr(fabric._precision, "scaler", None) is not None


def _save(
    run: Path,
    key: str,
    step: int,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: History,
    fabric: Fabric,
) -> None:
    if fabric.global_rank == 0:
        state: dict[str, Any] = {
            "key": key,
            "step": step,
            "precision": fabric._precision.state_dict(),
            "network": bare(network).state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "losses": history.losses,
            "validations": history.validations,
            "seconds": history.seconds,
        }
        with replacing(run / CHECKPOINT) as temporary:
            torch.save(state, temporary)
        # From the history rather than a logger, which would forget the steps before a resume.
        for name, rows in (("losses", history.losses), ("validations", history.validations)):
            if rows:
                write_text(pd.DataFrame(rows).to_csv(index=False), run / f"{name}.csv")
    fabric.barrier()


def _resume(
    run: Path,
    key: str,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: History,
    fabric: Fabric,
) -> int:
    path = run / CHECKPOINT
    if not path.exists():
        return 0
    state = torch.load(path, map_location=fabric.device, weights_only=True)
    if state.get("key") != key:
        raise ValueError(
            f"{path}: the checkpoint of another network, other settings or other data; use another "
            "--run, or remove it"
        )
    fabric._precision.load_state_dict(state["precision"])
    try:
        bare(network).load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: checkpoint of another network or settings: {error}") from error
    history.losses[:] = state["losses"]
    history.validations[:] = state["validations"]
    history.seconds = float(state["seconds"])
    return int(state["step"])
