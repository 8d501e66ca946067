import json

import numpy as np
import pytest

from hmvnet.case import Outcomes, harrell_c
from hmvnet.prognosis.curve import SurvivalCurve
from hmvnet.survival.calibration import (
    calibration_slope,
    cox_slope,
    fit_curve,
    offset_to,
    onto,
    recalibrated,
)


def cohort(n: int = 1500, seed: int = 0, slope: float = 0.7) -> tuple[np.ndarray, Outcomes]:
    """Risks of unit deviation around 2, and follow-up by a constant hazard of 1 in 1000 days."""
    rng = np.random.default_rng(seed)
    risk = 2 + rng.normal(size=n)
    failure = rng.exponential(1000 * np.exp(-slope * (risk - 2)))
    censoring = rng.uniform(200, 3000, size=n)
    return risk, Outcomes(np.ceil(np.minimum(failure, censoring)), failure <= censoring)


def test_the_curve_is_the_one_that_drew_the_outcomes() -> None:
    risk, outcomes = cohort()
    curve = fit_curve(risk, outcomes)
    assert curve.slope == pytest.approx(0.7, abs=0.08)
    times, some = np.array([300.0, 900.0]), np.array([1.0, 2.0, 3.5])
    expected = np.exp(-times[None] / 1000 * np.exp(0.7 * (some[:, None] - 2)))
    np.testing.assert_allclose(curve.survival(some, times), expected, atol=0.04)
    assert (outcomes.days >= curve.horizon_days).mean() == pytest.approx(0.1, abs=0.01)
    assert len(curve.days) == 200 and len(curve.groups) == 3
    year = np.searchsorted(curve.days, 365) - 1
    assert curve.groups[0].survival[year] > curve.groups[1].survival[year] + 0.1


def test_the_restricted_mean_is_the_area_under_the_curve() -> None:
    curve = fit_curve(*cohort(300))
    grid = np.arange(0.5, curve.horizon_days)
    area = curve.survival(np.array([1.0, 3.0]), grid).sum(axis=1)
    np.testing.assert_allclose(curve.restricted_mean(np.array([1.0, 3.0])), area, rtol=1e-3)


def test_expected_days_order_as_the_risk_does() -> None:
    """No tie and no inversion, from where every curve is 1 to where every curve is 0."""
    risk, outcomes = cohort(400)
    curve = fit_curve(risk, outcomes)
    far = np.concatenate([risk, [-1000.0, -50, -49.999, 40, 40.001, 1000]])
    days = curve.expected_days(far)
    assert (np.diff(days[np.argsort(far)]) < 0).all() and (days > 0).all()
    restricted = curve.restricted_mean(far)
    assert len(np.unique(restricted)) < len(far)  # which is why they are not the mean itself
    np.testing.assert_allclose(days, restricted, atol=1e-3 * curve.horizon_days)
    assert harrell_c(outcomes, -curve.expected_days(risk)) == harrell_c(outcomes, risk)


def test_a_curve_survives_json() -> None:
    curve = fit_curve(*cohort(200))
    assert SurvivalCurve.from_state(json.loads(json.dumps(curve.state()))) == curve


def test_risks_that_order_nobody_make_almost_one_curve() -> None:
    risk, outcomes = cohort(300)
    curve = fit_curve(-risk, outcomes)
    low, high = curve.survival(np.array([-4.0, 0.0]), np.array([500.0]))[:, 0]
    assert 0 < low - high < 0.03
    assert np.isfinite(fit_curve(np.full(300, 0.3), outcomes).expected_days(risk)).all()


def test_the_slope_says_whether_hazards_are_too_extreme() -> None:
    risk, outcomes = cohort()
    survival = np.exp(-0.5 * np.exp(0.7 * (risk - 2)))
    assert calibration_slope(outcomes, survival) == pytest.approx(1.0, abs=0.12)
    overconfident = np.exp(-0.5 * np.exp(1.4 * (risk - 2)))
    assert calibration_slope(outcomes, overconfident) == pytest.approx(0.5, abs=0.06)
    assert cox_slope(np.full(len(risk), 0.1), outcomes) == 0
    assert np.isnan(calibration_slope(outcomes[:5].until(0.0), survival[:5]))


def test_the_offset_makes_as_many_events_expected_as_there_were() -> None:
    risk, outcomes = cohort(600)
    curve = fit_curve(risk, outcomes)
    assert offset_to(curve, curve.log_hazard(risk), outcomes) == pytest.approx(0, abs=0.02)
    assert offset_to(curve, curve.log_hazard(risk) + 1, outcomes) == pytest.approx(-1, abs=0.02)


def test_the_risks_of_another_model_are_put_on_the_curves_scale() -> None:
    """Noisier and in other units, they end at smaller hazards, and as many events expected."""
    risk, outcomes = cohort(4000)
    curve = fit_curve(risk, outcomes)
    noisy = 100 * (risk + np.random.default_rng(1).normal(size=len(risk))) - 7
    shift, scale = onto(curve, noisy, outcomes)
    placed = shift + scale * noisy
    assert offset_to(curve, curve.log_hazard(placed), outcomes) == pytest.approx(0, abs=1e-6)
    assert placed.std() < 0.8 * risk.std()
    assert calibration_slope(outcomes, curve.survival(placed, np.array([900.0]))[:, 0]) == (
        pytest.approx(1, abs=0.02)
    )


def test_a_curve_moves_to_another_hospital_the_more_the_more_patients() -> None:
    """There the hazard is doubled and the risk says half as much."""
    curve = fit_curve(*cohort())
    rng = np.random.default_rng(5)
    slopes = []
    for n in (40, 400, 4000):
        risk = 2 + rng.normal(size=n)
        failure = rng.exponential(500 * np.exp(-0.35 * (risk - 2)))
        censoring = rng.uniform(200, 3000, size=n)
        outcomes = Outcomes(np.minimum(failure, censoring), failure <= censoring)
        moved = recalibrated(curve, risk, outcomes)
        assert offset_to(moved, moved.log_hazard(risk), outcomes) == pytest.approx(0, abs=1e-6)
        slopes.append(moved.slope)
    assert slopes[0] > slopes[2] == pytest.approx(0.35, abs=0.05)
    chance = moved.survival(np.array([2.0]), np.array([500.0]))[0, 0]
    assert chance == pytest.approx(np.exp(-1), abs=0.05) and not moved.groups
    with pytest.raises(ValueError, match="0 relapses, expected at least 5"):
        recalibrated(curve, risk, outcomes.until(0.0))
