"""What a cohort costs: one process against several, few patients against many, in one run.

One phantom stands for all patients, under names of their own, so that only the number differs.
Nothing is asserted of speed; this prints ratios.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil
from rich.console import Console

from hmvnet.case import HU_OF_AIR, Grid
from hmvnet.cluster import Workers
from hmvnet.cohort import Crew, InTurn, Order, Outcome, predict_cohort
from hmvnet.exits import RefusedError
from hmvnet.files import remove
from hmvnet.imaging.resample import resample
from hmvnet.phantom.cohort import draw_cohort
from hmvnet.phantom.render import render
from hmvnet.pipeline import load_pipeline
from hmvnet.reading.images import write_image
from hmvnet.reading.inputs import Pair
from hmvnet.table_files import write_markdown, write_table
from hmvnet.writing.cohort import write_cohort

COARSE_MM = 4.0  # of the simulated scan: small, and read in no time


def bench_cohort(
    weights: Path,
    run: Path,
    counts: Sequence[int],
    workers: Sequence[int],
    overrides: Sequence[str],
    console: Console,
) -> None:
    """Predict so many patients in this process and in so many others, one after the other.

    Seconds a patient are those from the first outcome on; what comes before it (processes that
    start and load a bundle) is the start. The processor's do not hang on who else uses the machine.
    Rows and table under ``run``.

    Args:
        counts: numbers of patients, each at least 2.
        workers: numbers of processes; 0: this one.
        overrides: settings in the bundle's place.
    """
    ct, pet = _scan(run / "scan")
    rows = []
    for count in counts:
        sources = [Pair(ct, pet, name=f"P{i:04d}") for i in range(count)]
        for number in workers:
            crew: Crew
            if number:
                crew = Workers(str(weights), overrides=overrides, count=number)
            else:
                crew = InTurn(load_pipeline(weights, overrides=overrides))
            row = {"patients": count, "processes": f"{number} workers" if number else "this one"}
            rows.append(row | _measured(crew, sources, run / "out"))
            write_table(pd.DataFrame(rows), run / "cohort.csv")
            console.print(rows[-1])
    write_markdown(_table(pd.DataFrame(rows)), run / "cohort.md", floatfmt=".2f")
    console.print((run / "cohort.md").read_text(encoding="utf-8"), markup=False, soft_wrap=True)


def _scan(folder: Path) -> tuple[Path, Path]:
    """CT and PET of a phantom on coarse grids."""
    phantom = render(next(iter(draw_cohort(1, 1))))
    paths = folder / "ct.nii.gz", folder / "pet.nii.gz"
    for image, path, fill in zip((phantom.ct, phantom.pet), paths, (HU_OF_AIR, 0)):
        grid = Grid.of(image)
        x, y, z = (max(1, int(n * mm / COARSE_MM)) for n, mm in zip(grid.size, grid.spacing))
        coarse = Grid((x, y, z), (COARSE_MM,) * 3, grid.origin, grid.direction)
        write_image(coarse.image(resample(image, coarse, fill=float(fill))), path)
    return paths


def _measured(crew: Crew, sources: Sequence[Pair], output: Path) -> dict[str, float]:
    ends: list[float] = []
    used: list[float] = []

    def told(outcome: Outcome) -> None:
        if outcome.status != "done":
            raise RefusedError(f"{outcome.patient_id}: {outcome.why}")
        ends.append(time.perf_counter())
        used.append(_processor_s())

    remove(output)
    began = time.perf_counter()
    predict_cohort(sources, crew, Order(output, picture=False), on_outcome=told)
    predicted = time.perf_counter()
    write_cohort(output)
    ended = time.perf_counter()
    return {
        "start s": ends[0] - began,
        "s a patient": (ends[-1] - ends[0]) / (len(ends) - 1),
        "processor s a patient": (used[-1] - used[0]) / (len(ends) - 1),
        "tables s": ended - predicted,
        "all s": ended - began,
    }


def _processor_s() -> float:
    """Seconds that this process and its children have computed."""
    this = psutil.Process()
    times = [one.cpu_times() for one in (this, *this.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """With the pace of each against the first of the same number of patients."""
    first = rows.groupby("patients")["s a patient"].transform("first")
    whole = rows.groupby("patients")["all s"].transform("first")
    return rows.assign(pace=first / rows["s a patient"], throughput=whole / rows["all s"])
