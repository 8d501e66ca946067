"""A fitted linear risk as plain arrays: what the container needs of a Cox model.

Fitting is ``hmvnet.survival.cox.fit_linear_risk``; this file is all that a prediction needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from hmvnet.prognosis.icare import checked_features


@dataclass(frozen=True)
class LinearRisk:
    """``sum_j coefficient_j (x_j - mean_j) / scale_j``, over its deviation among training patients.

    The coefficients are those of Cox's proportional hazards model (Cox, J R Stat Soc B 1972) on
    standardised variables; only the risk's order and its parts are kept, no baseline hazard.

    Attributes:
        fill: ``[p]`` what a missing value becomes: the training median.
        mean, scale: ``[p]`` of the training patients, after filling.
        coefficient: ``[p]``.
        spread: the deviation of the weighted sum among the training patients; 1 where it is 0.
    """

    fill: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    coefficient: np.ndarray
    spread: float

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]`` of ``x`` ``[n, p]`` (NaN = missing); higher = earlier event."""
        return self.contributions(x).sum(axis=1)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """What each variable adds to the risk, ``[n, p]``; rows sum to ``predict_risk``."""
        x = checked_features(x, len(self.coefficient)).astype(np.float64)
        filled = np.where(np.isnan(x), self.fill, x)
        return (filled - self.mean) / self.scale * self.coefficient / self.spread

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays; see ``from_state``."""
        arrays = {f.name: np.array(getattr(self, f.name), dtype=np.float64) for f in fields(self)}
        return arrays | {"spread": np.array([self.spread])}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> LinearRisk:
        """The model whose ``state`` this is.

        Raises:
            ValueError: an array is missing or its shape does not fit the others.
        """
        keys = [f.name for f in fields(cls)]
        if missing := [key for key in keys if key not in state]:
            raise ValueError(f"linear risk lacks {', '.join(missing)}")
        arrays = {key: np.asarray(state[key], dtype=np.float64) for key in keys}
        spread = arrays.pop("spread")
        shapes = {key: array.shape for key, array in arrays.items()}
        if len(set(shapes.values())) != 1 or arrays["fill"].ndim != 1 or spread.shape != (1,):
            raise ValueError(f"linear risk has shapes {shapes} and spread {spread.shape}")
        finite = all(np.isfinite(array).all() for array in (*arrays.values(), spread))
        if not finite or (arrays["scale"] <= 0).any() or spread[0] <= 0:
            raise ValueError("linear risk: values must be finite, scales above 0")
        return cls(**arrays, spread=float(spread[0]))
