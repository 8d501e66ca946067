"""Decision curves: what acting on predicted chances is worth, beside acting on all or nobody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hmvnet.case import Outcomes
from hmvnet.survival.metrics import kaplan_meier_at

THRESHOLDS = np.linspace(0.05, 0.6, 56)


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit in events found a patient, at no needless action, by threshold.

    Attributes:
        thresholds: ``[k]`` the predicted chance of an event from which on one acts.
        model: ``[k]`` net benefit of acting on the model's predictions.
        everyone: ``[k]`` of acting on everyone; that of acting on nobody is 0.
    """

    thresholds: np.ndarray
    model: np.ndarray
    everyone: np.ndarray


def decision_curve(
    outcomes: Outcomes,
    probability: np.ndarray,
    time: float,
    thresholds: np.ndarray = THRESHOLDS,
) -> DecisionCurve:
    """Of predicted chances ``[n]`` of an event up to ``time`` (days).

    ``share acted on * (P - (1 - P) * threshold / (1 - threshold))``, where P is the chance of an
    event among them by Kaplan-Meier (Vickers et al., BMC Med Inform Decis Mak 2008).

    Raises:
        ValueError: nobody is followed to ``time``.
    """
    if not (outcomes.days >= time).any():
        raise ValueError(f"decision curve at {time:g} days: follow-up ends before")

    def benefit(acted: np.ndarray, threshold: float) -> float:
        if not acted.any():
            return 0.0
        chance = 1.0 - kaplan_meier_at(outcomes[acted], time)[0]
        return acted.mean() * (chance - (1 - chance) * threshold / (1 - threshold))

    everyone = np.ones(len(outcomes), bool)
    return DecisionCurve(
        thresholds,
        np.array([benefit(probability >= t, t) for t in thresholds]),
        np.array([benefit(everyone, t) for t in thresholds]),
    )
