"""Tiny synthetic cases, built in place."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hmvnet.case import Grid  # noqa: E402

torch.set_num_threads(2)

CT_GRID = Grid((48, 48, 40), (4.0, 4.0, 5.0), (-96.0, -96.0, -100.0))
PET_GRID = Grid((40, 40, 36), (5.0, 5.0, 6.0), (-100.0, -100.0, -104.0))
EHR = {"Age": 62, "Gender": 1, "Tobacco Consumption": 1, "Performance Status": 0, "M-stage": "M0"}


def ball(grid: Grid, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Boolean ``[z, y, x]``: voxel centres within ``radius`` mm of ``centre`` (LPS mm)."""
    z, y, x = np.indices(grid.shape)
    points = grid.points(np.stack([x, y, z], -1).reshape(-1, 3)).reshape(*grid.shape, 3)
    return np.linalg.norm(points - np.asarray(centre), axis=-1) <= radius


def cylinder(grid: Grid, radius: float) -> np.ndarray:
    """Boolean ``[z, y, x]``: within ``radius`` mm of the z axis."""
    z, y, x = np.indices(grid.shape)
    points = grid.points(np.stack([x, y, z], -1).reshape(-1, 3)).reshape(*grid.shape, 3)
    return np.hypot(points[..., 0], points[..., 1]) <= radius


def tiny_ct(grid: Grid = CT_GRID) -> sitk.Image:
    """A water cylinder in air, int16 HU."""
    return grid.image(np.where(cylinder(grid, 80), 30, -1000).astype(np.int16))


def tiny_pet(grid: Grid = PET_GRID) -> sitk.Image:
    """A hot ball in a warm cylinder, float32 SUV."""
    suv = np.where(cylinder(grid, 80), 1.0, 0.0)
    suv[ball(grid, (20, 0, 0), 20)] = 8.0
    return grid.image(suv.astype(np.float32))


@pytest.fixture
def write_case(tmp_path: Path) -> Callable[..., Path]:
    """Writes a grand-challenge input folder; images can be replaced or left out (None)."""

    def write(ct=..., pet=..., ehr=EHR, folder: str = "input", suffix: str = ".mha") -> Path:
        root = tmp_path / folder
        for name, image in (("ct", ct), ("pet", pet)):
            (root / "images" / name).mkdir(parents=True, exist_ok=True)
            if image is ...:
                image = tiny_ct() if name == "ct" else tiny_pet()
            if image is not None:
                sitk.WriteImage(image, str(root / "images" / name / f"uuid{suffix}"), True)
        if ehr is not None:
            text = ehr if isinstance(ehr, str) else json.dumps(ehr)
            (root / "ehr.json").write_text(text)
        return root

    return write
