"""This checkout against an earlier one: the same case, turn by turn, in one run.

Each checkout has a process of its own that stays; they take turns, so that who else uses the
machine slows both alike. Nothing is asserted of speed; this prints medians and ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.console import Console
from rich.table import Table

from hmvnet.exits import RefusedError
from hmvnet.experiments.bench import write_bench_case

MEASURED = {"whole case s": "wall", "processor s": "cpu", "network s": "network"}
HERE = Path(__file__).resolve().parents[2]
# What a checkout's process runs: only what checkouts have had since ``bench case`` is there.
TURN = """
import json, os, resource, sys, time
from pathlib import Path
from hmvnet.bundle import load_bundle
from hmvnet.experiments.bench import STEPS
from hmvnet.pipeline import Pipeline
from hmvnet.reading.challenge import read_case
from hmvnet.reading.images import write_image
from hmvnet.segmentation.ensemble import pick_device
weights, folder, mask = map(Path, sys.argv[1:])
pipeline = Pipeline(load_bundle(weights), pick_device("cpu"), needs_risk=False)
scale = 1 if sys.platform == "darwin" else 1024
for line in sys.stdin:
    before, began = os.times(), time.perf_counter()
    prediction = pipeline(read_case(folder, needs_record=False))
    write_image(prediction.mask, mask)
    wall, after = time.perf_counter() - began, os.times()
    network = prediction.timings["network"]
    del prediction  # as of a process that has written it
    print(json.dumps({
        "wall": wall,
        "cpu": after.user + after.system - before.user - before.system,
        "network": network,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6,
    }), flush=True)
"""


def bench_against(
    weights: Path, folder: Path, checkout: Path, repeats: int, console: Console
) -> Table:
    """The whole case by this package and by another checkout's, turn by turn.

    Args:
        folder: for scratch.
        checkout: the other's root, which holds ``model/hmvnet``.
        repeats: turns of each that count; one more goes before them.

    Raises:
        RefusedError: no such checkout, or it can't run the case.
    """
    root = checkout.resolve()
    if not (root / "model/hmvnet/__init__.py").is_file():
        raise RefusedError(f"{checkout}: no checkout of this project, expected model/hmvnet in it")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with console.status("making the case"):
        write_bench_case(folder)
    masks = [folder / "against.mha", folder / "here.mha"]
    sides = [
        _Side(package, weights.resolve(), folder, mask)
        for package, mask in zip((root / "model", HERE), masks)
    ]
    try:
        for turn in range(repeats + 1):
            for side in sides:
                with console.status(f"turn {turn} of {repeats}: {side.package.parent}"):
                    side.turn(counts=turn > 0)
    finally:
        for side in sides:
            side.end()
    changed, dice = mask_change(*(sitk.GetArrayFromImage(sitk.ReadImage(str(m))) for m in masks))
    table = _table(sides[0].rows, sides[1].rows, os.environ.get("OMP_NUM_THREADS", "all"))
    table.caption = f"{changed} voxels of the mask differ; Dice of the two masks {dice:.5f}"
    return table


def mask_change(before: np.ndarray, after: np.ndarray) -> tuple[int, float]:
    """How many voxels have another label, and the lowest Dice of a class of the two masks."""
    dice = [1.0]
    for kind in np.union1d(before, after):
        one, other = before == kind, after == kind
        if kind:
            dice.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    return int((before != after).sum()), min(dice)


class _Side:
    """A checkout's process."""

    def __init__(self, package: Path, weights: Path, folder: Path, mask: Path) -> None:
        self.package = package
        self.rows: list[dict[str, float]] = []
        self.process = subprocess.Popen(  # noqa: S603  this Python, without a shell
            [sys.executable, "-c", TURN, str(weights), str(folder), str(mask)],
            env=os.environ | {"PYTHONPATH": str(package)},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self, counts: bool) -> None:
        """One case."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RefusedError(f"{self.package.parent}: its package could not run the case")
        if counts:
            self.rows.append(json.loads(line))

    def end(self) -> None:
        """No more turns."""
        self.process.kill()
        self.process.communicate()


def _table(
    before: Sequence[dict[str, float]], after: Sequence[dict[str, float]], threads: str
) -> Table:
    """Medians of both, the median of the turns' ratios, and the ratios' range."""
    table = Table(title=f"One case, {len(after)} turns each, threads: {threads}")
    for name in ("", "before", "now", "now / before", "range"):
        table.add_column(name, justify="right" if name else "left")
    for title, key in MEASURED.items():
        ratios = [b[key] / a[key] for a, b in zip(before, after, strict=True)]
        middle = (float(np.median([row[key] for row in rows])) for rows in (before, after))
        table.add_row(
            title,
            *(f"{value:.2f}" for value in middle),
            f"{np.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    peaks = [max(row["peak_mb"] for row in rows) for rows in (before, after)]
    table.add_row("peak memory MB", *(f"{p:.0f}" for p in peaks), f"{peaks[1] / peaks[0]:.2f}", "")
    return table
