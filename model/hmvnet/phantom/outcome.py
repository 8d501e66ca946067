"""Recurrence-free survival from a stated Weibull-Cox model of stated covariates.

The hazard of patient i is h(t | eta_i) = (k / s) (t / s)^(k - 1) exp(eta_i) with shape k, scale s
and linear predictor eta_i = sum_j beta_j (x_ij - c_j) / d_j. Event times are drawn by inverting the
survival function (Bender, Augustin, Blettner, Stat Med 2005, eq. 3): t = s (-log u / e^eta)^(1/k).
Because eta is known, so is the best concordance that any model can hope to reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from hmvnet.case import Outcomes, harrell_c


@dataclass(frozen=True)
class Term:
    """One covariate's part of the linear predictor: beta * (x - center) / scale."""

    beta: float
    center: float
    scale: float


def _terms() -> dict[str, Term]:
    return {
        "log_gtvp_volume": Term(0.40, 2.1, 0.9),
        "log_total_tlg": Term(0.48, 4.6, 0.85),
        "node_count": Term(0.25, 2.0, 1.5),
        "dissemination_mm": Term(0.38, 70.0, 38.0),
        "necrosis_fraction": Term(0.32, 0.05, 0.09),
        "hpv": Term(-0.34, 0.6, 0.5),
        "tobacco": Term(0.24, 0.5, 0.5),
        "performance_status": Term(0.28, 0.6, 0.85),
        "age": Term(0.20, 61.0, 9.5),
        "m1": Term(0.20, 0.03, 0.17),
    }


# What no variable holds that has a name; a centre's is its patients' common baseline.
HIDDEN_PATTERN = {"uptake_pole": Term(0.55, 0.0, 3**-0.5)}
CENTRE_HAZARD = {"centre_log_hazard": Term(1.0, 0.0, 1.0)}

LESION_TERMS = (
    "log_gtvp_volume",
    "log_total_tlg",
    "node_count",
    "dissemination_mm",
    "necrosis_fraction",
)
TABLE_TERMS = ("hpv", "tobacco", "performance_status", "age", "m1")


@dataclass(frozen=True)
class WeibullCox:
    """Survival model of the phantoms. Times are in days.

    Censoring is the earlier of the end of follow-up, uniform between ``follow_up_days``, and loss
    to follow-up, exponential with mean ``loss_mean_days``.
    """

    shape: float = 1.1
    scale_days: float = 4600.0
    terms: Mapping[str, Term] = field(default_factory=_terms)
    follow_up_days: tuple[float, float] = (700.0, 3600.0)
    loss_mean_days: float = 9000.0

    def linear_predictor(
        self, covariates: Mapping[str, float], only: Sequence[str] | None = None
    ) -> float:
        """eta; with ``only``, the part of it due to these terms."""
        names = self.terms if only is None else only
        terms = ((self.terms[name], covariates[name]) for name in names)
        return float(sum(t.beta * (x - t.center) / t.scale for t, x in terms))

    def draw(self, linear_predictor: float, rng: np.random.Generator) -> tuple[float, int]:
        """(time in days, event 0/1): the relapse or the censoring, whichever comes first."""
        hazard = np.exp(linear_predictor)
        relapse = self.scale_days * (rng.exponential() / hazard) ** (1.0 / self.shape)
        censored = min(rng.uniform(*self.follow_up_days), rng.exponential(self.loss_mean_days))
        days = max(1.0, round(float(min(relapse, censored))))
        return days, int(relapse <= censored)


def best_c_index(linear_predictor: ArrayLike, days: ArrayLike, relapse: ArrayLike) -> float:
    """Harrell's concordance of the true linear predictor: what a perfect model would reach.

    Arrays of shape (patients,). Raises ValueError where no two patients can be compared.
    """
    event = np.asarray(relapse).astype(bool)
    time = np.asarray(days, dtype=float)
    if not event.any() or len(time) < 2:
        raise ValueError(
            f"a concordance needs two patients and one relapse, found {len(time)} patients "
            f"with {int(event.sum())} relapses"
        )
    return harrell_c(Outcomes(time, event), np.asarray(linear_predictor, float))
