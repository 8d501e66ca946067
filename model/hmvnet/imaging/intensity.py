"""Intensity scaling: CT from HU to [0, 1], PET from SUV to [-1, 1]."""

from __future__ import annotations

import numpy as np

from hmvnet.config import PreprocessingSettings

CT_RANGE, PET_RANGE = (0.0, 1.0), (-1.0, 1.0)
AIR = (CT_RANGE[0], PET_RANGE[0])  # CT and PET outside the body, normalised


def _windows(settings: PreprocessingSettings):
    return zip((settings.hu_window, settings.suv_window), (CT_RANGE, PET_RANGE))


def normalise_(volume: np.ndarray, settings: PreprocessingSettings) -> np.ndarray:
    """Clip and scale CT and PET, in place.

    Args:
        volume: float32 ``[2, z, y, x]``, CT in HU and PET in SUV.

    Returns:
        The same array: CT in [0, 1], PET in [-1, 1].
    """
    for channel, (window, target) in zip(volume, _windows(settings)):
        np.clip(channel, *window, out=channel)
        scale = (target[1] - target[0]) / (window[1] - window[0])
        channel *= np.float32(scale)
        channel += np.float32(target[0] - scale * window[0])
    return volume


def denormalise(volume: np.ndarray, settings: PreprocessingSettings) -> np.ndarray:
    """The inverse of :func:`normalise_` (of the clipped values), as a new array."""
    out = np.empty_like(volume)
    for channel, result, (window, target) in zip(volume, out, _windows(settings)):
        scale = (window[1] - window[0]) / (target[1] - target[0])
        np.multiply(channel, np.float32(scale), out=result)
        result += np.float32(window[0] - scale * target[0])
    return out
