"""Probabilities to a label map: thresholds, holes, specks, anatomy.

Each step is a function from arrays to arrays; ``postprocess`` puts them in a row. The steps
only ever look at the boxes around lesions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from scipy import ndimage

from hmvnet.case import GTVN, GTVP, Grid
from hmvnet.config import PostprocessingSettings
from hmvnet.imaging.components import (
    enclosed_in_slices,
    fill_slices,
    largest_component,
    lesions_of,
    without_specks,
)
from hmvnet.imaging.intensity import to_suv

# A label that makes up less than this share of a connected lesion takes the other's name.
FRAGMENT_SHARE = 0.15
BODY_STRIDE = 4
AIR_STRIDE = 2
LEAST_AIR_ML, AIRWAY_ML = 0.5, 5.0  # of one air space, and of all inside the body
MUCOSA_MM = 8.0
NODE_CHANCE = 0.03  # mean probability below which a lesion is no node
BONE = 0.8  # of the normalised CT: 200 HU
LEAST_BRAIN_ML, LEAST_BRAIN_SHARE, NEAR_BRAIN_MM = 300.0, 0.1, 8.0
BOX_MARGIN = 2


def postprocess(
    probabilities: np.ndarray,
    scaled: np.ndarray,
    grid: Grid,
    settings: PostprocessingSettings,
    suv_window: tuple[float, float],
    ct_grid: Grid | None = None,
) -> np.ndarray:
    """The label map of one volume.

    Args:
        probabilities: float32 ``[3, z, y, x]`` (background, GTVp, GTVn).
        scaled: CT and PET as the network sees them, ``[2, z, y, x]``, the CT by the usual window of
            HU; its air is 0.
        grid: the working grid; for volumes in mL.
        suv_window: to which the PET was clipped, in SUV.
        ct_grid: the CT's own grid, beyond which nothing is labelled; None: it covers the volume.

    Returns:
        uint8 ``[z, y, x]`` with 0, 1 = GTVp, 2 = GTVn. Empty only if no lesion reached the
        confidence ``settings.confident``, or none its threshold.
    """
    ct, pet = scaled
    raw = remove_beyond(apply_thresholds(probabilities, settings), grid, ct_grid)
    if settings.airway_mm and raw.any():
        raw = remove_from_brain(raw, ct, grid)
    if not raw.any():
        return raw
    mask = raw
    if settings.cleanup:
        mask = fill_holes(mask)
        inside = remove_outside_body(mask, ct)
        # Air is not to come back below; another piece of the body, a second leg say, may.
        raw[(mask > 0) & (inside == 0) & (ct <= 0)] = 0
        mask = merge_fragments(inside)
    mask = remove_specks(mask, grid.voxel_ml, settings)
    if settings.airway_mm:
        placed = correct_by_airway(mask, ct, grid, probabilities, settings.airway_mm)
        raw[(mask > 0) & (placed == 0)] = 0  # nor is what can be no lesion
        mask = placed
        mask = remove_specks(mask, grid.voxel_ml, settings)  # the other class has its own limit
    if settings.one_primary:
        mask = keep_one_primary(mask, probabilities, pet, grid.voxel_ml, settings, suv_window)
    return mask if mask.any() else _confident_lesion(raw, probabilities, settings.confident)


def apply_thresholds(probabilities: np.ndarray, settings: PostprocessingSettings) -> np.ndarray:
    """The likelier of the two tumour classes where it reaches its own threshold.

    A threshold of 0 is reached where the class is likelier than background.
    """
    background, primary, node = probabilities
    is_primary = (primary >= node) & _reaches(primary, background, settings.threshold_gtvp)
    is_node = (node > primary) & _reaches(node, background, settings.threshold_gtvn)
    return is_primary.astype(np.uint8) * np.uint8(GTVP) + is_node * np.uint8(GTVN)


def _reaches(values: np.ndarray, background: np.ndarray, threshold: float) -> np.ndarray:
    return values >= threshold if threshold else values > background


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Close pinholes in each class (3 x 3 x 3) and fill what it encloses, lesion by lesion."""
    out = mask.copy()
    for kind in (GTVP, GTVN):
        for box, lesion in lesions_of(mask == kind):
            padded = np.pad(lesion, BOX_MARGIN)
            closed = ndimage.binary_closing(padded, np.ones((3, 3, 3), bool))
            filled = ndimage.binary_fill_holes(closed | padded)
            inner = filled[(slice(BOX_MARGIN, -BOX_MARGIN),) * 3]
            target = out[box]
            target[inner & (target == 0)] = kind
    return out


def remove_beyond(mask: np.ndarray, grid: Grid, ct_grid: Grid | None) -> np.ndarray:
    """Clear voxels whose centres lie outside the CT: no mask on its grid can show them."""
    if ct_grid is None or ct_grid.covers(grid):
        return mask
    voxels = np.argwhere(mask)
    beyond = voxels[ct_grid.depth(grid.points(voxels[:, ::-1])) < 0]
    if not len(beyond):
        return mask
    out = mask.copy()
    out[tuple(beyond.T)] = 0
    return out


