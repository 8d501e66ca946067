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
        drawn: ``[b, p]`` the coefficients fitted to bootstrap samples of the training patients, or
            None; the risk does not hang on them, its interval does.
    """

    fill: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    coefficient: np.ndarray
    spread: float
    drawn: np.ndarray | None = None

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]`` of ``x`` ``[n, p]`` (NaN = missing); higher = earlier event."""
        return self.contributions(x).sum(axis=1)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """What each variable adds to the risk, ``[n, p]``; rows sum to ``predict_risk``."""
        return self._standardised(x) * self.coefficient / self.spread

    def draws(self, x: np.ndarray) -> np.ndarray:
        """The risks ``[b, n]`` by each bootstrap sample; ``[1, n]`` where none was drawn."""
        drawn = self.coefficient[None] if self.drawn is None else self.drawn
        return drawn @ self._standardised(x).T / self.spread

    def _standardised(self, x: np.ndarray) -> np.ndarray:
        x = checked_features(x, len(self.coefficient)).astype(np.float64)
        return (np.where(np.isnan(x), self.fill, x) - self.mean) / self.scale

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays; see ``from_state``."""
        there = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        arrays = {name: np.array(getattr(self, name), dtype=np.float64) for name in there}
        return arrays | {"spread": np.array([self.spread])}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> LinearRisk:
        """The model whose ``state`` this is.

        Raises:
            ValueError: an array is missing or its shape does not fit the others.
        """
        keys = [f.name for f in fields(cls) if f.name != "drawn"]
        if missing := [key for key in keys if key not in state]:
            raise ValueError(f"linear risk lacks {', '.join(missing)}")
        arrays = {key: np.asarray(state[key], dtype=np.float64) for key in keys}
        spread = arrays.pop("spread")
        shapes = {key: array.shape for key, array in arrays.items()}
        if len(set(shapes.values())) != 1 or arrays["fill"].ndim != 1 or spread.shape != (1,):
            raise ValueError(f"linear risk has shapes {shapes} and spread {spread.shape}")
        drawn = state.get("drawn")
        if drawn is not None:
            drawn = np.asarray(drawn, dtype=np.float64)
            if drawn.ndim != 2 or drawn.shape[1:] != arrays["fill"].shape or not len(drawn):
                raise ValueError(f"linear risk has drawn {drawn.shape} beside {shapes['fill']}")
        given = (*arrays.values(), spread, *([] if drawn is None else [drawn]))
        finite = all(np.isfinite(array).all() for array in given)
        if not finite or (arrays["scale"] <= 0).any() or spread[0] <= 0:
            raise ValueError("linear risk: values must be finite, scales above 0")
        return cls(**arrays, spread=float(spread[0]), drawn=drawn)
