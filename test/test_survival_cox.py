from __future__ import annotations

import warnings

import numpy as np
import pytest
from sksurv.linear_model import CoxnetSurvivalAnalysis, CoxPHSurvivalAnalysis

from hmvnet.case import Outcomes
from hmvnet.survival.cox import (
    PENALTIES,
    PartialLikelihood,
    RidgeCox,
    Standardiser,
    breslow,
    fit_linear_risk,
    ridge_path,
)
from hmvnet.survival.metrics import structured


def cohort(
    seed: int = 0, n: int = 200, p: int = 6, ties: bool = False
) -> tuple[np.ndarray, Outcomes]:
    """Standardised variables, of which the first two matter, and follow-up; in months if tied."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    failure = rng.exponential(900 * np.exp(-1.2 * x[:, 0] + 0.6 * x[:, 1]))
    censoring = rng.exponential(1500, size=n)
    days = np.minimum(failure, censoring)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x, Outcomes(np.ceil(days / 90) * 90 if ties else days, failure <= censoring)


@pytest.mark.parametrize("ties", [False, True])
def test_the_path_is_that_of_scikit_survival(ties: bool) -> None:
    x, outcomes = cohort(ties=ties)
    found = ridge_path(x, outcomes, PENALTIES)
    for ridge, coefficient in zip(PENALTIES, found, strict=True):
        theirs = CoxPHSurvivalAnalysis(alpha=ridge, ties="efron", tol=1e-12)
        expected = theirs.fit(x, structured(outcomes)).coef_
        np.testing.assert_allclose(coefficient, expected, atol=1e-6)


def test_the_path_is_that_of_coxnet() -> None:
    """Without ties; coordinate descent weighs patients by 1/n and has no pure ridge."""
    x, outcomes = cohort()
    alphas = np.array(sorted(PENALTIES, reverse=True)) / len(x)
    theirs = CoxnetSurvivalAnalysis(l1_ratio=1e-12, alphas=alphas, tol=1e-12, max_iter=1_000_000)
    expected = theirs.fit(x, structured(outcomes)).coef_.T
    np.testing.assert_allclose(ridge_path(x, outcomes, alphas * len(x)), expected, atol=1e-4)


def test_derivatives_are_those_of_the_value() -> None:
    x, outcomes = cohort(n=40, p=3, ties=True)
    likelihood = PartialLikelihood(x, outcomes)
    at = np.array([0.3, -0.8, 0.1])
    gradient, information = likelihood.derivatives(likelihood.x @ at)
    for j, step in enumerate(1e-5 * np.eye(3)):
        up, down = (likelihood.x @ (at + sign * step) for sign in (1, -1))
        slope = (likelihood.value(up) - likelihood.value(down)) / 2e-5
        assert gradient[j] == pytest.approx(slope, rel=1e-6)
        bend = (likelihood.derivatives(up)[0] - likelihood.derivatives(down)[0]) / 2e-5
        np.testing.assert_allclose(-bend, information[j], rtol=1e-5, atol=1e-6)


def hard(kind: str) -> tuple[np.ndarray, Outcomes]:
    x, outcomes = cohort(n=150)
    if kind == "separable":
        x[:, 0] = -outcomes.days
    elif kind == "constant":
        x[:, 2:] = 1e9 + np.arange(4)
    elif kind == "repeated":
        x = np.concatenate([x, x, 1000 * x], axis=1)
    elif kind == "outlier":
        x[:, 3] = 0
        x[int(np.argmin(outcomes.days)), 3] = 1e12
    elif kind == "empty":
        x[:, 4] = np.nan
    elif kind == "one time":
        outcomes = Outcomes(np.where(outcomes.event, 100.0, 400.0), outcomes.event)
    return x, outcomes


@pytest.mark.parametrize(
    "kind", ["separable", "constant", "repeated", "outlier", "empty", "one time"]
)
def test_hard_columns_give_finite_risks_without_a_warning(kind: str) -> None:
    x, outcomes = hard(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = RidgeCox((1e-3, *PENALTIES)).fit(x, outcomes, np.random.default_rng(0))
        risk = model.predict_risk(x)
        curves = model.predict_survival(x, np.array([0.0, 100.0, 1e4]))
    assert np.isfinite(risk).all() and np.isfinite(curves).all()
    assert risk.std() > 0


def test_no_full_step_is_taken_where_it_would_overshoot() -> None:
    """Newton's first step on a separable column overshoots; the end is the optimum all the same."""
    x, outcomes = hard("separable")
    z = Standardiser.of(x)(x)
    coefficient = ridge_path(z, outcomes, [0.3])[0]
    gradient, _ = (likelihood := PartialLikelihood(z, outcomes)).derivatives(
        likelihood.x @ coefficient
    )
    np.testing.assert_allclose(gradient, 0.3 * coefficient, atol=1e-4)


def test_equals_go_to_the_strongest_penalty() -> None:
    x, outcomes = cohort(n=60)
    lone = Outcomes(outcomes.days, np.arange(60) == 3)
    assert RidgeCox().fit(x, lone, np.random.default_rng(0)).ridge_ == max(PENALTIES)


@pytest.mark.parametrize("censored", [0, 1, 2, 40])
def test_the_ridge_is_chosen_however_few_are_censored(censored: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 8))
    days = rng.exponential(np.exp(-x[:, 0])) + 0.01
    event = np.arange(300) >= censored
    model = RidgeCox().fit(x, Outcomes(days, event), rng)
    assert model.ridge_ < model.penalties[-1]
    assert 0.7 < model.linear_.coefficient[0] < 1.3


def test_a_draw_is_of_the_same_patients_in_all_parts() -> None:
    """Of those without an event, too, which tell nothing."""
    rng = np.random.default_rng(0)
    outcomes = Outcomes(rng.uniform(10, 1000, 40), np.arange(40) == 7)
    fitted = fit_linear_risk(rng.normal(size=(40, 2)), outcomes, np.random.default_rng(0), 25)
    assert fitted.drawn.shape == (25, 2)
    alike = (fitted.drawn == fitted.coefficient).all(axis=1)
    assert 3 < alike.sum() < 15


def test_a_penalty_of_nothing_is_refused() -> None:
    x, outcomes = cohort(n=60)
    with pytest.raises(ValueError, match="must be above 0, found 0"):
        ridge_path(x, outcomes, [0.0, 1.0])


def test_the_baseline_hazard_is_scikit_survivals() -> None:
    x, outcomes = cohort(ties=True)
    theirs = CoxPHSurvivalAnalysis(alpha=1.0, ties="efron").fit(x, structured(outcomes))
    days, hazard = breslow(outcomes, x @ theirs.coef_)
    expected = theirs.cum_baseline_hazard_
    np.testing.assert_allclose(hazard, expected(days))
    np.testing.assert_array_equal(days, np.unique(outcomes.days[outcomes.event]))


def test_curves_are_scikit_survivals() -> None:
    x, outcomes = cohort()
    model = RidgeCox((10.0,)).fit(x, outcomes, np.random.default_rng(0))
    theirs = CoxPHSurvivalAnalysis(alpha=10.0, ties="efron").fit(x, structured(outcomes))
    times = np.quantile(outcomes.days, [0.0, 0.1, 0.5, 0.9])
    expected = [f(times) for f in theirs.predict_survival_function(x)]
    np.testing.assert_allclose(model.predict_survival(x, times), expected, atol=1e-5)
