"""A pattern in the primary's uptake that no named variable holds, and that the outcome hangs on.

Off by default (``PhantomSettings.hidden_pattern``). ``RULES`` says how it is drawn, and nothing
else draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .shapes import Array, Blob, Point

RULES = """\
**Uptake.** The uptake of every primary grows along a line through it: where u is the place in units
of the primary's radii, measured from its middle, it is SUV (1 + 0.6 (d . u)), d . u kept within 1.2
of 0. The direction d is uniform on the sphere and independent of all else. So all primaries are
equally heterogeneous: the share of the tumour at each uptake is the same for every d, and with it
volume, mean, variance, maximum, TLG and texture averaged over directions. Nodes are even, as in any
phantom.

**Outcome.** The linear predictor has one more term, of the covariate `uptake_pole`: the part of d
that points to the head, from -1 (the hottest end is the lowest) to 1; 0 without a primary. A hot
upper end means an earlier relapse. Beta was chosen by the true predictor alone, so that the pattern
is worth at most 0.03 of the best concordance.
"""

STEEPNESS, LIMIT = 0.6, 1.2


@dataclass(frozen=True)
class Ramp:
    """Uptake that grows along a direction through a lesion.

    Called with canonical x, y, z (mm, arrays that broadcast) it gives the SUV there.

    Attributes:
        blob: the lesion.
        direction: of unit length, in the canonical frame.
        suv: the lesion's mean.
        middle: mean of ``direction . u`` over the lesion, which a wavy surface moves from 0.
    """

    blob: Blob
    direction: Point
    suv: float
    middle: float

    @classmethod
    def through(cls, blob: Blob, direction: Point, suv: float) -> Ramp:
        """With ``suv`` as its mean over the lesion."""
        inside = blob.unit_points()
        middle = float(np.clip(inside @ np.asarray(direction), -LIMIT, LIMIT).mean())
        return cls(blob, direction, suv, middle)

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        along = sum(
            np.float32(d / r) * (p - np.float32(c))
            for p, c, r, d in zip(
                (x, y, z), self.blob.center, self.blob.radii, self.direction, strict=True
            )
        )
        level = np.clip(along, -LIMIT, LIMIT) - np.float32(self.middle)
        return np.float32(self.suv) * (1 + np.float32(STEEPNESS) * level)


def draw_direction(rng: np.random.Generator) -> Point:
    """Uniform on the unit sphere."""
    vector = rng.standard_normal(3)
    x, y, z = (vector / np.linalg.norm(vector)).tolist()
    return x, y, z
