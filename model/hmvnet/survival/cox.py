"""Cox's proportional hazards model with a ridge, by Newton's method on whole arrays.

    path = ridge_path(z, outcomes, (1000.0, 100.0, 10.0, 1.0))   # [4, p], z standardised
    model = RidgeCox().fit(x, outcomes, rng)                     # ridge by inner cross-validation

The penalised log partial likelihood is ``l(b) - ridge / 2 * |b|^2``, ties after Efron (JASA 1977):
scikit-survival's ``CoxPHSurvivalAnalysis(alpha=ridge, ties="efron")``. Sums over risk sets are
cumulative sums and matrix products, ``O(n p^2)`` a step; a step that does not raise the likelihood
is halved, so neither separable nor repeated columns overflow. A linear predictor is kept within
a range of ``WIDEST``, which only a ridge far below 1 on a separable column would leave.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.model_selection import StratifiedKFold

from hmvnet.case import Outcomes, harrell_c, has_comparable_pair
from hmvnet.prognosis.curve import survival_of
from hmvnet.prognosis.icare import bag_rows, bag_seeds
from hmvnet.prognosis.linear import LinearRisk

# From hardly any shrinkage to one that leaves the single variables' directions.
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
MOST_STEPS, MOST_HALVINGS = 50, 30
CONVERGED = 1e-9  # of the likelihood, what a further step could gain
WIDEST = 500.0  # of linear predictors: e to its power, and one over it, are still numbers


class PartialLikelihood:
    """Cox's log partial likelihood of one cohort, ties after Efron, and its derivatives."""

    def __init__(self, x: np.ndarray, outcomes: Outcomes, offset: np.ndarray | None = None) -> None:
        """Of variables ``x`` ``[n, p]``, finite, beside a fixed part ``[n]`` of the predictors.

        Raises:
            ValueError: no event.
        """
        if not outcomes.event.any():
            raise ValueError("no event among the training patients")
        order = np.argsort(-outcomes.days, kind="stable")
        self.x = np.asarray(x, np.float64)[order]
        self.offset = np.zeros(len(order)) if offset is None else offset[order]
        self.event = outcomes.event[order]
        _, first, group, size = np.unique(
            -outcomes.days[order], return_index=True, return_inverse=True, return_counts=True
        )
        self.last = first + size - 1  # the last patient of each time: all before are at risk
        self.group = group
        self.group_of_event = group[self.event]
        times, self.start, count = np.unique(
            self.group_of_event, return_index=True, return_counts=True
        )
        self.tied = np.searchsorted(times, self.group_of_event)  # event -> time with an event
        # Of m events at one time, the r-th (r = 0, 1, ...) has r/m of their hazard removed.
        rank = np.arange(len(self.group_of_event)) - self.start[self.tied]
        self.removed = rank / count[self.tied]

    def _log_at_risk(self, eta: np.ndarray) -> np.ndarray:
        """Log of the summed hazard at each event, what Efron removes removed, ``[events]``."""
        log_all = np.logaddexp.accumulate(eta)[self.last][self.group_of_event]
        share = np.add.reduceat(np.exp(eta[self.event] - log_all), self.start)[self.tied]
        return log_all + np.log1p(-self.removed * share)

    def value(self, eta: np.ndarray) -> float:
        """Of linear predictors ``[n]`` in the order of falling time, that of ``self.x``."""
        return float(eta[self.event].sum() - self._log_at_risk(eta).sum())

    def derivatives(self, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient ``[p]`` and information ``[p, p]`` by the coefficients."""
        highest = eta.max()
        hazard = np.exp(eta - highest)
        inverse = np.exp(highest - self._log_at_risk(eta))  # [events]
        weighted = hazard[:, None] * self.x
        at_risk = np.cumsum(weighted, axis=0)[self.last][self.group_of_event]
        then = np.add.reduceat(weighted[self.event], self.start, axis=0)[self.tied]
        mean = (at_risk - self.removed[:, None] * then) * inverse[:, None]
        gradient = self.x[self.event].sum(axis=0) - mean.sum(axis=0)
        # Each patient's cumulative hazard: over the events up to the end of their follow-up.
        by_time = np.bincount(self.group_of_event, inverse, len(self.last))
        own = hazard * by_time[::-1].cumsum()[::-1][self.group]
        taken = np.add.reduceat(self.removed * inverse, self.start)[self.tied]
        own[self.event] -= hazard[self.event] * taken
        return gradient, (self.x.T * own) @ self.x - mean.T @ mean


def ridge_path(
    x: np.ndarray,
    outcomes: Outcomes,
    penalties: Sequence[float],
    start: np.ndarray | None = None,
    offset: np.ndarray | None = None,
) -> np.ndarray:
    """Coefficients ``[k, p]`` of ``x`` ``[n, p]`` for each of ``penalties``, each above 0.

    Each fit begins where that of the next stronger penalty ended, the first at ``start`` ``[p]``.
    ``offset`` ``[n]`` is added to the linear predictors and not fitted.

    Raises:
        ValueError: a penalty of 0 or below, or no event.
    """
    if min(penalties) <= 0:
        raise ValueError(f"ridge penalties must be above 0, found {min(penalties):g}")
    likelihood = PartialLikelihood(x, outcomes, offset)
    found = np.zeros((len(penalties), x.shape[1]))
    coefficient = found[0] if start is None else start
    for i in np.argsort(penalties)[::-1]:
        coefficient = found[i] = _climb(likelihood, coefficient, penalties[i])
    return found


def _climb(likelihood: PartialLikelihood, coefficient: np.ndarray, ridge: float) -> np.ndarray:
    """Where the penalised likelihood is highest, by Newton's steps from ``coefficient`` ``[p]``."""

    def value(b: np.ndarray, eta: np.ndarray) -> float:
        return likelihood.value(eta) - 0.5 * ridge * float(b @ b)

    eta = likelihood.x @ coefficient + likelihood.offset
    height = value(coefficient, eta)
    for _ in range(MOST_STEPS):
        gradient, information = likelihood.derivatives(eta)
        gradient = gradient - ridge * coefficient
        information[np.diag_indices_from(information)] += ridge
        step = cho_solve(cho_factor(information), gradient)
        gain = float(gradient @ step)
        if gain < CONVERGED:
            return coefficient + step
        along = likelihood.x @ step
        for halving in range(MOST_HALVINGS):
            size = 0.5**halving
            eta_next, next_one = eta + size * along, coefficient + size * step
            if np.ptp(eta_next) < WIDEST:
                height_next = value(next_one, eta_next)
                if height_next >= height + 1e-4 * size * gain:
                    break
        else:
            break
        coefficient, eta, height = next_one, eta_next, height_next
    return coefficient


def breslow(outcomes: Outcomes, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative baseline hazard of linear predictors ``eta`` ``[n]``, by Breslow's estimator.

    Returns:
        The days of the events, ascending, ``[t]``, and the cumulative hazard at eta = 0 from each
        of them on, ``[t]`` (Breslow, in the discussion of Cox, J R Stat Soc B 1972).
    """
    order = np.argsort(-outcomes.days, kind="stable")
    days, event = outcomes.days[order], outcomes.event[order]
    log_at_risk = np.logaddexp.accumulate(eta[order])
    times, count = np.unique(days[event], return_counts=True)
    last = np.searchsorted(-days, -times, side="right") - 1
    return times, np.cumsum(count * np.exp(-log_at_risk[last]))


@dataclass(frozen=True)
class Standardiser:
    """Missing values to the median, then zero mean and unit deviation, column by column.

    Attributes:
        fill, mean, scale: ``[p]``; a column with no value, or a constant one, becomes 0.
    """

    fill: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Standardiser:
        """Of ``x`` ``[n, p]``, NaN where missing."""
        seen = ~np.isnan(x)
        fill = np.array([np.median(c[s]) if s.any() else 0.0 for c, s in zip(x.T, seen.T)])
        filled = np.where(seen, x, fill)
        mean, scale = filled.mean(axis=0), filled.std(axis=0)
        # Rounding leaves a deviation in a constant column of large values.
        constant = (filled == filled[:1]).all(axis=0) | (scale <= 1e-12 * np.abs(mean))
        return cls(fill, mean, np.where(constant, 1.0, scale))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (np.where(np.isnan(x), self.fill, x) - self.mean) / self.scale


class RidgeCox:
    """Cox's model whose ridge is chosen by inner cross-validation, by Harrell's concordance.

    After ``fit``: ``ridge_`` and ``linear_``, the linear predictor as plain arrays.
    """

    def __init__(self, penalties: Sequence[float] = PENALTIES, folds: int = 5) -> None:
        self.penalties = sorted(penalties)
        self.folds = folds

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> RidgeCox:
        """Fit on ``x`` ``[n, p]`` (NaN = missing) and the ``n`` patients' outcomes.

        Raises:
            ValueError: no event.
        """
        x = np.asarray(x, np.float64)
        scores = self._concordances(x, outcomes, int(rng.integers(2**31)))
        # Of equals the last, which shrinks most: without an event to judge by, keep to directions.
        self.ridge_ = max(zip(scores, self.penalties))[1]
        scale = Standardiser.of(x)
        coefficient = ridge_path(scale(x), outcomes, [self.ridge_])[0]
        self.linear_ = LinearRisk(scale.fill, scale.mean, scale.scale, coefficient, 1.0)
        days, hazard = breslow(outcomes, self.linear_.predict_risk(x))
        self.days_, self.log_hazard_ = days, np.log(hazard)
        return self

    def _concordances(self, x: np.ndarray, outcomes: Outcomes, seed: int) -> list[float]:
        """For each penalty the mean over the inner folds in which patients compare."""
        undecided = [0.5] * len(self.penalties)
        if len(self.penalties) == 1:
            return undecided
        values = []
        for train, test in event_splits(outcomes, self.folds, seed):
            if all(has_comparable_pair(outcomes[part]) for part in (train, test)):
                scale = Standardiser.of(x[train])
                path = ridge_path(scale(x[train]), outcomes[train], self.penalties)
                risks = path @ scale(x[test]).T
                values.append([harrell_c(outcomes[test], risk) for risk in risks])
        return np.mean(values, axis=0).tolist() if values else undecided

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """The linear predictor ``[n]``."""
        return self.linear_.predict_risk(x)

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Step curves ``[n, t]``; beyond the last event they stay at their last value."""
        log_hazard = np.append(-np.inf, self.log_hazard_)
        step = np.searchsorted(self.days_, times, side="right")
        return survival_of(log_hazard[step], self.predict_risk(x))


def event_splits(
    outcomes: Outcomes, folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit to and rows left out; each fold has events, or there are fewer folds, or none."""
    count = min(folds, int(outcomes.event.sum()))
    if count < 2:
        return
    censored = int((~outcomes.event).sum())
    strata = outcomes.event if censored >= count else np.ones(len(outcomes), bool)
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    yield from splitter.split(strata, strata)


def fit_linear_risk(
    x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator, draws: int = 0
) -> LinearRisk:
    """``RidgeCox`` as plain arrays, scaled to unit deviation among the training patients.

    Args:
        draws: bootstrap samples to fit as well, with the same ridge, for intervals. Their patients
            are those of ``BaggedIcare`` fitted with a generator of the same seed.
    """
    seeds = bag_seeds(copy.deepcopy(rng), draws)
    model = RidgeCox().fit(x, outcomes, rng)
    linear = model.linear_
    spread = float(linear.predict_risk(x).std()) or 1.0
    z = Standardiser(linear.fill, linear.mean, linear.scale)(np.asarray(x, np.float64))
    drawn = []
    for seed in seeds:
        rows = bag_rows(seed, len(x))
        one = linear.coefficient  # of a bag without an event, which tells nothing
        if outcomes.event[rows].any():
            one = ridge_path(z[rows], outcomes[rows], [model.ridge_], one)[0]
        drawn.append(one)
    return replace(linear, spread=spread, drawn=np.array(drawn) if drawn else None)
