"""A whole case on a lattice of 4 mm, where the patient is looked for before anything is cropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hmvnet.case import HU_OF_AIR, Case, Grid
from hmvnet.imaging.components import fill_slices, largest_component
from hmvnet.imaging.resample import resample

COARSE_MM = 4.0
BODY_HU = -300.0


@dataclass(frozen=True)
class Coarse:
    """CT (HU), PET (SUV), the CT's body and where there is a PET, on the lattice, ``[z, y, x]``.

    The lattice has LPS axes, so z points up whatever way the scan was stored, and covers the CT.
    """

    grid: Grid
    ct: np.ndarray
    pet: np.ndarray
    body: np.ndarray
    shown: np.ndarray

    @classmethod
    def of(cls, case: Case) -> Coarse:
        """The case, resampled linearly."""
        grid = lps_lattice(*Grid.of(case.ct).extent())
        ct = resample(case.ct, grid, fill=HU_OF_AIR)
        there = Grid.of(case.pet)
        shown = resample(there.image(np.ones(there.shape, np.uint8)), grid, fill=0.0) > 0.5
        pet = resample(case.pet, grid, fill=0.0)
        return cls(grid, ct, pet, outline(ct > BODY_HU), shown)

    def point(self, z: float, y: float, x: float) -> np.ndarray:
        """LPS mm of a continuous index."""
        return self.grid.points(np.array([[x, y, z]]))[0]


def lps_lattice(low: np.ndarray, high: np.ndarray) -> Grid:
    """The lattice of 4 mm along LPS axes that covers a box (lower, upper; mm)."""
    size = np.maximum(np.ceil((high - low) / COARSE_MM).astype(int), 4)
    return Grid(tuple(size.tolist()), (COARSE_MM,) * 3, tuple((low + COARSE_MM / 2).tolist()))


def outline(tissue: np.ndarray) -> np.ndarray:
    """The patient without the table: opened tissue, its largest component, slices filled."""
    return fill_slices(largest_component(ndimage.binary_opening(tissue, iterations=1)))
