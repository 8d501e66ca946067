"""Intensity scaling: CT from HU to [0, 1], PET from SUV to [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from hmvnet.config import PreprocessingSettings

CT_RANGE, PET_RANGE = (0.0, 1.0), (-1.0, 1.0)
AIR = (CT_RANGE[0], PET_RANGE[0])  # CT and PET outside the body, normalised


def normalise(
    volume: np.ndarray, settings: PreprocessingSettings, out: np.ndarray | None = None
) -> np.ndarray:
    """Clip and scale CT and PET.

    Args:
        volume: float32 ``[2, z, y, x]``, CT in HU and PET in SUV.
        out: where the result goes, perhaps ``volume`` itself; None: a new array.

    Returns:
        CT in [0, 1], PET in [-1, 1].
    """
    out = np.empty_like(volume) if out is None else out
    windows, targets = (settings.hu_window, settings.suv_window), (CT_RANGE, PET_RANGE)
    for channel, result, window, target in zip(volume, out, windows, targets):
        np.clip(channel, *window, out=result)
        if window[0]:  # first, so that the lowest is the target's lowest to the last bit
            result -= np.float32(window[0])
        result *= np.float32((target[1] - target[0]) / (window[1] - window[0]))
        if target[0]:
            result += np.float32(target[0])
    return out


def with_usual_ct(scaled: np.ndarray, settings: PreprocessingSettings) -> np.ndarray:
    """What ``normalise`` gave, its CT as by the default window of HU; air is 0 in both.

    What was clipped stays so: of a narrower window no more is known.
    """
    low, high = PreprocessingSettings().hu_window
    first, last = settings.hu_window
    if (first, last) == (low, high):
        return scaled
    usual = (first + scaled[0] * (last - first) - low) / (high - low)
    return np.stack([np.where(scaled[0] > 0, usual.clip(*CT_RANGE), 0), scaled[1]])


def to_suv(pet: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """SUV of a PET as ``normalise`` scaled it; what was clipped has the window's end."""
    share = (pet - PET_RANGE[0]) / (PET_RANGE[1] - PET_RANGE[0])
    return window[0] + share * (window[1] - window[0])


def pad_with_air(x: Tensor, more: Sequence[int]) -> Tensor:
    """``[b, c, z, y, x]`` (CT, PET) with that many voxels of air after the end of each axis."""
    if not any(more):
        return x
    fill = x.new_tensor(AIR).repeat(x.shape[1])[: x.shape[1]].view(1, -1, 1, 1, 1)
    return F.pad(x - fill, (0, more[2], 0, more[1], 0, more[0])) + fill
