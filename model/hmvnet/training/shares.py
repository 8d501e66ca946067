"""How much of the risk each of its parts has, judged on patients that the part was not fitted to.

What counts is what a part adds to the others, not how good it is alone: the shares are those of a
Cox model on the parts' risks out of inner folds (stacking; Wolpert, Neural Networks 1992), none
below 0, shrunk towards what the settings give. They maximise

    l(b w) - STEADINESS / 2 * |w - given|^2,    w >= 0,

where l is the log partial likelihood of risks of unit deviation, each inner fold with risk sets of
its own, and b is fitted with w: from Cox's coefficient of the parts together as given up to
MOST_STEEP times that. What the data say of w grows as the
events, and as the square of b. So the number of patients decides, and how well they can be told
apart: where the parts order nobody, or a few events speak, shares are about as given; to thousands
of events it hardly matters what was given. How the rule was found and what it was measured to be
worth: docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize

from hmvnet.case import Outcomes
from hmvnet.survival.cox import PartialLikelihood, ridge_path

STEADINESS = 25.0  # of the given shares: a prior on each of deviation one over its root
NOTHING = 1e-9  # a given share that is none, but for rounding: it stays none
LEAST = 0.01  # a smaller share is none
LEAST_COEFFICIENT = 0.01  # of all parts together, of unit deviation: below, they order nobody
MOST_STEEP = 10.0  # times their coefficient as given: perfect order has none
SLIGHT_RIDGE = 0.1


def judged_shares(
    risks: Mapping[str, np.ndarray],
    outcomes: Outcomes,
    fold: np.ndarray,
    given: Mapping[str, float],
) -> dict[str, float]:
    """Weights of the parts' risks, of sum 1.

    Args:
        risks: ``[n]`` by part, of patients that it was not fitted to.
        fold: ``[n]``, in which of the inner folds each of them was.
        given: the share of each part before it is judged; one of 0 stays 0.

    A part's weight is its share over the deviation of its risks: shares are of equal units.
    """
    deviation = {name: float(risk.std()) or 1.0 for name, risk in risks.items()}
    z = np.stack([(risk - risk.mean()) / deviation[name] for name, risk in risks.items()], 1)
    found = _stacked(z, outcomes, fold, np.array([given[name] for name in risks]))
    shares = dict(zip(risks, found.tolist()))
    whole = sum(shares.values())
    weights = {
        name: share / deviation[name] if share >= LEAST * whole else 0.0
        for name, share in shares.items()
    }
    whole = sum(weights.values())
    return {name: float(weight / whole) for name, weight in weights.items()}


def _stacked(z: np.ndarray, outcomes: Outcomes, fold: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Shares ``[p]``, not below 0, of risks ``z`` ``[n, p]`` of unit deviation."""
    folds = [rows for k in np.unique(fold) if outcomes.event[rows := fold == k].any()]
    together = z @ given
    spread = float(together.std())
    if not folds or not spread:
        return given
    slope = ridge_path((together / spread)[:, None], outcomes, [SLIGHT_RIDGE])[0, 0]
    if slope < LEAST_COEFFICIENT:
        return given
    likelihoods = [PartialLikelihood(z[rows], outcomes[rows]) for rows in folds]

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        coefficient, shares = free[0], free[1:]
        moved = shares - given
        value, gradient = STEADINESS / 2 * float(moved @ moved), STEADINESS * moved
        by_coefficient = 0.0
        for one in likelihoods:
            risk = one.x @ (coefficient * shares)
            value -= one.value(risk)
            slopes = one.derivatives(risk)[0]
            gradient = gradient - coefficient * slopes
            by_coefficient -= float(slopes @ shares)
        return value, np.append(by_coefficient, gradient)

    start = np.append(slope / spread, given)
    wanted = [(0.0, None if share > NOTHING else 0.0) for share in given]
    bounds = [(start[0], MOST_STEEP * start[0]), *wanted]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[1:]
    return found if found.sum() > 0 else given
