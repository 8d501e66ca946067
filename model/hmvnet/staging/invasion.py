"""What a primary does to its surroundings: signs of invasion, which sizes do not show.

Bone and cartilage that a tumour grows into lose CT numbers, those that it only touches do not. A
patient's other side shows what ought to be there: every voxel is compared with its mirror image
across the midplane. What lies close to the midline has no other side, and then says little.

Radiologists look for the same: loss of the cortex of mandible and skull base, of the larynx's
cartilage, an encased carotid (Hermans, "Staging of laryngeal and hypopharyngeal cancer", Eur
Radiol 2006; Yousem et al., "Carotid artery invasion by head and neck masses", Radiology 1995).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    gaussian_filter,
    generate_binary_structure,
    map_coordinates,
)

from hmvnet.case import GTVP
from hmvnet.imaging.components import bounding_box, widened
from hmvnet.lesions.midline import Midplane

HARD_HU = 200.0  # of bone and ossified cartilage, smoothed; contrast in vessels mostly stays below
AIR_HU = -400.0
LOST_HU = 80.0  # what a voxel lacks against its mirror image before it counts as lost
VESSEL_HU = (120.0, 240.0)  # of a carotid with contrast, of thin cartilage, of the edge of bone
MOST_ASYMMETRY_HU, LEAST_HARD_ML = 500.0, 0.05
SMOOTH_MM = 0.8
SHELL_MM, MARGIN_MM = 2.0, 8.0
NAMES = (
    *("shell_hard_share", "shell_air_share", "shell_hu_p95"),
    *("inside_hard_log_ml", "inside_dense_share", "inside_hu_p99", "rim_hu_mean"),
    *("inside_lost_log_ml", "near_lost_log_ml", "near_kept_log_ml", "near_gained_log_ml"),
    *("inside_edge_lost_log_ml", "inside_asymmetry_log_hu", "bone_suv_ratio", "near_lost_share"),
)


def invasion_features(
    mask: np.ndarray,
    ct_hu: np.ndarray,
    pet_suv: np.ndarray,
    spacing_zyx: np.ndarray,
    midplane: Midplane,
) -> dict[str, float]:
    """Signs of invasion of the primary (all GTVp voxels), by name; NaN where there is none.

    ``shell_*`` are of the 2 mm around the primary: shares of it on bone or cartilage (``hard``) and
    on air. ``*_log_ml`` are volumes as log(1 + 20 mL). ``inside`` is the primary, ``near`` reaches
    2 mm further; ``lost`` is what is hard on the other side and not here, ``kept`` what is hard on
    both, ``gained`` what is on this side alone, and ``edge_lost`` what the other side has at the CT
    numbers of vessels with contrast, thin cartilage and the edge of bone.

    Args:
        mask, ct_hu, pet_suv: ``[z, y, x]``; a grid of about 1 mm, the same on all axes.
        spacing_zyx: in mm.
    """
    primary = mask == GTVP
    if not primary.any():
        return dict.fromkeys(NAMES, math.nan)
    spacing = np.asarray(spacing_zyx, float)
    margin = np.ceil(MARGIN_MM / spacing).astype(int)
    box = widened(bounding_box(primary), margin, primary.shape)
    inside = primary[box]
    smooth = gaussian_filter(ct_hu[box].astype(np.float32), SMOOTH_MM / spacing)
    near = _grown(inside, SHELL_MM, spacing)
    shell = smooth[near & ~inside]
    if not shell.size:  # a primary that fills the array has no surroundings
        shell = smooth[near]
    other = _mirrored(ct_hu, box, near, spacing, midplane)
    here, inner = smooth[near], inside[near]
    ml = float(spacing.prod()) / 1000.0
    hard, was_hard = here > HARD_HU, other > HARD_HU
    lost = was_hard & (here < other - LOST_HU) & (here < 2 * HARD_HU)
    edge = (other > VESSEL_HU[0]) & (other < VESSEL_HU[1]) & (here < other - LOST_HU / 2)
    rim = inside & ~_shrunk(inside, SHELL_MM, spacing)
    bone_around = _grown(near, SHELL_MM, spacing) & ~inside & (smooth > HARD_HU)
    lost_ml, kept_ml = float(lost.sum()) * ml, float((was_hard & hard).sum()) * ml
    return {
        "shell_hard_share": float((shell > HARD_HU).mean()),
        "shell_air_share": float((shell < AIR_HU).mean()),
        "shell_hu_p95": float(np.percentile(shell, 95)),
        "inside_hard_log_ml": _log(float((hard & inner).sum()) * ml),
        "inside_dense_share": float((here[inner] > VESSEL_HU[0]).mean()),
        "inside_hu_p99": float(np.percentile(here[inner], 99)),
        "rim_hu_mean": float(smooth[rim].mean()),
        "inside_lost_log_ml": _log(float((lost & inner).sum()) * ml),
        "near_lost_log_ml": _log(lost_ml),
        "near_kept_log_ml": _log(kept_ml),
        "near_gained_log_ml": _log(float((hard & (other < here - LOST_HU)).sum()) * ml),
        "inside_edge_lost_log_ml": _log(float((edge & inner).sum()) * ml),
        "inside_asymmetry_log_hu": math.log1p(
            float(np.clip(other[inner] - here[inner], 0, MOST_ASYMMETRY_HU).mean())
        ),
        "bone_suv_ratio": _ratio(pet_suv[box], bone_around, inside),
        "near_lost_share": lost_ml / (lost_ml + kept_ml + LEAST_HARD_ML),
    }


def _log(ml: float) -> float:
    """A volume on a scale that tells small ones apart."""
    return math.log1p(20.0 * ml)


def _grown(region: np.ndarray, mm: float, spacing: np.ndarray) -> np.ndarray:
    steps = max(1, round(mm / float(spacing.min())))
    return binary_dilation(region, generate_binary_structure(3, 1), iterations=steps)


def _shrunk(region: np.ndarray, mm: float, spacing: np.ndarray) -> np.ndarray:
    steps = max(1, round(mm / float(spacing.min())))
    return binary_erosion(region, generate_binary_structure(3, 1), iterations=steps)


def _mirrored(
    ct_hu: np.ndarray,
    box: tuple[slice, ...],
    where: np.ndarray,
    spacing: np.ndarray,
    midplane: Midplane,
) -> np.ndarray:
    """Smoothed CT at the mirror images of some voxels of a box, float32 ``[n]``."""
    index = np.argwhere(where) + [s.start for s in box]
    other = midplane.mirrored((index * spacing)[:, ::-1])[:, ::-1] / spacing
    low = np.maximum(np.floor(other.min(axis=0)).astype(int) - 3, 0)
    high = np.minimum(np.ceil(other.max(axis=0)).astype(int) + 4, ct_hu.shape)
    if (high <= low).any():
        return np.full(len(index), -1000.0, np.float32)
    part = ct_hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    smooth = gaussian_filter(part.astype(np.float32), SMOOTH_MM / spacing)
    return map_coordinates(smooth, (other - low).T, order=1, mode="nearest")


def _ratio(suv: np.ndarray, bone: np.ndarray, tumour: np.ndarray) -> float:
    """Uptake of the bone around a tumour against that of the tumour; 0 where there is none."""
    if not bone.any():
        return 0.0
    return float(np.percentile(suv[bone], 90) / max(float(suv[tumour].mean()), 0.1))
