"""Harrell's concordance of many variables at once, on many bootstrap samples, in O(n log n).

A bootstrap sample is the patients with weights, how often each was drawn. So one order of the
patients by time, and one of each variable by value, serve all samples. An event is compared with
everyone behind it in time: a suffix, which is a part of one leaf of ``LEAF`` patients, compared one
by one, and at most one block of each of the sizes ``LEAF``, ``2 LEAF``, ``4 LEAF``, ...; inside a
block, sorted by value, what an event is ahead of is a prefix, whose weight is a cumulative sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hmvnet.case import TIED_RISK, Outcomes

# Variables are compared in single precision, as in the package icare.
TIED_VARIABLE = float(np.float32(TIED_RISK))
LEAF = 128
ELEMENTS = 1 << 20  # of an array worked on at once: it stays in the processor's cache


def single_variable_concordance(x: np.ndarray, outcomes: Outcomes) -> np.ndarray:
    """Harrell's concordance of every column of ``x`` ``[n, p]`` taken as a risk, ``[p]``.

    Equal to ``sksurv.metrics.concordance_index_censored`` column by column on float32 values,
    missing ones (NaN) left out; NaN where a column has no comparable pair.
    """
    return weighted_concordance(x, outcomes, np.ones((1, len(outcomes)), int))[0]


def weighted_concordance(x: np.ndarray, outcomes: Outcomes, weights: np.ndarray) -> np.ndarray:
    """``single_variable_concordance`` on weighted patients, ``[b, p]``.

    Args:
        weights: int ``[b, n]``, how often each patient is there.
    """
    x = np.asarray(x, dtype=np.float32)
    # Events before who is censored on the same day: then all behind an event's day compare.
    order = np.lexsort((~outcomes.event, outcomes.days))
    x, outcomes, weights = x[order], outcomes[order], weights[:, order]
    found = np.full((len(weights), x.shape[1]), np.nan)
    patterns, pattern = np.unique(~np.isnan(x), axis=1, return_inverse=True)
    for number, observed in enumerate(patterns.T):
        columns = np.flatnonzero(pattern.ravel() == number)
        cohort = _Ordered(outcomes[observed], weights[:, observed])
        pairs = cohort.pairs()[:, None]
        parts = -(-len(columns) * cohort.weights.size // ELEMENTS)
        for some in np.array_split(columns, min(max(parts, 1), len(columns))):
            twice = cohort.twice_concordant(x[observed][:, some])
            nothing = np.full(twice.shape, np.nan)
            found[:, some] = np.divide(0.5 * twice, pairs, out=nothing, where=pairs > 0)
    return found


class _Ordered:
    """Weighted patients by time, events first of those of one day."""

    def __init__(self, outcomes: Outcomes, weights: np.ndarray) -> None:
        self.weights = weights.astype(np.int32)  # [b, n]
        self.events = np.flatnonzero(outcomes.event)
        # Where those begin that an event is compared with: behind the events of its day.
        days = outcomes.days[self.events]
        of_day = np.searchsorted(days, days, side="right") - np.searchsorted(days, days)
        self.start = np.searchsorted(outcomes.days, days) + of_day

    def pairs(self) -> np.ndarray:
        """Comparable pairs in each sample, ``[b]``."""
        upto = np.cumsum(self.weights, axis=1, dtype=np.int64)
        upto = np.concatenate([np.zeros((len(upto), 1), np.int64), upto], axis=1)
        return (self.weights[:, self.events] * (upto[:, -1:] - upto[:, self.start])).sum(axis=1)

    def twice_concordant(self, x: np.ndarray) -> np.ndarray:
        """Pairs with the event's value ahead and those with it not behind, ``[b, p]``.

        Of ``x`` ``[n, p]`` without NaN; a tied pair is in the second count only.
        """
        by_value = np.argsort(x, axis=0, kind="stable").T.astype(np.int32)  # [p, n]
        rank = np.empty_like(by_value)
        np.put_along_axis(rank, by_value, np.arange(len(x), dtype=np.int32)[None], axis=1)
        # Of all patients by value, how many an event is ahead of, and how many it is not behind.
        levels = np.take_along_axis(x.T, by_value, axis=1).astype(np.float64)
        values = x[self.events].T.astype(np.float64)
        ahead = [np.searchsorted(a, v - TIED_VARIABLE) for a, v in zip(levels, values)]
        level = [np.searchsorted(a, v + TIED_VARIABLE, "right") for a, v in zip(levels, values)]
        bounds = np.stack([ahead, level])
        total = self._in_leaves(rank, bounds)
        for size, rows, block in self._blocks(len(x)):
            total += self._in_blocks(by_value, size, rows, block, bounds[:, :, rows])
        return total

    def _in_leaves(self, rank: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Of the pairs in the leaf in which an event's suffix begins, one by one."""
        total = np.zeros((len(self.weights), len(rank)))
        patients = np.arange(rank.shape[1])
        edges = np.arange(0, rank.shape[1] + LEAF, LEAF)
        for first, last, low in zip(cuts := np.searchsorted(self.start, edges), cuts[1:], edges):
            inside, theirs = slice(low, low + LEAF), slice(first, last)
            if first < last:
                ahead, level = (b[:, theirs, None].astype(np.int32) for b in bounds)
                won = (rank[:, None, inside] < ahead).astype(np.float32)
                won += rank[:, None, inside] < level
                won *= patients[inside] >= self.start[theirs, None]
                scores = self.weights[:, self.events[theirs]].astype(np.float32) @ won
                total += np.einsum("pbj,bj->bp", scores, self.weights[:, inside])
        return total

    def _blocks(self, patients: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Sizes of blocks, the events whose suffix has one of that size, and which one it is."""
        size, block = LEAF, self.start // LEAF + 1  # the first behind the leaf
        while size < patients:
            rows = np.flatnonzero((block % 2 == 1) & (block * size < patients))
            if rows.size:
                yield size, rows, block[rows]
            size, block = size * 2, -(-block // 2)

    def _in_blocks(
        self,
        by_value: np.ndarray,
        size: int,
        rows: np.ndarray,
        block: np.ndarray,
        bounds: np.ndarray,
    ) -> np.ndarray:
        """Of the pairs of the events in ``rows`` with the patients of their ``block``."""
        count, patients = by_value.shape
        blocks = (by_value // size).astype(np.int16)  # of 16 bits: sorted by counting
        by_block = np.argsort(blocks, axis=1, kind="stable")  # and by value in each of them
        patient = np.take_along_axis(by_value, by_block, axis=1)
        # Rising along a column, so that one search finds what is below in all blocks.
        keys = np.take_along_axis(blocks, by_block, axis=1) * np.int64(patients + 1) + by_block
        upto = np.zeros((len(self.weights), count, patients + 1), np.int32)
        np.cumsum(self.weights[:, patient], axis=2, out=upto[:, :, 1:])
        column = np.arange(count)[:, None]
        sums = -2 * upto[:, :, block * size]
        for bound in bounds:
            wanted = block * (patients + 1) + bound
            found = np.stack([np.searchsorted(key, value) for key, value in zip(keys, wanted)])
            sums += upto[:, column, found]
        return np.einsum("bpe,be->bp", sums.astype(float), self.weights[:, self.events[rows]])
