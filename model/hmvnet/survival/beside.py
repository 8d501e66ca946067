"""A Cox model of many variables beside a fitted one of few: what images add to what has a name.

    risk = fit_beside(named, image, groups, outcomes, rng)      # LinearRisk of the two side by side

The few have a ridge of their own (``cox.RidgeCox``) and are then an offset, brought to the scale of
a log hazard: a ridge chosen by the order of the risks says nothing of it. The many come in groups
(a part of a lesion as one stage of the encoder sees it); each group, reduced to its principal
components, is a candidate at each of several ridges, and to add nothing is a candidate too. They
are averaged with weights of their prior times the exponential of what they gain in cross-validated
log partial likelihood (Verweij and van Houwelingen, Stat Med 1993), less its standard error over
the folds: pseudo-Bayesian model averaging that minds its own uncertainty (Yao et al., Bayesian
Analysis 2018). Nothing has half of the prior, so that where images add nothing the risk is that of
the few.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hmvnet.case import Outcomes
from hmvnet.prognosis.icare import bag_rows, bag_seeds
from hmvnet.prognosis.linear import LinearRisk
from hmvnet.survival.cox import (
    PartialLikelihood,
    RidgeCox,
    Standardiser,
    event_splits,
    ridge_path,
)

COMPONENTS = 20  # of a group, at most
PENALTIES = (10.0, 30.0, 100.0, 300.0)
FOLDS = 5
ROUNDING = 1e-8  # of a component's deviation to the first's
HARDLY = 0.1  # a ridge: one coefficient for all patients needs none but where it could grow on
LEAST = 0.01  # a candidate of a smaller weight is none


@dataclass(frozen=True)
class Components:
    """Principal components of standardised variables, the first of unit deviation.

    Attributes:
        standardise: of the variables ``[p]``.
        loadings: ``[p, k]``, so that components are ``standardise(x) @ loadings``.
    """

    standardise: Standardiser
    loadings: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, most: int = COMPONENTS) -> Components:
        """Of ``x`` ``[n, p]``, NaN where missing; fewer where it has a lower rank."""
        standardise = Standardiser.of(x)
        _, deviations, axes = np.linalg.svd(standardise(x), full_matrices=False)
        kept = min(most, int((deviations > ROUNDING * max(deviations[0], ROUNDING)).sum()))
        scale = deviations[0] / np.sqrt(len(x)) or 1.0
        return cls(standardise, axes[:kept].T / scale)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.standardise(x) @ self.loadings


@dataclass(frozen=True)
class Candidate:
    """A group of the many at a ridge, and its weight in the mean."""

    group: int
    penalty: float
    weight: float


def fit_beside(
    named: np.ndarray,
    image: np.ndarray,
    groups: np.ndarray,
    outcomes: Outcomes,
    rng: np.random.Generator,
    draws: int = 0,
) -> LinearRisk:
    """Of variables that have a name ``[n, p]`` and image features ``[n, q]``, NaN = missing.

    Args:
        groups: ``[q]``, to which group, counted from 0, each image feature belongs.
        draws: bootstrap samples, as for ``fit_linear_risk``: the same patients.

    Returns:
        The risk of ``np.concatenate([named, image], 1)``, of unit deviation among the patients.

    Raises:
        ValueError: no event.
    """
    seeds = bag_seeds(copy.deepcopy(rng), draws)
    first = RidgeCox().fit(named, outcomes, rng)
    base, ridge = first.linear_, first.ridge_
    seed = int(rng.integers(2**31))
    chosen = _candidates(named, image, groups, outcomes, ridge, seed)
    z = Standardiser(base.fill, base.mean, base.scale)(named)
    parts = {one.group: Components.of(image[:, groups == one.group]) for one in chosen}

    def added(rows: np.ndarray, few: np.ndarray) -> np.ndarray:
        """The mean of the candidates' coefficients of the standardised image ``[q]``."""
        mean = np.zeros(image.shape[1])
        for one in chosen:
            columns, part = groups == one.group, parts[one.group]
            scores = part(image[np.ix_(rows, columns)])
            offset = z[rows] @ few
            own = ridge_path(scores, outcomes[rows], [one.penalty], offset=offset)[0]
            mean[columns] += one.weight * (part.loadings @ own)
        return mean

    few, everyone = _to_log_hazard(z, outcomes, base.coefficient), np.arange(len(named))
    scale = float(np.abs(few).max() / (np.abs(base.coefficient).max() or 1.0))
    many, drawn = added(everyone, few), []
    for rows in (bag_rows(seed, len(named)) for seed in seeds):
        if not outcomes.event[rows].any():  # it tells nothing
            drawn.append(np.concatenate([few, many]))
            continue
        one = scale * ridge_path(z[rows], outcomes[rows], [ridge], base.coefficient)[0]
        drawn.append(np.concatenate([one, added(rows, one)]))
    own = Standardiser.of(image)
    return LinearRisk(
        fill=np.concatenate([base.fill, own.fill]),
        mean=np.concatenate([base.mean, own.mean]),
        scale=np.concatenate([base.scale, own.scale]),
        coefficient=np.concatenate([few, many]),
        spread=float((z @ few + own(image) @ many).std()) or 1.0,
        drawn=np.array(drawn) if drawn else None,
    )


