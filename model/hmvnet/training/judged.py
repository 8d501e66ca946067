"""The survival model whose parts have shares judged on inner folds, and candidates for parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from hmvnet.case import Outcomes
from hmvnet.config import PrognosisSettings
from hmvnet.prognosis.member import PrognosisMember
from hmvnet.reading.records import ClinicalSchema
from hmvnet.training.descriptions import Described, outcomes_of
from hmvnet.training.folds import repeated_folds
from hmvnet.training.prognosis import fit_members, inputs_of, predict_parts, quiet_fabric
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


def fit_judged(
    described: Sequence[Described],
    settings: PrognosisSettings,
    schema: ClinicalSchema,
    folder: Path,
    quiet: bool = False,
) -> tuple[list[PrognosisMember], np.ndarray | None]:
    """``fit``, and the risks ``[n]`` of these patients out of its inner folds.

    The parts' shares are judged on them (``hmvnet.training.shares``). None, and the shares as the
    settings give them, where ``inner_risks`` gives none.
    """
    inner = inner_risks(described, settings, schema, folder, quiet)
    fabric = quiet_fabric(folder)
    members = fit_members(fabric, described, settings, folder, schema, folder.name, quiet)
    if inner is None:
        return members, None
    risks, fold = inner
    weights = judged_shares(risks, outcomes_of(described), fold, members[0].weights)
    whole = np.sum([weights[name] * risk for name, risk in risks.items()], axis=0)
    return [member.weighted(weights) for member in members], whole


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
) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Risks ``[n]`` by part, each patient's by fits that did not see them, and their folds ``[n]``.

    Each of ``settings.inner_folds`` folds has one network. None where the settings want no inner
    folds, or where there are too few patients or events for them.

    Args:
        candidates: fits on the named variables to be judged beside the parts, by name.
    """
    outcomes, folds = outcomes_of(described), settings.inner_folds
    few = min(outcomes.event.sum(), (~outcomes.event).sum())
    if not folds or few < LEAST_EVENTS * folds or len(described) < LEAST_PATIENTS * folds:
        return None
    fabric, risks = quiet_fabric(folder), dict[str, np.ndarray]()
    fold = repeated_folds(outcomes.event, np.random.default_rng(settings.seed), folds, 1)[0]
    single = settings.model_copy(update={"members": 1})
    for number in range(folds):
        unseen = np.flatnonzero(fold == number).tolist()
        known = [p for p, other in zip(described, fold != number) if other]
        place = folder / f"inner{number}"
        title = f"{folder.name}, inner fold {number + 1}"
        members = fit_members(fabric, known, single, place, schema, title, quiet)
        others = [described[i] for i in unseen]
        rng = np.random.default_rng([settings.seed, number])
        found = predict_parts(members, others) | predict_candidates(
            candidates or {}, members[0], known, others, rng
        )
        for name, risk in found.items():
            risks.setdefault(name, np.zeros(len(described)))[unseen] = risk
    return risks, fold


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
