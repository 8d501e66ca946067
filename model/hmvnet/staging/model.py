"""Fitted staging models: plain arrays, fitted by ``hmvnet.training.staging``.

Two kinds, both on standardised features: multinomial logistic regression, and proportional odds
(McCullagh, "Regression models for ordinal data", J R Stat Soc B 1980), which has one direction for
all stages and thresholds between them. The probabilities are those of the training patients' mix of
stages. The stage given is the one whose probability is highest against its share of that mix: the
decision that makes the mean recall over stages (balanced accuracy) highest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

ORDERED_ROWS = 1  # of the coefficients of proportional odds


@dataclass(frozen=True)
class StageModel:
    """A model of one axis, T or N.

    Attributes:
        stages: ``k`` names, in order.
        names: of the ``p`` features.
        mean, scale: ``[p]``, of the training patients; a feature that is NaN counts as its mean.
        coefficients: ``[k, p]``, or ``[1, p]`` of proportional odds.
        intercepts: ``[k]``, or the ``[k - 1]`` thresholds of proportional odds, rising.
        shares: ``[k]``, of the training patients with each stage.

    Raises:
        ValueError: shapes that do not fit together, or values that are not finite.
    """

    stages: tuple[str, ...]
    names: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray
    shares: np.ndarray

    def __post_init__(self) -> None:
        k, p = len(self.stages), len(self.names)
        rows = len(self.coefficients) if self.coefficients.ndim == 2 else 0
        shapes = {
            "mean": (p,),
            "scale": (p,),
            "coefficients": (ORDERED_ROWS if rows == ORDERED_ROWS else k, p),
            "intercepts": (k - 1 if rows == ORDERED_ROWS else k,),
            "shares": (k,),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(
                    f"staging model: {name} of shape {array.shape}, expected {shape}, all finite"
                )
        if (self.scale <= 0).any() or (self.shares <= 0).any():
            raise ValueError("staging model: scales and shares must be above 0")

    @property
    def ordered(self) -> bool:
        """Whether it is of proportional odds."""
        return len(self.coefficients) == ORDERED_ROWS

    def standardised(self, x: np.ndarray) -> np.ndarray:
        """Features ``[n, p]`` as the coefficients take them, without NaN."""
        return np.nan_to_num((np.asarray(x, float) - self.mean) / self.scale, nan=0.0)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Of each stage, ``[n, k]``, of features ``[n, p]``."""
        scores = self.standardised(x) @ self.coefficients.T
        if not self.ordered:
            scores = scores + self.intercepts
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            return scores / scores.sum(axis=1, keepdims=True)
        above = 1.0 / (1.0 + np.exp(np.clip(self.intercepts - scores, -500, 500)))  # [n, k - 1]
        edges = np.concatenate([np.ones((len(above), 1)), above, np.zeros((len(above), 1))], axis=1)
        return np.clip(edges[:, :-1] - edges[:, 1:], 1e-9, 1.0)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """The number of the stage given, ``[n]``, of probabilities ``[n, k]``."""
        return np.argmax(probabilities / self.shares, axis=1)

    def reasons(self, x: np.ndarray) -> list[tuple[str, float]]:
        """For one patient ``[p]``: the features that speak for its stage and their values.

        The weightiest first, by what each adds to the score of the stage against the mean of the
        others; for proportional odds by what moves it away from the average patient.
        """
        z = self.standardised(x[None])[0]
        if self.ordered:
            parts = np.abs(self.coefficients[0] * z)
        else:
            stage = int(self.decide(self.probabilities(x[None]))[0])
            others = np.delete(self.coefficients, stage, axis=0).mean(axis=0)
            parts = (self.coefficients[stage] - others) * z
        best = [i for i in np.argsort(-parts) if parts[i] > 0 and np.isfinite(x[i])]
        return [(self.names[i], float(x[i])) for i in best]

    def arrays(self) -> dict[str, np.ndarray]:
        """What was learnt, for a safetensors file."""
        return {name: getattr(self, name) for name in LEARNT}

    @classmethod
    def from_arrays(
        cls, stages: Sequence[str], names: Sequence[str], arrays: Mapping[str, np.ndarray]
    ) -> StageModel:
        """The model whose ``arrays`` these are.

        Raises:
            ValueError: one is missing, or as the class.
        """
        if missing := [name for name in LEARNT if name not in arrays]:
            raise ValueError(f"staging model: no {missing}")
        return cls(tuple(stages), tuple(names), *(arrays[name] for name in LEARNT))


LEARNT = tuple(f.name for f in fields(StageModel) if f.name not in ("stages", "names"))