def remove_outside_body(mask: np.ndarray, ct: np.ndarray) -> np.ndarray:
    """Clear voxels outside the patient: air (or table) not enclosed by the body."""
    body = _filled_body(ct[::BODY_STRIDE, ::BODY_STRIDE, ::BODY_STRIDE])
    # One coarse voxel of tolerance: the skin is where partial volume makes the border uncertain.
    body = ndimage.binary_dilation(body)
    out = mask.copy()
    for box, lesion in lesions_of(mask > 0):
        out[box][lesion] *= _at_lesion(body, BODY_STRIDE, box, lesion)
    return out


def remove_from_brain(mask: np.ndarray, ct: np.ndarray, grid: Grid) -> np.ndarray:
    """Clear lesions, and parts of lesions, inside the skull, where uptake is the brain's own.

    The intracranial space is what bone encloses in axial slices, in one piece of the size of a
    brain; where there is no such piece (the scan starts below it) nothing is cleared.
    """
    stride = BODY_STRIDE
    # Of each block any bone: thin bone still closes at the coarse step.
    inside = enclosed_in_slices(any_of_block(ct >= BONE, stride))
    if not inside.any():
        return mask
    brain = largest_component(inside)
    if brain.sum() * grid.voxel_ml * stride**3 < LEAST_BRAIN_ML:
        return mask
    near_brain = _widened(brain, NEAR_BRAIN_MM, [stride * mm for mm in grid.spacing[::-1]])
    out = mask.copy()
    for box, lesion in lesions_of(mask > 0):
        share = _at_lesion(brain, stride, box, lesion).mean()
        if share > 0.5:
            out[box][lesion] = 0
        elif share > LEAST_BRAIN_SHARE:  # the brain with something below it: keep what is below
            out[box][lesion] *= ~_at_lesion(near_brain, stride, box, lesion)
    return out


def _widened(inside: np.ndarray, reach_mm: float, spacing: Sequence[float]) -> np.ndarray:
    """What lies within so many mm along the axes, one voxel at least.

    Args:
        spacing: mm a voxel (z, y, x).
    """
    steps = [max(1, round(reach_mm / mm)) for mm in spacing]
    for step in range(max(steps)):
        cross = ndimage.generate_binary_structure(3, 1)
        for axis in (axis for axis in range(3) if step >= steps[axis]):
            np.moveaxis(cross, axis, 0)[[0, 2]] = False
        inside = ndimage.binary_dilation(inside, cross)
    return inside


def any_of_block(voxels: np.ndarray, stride: int) -> np.ndarray:
    """Whether any voxel of a cube of ``stride`` voxels is set; what fills no cube is left out.

    Axis by axis on strided views, several times faster than numpy's reduction over three axes.
    """
    for axis in range(3):
        stop = voxels.shape[axis] // stride * stride
        whole = (slice(None),) * axis
        parts = (voxels[whole + (slice(k, stop, stride),)] for k in range(stride))
        voxels = reduce(np.logical_or, parts)
    return voxels


def _at_lesion(
    coarse: np.ndarray, stride: int, box: tuple[slice, ...], lesion: np.ndarray
) -> np.ndarray:
    """A coarse map's values at each voxel of a lesion, as ``lesions_of`` gives it."""
    return coarse[tuple(_coarse_voxels(coarse.shape, stride, box, lesion).T)]


def _coarse_voxels(
    shape: tuple[int, ...], stride: int, box: tuple[slice, ...], lesion: np.ndarray
) -> np.ndarray:
    """Where each voxel of a lesion lies in a coarse map of that shape, ``[n, 3]``."""
    voxels = (np.argwhere(lesion) + [s.start for s in box]) // stride
    return np.minimum(voxels, np.array(shape) - 1)


def _filled_body(ct: np.ndarray) -> np.ndarray:
    """The largest piece that is not air, with what it encloses in each axial slice."""
    return fill_slices(largest_component(ct > 0))


def correct_by_airway(
    mask: np.ndarray, ct: np.ndarray, grid: Grid, probabilities: np.ndarray, reach_mm: float
) -> np.ndarray:
    """Rename lesions whose class contradicts where they lie.

    Primaries of the head and neck grow from the mucosa around the airway. One farther from all air
    inside the body than ``reach_mm`` becomes a node, or nothing where the network gives a node no
    chance (the brain's own uptake looks so). Where there is
    no primary, the likeliest node that lies on the mucosa (most of it within ``MUCOSA_MM``)
    becomes one. Without an airway in the region nothing is changed.

    Args:
        mask: uint8 ``[z, y, x]``.
        ct: ``[z, y, x]``, normalised so that air is 0.
        probabilities: ``[3, z, y, x]``.
    """
    coarse = ct[::AIR_STRIDE, ::AIR_STRIDE, ::AIR_STRIDE]
    air = _filled_body(coarse) & (coarse <= 0)
    air_ml = grid.voxel_ml * AIR_STRIDE**3
    air = without_specks(air, max(1, round(LEAST_AIR_ML / air_ml)))
    if air.sum() * air_ml < AIRWAY_ML:
        return mask
    out = mask.copy()
    on_mucosa: list[tuple[float, tuple[slice, ...], np.ndarray]] = []
    for kind in (GTVP, GTVN):
        for box, lesion in lesions_of(mask == kind):
            away = distance_to_air(air, grid, box, lesion, max(reach_mm, MUCOSA_MM))
            if kind == GTVP and away.min() > reach_mm:
                out[box][lesion] = GTVN if _can_be_node(probabilities, box, lesion) else 0
            elif kind == GTVN and np.median(away) <= MUCOSA_MM:
                on_mucosa.append((float(probabilities[GTVP][box][lesion].sum()), box, lesion))
    if on_mucosa and not (out == GTVP).any():
        _, box, lesion = max(on_mucosa, key=lambda entry: entry[0])
        out[box][lesion] = GTVP
    return out


