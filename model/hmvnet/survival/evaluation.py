"""How well survival models do: metrics, cross-validation, bootstrap intervals, pictures.

Risks are higher for earlier events. Times are in days. Metrics come from scikit-survival; the
bootstrap counts the same concordant pairs once, as a matrix, and reweights them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold
from sksurv.compare import compare_survival
from sksurv.metrics import (
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from hmvnet.survival.baselines import SurvivalModel
from hmvnet.survival.icare import has_comparable_pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DAYS_PER_YEAR = 365.25
TIED_TOLERANCE = 1e-8  # scikit-survival's: risks closer than this are tied


@dataclass(frozen=True)
class Outcomes:
    """Follow-up of n patients: `time` `[n]` in days, and `event` `[n]` (bool) where it ended so."""

    time: np.ndarray
    event: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "time", np.asarray(self.time, dtype=np.float64))
        object.__setattr__(self, "event", np.asarray(self.event, dtype=bool))
        if self.time.ndim != 1 or self.time.shape != self.event.shape:
            raise ValueError(
                f"time and event must be [n] each, found {self.time.shape} and {self.event.shape}"
            )

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, rows: np.ndarray) -> Outcomes:
        return Outcomes(self.time[rows], self.event[rows])

    @property
    def structured(self) -> np.ndarray:
        """As scikit-survival wants it."""
        return Surv.from_arrays(self.event, self.time)

    def until(self, time: float) -> Outcomes:
        """The same follow-up, ended a day after `time`: all that matters up to there."""
        seen = self.time <= time
        return Outcomes(np.where(seen, self.time, time + 1.0), self.event & seen)


# --- metrics -------------------------------------------------------------------------------------


def harrell_c(outcomes: Outcomes, risk: np.ndarray) -> float:
    """Harrell's concordance index of `risk` `[n]`; NaN where no two patients compare."""
    if not has_comparable_pair(outcomes.time, outcomes.event):
        return np.nan
    return float(concordance_index_censored(outcomes.event, outcomes.time, risk)[0])


def uno_c(train: Outcomes, test: Outcomes, risk: np.ndarray, tau: float | None = None) -> float:
    """Uno's concordance index up to `tau` days; NaN where no two patients compare.

    The censoring distribution is that of `train`. Without `tau`, a tenth of the training patients
    is still followed then; weights become unstable beyond.
    """
    tau = float(np.quantile(train.time, 0.9)) if tau is None else tau
    early = test.event & (test.time < tau)
    if not has_comparable_pair(test.time, early):
        return np.nan
    return float(concordance_index_ipcw(train.structured, test.structured, risk, tau)[0])


def auc_at(train: Outcomes, test: Outcomes, risk: np.ndarray, times: Sequence[float]) -> np.ndarray:
    """Cumulative/dynamic AUC of `risk` `[n]` at each of `times` (days), `[t]`.

    NaN where nobody had an event by then, nobody is followed beyond, or `train` is not.
    """
    values = []
    for time in times:
        cases, controls = test.event & (test.time <= time), test.time > time
        if cases.any() and controls.any() and time < train.time.max():
            seen = test.until(time).structured
            values.append(cumulative_dynamic_auc(train.structured, seen, risk, time)[0][0])
        else:
            values.append(np.nan)
    return np.array(values)


def brier(train: Outcomes, test: Outcomes, survival: np.ndarray, times: np.ndarray) -> float:
    """Integrated Brier score of `survival` `[n, t]`, the chance of no event up to each of `times`.

    Over those of `times` within the follow-up of both groups; NaN where fewer than two are.
    """
    end = min(test.time.max(), train.time.max() - 1.0)
    inside = (times >= test.time.min()) & (times < end)
    if inside.sum() < 2:
        return np.nan
    seen = test.until(times[inside][-1]).structured
    return float(integrated_brier_score(train.structured, seen, survival[:, inside], times[inside]))


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed chance of an event up to `time` (days), by group of prediction.

    `predicted`, `observed` (Kaplan-Meier), its 95% limits `low` and `high`, and `size`, `[g]` each.
    """

    time: float
    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    size: np.ndarray

    @property
    def error(self) -> float:
        """Mean absolute difference, weighted by group size."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.size))


