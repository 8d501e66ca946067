"""How much of the risk each of its parts has, judged on patients that the part was not fitted to.

A part's share is what the settings give it, times ``exp((C - best C) / s)`` with
``s = STEEPNESS / sqrt(events)``: C is its concordance out of inner folds, and its standard error
falls as one over the root of the events. So the number of patients decides: among a hundred all
parts keep about what they were given, among thousands a part that is behind by 0.01 is left out.
How the rule was found and what it was measured to be worth: docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hmvnet.case import Outcomes, harrell_c

STEEPNESS = 0.2
LEAST = 0.01  # a smaller share is none


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
        given: the share of each part before it is judged.

    A part's weight is its share over the deviation of its risks: shares are of equal units.
    """
    numbers = np.unique(fold)
    concordance = {
        name: np.mean(
            [c for k in numbers if not np.isnan(c := harrell_c(outcomes[fold == k], r[fold == k]))]
            or [0.5]
        )
        for name, r in risks.items()
    }
    best = max(concordance.values())
    scale = STEEPNESS / np.sqrt(max(outcomes.event.sum(), 1))
    shares = {k: given[k] * np.exp((c - best) / scale) for k, c in concordance.items()}
    whole = sum(shares.values())
    weights = {
        name: share / (float(risks[name].std()) or 1.0) if share >= LEAST * whole else 0.0
        for name, share in shares.items()
    }
    whole = sum(weights.values())
    return {name: float(weight / whole) for name, weight in weights.items()}
