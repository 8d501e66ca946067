"""Fitting one axis's staging model: what it sees, of which kind, how free, all by inner folds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from hmvnet.staging.model import StageModel

STRENGTHS = tuple(float(c) for c in np.logspace(-2.0, 0.5, 5))  # C: the higher, the freer
INNER_FOLDS = 5
LEAST_OF_A_STAGE = 2


def refuse_rare(y: np.ndarray, stages: Sequence[str]) -> np.ndarray:
    """How many patients have each stage.

    Raises:
        ValueError: one that fewer than two have.
    """
    counts = np.bincount(y, minlength=len(stages))
    if few := [s for s, n in zip(stages, counts, strict=True) if n < LEAST_OF_A_STAGE]:
        raise ValueError(
            f"{len(y)} patients of whom fewer than {LEAST_OF_A_STAGE} have {', '.join(few)}: "
            "expected some of every stage"
        )
    return counts


def fit_stage_model(
    x: np.ndarray,
    y: np.ndarray,
    stages: Sequence[str],
    names: Sequence[str],
    seed: int = 0,
    kinds: Sequence[str] = ("multinomial", "ordered"),
    starts: Sequence[tuple[str, ...]] = (("",),),
) -> StageModel:
    """Fit the features, kind and strength that predict these patients best in inner folds.

    By the log loss in which every stage counts as much as any other. Of the choices of features
    the first is taken that is not worse than the best by more than the standard error of their
    paired difference (Breiman et al., "Classification and regression trees", 1984, has the rule):
    AJCC's rule alone, where nothing else is sure to help.

    Args:
        x: features ``[n, p]``, NaN where missing.
        y: stages' numbers ``[n]``, from 0 in the order of ``stages``.
        kinds: that are tried: "multinomial", "ordered".
        starts: what the names of the features that are tried together start with, a choice each,
            those with fewer features first; the coefficients of the others are 0.

    Raises:
        ValueError: a stage that fewer than two patients have.
    """
    counts = refuse_rare(y, stages)
    folds = min(INNER_FOLDS, int(counts.min()))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    splits = list(splitter.split(x, y))
    choices = [np.array([name.startswith(some) for name in names]) for some in starts]
    candidates = list(product(choices, kinds, STRENGTHS))
    losses = np.zeros((len(candidates), len(y)))
    for known, unseen in splits:
        weight = 1.0 / counts[y[unseen]]
        for i, candidate in enumerate(candidates):
            model = _fit_some(x[known], y[known], stages, names, *candidate)
            p = model.probabilities(x[unseen])[np.arange(len(unseen)), y[unseen]]
            losses[i, unseen] = -weight * np.log(np.maximum(p, 1e-9))
    per_choice = len(kinds) * len(STRENGTHS)
    best = [
        first + int(losses[first : first + per_choice].sum(axis=1).argmin())
        for first in range(0, len(candidates), per_choice)
    ]
    lowest = losses[min(best, key=lambda i: float(losses[i].sum()))]
    chosen = next(i for i in best if _is_as_good(losses[i] - lowest))
    return _fit_some(x, y, stages, names, *candidates[chosen])


def _is_as_good(more: np.ndarray) -> bool:
    """Whether losses ``[n]`` above the lowest are within their standard error."""
    return bool(more.mean() <= more.std() / np.sqrt(len(more)))


def _fit_some(
    x: np.ndarray,
    y: np.ndarray,
    stages: Sequence[str],
    names: Sequence[str],
    seen: np.ndarray,
    kind: str,
    strength: float,
) -> StageModel:
    """``fit_one`` on the features that are ``seen``, bool ``[p]``, with 0 for the others."""
    some = fit_one(x[:, seen], y, stages, np.array(names)[seen].tolist(), kind, strength)

    def all_of(values: np.ndarray, rest: float) -> np.ndarray:
        whole = np.full((*values.shape[:-1], len(names)), rest)
        whole[..., seen] = values
        return whole

    return StageModel(
        some.stages,
        tuple(names),
        all_of(some.mean, 0.0),
        all_of(some.scale, 1.0),
        all_of(some.coefficients, 0.0),
        some.intercepts,
        some.shares,
    )


def fit_one(
    x: np.ndarray,
    y: np.ndarray,
    stages: Sequence[str],
    names: Sequence[str],
    kind: str,
    strength: float,
) -> StageModel:
    """One model with a given strength; arguments as ``fit_stage_model``."""
    with warnings.catch_warnings():  # a feature that nobody has
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, scale = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
    mean = np.nan_to_num(mean)
    scale = np.where(np.isfinite(scale) & (scale > 1e-6), scale, 1.0)
    z = np.nan_to_num((x - mean) / scale, nan=0.0)
    if kind == "ordered":
        coefficients, intercepts = _proportional_odds(z, y, len(stages), strength)
    else:
        coefficients, intercepts = _multinomial(z, y, strength)
    shares = np.bincount(y, minlength=len(stages)) / len(y)
    return StageModel(tuple(stages), tuple(names), mean, scale, coefficients, intercepts, shares)


def _multinomial(z: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = LogisticRegression(C=strength, max_iter=400).fit(z, y)
    return np.asarray(found.coef_, float), np.asarray(found.intercept_, float)


def _proportional_odds(
    z: np.ndarray, y: np.ndarray, k: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients ``[1, p]`` and thresholds ``[k - 1]``: penalised likelihood, by L-BFGS.

    Thresholds are the first and the logarithms of the steps between them, so that they rise.
    """
    n, p = z.shape

    def unpack(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        steps = np.exp(np.clip(numbers[p + 1 :], -10, 10))
        return numbers[:p], numbers[p] + np.concatenate([[0.0], np.cumsum(steps)]), steps

    def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        w, limits, steps = unpack(numbers)
        score = z @ w
        edges = np.concatenate([[-np.inf], limits, [np.inf]])
        below, upto = expit(edges[y] - score), expit(edges[y + 1] - score)
        inside = np.maximum(upto - below, 1e-12)
        d_upto, d_below = upto * (1 - upto) / inside, below * (1 - below) / inside
        d_limits = np.zeros(k + 1)
        np.add.at(d_limits, y + 1, -d_upto)
        np.add.at(d_limits, y, d_below)
        d_limits = d_limits[1:k]
        d_w = z.T @ (d_upto - d_below) + w / strength
        # a step moves all limits above it
        d_steps = np.array([d_limits[i + 1 :].sum() for i in range(k - 2)]) * steps
        gradient = np.concatenate([d_w, [d_limits.sum()], d_steps])
        return float(-np.log(inside).sum() + (w @ w) / (2 * strength)), gradient

    shares = np.cumsum(np.bincount(y, minlength=k) / n)[:-1]
    start = np.log(np.clip(shares, 1e-3, 1 - 1e-3) / (1 - np.clip(shares, 1e-3, 1 - 1e-3)))
    numbers = np.concatenate([np.zeros(p), start[:1], np.log(np.maximum(np.diff(start), 1e-2))])
    found = minimize(loss, numbers, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    w, limits, _ = unpack(found)
    return w[None], limits