def _candidates(
    named: np.ndarray,
    image: np.ndarray,
    groups: np.ndarray,
    outcomes: Outcomes,
    ridge: float,
    seed: int,
) -> list[Candidate]:
    """Those of a weight worth a fit; the weights sum to 1 less that of adding nothing."""
    numbers = np.unique(groups)
    gains = []  # [groups, penalties] of each fold
    for known, offset in _folds(named, outcomes, ridge, seed):
        everyone, gain = np.arange(len(named)), np.zeros((len(numbers), len(PENALTIES)))
        for i, number in enumerate(numbers):
            columns = image[:, groups == number]
            scores = Components.of(columns[known])(columns)
            path = ridge_path(scores[known], outcomes[known], PENALTIES, offset=offset[known])
            # l(all) - l(training): the patients left out compare with the others too.
            for rows, sign in ((everyone, 1), (known, -1)):
                part = PartialLikelihood(scores[rows], outcomes[rows], offset[rows])
                before = part.value(part.offset)
                after = [part.value(part.x @ one + part.offset) for one in path]
                gain[i] += sign * (np.array(after) - before)
        gains.append(gain)
    if len(gains) < 2:
        return []
    error = np.std(gains, axis=0, ddof=1) * np.sqrt(len(gains))
    sure = np.sum(gains, axis=0) - error
    # Half of the prior to nothing, of gain 0; the other half to all candidates alike.
    top = max(float(sure.max(initial=0.0)), 0.0)
    weights = np.exp(sure - top) / max(sure.size, 1)
    weights /= weights.sum() + np.exp(-top)
    return [
        Candidate(int(numbers[i]), PENALTIES[k], float(weights[i, k]))
        for i, k in np.argwhere(weights >= LEAST)
    ]


def _folds(
    named: np.ndarray, outcomes: Outcomes, ridge: float, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of an inner fold's training patients, and all patients' offset ``[n]`` by them."""
    for known, _ in event_splits(outcomes, FOLDS, seed):
        scale = Standardiser.of(named[known])
        z = scale(named)
        few = ridge_path(z[known], outcomes[known], [ridge])[0]
        yield known, z @ _to_log_hazard(z[known], outcomes[known], few)


def _to_log_hazard(z: np.ndarray, outcomes: Outcomes, coefficient: np.ndarray) -> np.ndarray:
    """A multiple of the coefficients ``[p]``: that of the highest partial likelihood."""
    risk = z @ coefficient
    spread = float(risk.std())
    if not spread:
        return coefficient
    slope = ridge_path(risk[:, None] / spread, outcomes, [HARDLY])[0, 0]
    return coefficient * slope / spread
