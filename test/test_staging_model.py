"""Fitted models as plain arrays, and what stands for a stage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hmvnet.ajcc import N_STAGES
from hmvnet.staging.model import StageModel

MODEL = StageModel(
    N_STAGES,
    ("size", "count"),
    mean=np.array([10.0, 1.0]),
    scale=np.array([5.0, 1.0]),
    coefficients=np.array([[-2.0, -2.0], [1.0, -1.0], [0.0, 2.0], [3.0, 0.5]]),
    intercepts=np.array([0.0, 0.5, 0.5, -1.0]),
    shares=np.array([0.2, 0.2, 0.5, 0.1]),
)


def test_arrays_make_the_model_again() -> None:
    again = StageModel.from_arrays(N_STAGES, MODEL.names, MODEL.arrays())
    x = np.random.default_rng(0).normal(10, 5, (5, 2))
    assert np.array_equal(again.probabilities(x), MODEL.probabilities(x))
    with pytest.raises(ValueError, match=r"no \['shares'\]"):
        arrays = {k: v for k, v in MODEL.arrays().items() if k != "shares"}
        StageModel.from_arrays(N_STAGES, MODEL.names, arrays)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", np.zeros(3)),
        ("coefficients", np.zeros((2, 2))),
        ("intercepts", np.full(4, np.nan)),
        ("scale", np.zeros(2)),
        ("shares", np.array([0.5, 0.5, 0.0, 0.0])),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: str, value: np.ndarray) -> None:
    with pytest.raises(ValueError, match="staging model"):
        replace(MODEL, **{name: value})


def test_reasons_are_what_speaks_for_the_stage() -> None:
    told = MODEL.reasons(np.array([10.0, 4.0]))  # three more nodes than usual
    assert told == [("count", 4.0)]
    assert MODEL.reasons(np.array([40.0, np.nan])) == [
        ("size", 40.0)
    ]  # what is missing is no reason


def test_large_scores_do_not_overflow() -> None:
    p = MODEL.probabilities(np.array([[1e6, -1e6]]))
    assert np.isfinite(p).all() and p.sum() == pytest.approx(1)
    ordered = replace(MODEL, coefficients=np.ones((1, 2)), intercepts=np.array([-1.0, 0.0, 1.0]))
    p = ordered.probabilities(np.array([[1e6, 0.0], [-1e6, 0.0]]))
    assert p.argmax(axis=1).tolist() == [3, 0]
