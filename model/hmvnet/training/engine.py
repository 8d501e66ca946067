"""The training loop shared by segmentation and prognosis, on Lightning Fabric.

What a step sees depends on its number alone (data and augmentation are drawn from the seed and
the sample's number, dropout from the seed and the step's), so a resumed run repeats an
uninterrupted one bit for bit, and several processes with parts of a batch compute what one does
with the whole, but for dropout.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hmvnet.exits import leave_where_asked
from hmvnet.progress import show_progress
from hmvnet.training.checkpoints import History, State
from hmvnet.training.schedule import ENDLESS, cosine, warm_ema

SKIPPED = "skipped"  # beside a step's losses: 1 where its gradients were not finite
MOST_SKIPPED = 100  # in a row; fp16's scaler has halved itself away long before


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
    accumulate: int = 1
    log_every: int = 1


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
            accelerator="cuda" if torch.cuda.is_available() else "cpu",  # as inference has them
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


class Unread:
    """Losses of steps, where they were computed until all are read at once: a GPU is waited for."""

    def __init__(self, fabric: Fabric, history: History, log: Log, title: str) -> None:
        self.fabric = fabric
        self.history = history
        self.log = log
        self.title = title
        self.steps: dict[int, Mapping[str, Tensor]] = {}
        self.skipped = 0  # the last steps, in a row

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Remember the losses of this process."""
        self.steps[step] = losses

    def read(self) -> None:
        """Add a row a step to the history and the log, the mean over the processes.

        Raises:
            RuntimeError: one is not finite, or so are the gradients of ``MOST_SKIPPED`` in a row.
        """
        if not self.steps:
            return
        values = torch.stack([torch.stack(list(row.values())) for row in self.steps.values()])
        means = self.fabric.all_reduce(values, reduce_op="mean").tolist()  # type: ignore[union-attr]
        for (step, losses), numbers in zip(self.steps.items(), means):
            row = dict(zip(losses, numbers))
            if not math.isfinite(row["total"]):
                raise RuntimeError(f"{self.title}: the loss became {row['total']} at step {step}")
            self.log(row, step)
            self.skipped = self.skipped + 1 if row.pop(SKIPPED) else 0
            if self.skipped == MOST_SKIPPED:
                raise RuntimeError(
                    f"{self.title}: nothing is learnt, the gradients of {MOST_SKIPPED} steps up to "
                    f"step {step} are not finite though their losses are; a lower "
                    "training.learning_rate, or training.precision=32-true, may help"
                )
            self.history.losses.append({"step": step, **row})
        self.steps.clear()


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, then a cosine to 1% of the peak."""
    return cosine(step, settings.learning_rate, settings.warmup_steps, settings.steps)


def train(
    fabric: Fabric,
    network: nn.Module,
    settings: LoopSettings,
    loss_of_batch: Callable[[nn.Module, int], Mapping[str, Tensor]],
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
    compiler: str = "none",
    seed: int | None = None,
) -> tuple[nn.Module, History]:
    """Optimise ``network`` and return its exponential moving average, and the history.

    Args:
        loss_of_batch: the losses of a batch, ``total`` among them; gets the network and the batch's
            number, which is the step's where gradients are not accumulated.
        run: folder of the checkpoint and the logs; a checkpoint found there is resumed.
        key: ``hmvnet.files.digest`` of the data and settings that the losses hang on.
        before_step: readies the network for a step, after it was put into training mode and before
            its losses; gets the network and the step.
        validate: figures of the averaged network after so many steps; called on every process,
            since the networks are equal on all of them.
        quiet: do not show the progress.
        stop: asked after every step; true ends the run early, with a checkpoint.
        rate: the learning rate of a step, from 0; None: ``learning_rate``.
        ema_warmup: the average's decay rises with the steps to ``ema_decay``
            (``hmvnet.training.schedule.warm_ema``), so that short trainings are not averaged with
            their beginning.
        clock: seconds by which steps are charged; None: ``work_clock`` of the device.
        history: filled as the loop goes, where ``stop`` has to see it; losses as they are read.
        compiler: the backend of ``torch.compile`` that the network is trained with, or ``none``.
        seed: of what the network draws in each step (dropout), so that it goes on over a resume;
            None: it goes on drawing as it began.

    Raises:
        ValueError: the checkpoint is of another network, other settings or other data.
        RuntimeError: the loss is no longer finite, or no gradient is (on a GPU found when losses
            are read).
    """
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    if ema_warmup:
        average.multi_avg_fn = warm_ema(settings.ema_decay, lambda: int(average.n_averaged))
    if compiler != "none":  # in place: no wrapper, whose prefix names in state dicts would get
        network.compile(backend=compiler)
    wrapped, optimizer = fabric.setup(network, _optimizer(network, settings, _is_fused(fabric)))
    precision = fabric.strategy.precision
    history = history or History()
    average.to(fabric.device)
    average.n_averaged = average.n_averaged.cpu()  # it is looked at every step
    state = State(key, network, average, optimizer, precision, history)
    state.resume(run)
    rate = rate or partial(learning_rate, settings=settings)
    clock = clock or work_clock(fabric.device)
    total = None if settings.steps == ENDLESS else settings.steps
    spent = history.spent[-1] if history.spent else 0.0
    before, began = history.seconds, time.monotonic()
    silent = quiet or fabric.global_rank != 0
    every = _read_every(fabric, settings)
    with show_progress(title, total, state.step, silent) as progress, Log(fabric) as log:
        unread = Unread(fabric, history, log, title)
        for step in range(state.step, settings.steps):
            started = clock()
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            wrapped.train()
            before_step(wrapped, step)
            if seed is not None:
                _seed(seed, fabric.global_rank, step)
            unread.add(step, _descend(fabric, wrapped, state, settings, loss_of_batch))
            done = state.step = step + 1
            validates = validate and (done % settings.validate_every == 0 or done == settings.steps)
            saves = done % settings.checkpoint_every == 0
            if due := validates or saves or done % every == 0:
                unread.read()
                progress.note(_note(history))
            spent += clock() - started
            history.spent.append(spent)
            progress.advance()
            if validate and validates:
                figures = dict(validate(average.module, done))
                history.validations.append({"step": done, **figures})
                log({f"validation/{k}": v for k, v in figures.items()}, step)
                progress.say(f"step {done}: " + _text(figures))
            last = done == settings.steps or stop(done)
            if fabric.world_size > 1:  # one process decides for all: their clocks differ
                last = bool(fabric.broadcast(last)) if due or done == settings.steps else False
            if last:
                unread.read()
            history.seconds = before + time.monotonic() - began
            if last or saves:
                if fabric.global_rank == 0:
                    state.save(run)
                fabric.barrier()
            if last:
                break
    return average.module, history


def _seed(*numbers: int) -> None:
    """Make what torch draws, which is dropout's, hang on nothing but these."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def work_clock(device: torch.device) -> Callable[[], float]:
    """Seconds by which work on a device is charged.

    On a CPU those that all threads of this process computed, so that what else the machine does is
    not charged; on a GPU the wall's, since the CPU waits for it.
    """
    return time.perf_counter if device.type == "cuda" else time.process_time


