import numpy as np
import pytest
from scipy.stats import spearmanr

from hmvnet.case import Outcomes, harrell_c
from hmvnet.prognosis.linear import LinearRisk
from hmvnet.survival.discrete import DeepHit, fit_mtlr_risk, tuned_mtlr


def cohort(seed: int = 0, n: int = 150) -> tuple[np.ndarray, Outcomes]:
    """Risk grows with the first variable, falls with the second; the third is noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) * [1.0, 10.0, 1.0] + [0.0, 50.0, 0.0]
    failure = rng.exponential(900 * np.exp(-x[:, 0] + 0.05 * (x[:, 1] - 50)))
    end = rng.uniform(200, 2000, n)
    return x, Outcomes(np.minimum(failure, end), failure <= end)


def test_mtlr_to_first_order_orders_as_mtlr_does() -> None:
    x, outcomes = cohort()
    new, unseen = cohort(1)
    risk = fit_mtlr_risk(x, outcomes, np.random.default_rng(0))
    whole = tuned_mtlr(3).fit(x, outcomes, np.random.default_rng(0))
    assert spearmanr(risk.predict_risk(new), whole.predict_risk(new)).statistic > 0.99
    assert risk.predict_risk(x).std() == pytest.approx(1.0)
    assert harrell_c(unseen, risk.predict_risk(new)) > 0.7
    assert risk.coefficient[0] > 0 > risk.coefficient[1]
    again = LinearRisk.from_state(risk.state())
    np.testing.assert_array_equal(again.predict_risk(new), risk.predict_risk(new))


def test_the_slope_is_that_of_the_expected_time() -> None:
    """Against differences of MTLR's own risk about the training mean."""
    x, outcomes = cohort()
    risk = fit_mtlr_risk(x, outcomes, np.random.default_rng(0))
    whole = tuned_mtlr(3).fit(x, outcomes, np.random.default_rng(0))
    step = 0.05 * x.std(0)
    moved = [whole.predict_risk(x.mean(0) + np.diag(sign * step)) for sign in (1, -1)]
    slope = (moved[0] - moved[1]) / (2 * step)
    expected = slope / slope[0] * risk.coefficient[0] / risk.scale[0]
    np.testing.assert_allclose(risk.coefficient / risk.scale, expected, rtol=0.01, atol=1e-5)


def test_missing_values_and_few_events() -> None:
    x, outcomes = cohort(n=40)
    x[::3, 0], x[:, 2] = np.nan, np.nan
    few = Outcomes(outcomes.days, np.arange(40) == 7)
    for known in (outcomes, few):
        assert np.isfinite(fit_mtlr_risk(x, known, np.random.default_rng(0)).predict_risk(x)).all()
    with pytest.raises(ValueError, match="no event"):
        fit_mtlr_risk(x, Outcomes(outcomes.days, np.zeros(40)), np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_events_on_the_day_0(share: float) -> None:
    """They are of the first interval, which has a length all the same."""
    x, outcomes = cohort(n=60)
    at_once = outcomes.event & (np.cumsum(outcomes.event) <= share * outcomes.event.sum())
    known = Outcomes(np.where(at_once, 0.0, outcomes.days), outcomes.event)
    for model in (DeepHit(), tuned_mtlr(2)):
        fitted = model.fit(x, known, np.random.default_rng(0))
        assert np.isfinite(fitted.predict_risk(x)).all()
    assert np.isfinite(fit_mtlr_risk(x, known, np.random.default_rng(0)).predict_risk(x)).all()
