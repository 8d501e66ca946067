"""How well survival models do on patients they have not seen: cross-validation, scores, one table.

Risks are higher for earlier events; times are in days.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hmvnet.case import DAYS_PER_YEAR, Outcomes, harrell_c
from hmvnet.survival.bootstrap import Bootstrap
from hmvnet.survival.calibration import calibration_slope
from hmvnet.survival.metrics import (
    Calibration,
    auc_at,
    brier,
    calibration,
    uno_c,
)


@dataclass(frozen=True)
class OutOfFold:
    """What a model said about each patient without having seen them.

    Attributes:
        risk: ``[repeats, n]``, comparable within a fold only.
        survival: ``[repeats, n, t]``, the chance of no event up to each of ``times``, or None.
        times: ``[t]`` in days, or None.
    """

    risk: np.ndarray
    survival: np.ndarray | None = None
    times: np.ndarray | None = None

    def mean_rank(self, fold: np.ndarray) -> np.ndarray:
        """Rank in (0, 1) of each patient within the fold, mean over repeats, ``[n]``."""
        ranks = np.empty(self.risk.shape)
        for rank, risk, folds in zip(ranks, self.risk, fold, strict=True):
            by_fold = pd.Series(risk).groupby(folds)
            rank[:] = (by_fold.rank() - 0.5) / by_fold.transform("size")
        return ranks.mean(axis=0)


# Rows of training and test patients to risk [n] of the latter, and survival [n, t] or None.
FitPredict = Callable[
    [np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray | None]
]


def cross_validate_by(
    fit_predict: FitPredict,
    fold: np.ndarray,
    rng: np.random.Generator,
    times: np.ndarray | None = None,
) -> OutOfFold:
    """Out-of-fold predictions of anything that fits on some rows and predicts others.

    Args:
        fold: ``[repeats, n]``, as ``hmvnet.training.folds.repeated_folds`` gives it.
        times: ``[t]`` in days, where ``fit_predict`` gives survival curves, if it does.
    """
    risk = np.empty(fold.shape)
    curves: np.ndarray | None = None if times is None else np.empty((*fold.shape, len(times)))
    for repeat, numbers in enumerate(fold):
        for number in np.unique(numbers):
            test = numbers == number
            rows = np.flatnonzero(test)
            risk[repeat, rows], curve = fit_predict(np.flatnonzero(~test), rows, rng)
            if curve is None:
                curves = None
            if curves is not None:
                curves[repeat, rows] = curve
    return OutOfFold(risk, curves, None if curves is None else times)


@dataclass(frozen=True)
class Scores:
    """Means over all test folds of all repeats; NaN or None where a metric does not apply.

    Attributes:
        harrell, uno: concordance indices.
        auc: by the years up to which it is.
        brier: integrated Brier score; needs survival curves.
        slope: calibration slope of all folds together, at the last of the years, mean over repeats;
            1 where predictions are neither too extreme nor too alike. Needs survival curves too.
        calibration: predicted against observed, alike.
    """

    harrell: float
    uno: float
    auc: Mapping[float, float]
    brier: float
    slope: float
    calibration: Calibration | None


def score(
    predictions: OutOfFold,
    outcomes: Outcomes,
    fold: np.ndarray,
    years: Sequence[float] = (1, 2, 3),
    followed: Outcomes | None = None,
) -> Scores:
    """The metrics of out-of-fold predictions; ``fold`` as they were made with.

    Args:
        followed: by whose follow-up Uno's C, the AUC and Brier are weighted: patients scored have
            to be censored as these are. None: the other folds; of another cohort than was fitted
            to, its own.
    """
    horizons = [year * DAYS_PER_YEAR for year in years]
    rows = []
    for repeat, numbers in enumerate(fold):
        for number in np.unique(numbers):
            test = numbers == number
            train = outcomes[~test] if followed is None else followed
            held_out, risk = outcomes[test], predictions.risk[repeat, test]
            error = np.nan
            if predictions.survival is not None and predictions.times is not None:
                curves = predictions.survival[repeat, test]
                error = brier(train, held_out, curves, predictions.times)
            row = [harrell_c(held_out, risk), uno_c(train, held_out, risk), error]
            rows.append(row + auc_at(train, held_out, risk, horizons).tolist())
    # A fold without a comparable pair says nothing; the others still do.
    table = np.ma.masked_invalid(rows).mean(axis=0).filled(np.nan)
    auc = dict(zip(years, table[3:].tolist(), strict=True))
    pooled, slope = None, np.nan
    survival = survival_at(predictions, outcomes, horizons[-1])
    if survival is not None:
        until = outcomes.until(horizons[-1])
        slope = float(np.mean([calibration_slope(until, repeat) for repeat in survival]))
        mean = np.clip(1.0 - survival.mean(axis=0), 0.0, 1.0)
        pooled = calibration(outcomes, mean, horizons[-1])
    return Scores(float(table[0]), float(table[1]), auc, float(table[2]), slope, pooled)


def survival_at(predictions: OutOfFold, outcomes: Outcomes, time: float) -> np.ndarray | None:
    """Chance ``[repeats, n]`` of no event up to a time that curves and follow-up reach, or None."""
    if predictions.survival is None or predictions.times is None:
        return None
    if not predictions.times[0] <= time <= min(predictions.times[-1], outcomes.days.max()):
        return None
    after = int(np.searchsorted(predictions.times, time).clip(1))
    first, last = predictions.times[after - 1 : after + 1]
    share = (time - first) / (last - first)
    before, then = predictions.survival[:, :, after - 1], predictions.survival[:, :, after]
    return (1 - share) * before + share * then


def comparison_table(
    scores: Mapping[str, Scores], concordance: Bootstrap, reference: str
) -> pd.DataFrame:
    """One row per model, best first: the metrics, and the paired difference to ``reference``."""
    rows = {}
    for name, s in scores.items():
        row: dict[str, object] = {
            "C (95% CI)": str(concordance.interval(name)),
            f"C - {reference}": str(concordance.difference(name, reference)),
            "Uno's C": s.uno,
        }
        row |= {f"AUC {year:g} y": value for year, value in s.auc.items()}
        row["Brier"] = s.brier
        row["calibration slope"] = s.slope
        row["calibration error"] = s.calibration.error if s.calibration else np.nan
        rows[name] = row
    order = sorted(rows, key=lambda name: -concordance.estimate[name])
    return pd.DataFrame.from_dict({name: rows[name] for name in order}, orient="index")
