"""Risks to calibrated survival curves, and how well curves are calibrated: the slope."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from sksurv.nonparametric import kaplan_meier_estimator

from hmvnet.case import Outcomes
from hmvnet.prognosis.curve import RiskGroup, SurvivalCurve
from hmvnet.survival.cox import breslow, ridge_path

GROUPS = 3
MOST_DAYS = 200  # of a stored curve
FOLLOWED = 0.1  # share of the patients that are followed to the horizon
# A penalty that hardly moves a coefficient that tens of events speak for.
SLIGHT_RIDGE = 0.1
# Relapses that local patients' own slope must have to weigh as much as the bundle's.
PRIOR_EVENTS, FEWEST_EVENTS = 25, 5
LEAST_SLOPE = 0.01  # of a unit of deviation: risks that order nobody make almost one curve


def fit_curve(risk: np.ndarray, outcomes: Outcomes, steeper: float = 1.0) -> SurvivalCurve:
    """The curve of a model by its risks ``[n]`` of patients it was not fitted to.

    The slope is Cox's coefficient of the risk, the baseline hazard Breslow's. The horizon is the
    day to which a tenth of the patients are followed.

    Args:
        steeper: factor of the slope, where the risks are of fits to fewer patients than the model
            is (``Slopes.steeper``).

    Raises:
        ValueError: no event.
    """
    slope = steeper * _slope(risk, outcomes)
    centre = float(risk.mean())
    days, hazard = breslow(outcomes, slope * (risk - centre))
    if len(days) > MOST_DAYS:
        kept = np.unique(np.linspace(0, len(days) - 1, MOST_DAYS).round().astype(int))
        days, hazard = days[kept], hazard[kept]
    groups = []
    for rows in np.array_split(np.argsort(risk, kind="stable"), min(GROUPS, len(risk))):
        at, survival = kaplan_meier_estimator(outcomes.event[rows], outcomes.days[rows])
        step = np.searchsorted(at, days, side="right")
        groups.append(RiskGroup(len(rows), tuple(np.append(1.0, survival)[step].tolist())))
    return SurvivalCurve(
        days=tuple(days.tolist()),
        cumulative_hazard=tuple(hazard.tolist()),
        slope=slope,
        centre=centre,
        horizon_days=float(np.quantile(outcomes.days, 1 - FOLLOWED)),
        groups=tuple(groups),
    )


def _slope(risk: np.ndarray, outcomes: Outcomes) -> float:
    return max(cox_slope(risk, outcomes), LEAST_SLOPE / (float(risk.std()) or 1.0))


def cox_slope(log_hazard: np.ndarray, outcomes: Outcomes) -> float:
    """Cox's coefficient of one variable ``[n]``; 0 where it does not vary.

    Of predicted log hazards it is the calibration slope: 1 where they are right, below 1 where
    high ones are too high and low ones too low (van Houwelingen, Stat Med 2000).
    """
    spread = float(log_hazard.std())
    if spread <= 1e-12 * max(1.0, float(np.abs(log_hazard).max())):
        return 0.0
    z = (log_hazard - log_hazard.mean()) / spread
    return float(ridge_path(z[:, None], outcomes, [SLIGHT_RIDGE])[0, 0]) / spread


@dataclass
class Slopes:
    """A risk's slopes on patients that it was fitted to, and on others; one of each a fold.

    A fitted risk is signal and an error whose variance falls as one over the patients. On those it
    was fitted to the slope does not show the error; on others it is lower by a factor of
    ``1 + x / share`` where a share of the patients was fitted to, and of ``1 + x`` where all of
    them are: slopes out of folds are too low for the model that is fitted to everybody.
    """

    inside: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)

    def add(self, known: tuple[np.ndarray, Outcomes], unseen: tuple[np.ndarray, Outcomes]) -> None:
        """One fold's risks and outcomes; one without an event has no slope, and is left out."""
        if known[1].event.any() and unseen[1].event.any():
            self.inside.append(cox_slope(*known))
            self.outside.append(cox_slope(*unseen))

    def steeper(self, share: float) -> float:
        """By what factor the slope of a fit to everybody is above that of fits to a share of them.

        1 where nothing can be said: without folds, or of risks that order nobody.
        """
        if not self.inside or not 0 < np.mean(self.outside) < np.mean(self.inside):
            return 1.0
        ratio = float(np.mean(self.inside) / np.mean(self.outside))
        return ratio / (1.0 + share * (ratio - 1.0))


def calibration_slope(outcomes: Outcomes, survival: np.ndarray) -> float:
    """The slope of predicted chances ``[n]`` of no event up to some day; NaN without an event.

    Chances are taken to log hazards by ``log(-log S)``.
    """
    if not outcomes.event.any():
        return np.nan
    inside = np.clip(survival, 1e-6, 1 - 1e-6)
    return cox_slope(np.log(-np.log(inside)), outcomes)


def refuse_few_events(outcomes: Outcomes) -> None:
    """Refuse follow-up that no curve can be recalibrated by.

    Raises:
        ValueError: fewer than ``FEWEST_EVENTS`` events.
    """
    events = int(outcomes.event.sum())
    if events < FEWEST_EVENTS:
        raise ValueError(f"{events} relapses, expected at least {FEWEST_EVENTS} to recalibrate by")


def recalibrated(curve: SurvivalCurve, risk: np.ndarray, outcomes: Outcomes) -> SurvivalCurve:
    """A curve for where these patients come from, by few of them.

    Its slope is between the given one and theirs, by their number of events; then its level is set
    so that as many events are expected as there were. The shape of the baseline hazard stays
    (Steyerberg et al., Stat Med 2004: updating the intercept and the slope).

    Args:
        risk: ``[n]``.

    Raises:
        ValueError: fewer than ``FEWEST_EVENTS`` events.
    """
    refuse_few_events(outcomes)
    events = int(outcomes.event.sum())
    hazard = curve.log_hazard(risk)
    share = events / (events + PRIOR_EVENTS)
    slope = max(1 + share * (cox_slope(hazard, outcomes) - 1), 0.1)
    offset = offset_to(curve, slope * hazard, outcomes)
    steeper = curve.slope * slope
    return replace(curve, slope=steeper, centre=curve.centre - offset / steeper, groups=())


def onto(
    curve: SurvivalCurve, risk: np.ndarray, outcomes: Outcomes, steeper: float = 1.0
) -> tuple[float, float]:
    """The scale of another model's risks, for a curve.

    Args:
        risk: ``[n]`` by the other model, of patients it was not fitted to.
        steeper: as of ``fit_curve``.

    Returns:
        Shift and scale: at ``shift + scale * risk`` the curve is calibrated for these patients.
    """
    slope = steeper * _slope(risk, outcomes)
    centre = float(risk.mean())
    offset = offset_to(curve, slope * (risk - centre), outcomes)
    scale = slope / curve.slope
    return curve.centre + offset / curve.slope - scale * centre, scale


def offset_to(curve: SurvivalCurve, log_hazard: np.ndarray, outcomes: Outcomes) -> float:
    """What to add to log hazards ``[n]`` so that the curve expects as many events as there were.

    The events over those expected, ``sum_i H(t_i) e^(log hazard_i)``, as a logarithm.
    """
    step = np.searchsorted(curve.days, outcomes.days, side="right")
    hazard = np.append(0.0, curve.cumulative_hazard)[step]
    expected = float(hazard @ np.exp(log_hazard))
    return float(np.log(max(outcomes.event.sum(), 0.5) / max(expected, 1e-12)))
