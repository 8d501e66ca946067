"""The survival model whose parts have shares judged on inner folds, and candidates for parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from hmvnet.case import Outcomes
from hmvnet.config import PrognosisSettings
from hmvnet.prognosis.curve import SurvivalCurve
from hmvnet.prognosis.member import PrognosisMember
from hmvnet.reading.records import ClinicalSchema
from hmvnet.survival.calibration import Slopes, fit_curve
from hmvnet.training.descriptions import Described, outcomes_of
from hmvnet.training.folds import centre_folds, repeated_folds
from hmvnet.training.prognosis import (
    add_slopes,
    fit_members,
    inputs_of,
    predict_parts,
    quiet_fabric,
)
from hmvnet.training.shares import judged_shares

LEAST_EVENTS, LEAST_PATIENTS = 3, 20  # of an inner fold


def fit(
    described: Sequence[Described],
    settings: PrognosisSettings,
    schema: ClinicalSchema,
    folder: Path,
    quiet: bool = False,
) -> list[PrognosisMember]:
    """Everything that is learnt from outcomes, on these patients alone."""
    return fit_judged(described, settings, schema, folder, quiet)[0]


@dataclass(frozen=True)
class Inner:
    """What fits in inner folds say of the patients that they did not see.

    Attributes:
        risks: ``[n]`` by part.
        fold: ``[n]``, which of the folds each patient was in.
        slopes: of the linear part.
        whole: ``[n]``, of all parts together, once their weights are known.
    """

    risks: Mapping[str, np.ndarray]
    fold: np.ndarray
    slopes: Slopes
    whole: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def weighted(self, weights: Mapping[str, float]) -> Inner:
        """With the risk of all parts."""
        parts = [weights[name] * risk for name, risk in self.risks.items()]
        return replace(self, whole=np.sum(parts, axis=0))

    def curve(self, outcomes: Outcomes) -> SurvivalCurve:
        """The survival curve of the model that is fitted to all of these patients."""
        steeper = self.slopes.steeper(1 - 1 / len(np.unique(self.fold)))
        return fit_curve(self.whole, outcomes, steeper)


def fit_judged(
    described: Sequence[Described],
    settings: PrognosisSettings,
    schema: ClinicalSchema,
    folder: Path,
    quiet: bool = False,
) -> tuple[list[PrognosisMember], Inner | None]:
    """``fit``, and these patients' risks out of its inner folds.

    The parts' shares are judged on them (``hmvnet.training.shares``). None, and the shares as the
    settings give them, where ``inner_risks`` gives none.
    """
    inner = inner_risks(described, settings, schema, folder, quiet)
    fabric = quiet_fabric(folder)
    members = fit_members(fabric, described, settings, folder, schema, folder.name, quiet)
    if inner is None:
        return members, None
    weights = judged_shares(inner.risks, outcomes_of(described), inner.fold, members[0].weights)
    return [member.weighted(weights) for member in members], inner.weighted(weights)


class Predictor(Protocol):
    """What a candidate for a part of the risk gives when it is fitted."""

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]`` of named variables ``[n, p]``."""


Candidate = Callable[[np.ndarray, Outcomes, np.random.Generator], Predictor]


def inner_risks(
    described: Sequence[Described],
    settings: PrognosisSettings,
    schema: ClinicalSchema,
    folder: Path,
    quiet: bool = False,
    candidates: Mapping[str, Candidate] | None = None,
) -> Inner | None:
    """Risks by part, each patient's by fits that did not see them.

    Each of ``settings.inner_folds`` folds has one network. No centre is in two of them, where the
    patients' centres allow it (``centre_folds``): what holds in another hospital is what counts.
    None where the settings want no inner folds, or where there are too few patients or events for
    them.

    Args:
        candidates: fits on the named variables to be judged beside the parts, by name.
    """
    outcomes, folds = outcomes_of(described), settings.inner_folds
    few = min(outcomes.event.sum(), (~outcomes.event).sum())
    if not folds or few < LEAST_EVENTS * folds or len(described) < LEAST_PATIENTS * folds:
        return None
    fabric, risks, slopes = quiet_fabric(folder), dict[str, np.ndarray](), Slopes()
    fold = _folds(described, outcomes, settings)
    single = settings.model_copy(update={"members": 1})
    for number in range(folds):
        unseen = np.flatnonzero(fold == number).tolist()
        known = [p for p, other in zip(described, fold != number) if other]
        place = folder / f"inner{number}"
        title = f"{folder.name}, inner fold {number + 1}"
        members = fit_members(fabric, known, single, place, schema, title, quiet)
        others = [described[i] for i in unseen]
        rng = np.random.default_rng([settings.seed, number])
        parts = predict_parts(members, others)
        add_slopes(slopes, members, known, parts, outcomes[unseen])
        found = parts | predict_candidates(candidates or {}, members[0], known, others, rng)
        for name, risk in found.items():
            risks.setdefault(name, np.zeros(len(described)))[unseen] = risk
    return Inner(risks, fold, slopes)


def _folds(
    described: Sequence[Described], outcomes: Outcomes, settings: PrognosisSettings
) -> np.ndarray:
    """The inner fold of each patient, int ``[n]``."""
    centre = np.array([p.centre for p in described])
    rng, folds = np.random.default_rng(settings.seed), settings.inner_folds
    whole = centre_folds(outcomes.event, centre, rng, folds)
    if whole is None or min(np.bincount(whole, outcomes.event, folds)) < LEAST_EVENTS:
        rng = np.random.default_rng(settings.seed)
        return repeated_folds(outcomes.event, rng, folds, 1)[0]
    return whole


def predict_candidates(
    candidates: Mapping[str, Candidate],
    member: PrognosisMember,
    known: Sequence[Described],
    unseen: Sequence[Described],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Risks ``[n]`` of patients by each candidate, fitted to the named variables of others.

    Args:
        member: fitted to ``known``; it says which variables are named.
    """
    values = [member.variables.values(inputs_of(some, member.encoder)) for some in (known, unseen)]
    outcomes = outcomes_of(known)
    return {
        name: fit(values[0], outcomes, rng).predict_risk(values[1])
        for name, fit in candidates.items()
    }