def calibration(
    outcomes: Outcomes, probability: np.ndarray, time: float, groups: int = 5
) -> Calibration:
    """Calibration of `probability` `[n]` of an event up to `time` days, in groups of equal size.

    Raises:
        ValueError: nobody is followed to `time`, or probabilities outside 0 to 1.
    """
    if not (outcomes.time >= time).any():
        raise ValueError(f"calibration at {time:g} days: follow-up ends at {outcomes.time.max():g}")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("calibration needs probabilities between 0 and 1")
    parts = np.array_split(np.argsort(probability, kind="stable"), min(groups, len(outcomes)))
    rows = []
    for part in parts:
        survival, low, high = _kaplan_meier_at(outcomes[part], time)
        rows.append((probability[part].mean(), 1 - survival, 1 - high, 1 - low, len(part)))
    return Calibration(time, *(np.array(column) for column in zip(*rows, strict=True)))


def _kaplan_meier_at(outcomes: Outcomes, time: float) -> tuple[float, float, float]:
    """Survival at `time` with its 95% limits."""
    times, survival, (low, high) = kaplan_meier_estimator(
        outcomes.event, outcomes.time, conf_type="log-log"
    )
    step = int(np.searchsorted(times, time, side="right")) - 1
    return (1.0, 1.0, 1.0) if step < 0 else (survival[step], low[step], high[step])


# --- cross-validation ----------------------------------------------------------------------------


def repeated_folds(
    event: np.ndarray,
    rng: np.random.Generator,
    folds: int = 5,
    repeats: int = 5,
    centre: np.ndarray | None = None,
) -> np.ndarray:
    """Test fold of every patient in every repeat, int `[repeats, n]`.

    Folds hold equal shares of events and, where given, of each centre's patients with and without
    one; centres too small for that are spread as if they were one.

    Raises:
        ValueError: fewer patients with, or without, an event than folds.
    """
    event = np.asarray(event, dtype=bool)
    if not folds <= event.sum() <= len(event) - folds:
        raise ValueError(
            f"{folds} folds need that many patients with and without an event, "
            f"found {event.sum()} and {(~event).sum()}"
        )
    label = event.astype(int)
    if centre is not None:
        label = _with_centres(label, np.unique(centre, return_inverse=True)[1], folds)
    found = np.empty((repeats, len(event)), dtype=int)
    for row in found:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
        for fold, (_, test) in enumerate(splitter.split(label, label)):
            row[test] = fold
    return found


def _with_centres(label: np.ndarray, centre: np.ndarray, folds: int) -> np.ndarray:
    """Strata of event (`label`, 0/1) and centre, each of at least `folds` patients."""
    strata = 2 + 2 * centre + label
    small = np.bincount(strata)[strata] < folds
    strata = np.where(small, label, strata)
    for value in (0, 1):
        rest = strata == value
        if 0 < rest.sum() < folds:  # too few even together: to the largest of their kind
            same = strata[(label == value) & ~rest]
            strata[rest] = np.bincount(same).argmax()
    return strata


@dataclass(frozen=True)
class OutOfFold:
    """What a model said about each patient without having seen them.

    `risk` `[repeats, n]`, comparable within a fold only; `survival` `[repeats, n, t]` at `times`
    `[t]` in days, or None.
    """

    risk: np.ndarray
    survival: np.ndarray | None = None
    times: np.ndarray | None = None

    def mean_rank(self, fold: np.ndarray) -> np.ndarray:
        """Rank in (0, 1) of each patient within the fold, mean over repeats, `[n]`."""
        ranks = np.empty(self.risk.shape)
        for rank, risk, folds in zip(ranks, self.risk, fold, strict=True):
            by_fold = pd.Series(risk).groupby(folds)
            rank[:] = (by_fold.rank() - 0.5) / by_fold.transform("size")
        return ranks.mean(axis=0)


