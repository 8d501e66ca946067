"""A prediction at a glance: the PET's projection from the front, a few kilobytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hmvnet.files import replacing
from hmvnet.pipeline import Prediction
from hmvnet.writing.views import LABELS, SUV_WINDOW, turned

HEIGHT = 128  # pixels
GREYS = 40  # more of them, and a thousand patients do not fit into one page
LEAST_SHARE = 0.25  # of a pixel's rays that meet a lesion, for its colour
PALE = 0.75  # the lesions' lightest, of what lies between their colour and white


def write_thumbnail(prediction: Prediction, path: Path) -> Path:
    """The coronal PET projection with the lesions in their colours, as PNG of few colours.

    The patient's right is on the left, the head is up, dark is high uptake.
    """
    volume = prediction.segmentation.volume
    grid, (pet, labels) = turned(volume.grid, volume.raw[1], prediction.segmentation.labels)
    rows, columns = pet.shape[0] * grid.spacing[2], pet.shape[2] * grid.spacing[0]  # mm
    size = max(1, round(HEIGHT * columns / rows)), HEIGHT

    def small(array: np.ndarray) -> np.ndarray:
        """``[z, x]`` in the picture's pixels, the head up."""
        upright = np.ascontiguousarray(array[::-1], np.float32)
        return np.asarray(Image.fromarray(upright).resize(size, Image.Resampling.BOX))

    low, high = SUV_WINDOW
    uptake = ((small(pet.max(axis=1)) - low) / (high - low)).clip(0, 1)
    codes = (uptake * (GREYS - 1)).round().astype(np.uint8)
    for number, (label, _, _) in reversed(list(enumerate(LABELS, start=1))):
        inside = small((labels == label).any(axis=1)) >= LEAST_SHARE
        codes[inside] = codes[inside] % GREYS + number * GREYS
    picture = Image.fromarray(codes, "P")
    picture.putpalette(_palette())
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", optimize=True)
    return path


def _palette() -> list[int]:
    """From white to black; then from pale to full, for each class of lesion."""
    share = np.linspace(1, 0, GREYS)[:, None]
    ramps = [255 * share * np.ones(3)]
    for _, _, colour in LABELS:
        full = np.array([*bytes.fromhex(colour[1:])])
        ramps.append(full + (255 - full) * PALE * share)
    return np.concatenate(ramps).round().astype(int).ravel().tolist()