def _read_every(fabric: Fabric, settings: LoopSettings) -> int:
    """Steps from one reading of the losses to the next."""
    return settings.log_every if fabric.device.type == "cuda" else 1


def _is_fused(fabric: Fabric) -> bool:
    """Whether AdamW runs as one kernel, which skips a step by itself where it is told to.

    Fabric does not clip gradients for it where a scaler is at work.
    """
    scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
    return fabric.device.type == "cuda" and not scaled


def _optimizer(network: nn.Module, settings: LoopSettings, fused: bool) -> torch.optim.Optimizer:
    """AdamW; biases and the weights of norms do not decay."""
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": settings.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        fused=fused or None,
    )


def _descend(
    fabric: Fabric,
    wrapped: nn.Module,
    state: State,
    settings: LoopSettings,
    loss_of_batch: Callable[[nn.Module, int], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """One step down the gradient of its batches, and on with the average; none where it is inf.

    Returns:
        The losses' means over the batches, and ``SKIPPED``; nobody has waited for them yet.
    """
    optimizer, parts = state.optimizer, settings.accumulate
    optimizer.zero_grad(set_to_none=True)
    means: dict[str, Tensor] = {}
    for part in range(parts):
        waits = part < parts - 1
        with fabric.no_backward_sync(wrapped, enabled=waits):  # type: ignore[arg-type]
            losses = loss_of_batch(wrapped, state.step * parts + part)
            fabric.backward(losses["total"] / parts)
        for name, value in losses.items():
            means[name] = means.get(name, 0) + value.detach() / parts
    norm = fabric.clip_gradients(
        wrapped, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
    )
    if norm is not None and optimizer.defaults.get("fused"):
        # On the device, as GradScaler does it; the average then counts the same weights once more.
        own: Any = getattr(optimizer, "optimizer", optimizer)  # without Fabric's wrapper
        own.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
        state.average.update_parameters(state.network)
        return {**means, SKIPPED: own.found_inf}
    finite = norm is None or bool(torch.isfinite(norm))
    if finite or state.scaled:  # fp16's scaler skips the step itself, and must know
        optimizer.step()
    if finite:
        state.average.update_parameters(state.network)
    return {**means, SKIPPED: torch.full_like(means["total"], not finite)}


def _note(history: History) -> str:
    recent = history.losses[-20:]
    return f"loss {sum(r['total'] for r in recent) / len(recent):.4f}"


def _text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