# Rows of training and test patients to risk [n] of the latter, and survival [n, t] or None.
Fold = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray | None]]


def cross_validate_by(
    fit_predict: Fold,
    fold: np.ndarray,
    rng: np.random.Generator,
    times: np.ndarray | None = None,
) -> OutOfFold:
    """Out-of-fold predictions of anything that fits on some rows and predicts others.

    Args:
        fold: `[repeats, n]`, as `repeated_folds` gives it.
        times: `[t]` in days, where `fit_predict` gives survival curves, if it does.
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


def cross_validate(
    build: Callable[[], SurvivalModel],
    features: Callable[[np.ndarray], np.ndarray],
    outcomes: Outcomes,
    fold: np.ndarray,
    rng: np.random.Generator,
    times: np.ndarray | None = None,
) -> OutOfFold:
    """Out-of-fold predictions of a model.

    Args:
        build: makes an unfitted model.
        features: given the row numbers of the training patients, all patients' features `[n, p]`.
            Whatever is fitted (medians, categories, a network) it fits on those rows only.
        fold: `[repeats, n]`, as `repeated_folds` gives it.
        times: where survival curves are wanted, `[t]` in days.
    """

    def fit_predict(train: np.ndarray, test: np.ndarray, rng: np.random.Generator):
        x, known = features(train), outcomes[train]
        model = build().fit(x[train], known.time, known.event, rng)
        risk = model.predict_risk(x[test])
        return risk, None if times is None else model.predict_survival(x[test], times)

    return cross_validate_by(fit_predict, fold, rng, times)


@dataclass(frozen=True)
class Scores:
    """Means over all test folds of all repeats; NaN or None where a metric does not apply.

    `auc` maps years to the AUC there. `brier` and `calibration` need survival curves; the latter
    pools all folds and is at the last of the years.
    """

    harrell: float
    uno: float
    auc: Mapping[float, float]
    brier: float
    calibration: Calibration | None


def score(
    predictions: OutOfFold,
    outcomes: Outcomes,
    fold: np.ndarray,
    years: Sequence[float] = (1, 2, 3),
) -> Scores:
    """The metrics of out-of-fold predictions; `fold` as they were made with."""
    horizons = [year * DAYS_PER_YEAR for year in years]
    rows = []
    for repeat, numbers in enumerate(fold):
        for number in np.unique(numbers):
            test = numbers == number
            held_out, train, risk = outcomes[test], outcomes[~test], predictions.risk[repeat, test]
            error = np.nan
            if predictions.survival is not None and predictions.times is not None:
                curves = predictions.survival[repeat, test]
                error = brier(train, held_out, curves, predictions.times)
            row = [harrell_c(held_out, risk), uno_c(train, held_out, risk), error]
            rows.append(row + auc_at(train, held_out, risk, horizons).tolist())
    # A fold without a comparable pair says nothing; the others still do.
    table = np.ma.masked_invalid(rows).mean(axis=0).filled(np.nan)
    auc = dict(zip(years, table[3:].tolist(), strict=True))
    pooled = _pooled_calibration(predictions, outcomes, horizons[-1])
    return Scores(float(table[0]), float(table[1]), auc, float(table[2]), pooled)


def _pooled_calibration(
    predictions: OutOfFold, outcomes: Outcomes, time: float
) -> Calibration | None:
    if predictions.survival is None or predictions.times is None:
        return None
    if not predictions.times[0] <= time <= min(predictions.times[-1], outcomes.time.max()):
        return None
    mean = predictions.survival.mean(axis=0)
    at = np.array([np.interp(time, predictions.times, curve) for curve in mean])
    return calibration(outcomes, np.clip(1.0 - at, 0.0, 1.0), time)


# --- bootstrap -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap limits."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class BootstrapConcordance:
    """Harrell's C of several models: `estimate` by name, and `samples` by name, `[s]` each.

    All models are resampled together, so differences are paired.
    """

    estimate: Mapping[str, float]
    samples: Mapping[str, np.ndarray]

    def interval(self, name: str, level: float = 0.95) -> Interval:
        """The concordance of one model."""
        return _interval(self.estimate[name], self.samples[name], level)

    def difference(self, name: str, reference: str, level: float = 0.95) -> Interval:
        """How much higher the concordance of `name` is than that of `reference`."""
        estimate = self.estimate[name] - self.estimate[reference]
        return _interval(estimate, self.samples[name] - self.samples[reference], level)


def bootstrap_concordance(
    outcomes: Outcomes,
    risks: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    fold: np.ndarray | None = None,
    samples: int = 2000,
) -> BootstrapConcordance:
    """Bootstrap over patients of Harrell's C of each risk, `[n]` or `[repeats, n]`.

    With `fold` (of the same shape), only patients of one fold are compared, since models of
    different folds need not have one scale. Repeats are averaged; a resampled patient is so in all
    of them. The interval covers the sampling of test patients, not that of training patients.

    Raises:
        ValueError: shapes that do not agree, a risk that is not finite, no comparable pair.
    """
    weights = rng.multinomial(len(outcomes), np.full(len(outcomes), 1 / len(outcomes)), samples)
    # The first row is the cohort as it is.
    weights = np.concatenate([np.ones((1, len(outcomes))), weights])
    estimate, resampled = {}, {}
    for name, risk in risks.items():
        values = _weighted_concordance(outcomes, np.atleast_2d(risk), fold, weights)
        if np.isnan(values[0]):
            raise ValueError(f"{name}: no two patients compare")
        estimate[name], resampled[name] = float(values[0]), values[1:]
    return BootstrapConcordance(estimate, resampled)


def _weighted_concordance(
    outcomes: Outcomes, risk: np.ndarray, fold: np.ndarray | None, weights: np.ndarray
) -> np.ndarray:
    """Concordance with each of `weights` `[s, n]`, mean over the repeats of `risk`, `[s]`."""
    folds = np.zeros(risk.shape, dtype=int) if fold is None else np.atleast_2d(fold)
    if risk.shape != folds.shape or risk.shape[1] != len(outcomes):
        raise ValueError(f"risk {risk.shape} does not fit {len(outcomes)} patients and the folds")
    if not np.isfinite(risk).all():
        raise ValueError("every risk must be finite")
    time, event = outcomes.time, outcomes.event
    outlasts = (time > time[event, None]) | ((time == time[event, None]) & ~event)
    values = np.zeros(len(weights))
    for scores, numbers in zip(risk, folds, strict=True):
        pairs = outlasts & (numbers == numbers[event, None])
        ahead = scores[event, None] - scores
        concordant = np.where(ahead > TIED_TOLERANCE, 1.0, 0.5 * (ahead >= -TIED_TOLERANCE)) * pairs
        by_event = weights[:, event]
        won = ((by_event @ concordant) * weights).sum(axis=1)
        compared = ((by_event @ pairs.astype(float)) * weights).sum(axis=1)
        values += np.divide(won, compared, out=np.full(len(won), np.nan), where=compared > 0)
    return values / len(risk)


def _interval(estimate: float, samples: np.ndarray, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.nanquantile(samples, [tail, 1 - tail])
    return Interval(float(estimate), float(low), float(high))


def comparison_table(
    scores: Mapping[str, Scores], concordance: BootstrapConcordance, reference: str
) -> pd.DataFrame:
    """One row per model, best first: the metrics, and the paired difference to `reference`."""
    rows = {}
    for name, s in scores.items():
        row: dict[str, object] = {
            "C (95% CI)": str(concordance.interval(name)),
            f"C - {reference}": str(concordance.difference(name, reference)),
            "Uno's C": s.uno,
        }
        row |= {f"AUC {year:g} y": value for year, value in s.auc.items()}
        row["Brier"] = s.brier
        row["calibration error"] = s.calibration.error if s.calibration else np.nan
        rows[name] = row
    order = sorted(rows, key=lambda name: -concordance.estimate[name])
    return pd.DataFrame.from_dict({name: rows[name] for name in order}, orient="index")


# --- pictures ------------------------------------------------------------------------------------


def risk_groups(risk: np.ndarray, training_risk: np.ndarray, groups: int = 3) -> np.ndarray:
    """Group 0 (lowest risk) to `groups - 1` of each patient, cut at quantiles of training risks."""
    cuts = np.quantile(training_risk, np.linspace(0, 1, groups + 1)[1:-1])
    return np.searchsorted(cuts, risk, side="left")


def kaplan_meier_figure(
    outcomes: Outcomes, group: np.ndarray, names: Sequence[str] = ("low", "middle", "high")
) -> Figure:
    """Kaplan-Meier curves by risk group, with 95% bands, numbers at risk and log-rank test.

    Args:
        group: number `[n]` of each patient's group, an index into `names`.
    """
    from matplotlib.figure import Figure

    present = np.unique(group)
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
    years = np.arange(0, np.floor(outcomes.time.max() / DAYS_PER_YEAR) + 1)
    for row, number in enumerate(present):
        part = outcomes[group == number]
        times, survival, (low, high) = kaplan_meier_estimator(
            part.event, part.time, conf_type="log-log"
        )
        x = np.concatenate([[0.0], times / DAYS_PER_YEAR])
        color = f"C{row}"
        axes.step(x, [1.0, *survival], where="post", color=color, label=names[number])
        axes.fill_between(
            x, [1.0, *low], [1.0, *high], step="post", color=color, alpha=0.15, linewidth=0
        )
        for year in years:
            at_risk = int((part.time >= year * DAYS_PER_YEAR).sum())
            below.text(year, -row, str(at_risk), ha="center", va="center", color=color, fontsize=8)
    title = "Kaplan-Meier by risk group"
    if len(present) > 1 and outcomes.event.any():
        title += f" (log-rank p = {compare_survival(outcomes.structured, group)[1]:.2g})"
    axes.set(title=title, ylabel="without event", ylim=(0, 1.02))
    axes.legend(title="risk", frameon=False)
    below.set(xlabel="years", ylim=(-len(present) + 0.4, 0.6), yticks=[])
    below.set_ylabel("at risk", fontsize=8)
    return figure


def forest_figure(
    intervals: Mapping[str, Interval], label: str = "C-index", reference: float = 0.5
) -> Figure:
    """Forest plot: one line per name, estimate and limits, with a dashed line at `reference`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.8 + 0.4 * len(intervals)), layout="constrained")
    axes = figure.subplots()
    for row, interval in enumerate(intervals.values()):
        axes.plot([interval.low, interval.high], [-row, -row], color="C0")
        axes.plot(interval.estimate, -row, "s", color="C0")
        axes.text(
            1.02, -row, str(interval), transform=axes.get_yaxis_transform(), va="center", fontsize=8
        )
    axes.axvline(reference, color="0.6", linestyle="--", linewidth=1)
    axes.set_yticks([-row for row in range(len(intervals))], list(intervals))
    axes.set_xlabel(label)
    return figure


def calibration_figure(curves: Mapping[str, Calibration]) -> Figure:
    """Observed against predicted chance of an event, one line per model, with 95% limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for name, curve in curves.items():
        spread = np.stack([curve.observed - curve.low, curve.high - curve.observed]).clip(0)
        axes.errorbar(curve.predicted, curve.observed, spread, marker="o", capsize=2, label=name)
        axes.set_title(f"Event up to {curve.time / DAYS_PER_YEAR:.3g} years")
    axes.set(xlabel="predicted", ylabel="observed", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return figure
