"""A random forest for survival, by scikit-learn's regression trees on Cox's martingale residuals.

A patient's residual under a model that knows nothing, ``event - H(days)`` with H the cumulative
hazard of all (Therneau, Grambsch & Fleming, Biometrika 1990), is above 0 where the event came early
and is what log-rank scores are (Hothorn & Lausen, Comput Stat Data Anal 2003): the split that
explains most of its variance tells risk from risk, as that of a survival tree by the log-rank test
does (LeBlanc & Crowley, Biometrics 1992). Trees grow in milliseconds, on any Python, into arrays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from hmvnet.case import Outcomes
from hmvnet.prognosis.forest import LEAF, ForestRisk
from hmvnet.survival.cox import Standardiser, breslow

TREES = 200
LEAST_IN_LEAF, MOST_LEAVES = 5, 100


def martingale_residuals(outcomes: Outcomes) -> np.ndarray:
    """Of each patient under the cohort's cumulative hazard, ``[n]``; their sum is 0.

    Raises:
        ValueError: no event.
    """
    if not outcomes.event.any():
        raise ValueError("no event among the training patients")
    days, hazard = breslow(outcomes, np.zeros(len(outcomes)))
    step = np.searchsorted(days, outcomes.days, side="right")
    return outcomes.event - np.append(0.0, hazard)[step]


def fit_forest_risk(x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> ForestRisk:
    """A forest as plain arrays, its risk of unit deviation among the training patients.

    A leaf has at least 5 patients, and at least a hundredth of all, so that a forest of thousands
    is no larger than one of hundreds.

    Args:
        x: ``[n, p]``, NaN = missing.

    Raises:
        ValueError: no event.
    """
    fill = Standardiser.of(np.asarray(x, np.float64)).fill
    forest = RandomForestRegressor(
        TREES,
        min_samples_leaf=max(LEAST_IN_LEAF, -(-len(x) // MOST_LEAVES)),
        max_features="sqrt",
        random_state=int(rng.integers(2**31)),
    ).fit(np.where(np.isnan(x), fill, x), martingale_residuals(outcomes))
    trees = [one.tree_ for one in forest.estimators_]
    root = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
    leaf = np.concatenate([tree.children_left < 0 for tree in trees])
    own = np.arange(len(leaf))
    left, right = (
        np.where(leaf, own, np.concatenate([getattr(t, side) + r for t, r in zip(trees, root)]))
        for side in ("children_left", "children_right")
    )
    variable = np.concatenate([tree.feature for tree in trees])
    threshold = np.concatenate([tree.threshold for tree in trees])
    found = ForestRisk(
        fill,
        root.astype(np.int32),
        np.where(leaf, LEAF, variable).astype(np.int32),
        np.where(leaf, 0.0, threshold),
        left.astype(np.int32),
        right.astype(np.int32),
        np.concatenate([tree.value[:, 0, 0] for tree in trees]),
        1.0,
    )
    return replace(found, spread=float(found.predict_risk(x).std()) or 1.0)
