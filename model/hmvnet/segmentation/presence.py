"""Whether a patient has a primary, or a node, at all where the networks found one.

Some patients have none (of HECKTOR 2026's 4% no GTVp, 11% no GTVn), and there a false lesion costs
a whole patient's Dice. So the chance that the class is there is estimated from its likeliest
lesion, by a logistic model that ``hmvnet segmentation tune`` fits and calibrates on patients whom
the networks did not see; below a threshold the class is taken away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hmvnet.case import GTVN, GTVP, Grid
from hmvnet.config import PostprocessingSettings
from hmvnet.imaging.components import Box, lesions_of
from hmvnet.lesions.table import suv_peak_in_box

LEAST = 1e-3  # of a probability and of 1 less it, before its logit, and of an SUV before its log
NAMES = {GTVP: "gtvp", GTVN: "gtvn"}


@dataclass(frozen=True)
class Evidence:
    """What speaks for a lesion.

    Attributes:
        box, where: its box in the volume, and its voxels (boolean) inside that box.
        mean_probability: of its class inside it.
    """

    box: Box
    where: np.ndarray
    volume_ml: float
    mean_probability: float
    suv_peak: float

    @property
    def variables(self) -> np.ndarray:
        """Log volume (mL), logit of the mean probability, log SUVpeak: ``[3]``."""
        p = min(max(self.mean_probability, LEAST), 1 - LEAST)
        peak = max(self.suv_peak, LEAST)
        return np.array([np.log(self.volume_ml), np.log(p / (1 - p)), np.log(peak)])


def evidence(
    labels: np.ndarray, probabilities: np.ndarray, pet_suv: np.ndarray, grid: Grid, label: int
) -> Iterator[Evidence]:
    """Of each lesion of a class.

    Args:
        labels: uint8 ``[z, y, x]``.
        probabilities: ``[3, z, y, x]``.
        pet_suv: ``[z, y, x]``.
        label: ``GTVP`` or ``GTVN``.
    """
    for box, where in lesions_of(labels == label):
        yield Evidence(
            box,
            where,
            float(where.sum()) * grid.voxel_ml,
            float(probabilities[label][box][where].mean()),
            suv_peak_in_box(pet_suv, where, box, np.asarray(grid.spacing[::-1])),
        )


def chance(presence: tuple[float, ...], variables: np.ndarray) -> np.ndarray:
    """Chance that a class is there, of each row of variables ``[n, 3]``."""
    intercept, *weights = presence
    return 1 / (1 + np.exp(-(intercept + np.atleast_2d(variables) @ np.array(weights))))


def asks_presence(settings: PostprocessingSettings) -> bool:
    """Whether ``without_doubtful`` can change anything."""
    return any(
        getattr(settings, f"min_suv_peak_{name}")
        or (_is_fitted(settings, name) and getattr(settings, f"least_presence_{name}"))
        for name in NAMES.values()
    )


def _is_fitted(settings: PostprocessingSettings, name: str) -> bool:
    return any(getattr(settings, f"presence_{name}"))


def without_doubtful(
    labels: np.ndarray,
    probabilities: np.ndarray,
    pet_suv: np.ndarray,
    grid: Grid,
    settings: PostprocessingSettings,
) -> np.ndarray:
    """Labels less the lesions of too low an SUVpeak, and less a class that is not likely there.

    Args:
        labels, probabilities, pet_suv: as for ``evidence``.
    """
    kept = labels
    for label, name in NAMES.items():
        least_peak = getattr(settings, f"min_suv_peak_{name}")
        presence = getattr(settings, f"presence_{name}")
        least = getattr(settings, f"least_presence_{name}") if _is_fitted(settings, name) else 0.0
        if not (least_peak or least):
            continue
        found = list(evidence(labels, probabilities, pet_suv, grid, label))
        stays = [one for one in found if one.suv_peak >= least_peak]
        if stays and least:
            likeliest = chance(presence, np.stack([one.variables for one in stays])).max()
            stays = stays if likeliest >= least else []
        if len(stays) < len(found):
            kept = kept.copy() if kept is labels else kept
            kept[kept == label] = 0
            for one in stays:
                kept[one.box][one.where] = label
    return kept
