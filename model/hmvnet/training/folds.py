"""Which patients are held out together: folds alike in centres and events, or a centre each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from hmvnet.case import Outcome
from hmvnet.config import DataSettings
from hmvnet.reading.centres import UNKNOWN


class HasCentre(Protocol):
    """What folds are made by."""

    @property
    def centre(self) -> str: ...
    @property
    def outcome(self) -> Outcome | None: ...


def split_folds(
    patients: Sequence[HasCentre], settings: DataSettings
) -> list[tuple[list[int], list[int]]]:
    """Training and validation indices of every fold; a patient is in one validation part only.

    ``stratified`` keeps the centres' (and, where known, the events') shares alike in every fold;
    of centres with fewer such patients than folds, neither (they stay in the folds that they had);
    ``leave-one-centre-out`` has one fold a centre.

    Raises:
        ValueError: fewer patients than folds; a single centre to leave out, or patients of a centre
            that is not known.
    """
    everyone = np.arange(len(patients))
    centres = np.array([p.centre for p in patients])
    if settings.fold_by == "leave-one-centre-out":
        parts = centre_parts(centres)
    else:
        if len(patients) < settings.folds:
            raise ValueError(f"{len(patients)} patients cannot make {settings.folds} folds")
        event = np.array([-1 if p.outcome is None else p.outcome.event for p in patients])
        strata = _strata(centres, event)
        # Strata smaller than the number of folds cannot be spread; they share one.
        strata[_too_small(strata, settings.folds)] = -1
        parts = spread_parts(strata, settings.folds, settings.seed)
    return [(np.setdiff1d(everyone, part).tolist(), part.tolist()) for part in parts]


def spread_parts(strata: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """The rows of each fold, every stratum's spread evenly; one too small for that is not in all.

    Args:
        strata: numbers ``[n]``.
    """
    with warnings.catch_warnings():  # of such a stratum
        warnings.simplefilter("ignore", UserWarning)
        fold = _spread(strata, folds, seed)
    return [np.flatnonzero(fold == number) for number in range(folds)]


def centre_parts(centres: np.ndarray) -> list[np.ndarray]:
    """The rows of each centre, by its name.

    Args:
        centres: names ``[n]``.

    Raises:
        ValueError: a single centre to leave out, or patients of a centre that is not known.
    """
    if UNKNOWN in centres:
        raise ValueError(
            f"leave-one-centre-out: {(centres == UNKNOWN).sum()} patients have no CenterID in the "
            "tables, and others of such names are of several centres; expected one of every patient"
        )
    names = np.unique(centres)
    if len(names) < 2:
        raise ValueError(f"leave-one-centre-out: only one centre ({', '.join(names)}) in the data")
    return [np.flatnonzero(centres == name) for name in names]


def repeated_folds(
    event: np.ndarray,
    rng: np.random.Generator,
    folds: int = 5,
    repeats: int = 5,
    centre: np.ndarray | None = None,
) -> np.ndarray:
    """Test fold of every patient in every repeat, int ``[repeats, n]``.

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
    strata = event if centre is None else _no_small_strata(_strata(centre, event), event, folds)
    return np.stack([_spread(strata, folds, int(rng.integers(2**31))) for _ in range(repeats)])


def centre_folds(
    event: np.ndarray, centre: np.ndarray, rng: np.random.Generator, folds: int
) -> np.ndarray | None:
    """A fold of every patient, int ``[n]``, such that no centre is in two; None where none are.

    Folds hold about equal shares of events. None are made of fewer centres than folds, nor where
    some patients' is not known, nor where one of the folds would hold more than half of the
    patients, as a large centre's does: what is fitted to the rest would say little of what is
    fitted to all.
    """
    names, number = np.unique(centre, return_inverse=True)
    if len(names) < folds or UNKNOWN in names:
        return None
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
    found = np.empty(len(event), dtype=int)
    for fold, (_, test) in enumerate(splitter.split(number, event, number)):
        found[test] = fold
    size = np.bincount(found, minlength=folds)
    return found if size.min() > 0 and 2 * size.max() <= len(event) else None


def _no_small_strata(strata: np.ndarray, event: np.ndarray, folds: int) -> np.ndarray:
    """Strata of at least ``folds`` patients each, all of them with an event or all without."""
    small = _too_small(strata, folds)
    joined = np.where(small, -1 - event, strata)
    for value in (False, True):
        rest = small & (event == value)
        if 0 < rest.sum() < folds:  # too few even together: to the largest of their kind
            joined[rest] = np.bincount(strata[~small & (event == value)]).argmax()
    return joined


def _strata(centre: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Number ``[n]``, from 0, of each patient's centre and event together."""
    centres, events = (np.unique(a, return_inverse=True)[1] for a in (centre, event))
    return centres * (events.max(initial=0) + 1) + events


def _too_small(strata: np.ndarray, folds: int) -> np.ndarray:
    """Whose stratum has fewer patients than there are folds, bool ``[n]``."""
    return np.bincount(strata)[strata] < folds


def _spread(strata: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold number for each patient, int ``[n]``, with every stratum's patients spread evenly."""
    found = np.empty(len(strata), dtype=int)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(strata, strata)):
        found[test] = fold
    return found
