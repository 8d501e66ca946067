"""Benchmarks that measure this project and its baselines side by side, in one run.

Speed is nowhere asserted; these print ratios.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import SimpleITK as sitk
import torch
from monai.inferers import SlidingWindowInferer
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from skimage import measure

from hmvnet.bundle import load_bundle
from hmvnet.case import HU_OF_AIR, Grid
from hmvnet.exits import RefusedError
from hmvnet.imaging.resample import resample
from hmvnet.networks.registry import build_network
from hmvnet.pipeline import Pipeline
from hmvnet.reading.challenge import read_case
from hmvnet.reading.images import write_image
from hmvnet.segmentation.ensemble import pick_device

# The scan of the comparison: sizes of a whole-body CT and PET.
CT_GRID = Grid((512, 512, 200), (0.98, 0.98, 2.0))
PET_GRID = Grid((200, 200, 200), (4.0, 4.0, 3.0))
STEPS = ("read", "region", "resample", "normalise", "network", "postprocess", "mask", "write")


@dataclass
class Ledger:
    """Seconds and peak resident memory (MB) of named steps.

    Attributes:
        processor_s: seconds of the process's threads in all steps, whoever else uses the machine.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    processor_s: float = 0.0

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        with peak_memory() as peak:
            began, before = time.perf_counter(), time.process_time()
            yield
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - began
            self.processor_s += time.process_time() - before
        self.peak_mb[step] = max(self.peak_mb.get(step, 0.0), peak())

    def total(self, *, without: str = "") -> float:
        """Seconds of all steps but one."""
        return sum(s for name, s in self.seconds.items() if name != without)


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Peak resident memory (MB) of this process inside the block, sampled every 5 ms."""
    peak, stop = [resident_mb()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], resident_mb())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak[0], resident_mb())
    finally:
        stop.set()
        thread.join()


@contextmanager
def growth() -> Iterator[Callable[[], float]]:
    """MB by which this process grows inside the block, at its peak."""
    before = resident_mb()
    with peak_memory() as peak:
        yield lambda: peak() - before


def resident_mb() -> float:
    """Resident memory of this process in MB."""
    return psutil.Process().memory_info().rss / 1e6


def write_bench_case(folder: Path, seed: int = 0) -> None:
    """A phantom sampled to the comparison's sizes, as a grand-challenge input folder."""
    from hmvnet.phantom import PhantomSettings, make_phantom

    phantom = make_phantom(seed, PhantomSettings(whole_body=True))
    for name, image, grid, fill, pixel in (
        ("ct", phantom.ct, CT_GRID, HU_OF_AIR, np.int16),
        ("pet", phantom.pet, PET_GRID, 0.0, np.float32),
    ):
        low, high = Grid.of(phantom.ct).extent()
        top_centre = np.array([*(low[:2] + high[:2]) / 2, high[2]])
        half = (np.array(grid.size) - 1) / 2 * grid.spacing
        origin = top_centre - [half[0], half[1], (grid.size[2] - 0.5) * grid.spacing[2]]
        placed = Grid(grid.size, grid.spacing, tuple(origin.tolist()))
        array = resample(image, placed, fill=fill)
        write_image(placed.image(array.astype(pixel)), folder / f"images/{name}/scan.mha")


def run_ours(folder: Path, pipeline: Pipeline) -> Ledger:
    """Our way: the pipeline as ``process.py`` runs it, without Task 2."""
    ledger = Ledger()
    with ledger("read"):
        case = read_case(folder, needs_record=False)
    before = time.process_time()
    with peak_memory() as peak:
        prediction = pipeline(case)
        whole = peak()
    ledger.processor_s += time.process_time() - before
    for step, seconds in prediction.timings.items():
        if step in STEPS:
            ledger.seconds[step] = seconds
            ledger.peak_mb[step] = whole
    with ledger("write"):
        write_image(prediction.mask, folder / "output.mha")
    return ledger


