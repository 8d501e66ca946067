"""``hmvnet bench networks``: what a forward pass and a training step of each network cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from hmvnet.experiments.bench import growth
from hmvnet.experiments.compare_networks import Contender
from hmvnet.networks.registry import build_network
from hmvnet.segmentation.forward import channels_last

CPU = torch.device("cpu")


def network_table(
    names: Sequence[str],
    patch: int,
    repeats: int,
    console: Console,
    device: torch.device = CPU,
    precision: str = "fp32",
    batch: int = 1,
) -> Table:
    """Forward pass, training step and peak memory of networks on one batch, in one run.

    Columns: million parameters; of each of the two milliseconds, the memory added at its peak, and
    how many times the first network's milliseconds they are.

    Args:
        names: as ``Contender.parse`` reads them: a network's name, and options.
        precision: ``fp32``, or ``bf16`` for autocast.
    """
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_text()
    title = f"{batch} x {patch}^3, {precision}, {where}, median of {repeats}"
    table = Table(title=title)
    table.add_column("network", overflow="fold", ratio=1)
    for name in ("M", "forward ms", "MB", "x", "step ms", "MB", "x"):
        table.add_column(name, justify="right", no_wrap=True)
    first: Costs | None = None
    for name in names:
        with console.status(name):
            chosen = Contender.parse(name).network
            options = {"img_size": (patch,) * 3} if chosen.name == "unetr" else {}
            network = channels_last(build_network(chosen.name, options | chosen.options))
            costs = _time_network(network.to(device), patch, repeats, precision, batch)
        first = first or costs
        count = sum(p.numel() for p in network.parameters()) / 1e6
        table.add_row(
            name,
            f"{count:.1f}",
            f"{1000 * costs.forward_s:.1f}",
            f"{costs.forward_mb:.0f}",
            f"{costs.forward_s / first.forward_s:.1f}",
            f"{1000 * costs.step_s:.1f}",
            f"{costs.step_mb:.0f}",
            f"{costs.step_s / first.step_s:.1f}",
        )
    return table


def _cpu_text() -> str:
    return f"CPU, {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class Costs:
    """Median seconds of a forward pass and of a training step, and the MB that each takes more."""

    forward_s: float
    step_s: float
    forward_mb: float
    step_mb: float


def _time_network(
    network: torch.nn.Module, patch: int, repeats: int, precision: str, batch: int
) -> Costs:
    device = next(network.parameters()).device
    x = torch.rand(batch, 2, patch, patch, patch, device=device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    label = torch.zeros(batch, patch, patch, patch, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=device.type == "cuda" or None)
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def forward() -> None:
        with torch.inference_mode(), half:
            network(x)

    def step() -> None:
        with half:
            loss = torch.nn.functional.cross_entropy(network(x).logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds, megabytes = [], []
    for mode, work in ((False, forward), (True, step)):
        network.train(mode)
        with _added_memory(device) as added:
            seconds.append(_median_seconds(work, repeats, device))
        megabytes.append(added())
    return Costs(*seconds, *megabytes)


@contextmanager
def _added_memory(device: torch.device) -> Iterator[Callable[[], float]]:
    """MB that the block takes at its peak beyond what was there before, on a GPU of its own."""
    if device.type != "cuda":
        with growth() as grown:
            yield grown
        return
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    yield lambda: (torch.cuda.max_memory_allocated(device) - held) / 1e6


def _median_seconds(work: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Of one call; a GPU is waited for."""

    def done() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    done()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        done()
        times.append(time.perf_counter() - began)
    return float(np.median(times))
