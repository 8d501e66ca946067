"""How good risks and survival curves are: Uno's concordance, AUC, Brier score, calibration.

Risks are higher for earlier events; times are in days. The numbers are scikit-survival's. Harrell's
concordance is ``hmvnet.case.harrell_c``, which needs no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sksurv.metrics import (
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from hmvnet.case import Outcomes, has_comparable_pair


def structured(outcomes: Outcomes) -> np.ndarray:
    """Outcomes as scikit-survival wants them: a structured array ``[n]`` of event and time."""
    return Surv.from_arrays(outcomes.event, outcomes.days)


def uno_c(train: Outcomes, test: Outcomes, risk: np.ndarray, tau: float | None = None) -> float:
    """Uno's concordance index up to ``tau`` days; NaN where no two patients compare.

    The censoring distribution is that of ``train``. Without ``tau``, a tenth of the training
    patients is still followed then; weights become unstable beyond.
    """
    tau = float(np.quantile(train.days, 0.9)) if tau is None else tau
    early = test.event & (test.days < tau)
    if not has_comparable_pair(Outcomes(test.days, early)):
        return np.nan
    return float(concordance_index_ipcw(structured(train), structured(test), risk, tau)[0])


def auc_at(train: Outcomes, test: Outcomes, risk: np.ndarray, times: Sequence[float]) -> np.ndarray:
    """Cumulative/dynamic AUC of ``risk`` ``[n]`` at each of ``times`` (days), ``[t]``.

    NaN where nobody had an event by then, nobody is followed beyond, or ``train`` is not.
    """
    values = []
    for time in times:
        cases, controls = test.event & (test.days <= time), test.days > time
        if cases.any() and controls.any() and time < train.days.max():
            seen = structured(test.until(time))
            values.append(cumulative_dynamic_auc(structured(train), seen, risk, time)[0][0])
        else:
            values.append(np.nan)
    return np.array(values)


def brier(train: Outcomes, test: Outcomes, survival: np.ndarray, times: np.ndarray) -> float:
    """Integrated Brier score of ``survival`` ``[n, t]``, the chance of no event up to ``times``.

    Over those of ``times`` within the follow-up of both groups; NaN where fewer than two are, or
    nobody has an event in them.
    """
    end = min(test.days.max(), train.days.max() - 1.0)
    inside = (times >= test.days.min()) & (times < end)
    if inside.sum() < 2:
        return np.nan
    seen = test.until(times[inside][-1])
    if not (seen.event.any() and train.event.any()):
        return np.nan
    return float(
        integrated_brier_score(
            structured(train), structured(seen), survival[:, inside], times[inside]
        )
    )


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed chance of an event up to ``time`` (days), by group of prediction.

    Attributes:
        predicted: mean of each group, ``[g]``.
        observed: Kaplan-Meier, with its 95% limits ``low`` and ``high``, ``[g]`` each; NaN for a
            group of which nobody is followed so far.
        size: patients in each group, ``[g]``.
    """

    time: float
    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    size: np.ndarray

    @property
    def error(self) -> float:
        """Mean absolute difference over the groups that are followed, weighted by their size."""
        told = np.isfinite(self.observed)
        apart = np.abs(self.predicted - self.observed)
        return float(np.average(apart[told], weights=self.size[told])) if told.any() else np.nan


def calibration(
    outcomes: Outcomes, probability: np.ndarray, time: float, groups: int = 5
) -> Calibration:
    """Calibration of ``probability`` ``[n]`` of an event up to ``time`` days, in equal groups.

    Raises:
        ValueError: nobody is followed to ``time``, or probabilities outside 0 to 1.
    """
    if not (outcomes.days >= time).any():
        raise ValueError(f"calibration at {time:g} days: follow-up ends at {outcomes.days.max():g}")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("calibration needs probabilities between 0 and 1")
    parts = np.array_split(np.argsort(probability, kind="stable"), min(groups, len(outcomes)))
    rows = []
    for part in parts:
        survival, low, high = kaplan_meier_at(outcomes[part], time)
        rows.append((probability[part].mean(), 1 - survival, 1 - high, 1 - low, len(part)))
    return Calibration(time, *(np.array(column) for column in zip(*rows, strict=True)))


def kaplan_meier_at(outcomes: Outcomes, time: float) -> tuple[float, float, float]:
    """Survival at ``time`` with its 95% limits; NaN where follow-up ends before.

    Of patients without an event so far the lower limit is the exact one of as many as are followed
    to then (Clopper and Pearson, Biometrika 1934): a variance by events has nothing to say of them.
    """
    times, survival, (low, high) = kaplan_meier_estimator(
        outcomes.event, outcomes.days, conf_type="log-log"
    )
    if times[-1] < time and survival[-1] > 0:
        return np.nan, np.nan, np.nan
    step = int(np.searchsorted(times, time, side="right")) - 1
    if step < 0 or survival[step] == 1.0:
        return 1.0, 0.025 ** (1.0 / int((outcomes.days >= time).sum())), 1.0
    return survival[step], low[step], high[step]
