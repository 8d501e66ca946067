"""Finding the head and neck in a PET/CT scan.

The search runs on a coarse 4 mm lattice with LPS axes, so that oblique and flipped acquisitions
look alike. Landmark by landmark:

1. **brain**: an FDG-avid blob of brain size with bone around it (heart, liver and bladder have no
   skull). The region hangs from the top of the brain.
2. **skull**: where the brain takes up little, as in hyperglycaemia, or the PET does not show it:
   soft tissue of brain size that bone encloses in axial slices of the CT.
3. **neck**: where the scan starts below the brain: an airway inside a narrow body at the superior
   end. The region hangs from the top of the scan.
4. **centre**: none of these; the region is centred on the body, with low confidence.

A head found at the inferior end of its body (slices stored in the wrong order) turns the region's
z axis over, so that the network still sees a patient the right way up; the mask goes back through
the same grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import ndimage

from hmvnet.case import IDENTITY, Grid
from hmvnet.config import PreprocessingSettings
from hmvnet.imaging.coarse import COARSE_MM, Coarse
from hmvnet.imaging.components import (
    FACES,
    bounding_box,
    enclosed_in_slices,
    pieces_of,
    widened,
)

BONE_HU, AIR_HU = 250.0, -500.0
BRAIN_SUV = (3.0, 4.5, 6.5)
BRAIN_ML = (200.0, 2500.0)
SKULL_FRACTION = 0.15
BY_SKULL_SURE = 0.8  # as sure as by the brain
# Of what bone encloses, where there is nothing else to know a brain by.
ENCLOSED_FRACTION, ENCLOSED_HU = 0.3, (-50.0, 150.0)
ABOVE_BRAIN_MM = 15.0
BY_SKULL = "head found by its skull: the brain takes up little FDG, or the PET does not show it"
TORSO_TO_HEAD = 1.5


@dataclass(frozen=True)
class Region:
    """Where the head and neck is.

    Attributes:
        grid: the working grid, at the working spacing.
        landmark: what it was found by.
        confidence: 0 (guess) to 1.
        note: what a person should know; empty if nothing.
        code: of the finding that the note is, where it makes the result doubtful.
    """

    grid: Grid
    landmark: Literal["brain", "skull", "neck", "centre"]
    confidence: float
    note: str = ""
    code: str = ""


def find_region(coarse: Coarse, settings: PreprocessingSettings) -> Region:
    """The head-and-neck working region of a scan; never fails, but says how sure it is."""
    brain = _find_brain(coarse)
    if brain is not None:
        return _region_below_brain(coarse, *brain, settings)
    skull = _find_skull(coarse)
    if skull is not None:
        found = _region_below_brain(coarse, *skull, settings)
        note = "; ".join(filter(None, [BY_SKULL, found.note]))
        sure = BY_SKULL_SURE * found.confidence
        return replace(found, landmark="skull", confidence=sure, note=note)
    neck = _find_neck(coarse)
    if neck is not None:
        centre_yx, confidence = neck
        top = float(np.flatnonzero(coarse.body.any(axis=(1, 2)))[-1])
        anchor = coarse.point(top + 0.5, *centre_yx)
        grid = _hang(anchor, settings, up=1.0)
        return Region(grid, "neck", confidence, "scan starts below the brain")
    note = "no head or neck found, region centred on the body"
    return replace(centre_region(coarse, settings), note=note, code="no-head")


def centre_region(coarse: Coarse, settings: PreprocessingSettings) -> Region:
    """A working region centred on the body, for scans that hold no head."""
    index = (
        np.argwhere(coarse.body) if coarse.body.any() else np.array([np.array(coarse.ct.shape) / 2])
    )
    low, high = np.percentile(index, 1, axis=0), np.percentile(index, 99, axis=0)
    centre = coarse.point(*((low + high) / 2))
    top = centre + [0, 0, settings.size_mm[2] / 2]
    return Region(_hang(top, settings, up=1.0), "centre", 0.1)


def _hang(top_centre: np.ndarray, settings: PreprocessingSettings, up: float) -> Grid:
    """The working grid whose top face is centred at ``top_centre``; ``up`` is +1 or -1 along z."""
    spacing = settings.spacing_mm
    nx, ny, nz = (round(mm / spacing) for mm in settings.size_mm)
    size = (nx, ny, nz)
    half = (np.array(size[:2]) - 1) / 2 * spacing
    origin = np.array([*(top_centre[:2] - half), top_centre[2] - up * (size[2] - 0.5) * spacing])
    direction = (*IDENTITY[:8], up)
    return Grid(size, (spacing,) * 3, tuple(origin.tolist()), direction)


def _find_brain(coarse: Coarse) -> tuple[np.ndarray, float] | None:
    """The most skull-enclosed avid blob of brain size, ``(mask, skull fraction)``."""
    best: tuple[np.ndarray, float] | None = None
    for suv in BRAIN_SUV:
        # Opening cuts the bridges to a tumour or to salivary uptake below.
        for mask in _opened_blobs((coarse.pet > suv) & coarse.body, coarse.grid.voxel_ml):
            fraction = _skull_fraction(mask, coarse.ct)
            if fraction >= SKULL_FRACTION and (best is None or fraction > best[1]):
                best = mask, fraction
    return best


def _find_skull(coarse: Coarse) -> tuple[np.ndarray, float] | None:
    """What bone encloses of the size and the CT numbers of a brain, ``(mask, skull fraction)``."""
    best: tuple[np.ndarray, float] | None = None
    inside = enclosed_in_slices((coarse.ct > BONE_HU) & coarse.body)
    for box, piece in pieces_of(inside, FACES):
        if not BRAIN_ML[0] <= piece.sum() * coarse.grid.voxel_ml <= BRAIN_ML[1]:
            continue
        low, high = np.percentile(coarse.ct[box][piece], [5, 95])
        mask = np.zeros_like(inside)
        mask[box] = piece
        fraction = _skull_fraction(mask, coarse.ct)
        is_tissue = ENCLOSED_HU[0] <= low and high <= ENCLOSED_HU[1]
        if is_tissue and fraction >= ENCLOSED_FRACTION and (best is None or fraction > best[1]):
            best = mask, fraction
    return best


def _opened_blobs(avid: np.ndarray, voxel_ml: float) -> Iterator[np.ndarray]:
    """The face-connected blobs of brain size that opening leaves of ``avid``.

    Opening never joins what was apart, so only blobs that are large enough before are opened.
    """
    for box, whole in pieces_of(avid, FACES):
        if whole.sum() * voxel_ml < BRAIN_ML[0]:
            continue
        opened = ndimage.binary_opening(np.pad(whole, 1))[1:-1, 1:-1, 1:-1]
        for inner, piece in pieces_of(opened, FACES):
            if BRAIN_ML[0] <= piece.sum() * voxel_ml <= BRAIN_ML[1]:
                mask = np.zeros_like(avid)
                mask[box][inner] = piece
                yield mask


def _skull_fraction(mask: np.ndarray, ct: np.ndarray) -> float:
    """Share of bone in the 12 mm shell around a blob."""
    box = widened(bounding_box(mask), 4, mask.shape)
    inner = mask[box]
    shell = ndimage.binary_dilation(inner, iterations=3) & ~inner
    return float((ct[box][shell] > BONE_HU).mean())


def _region_below_brain(
    coarse: Coarse, brain: np.ndarray, skull: float, settings: PreprocessingSettings
) -> Region:
    z, y, x = np.nonzero(brain)
    centre = np.array([z.mean(), y.mean(), x.mean()])
    low, high = np.percentile(z, [1, 99])
    area = coarse.body.sum(axis=(1, 2))
    above, below = area[int(high) + 1 :].sum(), area[: int(low)].sum()
    upside_down = above > TORSO_TO_HEAD * max(below, 1)
    up = -1.0 if upside_down else 1.0
    end = low if upside_down else high
    yx = _neck_centre(coarse, centre, up)
    anchor = coarse.point(end, *yx) + [0, 0, up * ABOVE_BRAIN_MM]
    confidence = float(np.clip(0.6 + skull, 0.6, 0.99)) * (0.6 if upside_down else 1.0)
    note = "head found at the inferior end of the scan: slices seem to be in reverse order"
    grid = _hang(anchor, settings, up)
    if upside_down:
        return Region(grid, "brain", confidence, note, "head-below")
    return Region(grid, "brain", confidence)


def _neck_centre(coarse: Coarse, brain_centre: np.ndarray, up: float) -> np.ndarray:
    """(y, x) halfway between the brain's centre, 10 mm anterior, and the neck's."""
    z, y, x = brain_centre
    near = np.sort([z - up * 110 / COARSE_MM, z - up * 200 / COARSE_MM]).astype(int)
    slab = coarse.body[max(near[0], 0) : max(near[1], 0)]
    rows, columns = np.arange(slab.shape[1]), np.arange(slab.shape[2])
    close = (np.abs(rows - y) * COARSE_MM <= 110)[:, None] & (np.abs(columns - x) * COARSE_MM <= 80)
    index = np.argwhere(slab & close)
    head = np.array([y - 10 / COARSE_MM, x])
    if len(index) < 50:
        return head
    # The shoulders reach far back and to the sides; 30 mm is as far as a tilted neck leads.
    limit = 30 / COARSE_MM
    return head + np.clip((index[:, 1:].mean(axis=0) - head) / 2, -limit, limit)


def _find_neck(coarse: Coarse) -> tuple[np.ndarray, float] | None:
    """(y, x) of the neck at the superior end, and the confidence, if an airway runs there."""
    slices = np.flatnonzero(coarse.body.any(axis=(1, 2)))
    if not len(slices):
        return None
    top = slices[-1]
    slab = slice(max(int(top - 140 / COARSE_MM), 0), int(top) + 1)
    body, ct = coarse.body[slab], coarse.ct[slab]
    widths = [float(np.ptp(np.nonzero(s)[1]) + 1) * COARSE_MM for s in body if s.any()]
    airway = [_airway_centre(b, c) for b, c in zip(body, ct)]
    found = [centre for centre in airway if centre is not None]
    share = len(found) / len(body)
    if share < 0.5 or np.percentile(widths, 25) > 280:
        return None
    # Airway points of a head or neck line up; bowel gas does not.
    if np.median(np.abs(found - np.median(found, axis=0)).max(axis=1)) * COARSE_MM > 25:
        return None
    _, y, x = np.nonzero(body)
    middle = np.median(found, axis=0)
    keep = np.abs(x - middle[1]) * COARSE_MM <= 100
    centre = (middle + [np.percentile(y[keep], [5, 95]).mean(), middle[1]]) / 2
    return centre, float(min(0.3 + 0.4 * share, 0.7))


def _airway_centre(body: np.ndarray, ct: np.ndarray) -> np.ndarray | None:
    """Centre (y, x) of air of 0.3 to 15 cm2 enclosed by the body in one slice."""
    inside = ndimage.binary_erosion(body, iterations=3) & (ct < AIR_HU)
    area = inside.sum() * COARSE_MM**2 / 100
    return np.argwhere(inside).mean(axis=0) if 0.3 <= area <= 15 else None
