"""Balanced accuracy and the area of T4 against scikit-learn, weighted as a bootstrap does."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hmvnet.staging.metrics import area_under_roc, balanced_accuracy, recalls
from hmvnet.survival.bootstrap import draw_weights


@pytest.fixture
def drawn():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, 60)
    given = np.where(rng.random(60) < 0.6, truth, rng.integers(0, 4, 60))
    return truth, given, draw_weights(60, 5, rng)


def test_balanced_accuracy_is_scikit_learns(drawn) -> None:
    truth, given, weights = drawn
    found = balanced_accuracy(truth, given, 4, weights)
    for value, weight in zip(found, weights, strict=True):
        known = balanced_accuracy_score(truth, given, sample_weight=weight)
        assert value == pytest.approx(known)
    assert balanced_accuracy(truth, given, 4)[0] == pytest.approx(found[0])


def test_a_stage_that_nobody_has_does_not_count() -> None:
    truth, given = np.array([0, 0, 1]), np.array([0, 2, 1])
    found = recalls(truth, given, 4, np.ones((1, 3)))[0]
    assert found[:2].tolist() == [0.5, 1.0] and np.isnan(found[2:]).all()
    assert balanced_accuracy(truth, given, 4)[0] == 0.75


def test_the_area_is_scikit_learns_with_ties(drawn) -> None:
    truth, given, weights = drawn
    score, positive = given.astype(float), truth == 3
    found = area_under_roc(score, positive, weights)
    for value, weight in zip(found, weights, strict=True):
        assert value == pytest.approx(roc_auc_score(positive, score, sample_weight=weight))
