"""What a survival model can do, and the choice among settings of one by inner cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from sklearn.model_selection import StratifiedKFold

from hmvnet.case import Outcomes, harrell_c, has_comparable_pair


class SurvivalModel(Protocol):
    """What every model here can do; ``hmvnet.survival.baselines``."""

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> SurvivalModel:
        """Fit on ``x`` ``[n, p]`` (NaN = missing) and the ``n`` patients' outcomes."""

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]``; higher = earlier event. Only its order has a meaning across models."""

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray | None:
        """Probability ``[n, t]`` of no event up to each of ``times``, or None."""


class Tuned:
    """The best of several settings by inner cross-validation, fitted to all training patients.

    How strongly a linear model is shrunk moves its concordance as much as which model it is, so a
    fair baseline chooses that too, on its training patients alone. Candidates come with growing
    shrinkage.
    """

    def __init__(self, candidates: Sequence[Callable[[], SurvivalModel]], folds: int = 5) -> None:
        self.candidates = candidates
        self.folds = folds

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> Tuned:
        splitter = StratifiedKFold(self.folds, shuffle=True, random_state=int(rng.integers(2**31)))
        splits = list(splitter.split(x, outcomes.event))
        scores = [self._concordance(c, splits, x, outcomes, rng) for c in self.candidates]
        # Of equals the last, which shrinks most: without an event to judge by, keep to directions.
        self.chosen_ = max(range(len(scores)), key=lambda i: (scores[i], i))
        self.model_ = self.candidates[self.chosen_]().fit(x, outcomes, rng)
        return self

    @staticmethod
    def _concordance(
        candidate: Callable[[], SurvivalModel],
        splits: Sequence[tuple[np.ndarray, np.ndarray]],
        x: np.ndarray,
        outcomes: Outcomes,
        rng: np.random.Generator,
    ) -> float:
        """Mean concordance over the splits in which patients compare."""
        values = []
        for train, test in splits:
            if all(has_comparable_pair(outcomes[part]) for part in (train, test)):
                model = candidate().fit(x[train], outcomes[train], rng)
                values.append(harrell_c(outcomes[test], model.predict_risk(x[test])))
        return float(np.mean(values)) if values else 0.5

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        return self.model_.predict_risk(x)

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray | None:
        return self.model_.predict_survival(x, times)
