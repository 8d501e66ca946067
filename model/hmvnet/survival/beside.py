"""A Cox model of many variables beside a fitted one of few: what images add to what has a name.

    risk = fit_beside(named, image, outcomes, rng)      # LinearRisk of the two side by side

The few have their own ridge (``cox.fit_linear_risk``) and are then an offset; the many are reduced
to their principal components and get a ridge of their own. Both are chosen by inner
cross-validation, for the many by the cross-validated partial likelihood (Verweij and van
Houwelingen, Stat Med 1993), no coefficient at all being one of the choices: where images add
nothing the risk is that of the few.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedKFold

from hmvnet.case import Outcomes
from hmvnet.prognosis.icare import bag_rows, bag_seeds
from hmvnet.prognosis.linear import LinearRisk
from hmvnet.survival.cox import PartialLikelihood, RidgeCox, Standardiser, ridge_path

COMPONENTS = 40
PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0)
FOLDS = 5
LIMIT = 1e-8  # of a component's deviation to the first's: below, it is rounding


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
        kept = min(most, int((deviations > LIMIT * max(deviations[0], LIMIT)).sum()))
        scale = deviations[0] / np.sqrt(len(x)) or 1.0
        return cls(standardise, axes[:kept].T / scale)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.standardise(x) @ self.loadings


def fit_beside(
    named: np.ndarray,
    image: np.ndarray,
    outcomes: Outcomes,
    rng: np.random.Generator,
    draws: int = 0,
) -> LinearRisk:
    """Of variables that have a name ``[n, p]`` and image features ``[n, q]``, NaN = missing.

    Args:
        draws: bootstrap samples, as for ``fit_linear_risk``: the same patients.

    Returns:
        The risk of ``np.concatenate([named, image], 1)``, of unit deviation among the patients.

    Raises:
        ValueError: no event.
    """
    seeds = bag_seeds(copy.deepcopy(rng), draws)
    first = RidgeCox().fit(named, outcomes, rng)
    base = first.linear_
    penalty = _best_penalty(named, image, outcomes, first.ridge_, int(rng.integers(2**31)))
    components = Components.of(image)
    z, scores = Standardiser(base.fill, base.mean, base.scale)(named), components(image)
    few, many = base.coefficient, np.zeros(scores.shape[1])
    if penalty is not None:
        many = ridge_path(scores, outcomes, [penalty], offset=z @ few)[0]
    drawn = []
    for seed in seeds:
        rows = bag_rows(seed, len(named))
        if not outcomes.event[rows].any():
            continue
        one = ridge_path(z[rows], outcomes[rows], [first.ridge_], few)[0]
        other = many
        if penalty is not None:
            offset = z[rows] @ one
            other = ridge_path(scores[rows], outcomes[rows], [penalty], many, offset)[0]
        drawn.append(np.concatenate([one, components.loadings @ other]))
    own = components.standardise
    return LinearRisk(
        fill=np.concatenate([base.fill, own.fill]),
        mean=np.concatenate([base.mean, own.mean]),
        scale=np.concatenate([base.scale, own.scale]),
        coefficient=np.concatenate([few, components.loadings @ many]),
        spread=float((z @ few + scores @ many).std()) or 1.0,
        drawn=np.array(drawn) if drawn else None,
    )


def _best_penalty(
    named: np.ndarray, image: np.ndarray, outcomes: Outcomes, ridge: float, seed: int
) -> float | None:
    """The ridge of the image's components; None where none is better than no image at all."""
    folds = min(FOLDS, int(outcomes.event.sum()), int((~outcomes.event).sum()))
    if folds < 2:
        return None
    gains = np.zeros(len(PENALTIES))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for train, _ in splitter.split(named, outcomes.event):
        scale = Standardiser.of(named[train])
        few = ridge_path(scale(named[train]), outcomes[train], [ridge])[0]
        offset = scale(named) @ few
        components = Components.of(image[train])
        scores = components(image)
        path = ridge_path(scores[train], outcomes[train], PENALTIES, offset=offset[train])
        # l(all) - l(training), as the patients left out compare with the others too.
        whole, part = (
            PartialLikelihood(scores[rows], outcomes[rows], offset[rows])
            for rows in (np.arange(len(named)), train)
        )
        before = whole.value(whole.offset) - part.value(part.offset)
        for i, coefficient in enumerate(path):
            after = whole.value(whole.x @ coefficient + whole.offset)
            gains[i] += after - part.value(part.x @ coefficient + part.offset) - before
    best = int(np.argmax(gains))
    return PENALTIES[best] if gains[best] > 0 else None
