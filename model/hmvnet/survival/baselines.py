"""Classical survival models by name, behind one interface.

    model = create("coxph").fit(x, outcomes, rng)
    risk = model.predict_risk(x)                # [n], higher = earlier event
    curves = model.predict_survival(x, times)   # [n, t], or None where a model gives no curve

Cox is ``hmvnet.survival.cox`` with curves made as the fusion model's are, DeepHit and MTLR are
``hmvnet.survival.discrete``, forest and boosting are scikit-survival's. Every model but ICARE,
which leaves missing values out, fills them with the training median and standardises by the
training patients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sksurv.ensemble import GradientBoostingSurvivalAnalysis, RandomSurvivalForest

from hmvnet.case import Outcomes
from hmvnet.prognosis.icare import BaggedIcare
from hmvnet.survival.calibration import Slopes, fit_curve
from hmvnet.survival.cox import PENALTIES, RidgeCox, event_splits
from hmvnet.survival.discrete import DeepHit, standardiser, tuned_mtlr
from hmvnet.survival.metrics import structured
from hmvnet.survival.tuning import SurvivalModel


class Cox:
    """``RidgeCox``, with the curves that the fusion model's risks have.

    Its ridge is chosen by the order of the risks, which says nothing of how large hazards are: it
    may shrink them to a tenth. So the slope and the baseline hazard are those of patients' risks by
    fits of inner folds that had not seen them (``calibration.fit_curve``). The order of the risks
    is not touched.
    """

    folds = 5

    def __init__(self, penalties: Sequence[float] = PENALTIES) -> None:
        self.penalties = penalties

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> Cox:
        inner = copy.deepcopy(rng)  # whether there are curves does not change who draws next
        self.model_ = RidgeCox(self.penalties).fit(x, outcomes, rng)
        risk, slopes = self.model_.predict_risk(x), Slopes()
        folds = list(event_splits(outcomes, self.folds, int(inner.integers(2**31))))
        for known, unseen in folds:
            model = RidgeCox([self.model_.ridge_]).fit(x[known], outcomes[known], inner)
            risk[unseen] = model.predict_risk(x[unseen])
            slopes.add(
                (model.predict_risk(x[known]), outcomes[known]), (risk[unseen], outcomes[unseen])
            )
        self.curve_ = fit_curve(risk, outcomes, slopes.steeper(1 - 1 / max(len(folds), 1)))
        return self

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        return self.model_.predict_risk(x)

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Step curves; beyond the last event they stay at their last value."""
        return self.curve_.survival(self.predict_risk(x), times)


class SksurvModel:
    """A scikit-survival estimator made by ``build(random_state)``, on standardised features."""

    def __init__(self, build: Callable[[int], Any]) -> None:
        self.build = build

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> SksurvModel:
        self.scaler_ = standardiser().fit(x)
        self.model_ = self.build(int(rng.integers(2**31)))
        self.model_.fit(self.scaler_.transform(x), structured(outcomes))
        return self

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        return self.model_.predict(self.scaler_.transform(x))

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Step curves; beyond the training follow-up they stay at their last value."""
        x = self.scaler_.transform(x)
        curves = self.model_.predict_survival_function(x, return_array=True)
        step = np.searchsorted(self.model_.unique_times_, times, side="right")
        return np.concatenate([np.ones((len(curves), 1)), curves], axis=1)[:, step]


class IcareModel:
    """Bagged ICARE; ranks only, gives no curve."""

    def __init__(self, rho: float | None = 0.9, cmin: float = 0.53, bags: int = 25) -> None:
        self.model = BaggedIcare(rho, cmin, bags)

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> IcareModel:
        self.model.fit(x, outcomes, rng)
        return self

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        return self.model.predict_risk(x)

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> None:
        return None


def _forest(seed: int) -> RandomSurvivalForest:
    return RandomSurvivalForest(n_estimators=200, min_samples_leaf=15, random_state=seed)


def _boosting(seed: int) -> GradientBoostingSurvivalAnalysis:
    return GradientBoostingSurvivalAnalysis(
        n_estimators=200,
        learning_rate=0.05,
        max_depth=2,
        min_samples_leaf=10,
        subsample=0.5,
        max_features="sqrt",
        random_state=seed,
    )


REGISTRY: dict[str, Callable[[], SurvivalModel]] = {
    "coxph": Cox,
    "icare": IcareModel,
    "deephit": DeepHit,
    "mtlr": tuned_mtlr,
    "rsf": lambda: SksurvModel(_forest),
    "gbm": lambda: SksurvModel(_boosting),
}


def available() -> tuple[str, ...]:
    """Names that ``create`` knows."""
    return tuple(REGISTRY)


def create(name: str) -> SurvivalModel:
    """A new, unfitted model.

    Raises:
        ValueError: unknown name; the message lists those known.
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown survival model {name!r}, expected one of {', '.join(REGISTRY)}")
    return REGISTRY[name]()
