from __future__ import annotations

import numpy as np
import pytest
from sksurv.exceptions import NoComparablePairException
from sksurv.metrics import concordance_index_censored
from test_prognosis_icare import cohort

from hmvnet.case import Outcomes, harrell_c
from hmvnet.prognosis.concordance import single_variable_concordance, weighted_concordance


@pytest.mark.parametrize("rounding", [None, 0])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("leaf", [8, 128])
def test_concordance_is_that_of_scikit_survival(
    rounding: int | None, missing: float, leaf: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmvnet.prognosis.concordance.LEAF", leaf)
    x, outcomes = cohort(5)
    if rounding is not None:
        x = np.round(x, rounding)
        outcomes = Outcomes(np.ceil(outcomes.days / 300), outcomes.event)
    x[np.random.default_rng(0).random(x.shape) < missing] = np.nan
    x[:, 4] = np.nan
    x = x.astype(np.float32)

    found = single_variable_concordance(x, outcomes)

    for column, value in zip(x.T, found, strict=True):
        seen = ~np.isnan(column)
        if not seen.any():
            assert np.isnan(value)
            continue
        known = outcomes[seen]
        expected = concordance_index_censored(known.event, known.days, column[seen])[0]
        assert value == pytest.approx(expected, abs=1e-12)


def test_concordance_is_nan_where_no_pair_compares() -> None:
    time, event = np.array([1.0, 2.0, 3.0]), np.array([True, False, False])
    x = np.array([[np.nan, 3.0], [2.0, 2.0], [1.0, 1.0]])
    with pytest.raises((ValueError, NoComparablePairException)):
        concordance_index_censored(event[1:], time[1:], x[1:, 0])
    found = single_variable_concordance(x, Outcomes(time, event))
    np.testing.assert_array_equal(found, [np.nan, 1.0])


@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_a_bootstrap_sample_is_a_weighting(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several leaves, tied days and values, values missing; columns worked on one by one or all."""
    monkeypatch.setattr("hmvnet.prognosis.concordance.LEAF", 16)
    monkeypatch.setattr("hmvnet.prognosis.concordance.ELEMENTS", elements)
    x, outcomes = cohort(3, n=150, p=5)
    x[:, :3] = np.round(x[:, :3], 1)
    x[:40, 2] = np.nan
    outcomes = Outcomes(np.ceil(outcomes.days / 60), outcomes.event)
    weights = np.random.default_rng(0).multinomial(150, np.full(150, 1 / 150), 4)
    found = weighted_concordance(x, outcomes, weights)
    for weight, row in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(150), weight)
        for column, value in zip(x[rows].astype(np.float32).T, row, strict=True):
            seen = ~np.isnan(column)
            assert value == harrell_c(outcomes[rows][seen], column[seen])


def test_values_closer_than_the_tolerance_are_tied() -> None:
    x = np.array([[3e-8], [2.5e-8], [1e-8], [0.0]])
    outcomes = Outcomes(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, False, False]))
    assert single_variable_concordance(x, outcomes)[0] == (0.5 + 1 + 1) / 3
