"""How well stages are told: balanced accuracy, as HECKTOR 2026 scores them, and the area of T4.

Both take many weightings of the patients at once, which is what a bootstrap needs.
"""

from __future__ import annotations

import numpy as np


def recalls(truth: np.ndarray, given: np.ndarray, k: int, weights: np.ndarray) -> np.ndarray:
    """Share of each stage's patients who are given it, ``[s, k]``; NaN for a stage that none has.

    Args:
        truth, given: stages' numbers ``[n]``, from 0.
        k: how many stages there are.
        weights: how often each patient counts, ``[s, n]``.
    """
    of = (truth[:, None] == np.arange(k)).astype(float)  # [n, k]
    right = weights @ (of * (given == truth)[:, None])
    total = weights @ of
    return np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0)


def balanced_accuracy(
    truth: np.ndarray, given: np.ndarray, k: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean recall over the stages that some patient has, ``[s]``; arguments as ``recalls``."""
    if weights is None:
        weights = np.ones((1, len(truth)))
    found = recalls(truth, given, k, weights)
    known = np.isfinite(found)
    count = known.sum(axis=1)
    total = np.where(known, found, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def area_under_roc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a positive patient scores higher than a negative one, ``[s]``; a tie is half.

    Args:
        score: ``[n]``.
        positive: bool ``[n]``.
        weights: as for ``recalls``.
    """
    ahead = score[positive][:, None] - score[~positive]
    won = np.where(ahead > 0, 1.0, 0.5 * (ahead == 0))
    of, against = weights[:, positive], weights[:, ~positive]
    pairs = of.sum(axis=1) * against.sum(axis=1)
    total = np.einsum("sp,pq,sq->s", of, won, against, optimize=True)
    return np.divide(total, pairs, out=np.full(len(total), np.nan), where=pairs > 0)
