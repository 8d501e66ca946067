from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from hmvnet.case import Outcome
from hmvnet.config import DataSettings
from hmvnet.reading.centres import UNKNOWN
from hmvnet.training.folds import centre_folds, repeated_folds, split_folds


@dataclass(frozen=True)
class Person:
    """All that folds are made by."""

    centre: str
    outcome: Outcome | None = None


def test_folds_part_the_patients() -> None:
    patients = [Person("CHUM" if i < 8 else "MDA") for i in range(12)]
    folds = split_folds(patients, DataSettings(folds=4))
    assert sorted(i for _, validation in folds for i in validation) == list(range(12))
    for train, validation in folds:
        assert not set(train) & set(validation)
        assert [patients[i].centre for i in validation].count("MDA") == 1
    by_centre = split_folds(patients, DataSettings(fold_by="leave-one-centre-out"))
    assert [{patients[i].centre for i in v} for _, v in by_centre] == [{"CHUM"}, {"MDA"}]


def test_too_few_patients_or_centres() -> None:
    patients = [Person("A")]
    with pytest.raises(ValueError, match="cannot make 5 folds"):
        split_folds(patients, DataSettings())
    with pytest.raises(ValueError, match="only one centre"):
        split_folds(patients, DataSettings(fold_by="leave-one-centre-out"))
    mixed = [Person("A"), Person("B"), Person(UNKNOWN)]  # who may be of a centre that is left out
    with pytest.raises(ValueError, match="1 patients have no CenterID"):
        split_folds(mixed, DataSettings(fold_by="leave-one-centre-out"))


CENTRES = np.array(["MDA", "CHUM", "A-1", "A", "10", "9", "C/D", "USZ"])


def centres_and_events(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some 150 patients, most of them of few centres, so that some strata are small."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(100, 200))
    return rng.choice(CENTRES, n, p=rng.dirichlet(np.full(8, 0.5))), rng.random(n) < 0.3


def test_every_patient_stays_in_their_fold() -> None:
    """Digests of the folds of the first version: results from then and now can be compared."""
    split, repeated = hashlib.sha256(), hashlib.sha256()
    for seed in range(20):
        centre, event = centres_and_events(seed)
        people = [
            Person(str(c), Outcome(1.0, bool(e)) if i % 5 or seed % 2 else None)
            for i, (c, e) in enumerate(zip(centre, event, strict=True))
        ]
        split.update(repr(split_folds(people, DataSettings(seed=seed))).encode())
        for given in (None, centre):
            found = repeated_folds(event, np.random.default_rng(seed), repeats=2, centre=given)
            repeated.update(found.astype(np.int64).tobytes())
    assert split.hexdigest()[:16] == "7d13258aee4cfddf"
    assert repeated.hexdigest()[:16] == "e9d5113497ee320a"


@pytest.mark.filterwarnings("error")
def test_folds_are_stratified_by_event_and_centre() -> None:
    rng = np.random.default_rng(0)
    event = rng.random(203) < 0.3
    centre = rng.choice(["A", "B", "C"], size=203, p=[0.5, 0.48, 0.02])
    fold = repeated_folds(event, rng, folds=5, repeats=4, centre=centre)
    assert fold.shape == (4, 203)
    for row in fold:
        for chosen in (event, (centre == "A") & event, (centre == "B") & ~event):
            counts = np.bincount(row[chosen], minlength=5)
            assert counts.max() - counts.min() <= 1 + (chosen is event)
    assert (fold[0] != fold[1]).any()
    again = repeated_folds(event, np.random.default_rng(5), repeats=2)
    np.testing.assert_array_equal(again, repeated_folds(event, np.random.default_rng(5), repeats=2))


def test_too_few_events_for_the_folds() -> None:
    with pytest.raises(ValueError, match=r"5 folds .* found 3 and 47"):
        repeated_folds(np.arange(50) < 3, np.random.default_rng(0))


def test_no_centre_is_in_two_folds() -> None:
    rng = np.random.default_rng(0)
    centre, event = rng.choice(list("ABCDEFG"), 210), rng.random(210) < 0.4
    fold = centre_folds(event, centre, np.random.default_rng(1), 3)
    assert fold is not None and set(fold) == {0, 1, 2}
    assert all(len(set(fold[centre == name])) == 1 for name in "ABCDEFG")
    assert np.bincount(fold, event).min() > 0.15 * event.sum()


def test_centres_that_make_no_folds() -> None:
    """Too few, or one that holds most of the patients."""
    event, rng = np.arange(90) % 2 == 0, np.random.default_rng(0)
    assert centre_folds(event, np.array(["A", "B"] * 45), rng, 3) is None
    assert centre_folds(event, np.array(["A"] * 60 + ["B"] * 15 + ["C"] * 15), rng, 3) is None
    assert centre_folds(event, np.array(["A", "B", "C"] * 30), rng, 3) is not None
    assert centre_folds(event, np.array(["A", "B", UNKNOWN] * 30), rng, 3) is None
