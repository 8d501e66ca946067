from __future__ import annotations

import numpy as np
import pytest
from conftest import YEAR, follow_up
from scipy.stats import beta
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)

from hmvnet.case import Outcomes, harrell_c
from hmvnet.survival.baselines import SksurvModel
from hmvnet.survival.decision import decision_curve
from hmvnet.survival.metrics import (
    auc_at,
    brier,
    calibration,
    kaplan_meier_at,
    structured,
    uno_c,
)


def test_harrell_by_hand() -> None:
    outcomes = Outcomes([1.0, 2.0, 3.0, 4.0], [True, False, True, False])
    # Comparable: 0 with 1, 2, 3, and 2 with 3.
    assert harrell_c(outcomes, np.array([4.0, 3.0, 2.0, 1.0])) == 1.0
    assert harrell_c(outcomes, np.array([1.0, 2.0, 3.0, 4.0])) == 0.0
    assert harrell_c(outcomes, np.array([2.0, 2.0, 3.0, 3.0])) == pytest.approx(1.0 / 4)
    assert np.isnan(harrell_c(Outcomes([1.0, 2.0], [False, False]), np.zeros(2)))
    with pytest.raises(ValueError, match="NaN"):
        harrell_c(outcomes, np.array([1.0, np.nan, 0.0, 0.0]))


def test_metrics_are_those_of_scikit_survival() -> None:
    train_x, train = follow_up(1)
    x, test = follow_up(2)
    risk, tau = x[:, 0], 6 * YEAR
    assert harrell_c(test, risk) == concordance_index_censored(test.event, test.days, risk)[0]
    assert (
        uno_c(train, test, risk, tau)
        == concordance_index_ipcw(structured(train), structured(test), risk, tau)[0]
    )
    years = np.array([1, 2, 3]) * YEAR
    np.testing.assert_allclose(
        auc_at(train, test, risk, years),
        cumulative_dynamic_auc(structured(train), structured(test), risk, years)[0],
    )
    curves = SksurvModel(lambda _: CoxPHSurvivalAnalysis(ties="efron")).fit(
        train_x, train, np.random.default_rng(0)
    )
    times = np.linspace(0.5, 5, 30) * YEAR
    predicted = curves.predict_survival(x, times)
    assert brier(train, test, predicted, times) == pytest.approx(
        integrated_brier_score(structured(train), structured(test), predicted, times)
    )


def test_metrics_beyond_the_follow_up_are_nan_and_later_times_left_out() -> None:
    _, train = follow_up(1)
    x, test = follow_up(2)
    short = test.until(2 * YEAR)
    values = auc_at(train, short, x[:, 0], [1 * YEAR, 5 * YEAR])
    assert np.isfinite(values[0])
    assert np.isnan(values[1])
    times = np.array([0.5, 1.0, 1.5, 5.0]) * YEAR
    predicted = np.tile([0.9, 0.8, 0.7, 0.0], (len(x), 1))
    expected = integrated_brier_score(
        structured(train), structured(short), predicted[:, :3], times[:3]
    )
    assert brier(train, short, predicted, times) == pytest.approx(expected)


def test_test_patients_may_outlast_the_training_patients() -> None:
    _, test = follow_up(1)
    x, _ = follow_up(2)
    train = test.until(3.5 * YEAR)
    assert np.isfinite(uno_c(train, test, x[:, 0]))
    assert np.isfinite(auc_at(train, test, x[:, 0], [1 * YEAR, 3 * YEAR])).all()
    assert np.isnan(auc_at(train, test, x[:, 0], [4 * YEAR])).all()
    times = np.linspace(0.5, 9, 20) * YEAR
    assert np.isfinite(brier(train, test, np.full((len(x), 20), 0.5), times))


def test_brier_says_nothing_where_nobody_has_an_event() -> None:
    """A fold whose first event is after the last of the times."""
    _, train = follow_up(1)
    _, test = follow_up(2)
    times = np.linspace(30, YEAR, 20)
    curves = np.full((len(test), 20), 0.5)
    late = Outcomes(test.days + YEAR * test.event, test.event)
    late = Outcomes(np.where(late.event, np.maximum(late.days, 2 * YEAR), late.days), late.event)
    assert np.isnan(brier(train, late, curves, times))
    assert np.isnan(brier(train.until(0.0), test, curves, times))
    assert np.isfinite(brier(train, test, curves, times))


def test_brier_of_a_coin_is_a_quarter_without_censoring() -> None:
    time = np.arange(1.0, 41.0)
    outcomes = Outcomes(time, np.ones(40, dtype=bool))
    curves = np.full((40, 10), 0.5)
    times = np.linspace(2, 30, 10)
    assert brier(outcomes, outcomes, curves, times) == pytest.approx(0.25)
    expected = brier_score(structured(outcomes), structured(outcomes), curves, times)[1]
    np.testing.assert_allclose(expected, 0.25)


def test_calibration_of_known_chances() -> None:
    rng = np.random.default_rng(0)
    chance = rng.choice([0.1, 0.5, 0.9], size=3000)
    hit = rng.random(3000) < chance
    outcomes = Outcomes(np.where(hit, rng.uniform(1, 365, 3000), 800.0), hit)
    good = calibration(outcomes, chance, 365, groups=3)
    np.testing.assert_allclose(good.predicted, good.observed, atol=0.05)
    assert (good.low <= good.observed).all()
    assert (good.observed <= good.high).all()
    assert good.error < 0.03
    assert calibration(outcomes, chance**2, 365, groups=3).error > 0.1
    order = rng.permutation(3000)  # groups are of chances, however patients are listed
    assert good.error == pytest.approx(calibration(outcomes[order], chance[order], 365, 3).error)
    with pytest.raises(ValueError, match="follow-up ends at 800"):
        calibration(outcomes, chance, 900)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration(outcomes, chance * 3, 365)


def test_a_group_that_nobody_follows_so_far_is_not_said_to_be_observed() -> None:
    days = np.r_[np.linspace(10, 60, 20), np.linspace(100, 900, 20)]
    outcomes = Outcomes(days, np.tile([True, False], 20))
    chance = np.r_[np.full(20, 0.8), np.full(20, 0.2)]
    found = calibration(outcomes, chance, 500, groups=2)
    assert np.isfinite(found.observed[0]) and np.isnan(found.observed[1])
    assert found.error == pytest.approx(abs(0.2 - found.observed[0]))
    curve = decision_curve(outcomes, chance, 500, np.array([0.1, 0.5]))
    assert np.isfinite(curve.model[0]) and np.isnan(curve.model[1])


def test_of_patients_without_an_event_the_limits_have_a_width() -> None:
    """Four who are followed to a day without one: 0.398 and more by Clopper and Pearson."""
    outcomes = Outcomes(np.array([100.0, 200.0, 300.0, 400.0]), np.zeros(4, bool))
    for time, followed in ((50.0, 4), (300.0, 2)):
        survival, low, high = kaplan_meier_at(outcomes, time)
        assert (survival, high) == (1.0, 1.0)
        assert low == pytest.approx(beta.ppf(0.025, followed, 1))
    assert np.isnan(kaplan_meier_at(outcomes, 500.0)).all()
    relapsed = Outcomes(outcomes.days, np.array([False, True, False, False]))
    survival, low, high = kaplan_meier_at(relapsed, 250.0)
    assert survival == pytest.approx(2 / 3) and low < survival < high
