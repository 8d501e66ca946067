"""``hmvnet bench loader``: training patches per second and core, beside batchgeneratorsv2's.

Both sides see the same volumes, boxes and patch size, with the same transforms at the same chances
and the same order of interpolation (trilinear for images, nearest for labels), take turns in one
process, and have one thread each; what counts is the process's CPU time. Left out on both sides are
the transforms that batchgeneratorsv2 lacks or does otherwise (the shift of PET, a dropped
modality).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from hmvnet.config import AugmentationSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.imaging.augment import draw_patch
from hmvnet.progress import track
from hmvnet.reading.folder import find_patients
from hmvnet.table_files import print_frame, write_markdown, write_table
from hmvnet.training.cache import Cache
from hmvnet.training.loader import one_thread
from hmvnet.training.patches import PatchSampler

PACKAGE = "batchgeneratorsv2"
NOTHING: dict[str, float] = {
    name: 0.0
    for name in (
        *("flip", "affine", "elastic", "intensity", "noise", "blur", "low_resolution"),
        *("misalignment", "drop_modality"),
    )
}
MARGIN = 12  # voxels around a patch, for either side
FLIP = 0.5  # the only chance that batchgeneratorsv2 has
ALONE = ("affine", "elastic", "intensity", "noise", "blur", "low_resolution")
Read = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A row: the transforms, and whether reading the box from its file is timed too."""

    name: str
    augmentation: AugmentationSettings
    reads: bool = False


def tasks(settings: AugmentationSettings) -> list[Task]:
    """All transforms with reading and without, those without elastic, and each by itself."""
    common = {"flip": FLIP, "misalignment": 0.0, "drop_modality": 0.0}
    usual = settings.model_copy(update=common)
    rigid = usual.model_copy(update={"elastic": 0.0})
    alone = [
        Task(f"{name.replace('_', ' ')}, each patch", _only(settings, name, 1.0)) for name in ALONE
    ]
    return [
        Task("all, read from the cache", usual, reads=True),
        Task("all", usual),
        Task("all but elastic", rigid),
        *alone,
        Task("flip of half of the patches", _only(settings, "flip", FLIP)),
    ]


def _only(settings: AugmentationSettings, name: str, chance: float) -> AugmentationSettings:
    return settings.model_copy(update=NOTHING | {name: chance})


def bench_loader(
    settings: Settings, run: Path, console: Console, samples: int, turns: int, patients: int
) -> pd.DataFrame:
    """Print and write (``bench.csv``, ``bench.md``) a row a set of transforms.

    Args:
        samples: patches a turn.
        turns: of each side; medians count.
        patients: of ``data.root``, at most.

    Raises:
        RefusedError: no ``data.root``.
    """
    if not settings.data.root:
        raise RefusedError("data.root is not given, expected a folder of patients to draw from")
    theirs = _their_transforms()
    if theirs is None:
        console.print(f"{PACKAGE} is not installed (pip install {PACKAGE}): without its columns")
    cache = Cache(run / "cache", settings.preprocessing, settings.data.region)
    found = find_patients(settings.data.root, settings.clinical.table_names)[:patients]
    cases = [cache.get(patient) for patient in track(found, "preprocess")]
    rows = []
    with one_thread():
        for task in tasks(settings.augmentation):
            own = settings.model_copy(update={"augmentation": task.augmentation})
            sampler = PatchSampler(cases, own)
            sides: dict[str, Callable[[int], float]] = {"hmvnet": _ours(sampler, task.reads)}
            if theirs is not None:
                sides[PACKAGE] = _theirs(theirs(task.augmentation, sampler.patch), sampler, task)
            with console.status(task.name):
                rows.append({"transforms": task.name, **_row(sides, samples, turns)})
    table = pd.DataFrame(rows)
    run.mkdir(parents=True, exist_ok=True)
    write_table(table, run / "bench.csv")
    write_markdown(table, run / "bench.md", floatfmt=".2f")
    print_frame(table.round(2), console)
    return table


