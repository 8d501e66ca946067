"""How sure a segmentation is: of a lesion, of a voxel, and where its networks do not agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import find_objects

from hmvnet.imaging.resample import labels_onto
from hmvnet.segmentation.segmenter import Segmentation

ENTROPY_STEP = 1 / 255  # finer ones would only make the file larger


def lesion_confidences(
    segmentation: Segmentation, numbers: np.ndarray, labels: Sequence[int]
) -> tuple[float | None, ...]:
    """The mean probability of each lesion's class inside it; None where a coarse grid misses it.

    Args:
        numbers: where each lesion lies, from 1, on the working grid ``[z, y, x]``.
        labels: the lesions' classes, in the order of the numbers.
    """
    if segmentation.on_ct:
        numbers = labels_onto(numbers, segmentation.volume.grid, segmentation.field.grid)
    found: list[float | None] = []
    boxes = find_objects(numbers, len(labels))
    for number, (label, box) in enumerate(zip(labels, boxes, strict=True), start=1):
        inside = box and segmentation.probabilities[label][box][numbers[box] == number]
        found.append(None if inside is None else float(inside.mean()))
    return tuple(found)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Shannon's entropy of each voxel's probabilities, as a share of the largest there can be.

    Args:
        probabilities: ``[class, z, y, x]``.

    Returns:
        float32 ``[z, y, x]``, in steps of 1/255: 0 where one class is certain, 1 where all are
        equally likely.
    """
    total = np.zeros(probabilities.shape[1:], np.float32)
    for part in probabilities:  # a class at a time: the arrays are large
        total -= part * np.log(part, where=part > 0, out=np.zeros_like(part))
    share = (total / math.log(len(probabilities))).clip(0, 1)
    return ((share / ENTROPY_STEP).round() * ENTROPY_STEP).astype(np.float32)