def _can_be_node(probabilities: np.ndarray, box: tuple[slice, ...], lesion: np.ndarray) -> bool:
    """Whether the network gives a lesion any chance of being a node, on average over it."""
    return float(probabilities[GTVN][box][lesion].mean()) >= NODE_CHANCE


def distance_to_air(
    air: np.ndarray, grid: Grid, box: tuple[slice, ...], lesion: np.ndarray, within_mm: float
) -> np.ndarray:
    """Millimetres from each voxel of a lesion to the coarse map's air, exact up to ``within_mm``.

    Beyond it only known to be larger: air farther away is not looked at.
    """
    steps = AIR_STRIDE * np.array(grid.spacing[::-1])
    margin = np.ceil(within_mm / steps).astype(int) + 1
    around = tuple(
        slice(max(s.start // AIR_STRIDE - m, 0), s.stop // AIR_STRIDE + m + 1)
        for s, m in zip(box, margin, strict=True)
    )
    near = air[around]
    if not near.any():
        return np.full(int(lesion.sum()), np.inf)
    distance = ndimage.distance_transform_edt(~near, steps)
    at = _coarse_voxels(air.shape, AIR_STRIDE, box, lesion) - [s.start for s in around]
    return distance[tuple(at.T)]


def merge_fragments(mask: np.ndarray) -> np.ndarray:
    """Give a small piece of one class inside a lesion of the other that lesion's name."""
    out = mask.copy()
    for box, lesion in lesions_of(mask > 0):
        target = out[box]
        primary = int((lesion & (target == GTVP)).sum())
        share = primary / int(lesion.sum())
        if 0 < share < FRAGMENT_SHARE:
            target[lesion] = GTVN
        elif 1 - FRAGMENT_SHARE < share < 1:
            target[lesion] = GTVP
    return out


def remove_specks(
    mask: np.ndarray, voxel_ml: float, settings: PostprocessingSettings
) -> np.ndarray:
    """Remove lesions below the class's least volume.

    The two limits serve different metrics: GTVp is scored by Dice over patients, where a speck
    hardly counts; GTVn also by lesion F1, where every speck is a false positive.
    """
    out = mask.copy()
    for kind, least_ml in ((GTVP, settings.min_ml_gtvp), (GTVN, settings.min_ml_gtvn)):
        for box, lesion in lesions_of(mask == kind):
            if lesion.sum() * voxel_ml < least_ml:
                out[box][lesion] = 0
    return out


def keep_one_primary(
    mask: np.ndarray,
    probabilities: np.ndarray,
    pet: np.ndarray,
    voxel_ml: float,
    settings: PostprocessingSettings,
    suv_window: tuple[float, float],
) -> np.ndarray:
    """Keep one primary; others become nodes, or vanish where they can't be one.

    That is below a node's least volume, or where the network gives a node no chance: two primaries
    at once are mostly uptake of muscles or glands on both sides. Kept is the one with the highest
    glycolysis that is expected of it, the sum of probability times SUV: by probability alone large
    and pale uptake won over a tumour.

    Args:
        pet: ``[z, y, x]``, as the network sees it.
    """
    lesions = list(lesions_of(mask == GTVP))
    if len(lesions) < 2:
        return mask
    weights = [
        float(probabilities[GTVP][box][lesion] @ to_suv(pet[box][lesion], suv_window))
        for box, lesion in lesions
    ]
    out = mask.copy()
    for i, (box, lesion) in enumerate(lesions):
        if i != int(np.argmax(weights)):
            large = lesion.sum() * voxel_ml >= settings.min_ml_gtvn
            out[box][lesion] = GTVN if large and _can_be_node(probabilities, box, lesion) else 0
    return out


def _confident_lesion(raw: np.ndarray, probabilities: np.ndarray, confident: float) -> np.ndarray:
    """The likeliest lesion of the raw mask, if its peak probability is ``confident``."""
    best, weight = np.zeros_like(raw), 0.0
    for kind in (GTVP, GTVN):
        for box, lesion in lesions_of(raw == kind):
            values = probabilities[kind][box][lesion]
            if values.max() >= confident and values.sum() > weight:
                best, weight = np.zeros_like(raw), float(values.sum())
                best[box][lesion] = kind
    return best