def _row(sides: Mapping[str, Callable[[int], float]], samples: int, turns: int) -> dict[str, float]:
    """Patches per second and core of each side, and the turns' ratios: median and range."""
    for side in sides.values():
        side(0)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name, side in sides.items():
            numbers = range(turn * samples, (turn + 1) * samples)
            rates[name].append(samples / sum(map(side, numbers)))
    row = {f"{name} /s/core": float(np.median(values)) for name, values in rates.items()}
    if PACKAGE in rates:
        ratios = [a / b for a, b in zip(rates["hmvnet"], rates[PACKAGE], strict=True)]
        row |= {"times": float(np.median(ratios)), "least": min(ratios), "most": max(ratios)}
    return row


def _ours(sampler: PatchSampler, reads: bool) -> Callable[[int], float]:
    """CPU seconds of patch ``number``."""

    def timed(number: int) -> float:
        if reads:
            began = time.process_time()
            sampler(number)
            return time.process_time() - began
        volume, label, rng = _box(sampler, number)
        began = time.process_time()
        draw_patch(volume, label, sampler.patch, sampler.settings.augmentation, rng)
        return time.process_time() - began

    return timed


def _box(sampler: PatchSampler, number: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    case, start, rng = sampler.place(number)
    volume, label = sampler.read(case, start, (MARGIN,) * 3)
    return volume.astype(np.float32), label, rng


# --- batchgeneratorsv2 ---------------------------------------------------------------------------


def _theirs(transforms: Callable[..., Any], sampler: PatchSampler, task: Task):
    """CPU seconds of patch ``number``; their loader always reads the margin."""

    def timed(number: int) -> float:
        torch.manual_seed(number)
        np.random.seed(number)
        began = time.process_time()
        volume, label, _ = _box(sampler, number)
        image, labels = torch.from_numpy(volume), torch.from_numpy(label)[None].to(torch.int16)
        if not task.reads:
            began = time.process_time()
        transforms(image=image, segmentation=labels)
        return time.process_time() - began

    return timed


def _their_transforms() -> Callable[[AugmentationSettings, tuple[int, int, int]], Any] | None:
    """Makes the same transforms of batchgeneratorsv2; None: it is not installed."""
    try:
        from batchgeneratorsv2.transforms.intensity.brightness import (
            BrightnessAdditiveTransform,
            MultiplicativeBrightnessTransform,
        )
        from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
        from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
        from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
        from batchgeneratorsv2.transforms.spatial.low_resolution import (
            SimulateLowResolutionTransform,
        )
        from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    except ImportError:
        return None

    def spatial(s: AugmentationSettings, patch: tuple[int, int, int], affine: bool, elastic: bool):
        angle = math.radians(s.rotation_degrees)
        return SpatialTransform(
            patch,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=float(elastic),
            elastic_deform_scale=0.2,
            elastic_deform_magnitude=s.elastic_mm,
            p_rotation=float(affine),
            rotation=(-angle, angle),
            p_scaling=float(affine),
            scaling=(1 - s.scale, 1 + s.scale),
            p_synchronize_scaling_across_axes=1,
            mode_seg="nearest",
        )

    def make(s: AugmentationSettings, patch: tuple[int, int, int]) -> Callable[..., Any]:
        moves = {
            (affine, elastic): spatial(s, patch, affine, elastic)
            for affine in (False, True)
            for elastic in (False, True)
        }
        rest = [
            SimulateLowResolutionTransform(
                (1 / 3, 1 / 1.5),
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=None,
                p_per_channel=s.low_resolution,
            ),
            GaussianBlurTransform((0.4, 1.2), synchronize_axes=True, p_per_channel=s.blur),
            GammaTransform(
                (math.exp(-0.3), math.exp(0.3)),
                p_invert_image=0,
                synchronize_channels=False,
                p_per_channel=s.intensity,
                p_retain_stats=0,
            ),
            MultiplicativeBrightnessTransform((0.85, 1.15), False, s.intensity),
            BrightnessAdditiveTransform(0, 0.02, False, s.intensity),
            GaussianNoiseTransform((0, 0.06), s.noise),
            *([MirrorTransform((2,))] if s.flip else []),
        ]
        intensity = ComposeTransforms(rest)

        def both(**data: Any) -> dict[str, Any]:
            # Rotation and scaling together or not at all, as here: theirs draws each by itself.
            chosen = (np.random.rand() < s.affine, np.random.rand() < s.elastic)
            return intensity(**moves[chosen](**data))

        return both

    return make
