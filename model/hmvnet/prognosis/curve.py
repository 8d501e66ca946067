"""From a risk to a survival curve and to the expected days without recurrence.

``SurvivalCurve`` is Cox's model of one variable, the risk: a cumulative baseline hazard by
Breslow's estimator and a slope, both fitted to risks of patients whom the model had not seen
(``hmvnet.survival.calibration.fit_curve``), so that the curves are calibrated where such patients
come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Of the horizon: by how much at most the expected days differ from the restricted mean, so that two
# risks far out, where curves underflow, still have two numbers of days.
ORDERING_SHARE = 1e-3
MOST_LOG_HAZARD = 700.0  # e to this power is still a number; a survival is 0 long before


def survival_of(log_hazard: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """``exp(-H e^eta)``, ``[n, t]``, of log cumulative hazards ``[t]`` and ``eta`` ``[n]``."""
    return np.exp(-np.exp(np.minimum(log_hazard[None] + eta[:, None], MOST_LOG_HAZARD)))


@dataclass(frozen=True)
class RiskGroup:
    """Patients of a third of the out-of-fold risks, as they were observed.

    Attributes:
        patients: how many.
        survival: ``[t]`` the Kaplan-Meier estimate from each of the curve's days on.
    """

    patients: int
    survival: tuple[float, ...]


@dataclass(frozen=True)
class SurvivalCurve:
    """The chance of no recurrence by time: ``S(t | risk) = exp(-H(t) e^(slope (risk - centre)))``.

    Attributes:
        days: ``[t]`` ascending, where the cumulative hazard steps up.
        cumulative_hazard: ``[t]`` H from each of them on, at the centre.
        slope: log hazard a unit of risk, above 0.
        centre: the risk at which H holds.
        horizon_days: up to where days are expected; enough patients were followed to there.
        groups: low, middle and high risks, observed.
    """

    days: tuple[float, ...]
    cumulative_hazard: tuple[float, ...]
    slope: float
    centre: float
    horizon_days: float
    groups: tuple[RiskGroup, ...] = ()

    def __post_init__(self) -> None:
        days, hazard = np.asarray(self.days), np.asarray(self.cumulative_hazard)
        numbers = (self.slope, self.centre, self.horizon_days)
        if not (
            np.isfinite(days).all() and np.isfinite(hazard).all() and np.isfinite(numbers).all()
        ):
            raise ValueError("survival curve: values must be finite")
        if not len(days) == len(hazard) > 0:
            raise ValueError(f"survival curve: {len(days)} days, but {len(hazard)} hazards")
        if (np.diff(days) <= 0).any() or days[0] < 0 or (np.diff(hazard, prepend=0.0) < 0).any():
            raise ValueError("survival curve: days and cumulative hazard must rise from 0")
        if hazard[0] <= 0 or self.slope <= 0 or self.horizon_days <= 0:
            raise ValueError("survival curve: first hazard, slope and horizon must be above 0")
        if odd := [len(g.survival) for g in self.groups if len(g.survival) != len(days)]:
            raise ValueError(f"survival curve: {len(days)} days, but a group of {odd[0]}")

    def log_hazard(self, risk: np.ndarray) -> np.ndarray:
        """Log of the hazard relative to that at the centre, ``[n]``."""
        return self.slope * (np.asarray(risk, np.float64) - self.centre)

    def survival(self, risk: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Chance of no recurrence up to each of ``times`` (days), ``[n, t]``.

        Steps; beyond the last of ``days`` it stays at its last value.
        """
        log_hazard = np.append(-np.inf, np.log(self.cumulative_hazard))
        step = np.searchsorted(self.days, times, side="right")
        return survival_of(log_hazard[step], self.log_hazard(risk))

    def restricted_mean(self, risk: np.ndarray) -> np.ndarray:
        """Mean days without recurrence up to the horizon, ``[n]``: the area under the curve."""
        inside = [day for day in self.days if day < self.horizon_days]
        edges = np.array([0.0, *inside, self.horizon_days])
        return self.survival(risk, edges[:-1]) @ np.diff(edges)

    def expected_days(self, risk: np.ndarray) -> np.ndarray:
        """The restricted mean, made to fall with the risk everywhere, ``[n]``.

        A curve of floating-point numbers is 1 below some risk and 0 above another, and its mean is
        then the same for many risks. So a thousandth of the horizon falls slowly from one end of
        the risks to the other: no two patients of different risk have the same days.
        """
        eta = self.log_hazard(risk)
        share = min(ORDERING_SHARE * self.horizon_days, 0.5 * max(self.days[0], 1e-3))
        return self.restricted_mean(risk) - share * eta / (1.0 + np.abs(eta))

    def state(self) -> dict[str, Any]:
        """Plain JSON-able values; see ``from_state``."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SurvivalCurve:
        """The curve whose ``state`` this is.

        Raises:
            ValueError: an entry is missing or unknown, or values that do not make a curve.
        """
        try:
            groups = tuple(RiskGroup(g["patients"], tuple(g["survival"])) for g in state["groups"])
            lists = {name: tuple(state[name]) for name in ("days", "cumulative_hazard")}
            return cls(**(dict(state) | lists | {"groups": groups}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"survival curve is malformed: {error}") from error


def days_of_knots(knots: Sequence[Sequence[float]], risk: np.ndarray) -> np.ndarray:
    """Expected days where a bundle knows them for a few risks alone, ``[n]``.

    Args:
        knots: pairs of risk and days, risks ascending, days not.

    Linear between the knots; beyond them towards 0, and towards twice the first knot's days,
    hyperbolas that begin with the slope of the nearest segment. Of equal days in a row, as of equal
    risks, each next one is a thousandth lower, so that days fall with the risk everywhere.
    """
    risks, days = (np.array(column, np.float64) for column in zip(*knots))
    for i in range(1, len(days)):
        days[i] = min(days[i], days[i - 1] * (1 - ORDERING_SHARE))
        risks[i] = max(risks[i], np.nextafter(risks[i - 1], np.inf))
    risk = np.asarray(risk, np.float64)
    found = np.interp(risk, risks, days)
    slopes = -np.diff(days) / np.diff(risks) if len(days) > 1 else days[:1]
    below, above = np.maximum(risks[0] - risk, 0.0), np.maximum(risk - risks[-1], 0.0)
    up, down = slopes[0] / days[0] * below, slopes[-1] / days[-1] * above
    return np.where(above > 0, days[-1] / (1.0 + down), found + days[0] * up / (1.0 + up))
