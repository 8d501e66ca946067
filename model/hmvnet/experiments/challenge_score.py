"""The figures by which HECKTOR scores a submission, of both years, with intervals.

2025 (its page, "Tasks & Evaluation"): mean Dice of GTVp, aggregated Dice and F1 of GTVn; Harrell's
C. 2026 (its page): 0.25 x segmentation (Dice of GTVp and of GTVn, each the mean over patients, then
their mean) + 0.35 x staging (mean of the balanced accuracies of T and N) + 0.40 x Harrell's C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hmvnet.ajcc import AXES
from hmvnet.case import Outcome, Outcomes, Stage, has_comparable_pair
from hmvnet.segmentation.metrics import METRICS, CaseScore, ratios, terms
from hmvnet.staging.metrics import balanced_accuracy
from hmvnet.survival.bootstrap import Bootstrap, Interval, concordances, draw_weights

SEGMENTATION_WEIGHT, STAGING_WEIGHT, SURVIVAL_WEIGHT = 0.25, 0.35, 0.40
SAMPLES = 2000

# The names of the figures, by the year that asks for them.
OF_2025 = {
    "gtvp_mean_dice": "GTVp mean Dice",
    "gtvn_aggregated_dice": "GTVn aggregated Dice",
    "gtvn_aggregated_f1": "GTVn aggregated F1",
    "c_index": "C-index",
}
OF_2026 = {
    "gtvp_mean_dice": "GTVp mean Dice",
    "gtvn_mean_dice": "GTVn mean Dice",
    "segmentation": "segmentation",
    "t_balanced_accuracy": "T balanced accuracy",
    "n_balanced_accuracy": "N balanced accuracy",
    "staging": "staging",
    "c_index": "C-index",
    "total": "total",
}


@dataclass(frozen=True)
class Scored:
    """A patient's prediction beside the truth, as far as either is there.

    Attributes:
        score: of the mask.
        given, truth: stages.
        risk: higher = earlier recurrence.
    """

    patient_id: str
    centre: str
    score: CaseScore | None = None
    given: Stage = field(default_factory=Stage)
    truth: Stage = field(default_factory=Stage)
    risk: float | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Figure:
    """One figure with its 95% interval, and over how many patients it is."""

    value: Interval
    patients: int


def challenge_figures(
    patients: Sequence[Scored], samples: int = SAMPLES, seed: int = 0
) -> dict[str, Figure]:
    """Every figure of ``OF_2025`` and ``OF_2026`` that these patients allow, by its name.

    The figures share their draws of patients, so that those made of others (segmentation, staging,
    total) have their right intervals. A resampled cohort in which a figure has no value is left out
    of its interval.

    Args:
        samples: of the bootstrap.
    """
    weights = draw_weights(len(patients), samples, np.random.default_rng(seed))
    values: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def enter(name: str, found: np.ndarray, count: int) -> None:
        values[name], counts[name] = found, count

    rows = [i for i, p in enumerate(patients) if p.score is not None]
    if rows:
        parts = terms([patients[i].score for i in rows])  # type: ignore[misc]
        sums = np.einsum("sp,pmk->smk", weights[:, rows], parts)
        nobody = ~weights[:, rows].any(axis=1)  # of a draw; it says nothing, and is no 1
        for name, column in zip(METRICS, ratios(sums).T, strict=True):
            enter(name, np.where(nobody, np.nan, column), len(rows))
        dice = (values["gtvp_mean_dice"] + values["gtvn_mean_dice"]) / 2
        enter("segmentation", dice, len(rows))
    for axis, stages in AXES.items():
        told = [
            (i, stages.index(truth), stages.index(given))
            for i, p in enumerate(patients)
            if (truth := getattr(p.truth, axis)) and (given := getattr(p.given, axis))
        ]
        if told:
            at, truth, given = (np.array(column) for column in zip(*told, strict=True))
            found = balanced_accuracy(truth, given, len(stages), weights[:, at])
            enter(f"{axis}_balanced_accuracy", found, len(told))
    if {"t_balanced_accuracy", "n_balanced_accuracy"} <= values.keys():
        staging = (values["t_balanced_accuracy"] + values["n_balanced_accuracy"]) / 2
        enter("staging", staging, min(counts["t_balanced_accuracy"], counts["n_balanced_accuracy"]))
    rows = [i for i, p in enumerate(patients) if p.risk is not None and p.outcome is not None]
    if rows:
        outcomes = Outcomes.of(patients[i].outcome for i in rows)  # type: ignore[misc]
        if has_comparable_pair(outcomes):
            risk = np.array([patients[i].risk for i in rows], float)
            enter("c_index", concordances(outcomes, risk, weights[:, rows]), len(rows))
    if {"segmentation", "staging", "c_index"} <= values.keys():
        total = (
            SEGMENTATION_WEIGHT * values["segmentation"]
            + STAGING_WEIGHT * values["staging"]
            + SURVIVAL_WEIGHT * values["c_index"]
        )
        enter("total", total, min(counts[name] for name in ("segmentation", "staging", "c_index")))
    return {
        name: Figure(Bootstrap.of({name: found}, counts[name]).interval(name), counts[name])
        for name, found in values.items()
    }


def by_centre(
    patients: Sequence[Scored], samples: int = SAMPLES
) -> Mapping[str, dict[str, Figure]]:
    """``challenge_figures`` of each centre's patients, by its name."""
    centres = sorted({p.centre for p in patients})
    return {
        centre: challenge_figures([p for p in patients if p.centre == centre], samples)
        for centre in centres
    }
