"""How a patient is looked at: sides, colours and windows, which pictures and the page share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hmvnet.case import GTVN, GTVP, Grid
from hmvnet.imaging.components import lesions_of

# Red and blue stay apart for the colour-blind, and both from the amber of the PET over the CT.
GTVP_COLOUR, GTVN_COLOUR = "#e8241c", "#1c9cf0"
LABELS = ((GTVP, "GTVp", GTVP_COLOUR), (GTVN, "GTVn", GTVN_COLOUR))

HU_WINDOW = (-160, 240)
SUV_WINDOW = (0, 7)
PLANES = (("axial", "RL"), ("coronal", "RL"), ("sagittal", "AP"))  # cut along z, y, x
SCALE_BARS_MM = (100, 50, 20, 10)
# The PET over the CT: colour and opacity, evenly spaced over the SUV window.
FUSED_STOPS = (
    ("#a86a00", 0.0),
    ("#a86a00", 0.08),
    ("#e0a010", 0.5),
    ("#ffd84a", 0.75),
    ("#fff6c8", 0.9),
)


def turned(grid: Grid, *arrays: np.ndarray) -> tuple[Grid, tuple[np.ndarray, ...]]:
    """Arrays ``[z, y, x]`` turned over so that x runs to the left and y to the back.

    The working grid's z axis runs to the head even where the scan's own positions say that it does
    not (:mod:`hmvnet.imaging.roi`), so it is left as it is.

    Returns:
        The grid of the turned arrays, whose voxels lie where they lay, and the arrays.
    """
    over = [axis for axis in (0, 1) if grid.axes[axis, axis] < 0]
    first = [grid.size[axis] - 1 if axis in over else 0 for axis in range(3)]
    signs = [-1 if axis in over else 1 for axis in range(3)]
    there = replace(
        grid,
        origin=tuple(grid.points(np.array([first]))[0].tolist()),
        direction=tuple((grid.axes * signs).ravel().tolist()),
    )
    return there, tuple(np.flip(array, tuple(2 - axis for axis in over)) for array in arrays)


def point_of_interest(labels: np.ndarray, pet: np.ndarray) -> tuple[int, int, int]:
    """Where to cut, ``(z, y, x)``: each plane through most of the largest primary.

    Of the largest node where there is no primary; the hottest voxel where there is no lesion.
    """
    for kind, _, _ in LABELS:
        pieces = list(lesions_of(labels == kind))
        if pieces:
            box, piece = max(pieces, key=lambda found: found[1].sum())
            areas = (piece.sum(axis) for axis in ((1, 2), (0, 2), (0, 1)))
            z, y, x = (int(s.start + area.argmax()) for s, area in zip(box, areas))
            return z, y, x
    z, y, x = (int(i) for i in np.unravel_index(pet.argmax(), pet.shape))
    return z, y, x
