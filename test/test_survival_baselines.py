from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from hmvnet.case import Outcomes
from hmvnet.prognosis.linear import LinearRisk
from hmvnet.survival.baselines import Cox, SksurvModel, available, create
from hmvnet.survival.calibration import calibration_slope
from hmvnet.survival.cox import RidgeCox, fit_linear_risk
from hmvnet.survival.discrete import DeepHit, Mtlr, SumOfLaterRegressors
from hmvnet.survival.tuning import Tuned

QUICK = ("coxph", "icare", "deephit", "mtlr", "gbm")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cohort(seed: int = 0, n: int = 240, p: int = 5) -> tuple[np.ndarray, Outcomes]:
    """Risk grows with the first variable, falls with the second, and does not know the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    failure = rng.exponential(900 * np.exp(-1.2 * x[:, 0] + 0.6 * x[:, 1]))
    censoring = rng.exponential(2000, size=n)
    return x, Outcomes(np.minimum(failure, censoring), failure <= censoring)


def fit(name: str, x: np.ndarray, outcomes: Outcomes, seed: int = 3):
    return create(name).fit(x, outcomes, np.random.default_rng(seed))


def test_registry() -> None:
    assert set(available()) == {"coxph", "icare", "deephit", "mtlr", "rsf", "gbm"}
    with pytest.raises(ValueError, match=r"unknown survival model 'cox', expected one of coxph,"):
        create("cox")


@pytest.mark.parametrize("name", available())
def test_higher_risk_is_earlier_event_and_curves_agree(name: str) -> None:
    x, outcomes = cohort()
    new_x, new = cohort(seed=1)
    new_x[:7, 3] = np.nan
    model = fit(name, x, outcomes)

    risk = model.predict_risk(new_x)
    assert risk.shape == (len(new_x),)
    assert np.isfinite(risk).all()
    assert concordance_index_censored(new.event, new.days, risk)[0] > 0.7

    times = np.array([0.0, 100.0, 365.0, 1000.0, 1e6])
    curves = model.predict_survival(new_x, times)
    if name == "icare":
        assert curves is None
        return
    assert curves.shape == (len(new_x), len(times))
    assert ((curves >= 0) & (curves <= 1)).all()
    assert (np.diff(curves, axis=1) <= 1e-9).all()
    np.testing.assert_allclose(curves[:, 0], 1.0)
    # Who has the higher risk has the lower curve.
    assert np.corrcoef(risk.argsort().argsort(), curves[:, 2].argsort().argsort())[0, 1] < -0.9
    # In the mean, the curve is that of the cohort.
    observed = 1 - np.mean(np.concatenate([outcomes.days, new.days])[:, None] > 365.0)
    assert abs((1 - curves[:, 2]).mean() - observed) < 0.15


@pytest.mark.parametrize("name", QUICK)
def test_same_generator_same_model_and_no_global_seed(name: str) -> None:
    x, outcomes = cohort(n=120)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    risks = [fit(name, x, outcomes).predict_risk(x) for _ in range(2)]
    np.testing.assert_array_equal(*risks)
    assert torch.equal(before[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize("name", QUICK)
def test_scale_and_offset_of_a_variable_do_not_matter(name: str) -> None:
    x, outcomes = cohort(n=120)
    first = fit(name, x, outcomes).predict_risk(x)
    second = fit(name, x * 1000 + 50, outcomes).predict_risk(x * 1000 + 50)
    assert np.corrcoef(first, second)[0, 1] > 0.99


@pytest.mark.parametrize("name", QUICK)
def test_constant_and_empty_columns_are_survived(name: str) -> None:
    x, outcomes = cohort(n=120)
    x[:, 2] = 7.0
    x[:, 3] = np.nan
    assert np.isfinite(fit(name, x, outcomes).predict_risk(x)).all()


def cox(ridge: float) -> SksurvModel:
    return SksurvModel(lambda seed: CoxPHSurvivalAnalysis(alpha=ridge))


def test_tuning_chooses_the_useful_setting_and_refits_on_everybody() -> None:
    x, outcomes = cohort(n=150)
    noise = np.random.default_rng(1).normal(size=(150, 60))
    x = np.concatenate([x, noise], axis=1)
    settings = [lambda: cox(1e-4), lambda: cox(100.0)]
    tuned = Tuned(settings).fit(x, outcomes, np.random.default_rng(0))
    assert tuned.chosen_ == 1
    alone = cox(100.0).fit(x, outcomes, np.random.default_rng(0))
    np.testing.assert_allclose(tuned.predict_risk(x), alone.predict_risk(x))


def test_step_curves_are_those_of_scikit_survival() -> None:
    x, outcomes = cohort(n=100)
    model = cox(1.0).fit(x, outcomes, np.random.default_rng(0))
    times = np.quantile(outcomes.days, [0.1, 0.5, 0.9])
    expected = model.model_.predict_survival_function(model.scaler_.transform(x))
    np.testing.assert_allclose(model.predict_survival(x, times), [f(times) for f in expected])
    assert (model.predict_survival(x, np.array([0.0])) == 1.0).all()
    last = model.predict_survival(x, np.array([outcomes.days.max(), 1e9]))
    np.testing.assert_array_equal(last[:, 0], last[:, 1])


def test_mtlr_scores_sum_the_later_regressors() -> None:
    regressors = torch.tensor([[1.0, 2.0, 4.0]])
    np.testing.assert_array_equal(SumOfLaterRegressors()(regressors), [[7.0, 6.0, 4.0, 0.0]])


def test_mtlr_without_variables_is_the_cohort_curve() -> None:
    """Against Kaplan-Meier, at the ends of the intervals, with most patients censored."""
    _, full = cohort(n=800)
    censored_at = np.random.default_rng(1).exponential(300, size=len(full))
    outcomes = Outcomes(np.minimum(full.days, censored_at), full.event & (full.days <= censored_at))
    blank = np.zeros((len(outcomes), 1))
    model = Mtlr(1.0).fit(blank, outcomes, np.random.default_rng(0))
    at, survival = kaplan_meier_estimator(outcomes.event, outcomes.days)
    expected = survival[np.searchsorted(at, model.ends_[:-1], side="right") - 1]
    found = model.predict_survival(blank[:1], model.ends_[:-1])[0]
    np.testing.assert_allclose(found, expected, atol=0.012)


def test_an_interval_includes_its_end() -> None:
    model = Mtlr(1.0)
    model.ends_ = np.array([2.0, 4.0])
    interval, elapsed = model.locate(np.array([0.0, 1.0, 2.0, 3.5, 4.0, 9.0]))
    assert interval.tolist() == [0, 0, 0, 1, 1, 2]
    assert elapsed.tolist() == [0.0, 0.5, 1.0, 0.75, 1.0, 0.0]


def test_discrete_risk_is_the_negated_time_without_event() -> None:
    x, outcomes = cohort(n=120)
    model = Mtlr(10.0).fit(x, outcomes, np.random.default_rng(0))
    end = outcomes.days[outcomes.event].max()
    grid = np.linspace(0, end, 20001)
    expected = -trapezoid(model.predict_survival(x, grid), grid, axis=1)
    np.testing.assert_allclose(model.predict_risk(x), expected, rtol=1e-4)


def test_deephit_stops_early_and_keeps_the_best() -> None:
    x, outcomes = cohort(n=120)
    short = DeepHit(epochs=1).fit(x, outcomes, np.random.default_rng(0))
    long = DeepHit(epochs=200).fit(x, outcomes, np.random.default_rng(0))
    c_short, c_long = (
        concordance_index_censored(outcomes.event, outcomes.days, m.predict_risk(x))[0]
        for m in (short, long)
    )
    assert c_long > c_short


@pytest.mark.parametrize("name", ["deephit", "mtlr", "coxph", "icare"])
def test_no_event_is_an_error(name: str) -> None:
    x, outcomes = cohort(n=60)
    with pytest.raises(ValueError):
        fit(name, x, Outcomes(outcomes.days, np.zeros(len(x), dtype=bool)))


def test_predictions_depend_on_training_patients_only() -> None:
    x, outcomes = cohort(n=120)
    model = fit("coxph", x, outcomes)
    one = model.predict_risk(x[:1])
    np.testing.assert_allclose(one, model.predict_risk(np.concatenate([x[:1], x + 9]))[:1])


def test_interface_takes_survival_arrays_of_the_library() -> None:
    x, outcomes = cohort(n=60)
    structured = Surv.from_arrays(outcomes.event, outcomes.days)
    model = fit("coxph", x, Outcomes(structured["time"], structured["event"]))
    np.testing.assert_array_equal(model.predict_risk(x), fit("coxph", x, outcomes).predict_risk(x))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_curves_of_cox_are_not_as_much_alike_as_a_strong_ridge_makes_them(seed: int) -> None:
    x, outcomes = cohort(seed, n=800)
    known, unseen = np.arange(400), np.arange(400, 800)

    def slope(model: Cox | RidgeCox) -> float:
        model.fit(x[known], outcomes[known], np.random.default_rng(3))
        survival = model.predict_survival(x[unseen], np.array([900.0]))
        return calibration_slope(outcomes[unseen], survival[:, 0])

    ours, as_the_ridge_leaves_it = Cox([1000.0]), RidgeCox([1000.0])
    assert slope(ours) == pytest.approx(1, abs=0.3)
    assert slope(as_the_ridge_leaves_it) > 2
    risk = as_the_ridge_leaves_it.predict_risk(x)
    np.testing.assert_array_equal(ours.predict_risk(x), risk)


def test_cox_of_too_few_events_for_inner_folds_has_curves() -> None:
    x, outcomes = cohort(n=60)
    one = np.zeros(60, bool)
    one[np.argmin(outcomes.days)] = True
    curves = fit("coxph", x, Outcomes(outcomes.days, one)).predict_survival(x, np.array([1.0, 1e4]))
    assert ((curves > 0) & (curves <= 1)).all()


def test_a_linear_risk_is_cox_as_plain_arrays() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    x[rng.random(x.shape) < 0.1] = np.nan
    time = np.exp(-np.nan_to_num(x[:, 0]) + 0.3 * rng.normal(size=120))
    outcomes = Outcomes(time, rng.random(120) < 0.7)
    cox = create("coxph").fit(x, outcomes, np.random.default_rng(1))
    linear = fit_linear_risk(x, outcomes, np.random.default_rng(1))
    risk = linear.predict_risk(x)
    assert np.corrcoef(risk, cox.predict_risk(x))[0, 1] == pytest.approx(1)
    assert risk.std() == pytest.approx(1)
    np.testing.assert_allclose(linear.contributions(x).sum(1), risk)
    again = LinearRisk.from_state(linear.state())
    np.testing.assert_array_equal(again.predict_risk(x), risk)
    state = linear.state()
    with pytest.raises(ValueError, match="linear risk has shapes"):
        LinearRisk.from_state(state | {"mean": state["mean"][:2]})
    with pytest.raises(ValueError, match="linear risk lacks fill"):
        LinearRisk.from_state({k: v for k, v in state.items() if k != "fill"})


@pytest.mark.parametrize("events", [1, 11])
def test_deephit_is_fitted_where_one_patient_has_an_event_or_one_has_none(events: int) -> None:
    rng = np.random.default_rng(0)
    x, outcomes = (
        rng.normal(size=(12, 2)),
        Outcomes(np.arange(1.0, 13) * 90, np.arange(12) < events),
    )
    risk = DeepHit(epochs=2).fit(x, outcomes, rng).predict_risk(x)
    assert np.isfinite(risk).all()
