"""Intervals by resampling patients: one paired bootstrap, and the two statistics that use it.

Patients are drawn with replacement, the same draw for everything that is compared, and the
statistic is computed anew with each patient counted as often as drawn (Efron and Tibshirani, 1993,
chapters 8 and 13). Nothing is fitted again: an interval covers the sampling of the test patients,
not that of the training patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hmvnet.case import TIED_RISK, Outcomes
from hmvnet.segmentation.metrics import HD95, METRICS, CaseScore, ratios, terms


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap limits.

    As text ``0.123 (0.100 to 0.150)``; a format such as ``+.2f`` holds for all three numbers.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self, ".3f")

    def __format__(self, spec: str) -> str:
        estimate, low, high = (
            format(value, spec or ".3f") for value in (self.estimate, self.low, self.high)
        )
        return f"{estimate} ({low} to {high})"


@dataclass(frozen=True)
class Bootstrap:
    """One statistic of several models, or methods, on the same patients.

    Attributes:
        estimate: its value by name.
        samples: its values on resampled patients by name, ``[s]`` each; NaN where it has none. All
            names are resampled together, so differences are paired.
        patients: how many the statistic is over.
    """

    estimate: Mapping[str, float]
    samples: Mapping[str, np.ndarray]
    patients: int

    @classmethod
    def of(cls, values: Mapping[str, np.ndarray], patients: int) -> Bootstrap:
        """From values by name for each row of ``draw_weights``, ``[1 + s]`` each."""
        estimate = {name: float(found[0]) for name, found in values.items()}
        return cls(estimate, {name: found[1:] for name, found in values.items()}, patients)

    def interval(self, name: str, level: float = 0.95) -> Interval:
        """The value of one name."""
        return _interval(self.estimate[name], self.samples[name], level)

    def difference(self, name: str, reference: str, level: float = 0.95) -> Interval:
        """How much higher the value of ``name`` is than that of ``reference``."""
        estimate = self.estimate[name] - self.estimate[reference]
        return _interval(estimate, self.samples[name] - self.samples[reference], level)


def _interval(estimate: float, samples: np.ndarray, level: float) -> Interval:
    """Limits over the samples that have a value; NaN where none has."""
    values = samples[~np.isnan(samples)]
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if values.size else (np.nan, np.nan)
    return Interval(float(estimate), float(low), float(high))


def draw_weights(patients: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each patient counts, float ``[1 + samples, patients]``.

    The first row is the cohort as it is, each other one a draw of as many patients.
    """
    drawn = rng.multinomial(patients, np.full(patients, 1 / patients), samples)
    return np.concatenate([np.ones((1, patients)), drawn])


def bootstrap_concordance(
    outcomes: Outcomes,
    risks: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    fold: np.ndarray | None = None,
    samples: int = 2000,
) -> Bootstrap:
    """Harrell's C of each risk, ``[n]`` or ``[repeats, n]``, by name.

    With ``fold`` (of the same shape), only patients of one fold are compared, since models of
    different folds need not have one scale. Repeats are averaged; a resampled patient is so in all
    of them. Concordant pairs are counted once, as a matrix, and reweighted.

    Raises:
        ValueError: shapes that do not agree, a risk that is not finite, no comparable pair.
    """
    weights = draw_weights(len(outcomes), samples, rng)
    values = {}
    for name, risk in risks.items():
        values[name] = _weighted_concordance(outcomes, np.atleast_2d(risk), fold, weights)
        if np.isnan(values[name][0]):
            raise ValueError(f"{name}: no two patients compare")
    return Bootstrap.of(values, len(outcomes))


def concordances(outcomes: Outcomes, risk: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harrell's C of a risk ``[n]`` with each of ``weights`` ``[s, n]``; NaN where none compare."""
    return _weighted_concordance(outcomes, risk[None], None, weights)


def _weighted_concordance(
    outcomes: Outcomes, risk: np.ndarray, fold: np.ndarray | None, weights: np.ndarray
) -> np.ndarray:
    """Concordance ``[s]`` with each of ``weights`` ``[s, n]``, mean over ``risk``'s repeats."""
    folds = np.zeros(risk.shape, dtype=int) if fold is None else np.atleast_2d(fold)
    if risk.shape != folds.shape or risk.shape[1] != len(outcomes):
        raise ValueError(f"risk {risk.shape} does not fit {len(outcomes)} patients and the folds")
    if not np.isfinite(risk).all():
        raise ValueError("every risk must be finite")
    days, event = outcomes.days, outcomes.event
    outlasts = (days > days[event, None]) | ((days == days[event, None]) & ~event)
    values = np.zeros(len(weights))
    for scores, numbers in zip(risk, folds, strict=True):
        pairs = outlasts & (numbers == numbers[event, None])
        ahead = scores[event, None] - scores
        concordant = np.where(ahead > TIED_RISK, 1.0, 0.5 * (ahead >= -TIED_RISK)) * pairs
        by_event = weights[:, event]
        won = ((by_event @ concordant) * weights).sum(axis=1)
        compared = ((by_event @ pairs.astype(float)) * weights).sum(axis=1)
        values += np.divide(won, compared, out=np.full(len(won), np.nan), where=compared > 0)
    return values / len(risk)


def bootstrap_segmentation(
    scores: Mapping[str, Sequence[CaseScore]], rng: np.random.Generator, samples: int = 10_000
) -> dict[str, Bootstrap]:
    """Each of ``hmvnet.segmentation.metrics.METRICS`` of several methods, by the metric's name.

    Metrics are computed anew from the drawn patients' sums, so aggregated ones are treated as
    exactly as means are. HD95 is over the patients for whom all methods have a value.

    Args:
        scores: by method, of the same patients in the same order.

    Raises:
        ValueError: no scores, or patients that are not the same in the same order.
    """
    patients = [[score.patient_id for score in some] for some in scores.values()]
    if not patients or not patients[0] or any(some != patients[0] for some in patients):
        raise ValueError(
            f"scores of {', '.join(f'{len(some)} ({name})' for name, some in scores.items())} "
            "patients, expected the same patients in the same order in all, at least one"
        )
    parts = np.stack([terms(some) for some in scores.values()])  # [method, patient, metric, 2]
    everywhere = np.all(parts[..., HD95, 1] > 0, axis=0)
    parts[:, :, HD95] *= everywhere[None, :, :, None]
    weights = draw_weights(len(patients[0]), samples, rng)
    values = ratios(np.einsum("sp,mpkt->mskt", weights, parts, optimize=True))
    counted = np.full(len(METRICS), len(patients[0]))
    counted[HD95] = everywhere.sum(axis=0)
    return {
        metric: Bootstrap.of(dict(zip(scores, values[:, :, k], strict=True)), int(counted[k]))
        for k, metric in enumerate(METRICS)
    }
