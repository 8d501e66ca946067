import json

import numpy as np
import pytest

from hmvnet.case import Outcomes, harrell_c
from hmvnet.prognosis.curve import SurvivalCurve
from hmvnet.survival.calibration import (
    Slopes,
    calibration_slope,
    cox_slope,
    fit_curve,
    offset_to,
    onto,
    recalibrated,
)
from hmvnet.survival.cox import ridge_path


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
    steep, wide = onto(curve, noisy, outcomes, steeper=1.5)
    assert wide == pytest.approx(1.5 * scale)
    assert offset_to(curve, curve.log_hazard(steep + wide * noisy), outcomes) == (
        pytest.approx(0, abs=1e-6)
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


def test_slopes_out_of_folds_are_carried_over_to_the_fit_to_everybody() -> None:
    """Three folds, twenty variables: what fits to two thirds would have is too little."""
    rng, folds, n = np.random.default_rng(3), 3, 240
    out_of_fold, carried, truth = [], [], []
    for _ in range(25):
        x = rng.normal(size=(n + 1500, 20))
        failure = rng.exponential(1000 * np.exp(-x @ np.linspace(0.3, -0.2, 20)))
        censoring = rng.uniform(200, 3000, size=len(x))
        everybody = Outcomes(np.minimum(failure, censoring), failure <= censoring)
        x, test, outcomes, later = x[:n], x[n:], everybody[:n], everybody[n:]
        slopes, fold, risk = Slopes(), np.arange(n) % folds, np.zeros(n)
        for number in range(folds):
            known, unseen = fold != number, fold == number
            w = ridge_path(x[known], outcomes[known], [0.01])[0]
            risk[unseen] = x[unseen] @ w
            slopes.add((x[known] @ w, outcomes[known]), (risk[unseen], outcomes[unseen]))
        out_of_fold.append(cox_slope(risk, outcomes))
        carried.append(out_of_fold[-1] * slopes.steeper(1 - 1 / folds))
        whole = ridge_path(x, outcomes, [0.01])[0]
        truth.append(cox_slope(test @ whole, later))
    lacking = np.mean(truth) - np.mean(out_of_fold)
    left = np.mean(truth) - np.mean(carried)
    assert lacking > 0.06 and abs(left) < 0.6 * lacking


def test_without_slopes_nothing_is_carried_over() -> None:
    assert Slopes().steeper(0.5) == 1.0
    assert Slopes([1.0], [-0.2]).steeper(0.5) == 1.0  # orders nobody
    assert Slopes([0.8], [0.9]).steeper(0.5) == 1.0  # by chance better on others
    assert Slopes([1.0], [0.5]).steeper(0.5) == pytest.approx(2 / 1.5)
    none = Outcomes(np.array([5.0, 6.0]), np.array([False, False]))
    slopes = Slopes()
    slopes.add((np.zeros(2), none), (np.zeros(2), none))
    assert slopes.inside == []


def test_a_steeper_curve_is_steeper_and_nothing_else() -> None:
    risk, outcomes = cohort()
    one, other = fit_curve(risk, outcomes), fit_curve(risk, outcomes, 1.2)
    assert other.slope == pytest.approx(1.2 * one.slope) and other.centre == one.centre
    times = np.array([500.0])
    expected = [(1 - c.survival(risk, times)).sum() for c in (one, other)]
    assert expected[1] == pytest.approx(expected[0], rel=0.05)