def run_baseline(folder: Path, note: Callable[[str], None] = lambda step: None) -> Ledger:
    """The official 2025 baseline's way, step for step.

    Both images B-spline resampled to 1 mm over their whole overlap; the largest avid region of
    the top quarter found on the 1 mm PET; crop; SegResNet (16 filters) in 128-voxel windows at
    overlap 0.5; the mask pasted into a 1 mm canvas and resampled to the CT, nearest neighbour.
    (github.com/BioMedIA-MBZUAI/HECKTOR2025, Task_1; rewritten here to do the same work.)
    """
    ledger = Ledger()
    note("read")
    with ledger("read"):
        ct, pet = (sitk.ReadImage(str(folder / f"images/{n}/scan.mha")) for n in ("ct", "pet"))
    note("resample")
    with ledger("resample"):
        low, high = Grid.of(ct).intersection(Grid.of(pet)) or Grid.of(ct).extent()
        whole = Grid(
            tuple(np.round(high - low).astype(int).tolist()), (1.0,) * 3, tuple(low.tolist())
        )
        ct_mm = resample(ct, whole, fill=0, interpolator=sitk.sitkBSpline)
        pet_mm = resample(pet, whole, fill=0, interpolator=sitk.sitkBSpline)
    note("region")
    with ledger("region"):
        first = int(0.75 * pet_mm.shape[0])
        top = pet_mm[first:]
        labels = measure.label((top - top.mean()) / (top.std() + 1e-8) > 1, connectivity=3)
        largest = int(np.argmax(np.bincount(labels.ravel())[1:])) + 1
        centre = np.argwhere(labels == largest).mean(axis=0) + [first, 0, 0]
        crop = np.array([310, 200, 200])
        stop = np.minimum(centre.astype(int) + crop // 2, pet_mm.shape)
        start = np.maximum(stop - crop, 0)
        box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop))
    note("normalise")
    with ledger("normalise"):
        volume = np.stack([ct_mm[box], pet_mm[box]]).astype(np.float32)
        for channel in volume:
            channel -= channel.mean()
            channel /= channel.std() + 1e-8
    note("network")
    network = build_network(
        "segresnet",
        {
            "init_filters": 16,
            "blocks_down": (1, 2, 2, 4),
            "blocks_up": (1, 1, 1),
            "dropout_prob": 0.2,
        },
    ).eval()
    with ledger("network"), torch.inference_mode():
        windows = SlidingWindowInferer((128,) * 3, 4, overlap=0.5, mode="gaussian")
        logits = windows(torch.from_numpy(volume)[None], lambda patch: network(patch).logits)
        assert isinstance(logits, torch.Tensor)
        predicted = torch.softmax(logits, 1).argmax(1)[0].numpy().astype(np.uint8)
    note("postprocess")
    with ledger("postprocess"):
        for kind in (1, 2):
            parts, _ = ndimage.label(predicted == kind)
            sizes = np.bincount(parts.ravel())
            predicted[(sizes < 100)[parts] & (predicted == kind)] = 0
    note("mask")
    with ledger("mask"):
        canvas = np.zeros(whole.shape, np.uint8)
        canvas[box] = predicted
        mask = resample(
            whole.image(canvas), Grid.of(ct), fill=0, interpolator=sitk.sitkNearestNeighbor
        ).astype(np.uint8)
    note("write")
    with ledger("write"):
        write_image(Grid.of(ct).image(mask), folder / "baseline.mha")
    return ledger


CASE_TITLE = "One case: 512 x 512 x 200 CT, 200 x 200 x 200 PET (seconds; peak memory in MB)"


def case_table(
    ours: Ledger, baseline: Ledger, name: str = "baseline", title: str = CASE_TITLE
) -> Table:
    """Both ledgers side by side, with the ratios; the other one's name heads its columns."""
    table = Table(title=title)
    columns = ("step", f"{name} s", "HM-VNet s", "ratio", f"{name} MB", "HM-VNet MB")
    for column in columns:
        table.add_column(column, justify="left" if column == "step" else "right")

    def row(name: str, slow: float, fast: float, slow_mb: float, fast_mb: float) -> None:
        ratio = f"{slow / fast:.1f} x" if fast > 0 else "-"
        table.add_row(name, f"{slow:.2f}", f"{fast:.2f}", ratio, f"{slow_mb:.0f}", f"{fast_mb:.0f}")

    for step in STEPS:
        row(
            step,
            baseline.seconds.get(step, 0.0),
            ours.seconds.get(step, 0.0),
            baseline.peak_mb.get(step, 0.0),
            ours.peak_mb.get(step, 0.0),
        )
    table.add_section()
    peaks = max(baseline.peak_mb.values()), max(ours.peak_mb.values())
    row(
        "all but the network",
        baseline.total(without="network"),
        ours.total(without="network"),
        *peaks,
    )
    row("whole case", baseline.total(), ours.total(), *peaks)
    row("whole case, processor s", baseline.processor_s, ours.processor_s, *peaks)
    return table


def compare_case(weights: Path, folder: Path, console: Console, windows: int = 0) -> None:
    """The whole case done all ways, ours without Task 2, and printed side by side.

    Args:
        folder: for scratch.
        windows: of nnU-Net's own predictor, where it is installed, so many are timed; 0: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with console.status("making the case"):
        write_bench_case(folder)
    with console.status("HM-VNet"):
        pipeline = Pipeline(load_bundle(weights), pick_device("cpu"), needs_risk=False)
        run_ours(folder, pipeline)  # warm-up: first-touch of memory and lazy imports
        ours = run_ours(folder, pipeline)
    with console.status("baseline (minutes)") as status:
        baseline = run_baseline(folder, lambda step: status.update(f"baseline: {step}"))
    console.print(case_table(ours, baseline))
    from hmvnet.experiments.bench_nnunet import run_nnunet  # it has its ledger from here

    try:
        timed = run_nnunet(folder, folder / "output.mha", windows)
    except RefusedError as error:
        console.print(f"no row of nnU-Net's own predictor: {error}", markup=False, soft_wrap=True)
        return
    console.print(case_table(ours, timed.ledger, "nnU-Net", timed.title))
