"""A forest of martingale residuals, and what the container keeps of it."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from hmvnet.case import Outcomes, harrell_c
from hmvnet.prognosis.forest import LEAF, ForestRisk
from hmvnet.survival import forest
from hmvnet.survival.forest import fit_forest_risk, martingale_residuals


def cohort(patients: int = 200, seed: int = 0) -> tuple[np.ndarray, Outcomes]:
    """Only the middle of a range is at risk: no model with one direction a variable sees it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(patients, 4))
    days = rng.exponential(np.where(np.abs(x[:, 0]) < 0.7, 100.0, 1000.0))
    x[rng.random(x.shape) < 0.05] = np.nan
    return x, Outcomes(np.minimum(days, 700.0), days < 700.0)


def test_residuals_are_events_less_the_hazard_of_all():
    # Hazards: 1 of 4 on day 10, 2 of 3 on day 20.
    outcomes = Outcomes(np.array([20.0, 10.0, 20.0, 30.0]), np.array([1, 1, 1, 0]))
    after = 1 / 4 + 2 / 3
    expected = [1 - after, 1 - 1 / 4, 1 - after, -after]
    np.testing.assert_allclose(martingale_residuals(outcomes), expected)
    assert martingale_residuals(cohort()[1]).sum() == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="no event"):
        martingale_residuals(Outcomes(np.ones(3), np.zeros(3)))


def test_plain_arrays_say_what_scikit_learn_says(monkeypatch):
    fits = []
    fit = RandomForestRegressor.fit

    def keep(self, x, y):
        fits.append(fit(self, x, y))
        return fits[-1]

    monkeypatch.setattr(RandomForestRegressor, "fit", keep)
    x, outcomes = cohort()
    found = fit_forest_risk(x, outcomes, np.random.default_rng(0))
    (theirs,) = fits
    new = cohort(seed=1)[0]
    values = theirs.predict(np.where(np.isnan(new), found.fill, new))
    roots = np.mean([tree.tree_.value[0, 0, 0] for tree in theirs.estimators_])
    np.testing.assert_allclose(found.predict_risk(new), (values - roots) / found.spread)
    assert found.predict_risk(x).std() == pytest.approx(1.0)
    assert found.draws(new).shape == (1, len(new))


def test_it_finds_what_no_line_does():
    found = fit_forest_risk(*cohort(400), np.random.default_rng(0))
    x, outcomes = cohort(400, seed=1)
    assert harrell_c(outcomes, found.predict_risk(x)) > 0.65
    assert harrell_c(outcomes, np.nan_to_num(np.abs(x[:, 0]))) < 0.35  # which is what there is
    assert abs(harrell_c(outcomes, np.nan_to_num(x[:, 0])) - 0.5) < 0.1


def test_contributions_are_exact_and_the_variables_own():
    found = fit_forest_risk(*cohort(400), np.random.default_rng(0))
    x = cohort(50, seed=2)[0]
    parts = found.contributions(x)
    np.testing.assert_allclose(parts.sum(axis=1), found.predict_risk(x), atol=1e-12)
    share = np.abs(parts).mean(axis=0)
    assert share[0] > 3 * share[1:].max()


def test_leaves_grow_with_the_cohort(monkeypatch):
    monkeypatch.setattr(forest, "TREES", 3)
    x, outcomes = cohort(3000)
    found = fit_forest_risk(x, outcomes, np.random.default_rng(0))
    assert (found.variable == LEAF).sum() <= 3 * 100


def test_columns_that_say_nothing():
    x, outcomes = cohort(60)
    x[:, 1], x[:, 2] = np.nan, 3.0
    found = fit_forest_risk(x, outcomes, np.random.default_rng(0))
    assert np.isfinite(found.predict_risk(x)).all()
    assert not found.contributions(x)[:, 1:3].any()
    same = fit_forest_risk(np.zeros((60, 1)), outcomes, np.random.default_rng(0))
    assert not same.predict_risk(x[:, :1]).any() and same.spread == 1.0


def test_it_survives_its_state():
    x, outcomes = cohort()
    found = fit_forest_risk(x, outcomes, np.random.default_rng(0))
    again = ForestRisk.from_state(found.state())
    np.testing.assert_array_equal(again.predict_risk(x), found.predict_risk(x))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("value", lambda a: a[:-1], "has shapes"),
        ("value", lambda a: a * np.nan, "must be finite"),
        ("root", lambda a: a[:0], "has shapes"),
        ("root", lambda a: a + 10**6, "a root beyond"),
        ("root", lambda a: a.astype(float), "must be integers"),
        ("variable", lambda a: a + 4, "a variable beyond"),
        ("left", lambda a: a * 0, "left one lies above"),
        ("right", lambda a: a + 10**6, "right one lies above it, or is not there"),
        ("spread", lambda a: -a, "expected one above 0"),
    ],
)
def test_arrays_that_are_no_forest_are_refused(name, change, message):
    """One whose nodes lead in a circle would never end."""
    state = fit_forest_risk(*cohort(60), np.random.default_rng(0)).state()
    with pytest.raises(ValueError, match=message):
        ForestRisk.from_state({**state, name: change(state[name])})
    with pytest.raises(ValueError, match=f"lacks {name}"):
        ForestRisk.from_state({k: v for k, v in state.items() if k != name})
