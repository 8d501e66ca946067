"""Image features beside named variables: taken where they add something, and not elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from hmvnet.case import Outcomes, harrell_c
from hmvnet.survival.beside import Components, fit_beside
from hmvnet.survival.cox import PartialLikelihood, fit_linear_risk, ridge_path

GROUPS = np.repeat(np.arange(6), 16)


def patients(count: int, seed: int, effect: float):
    """Named variables, image features of six groups, outcomes; group 2 holds a hidden pattern."""
    rng = np.random.default_rng(seed)
    named, hidden = rng.normal(size=(count, 4)), rng.normal(size=count)
    image = rng.normal(size=(count, len(GROUPS))) + 0.5 * named[:, :1]
    image[:, GROUPS == 2] += np.outer(hidden, np.linspace(-1, 1, 16))
    image[rng.random(count) < 0.1, :48] = np.nan
    eta = named[:, 0] - 0.6 * named[:, 1] + effect * hidden
    days = 1000 * rng.exponential(size=count) * np.exp(-eta)
    end = rng.uniform(200, 2500, count)
    return named, image, Outcomes(np.minimum(days, end), days <= end)


def gain(effect: float, seed: int = 0) -> float:
    """Concordance on other patients above that of the named variables alone."""
    known, new = patients(240, seed, effect), patients(2000, seed + 100, effect)
    both = fit_beside(*known[:2], GROUPS, known[2], np.random.default_rng(0))
    base = fit_linear_risk(known[0], known[2], np.random.default_rng(0))
    risk = both.predict_risk(np.concatenate(new[:2], 1))
    return harrell_c(new[2], risk) - harrell_c(new[2], base.predict_risk(new[0]))


def test_a_pattern_of_one_group_is_found() -> None:
    assert gain(0.8) > 0.03


def test_where_images_add_nothing_nothing_is_lost() -> None:
    assert np.mean([gain(0.0, seed) for seed in range(3)]) > -0.004


def test_draws_are_as_many_as_asked_for_and_around_the_risk() -> None:
    named, image, outcomes = patients(120, 1, 0.8)
    risk = fit_beside(named, image, GROUPS, outcomes, np.random.default_rng(0), draws=5)
    x = np.concatenate([named, image], 1)
    draws = risk.draws(x)
    assert draws.shape == (5, 120) and np.isfinite(draws).all()
    assert np.corrcoef(draws.mean(0), risk.predict_risk(x))[0, 1] > 0.9
    assert risk.predict_risk(x).std() == pytest.approx(1.0)


def test_few_events_give_the_named_variables_alone() -> None:
    named, image, outcomes = patients(40, 2, 0.8)
    event = np.zeros(40, bool)
    event[np.argmin(outcomes.days)] = True
    risk = fit_beside(
        named, image, GROUPS, Outcomes(outcomes.days, event), np.random.default_rng(0)
    )
    assert (risk.coefficient[4:] == 0).all()


def test_an_offset_is_a_part_of_the_predictor_that_is_not_fitted() -> None:
    named, _, outcomes = patients(150, 3, 0.0)
    both = ridge_path(named, outcomes, [1e-3])[0]
    rest = ridge_path(named[:, 1:], outcomes, [1e-3], offset=named[:, 0] * both[0])[0]
    np.testing.assert_allclose(rest, both[1:], atol=1e-4)
    part = PartialLikelihood(named, outcomes, named[:, 0])
    assert part.value(part.offset) == pytest.approx(
        PartialLikelihood(named, outcomes).value(part.x[:, 0])
    )


def test_components_are_of_falling_deviation_and_the_first_of_one() -> None:
    _, image, _ = patients(100, 4, 0.0)
    found = Components.of(image[:, :16], most=5)(image[:, :16])
    spread = found.std(axis=0)
    assert found.shape == (100, 5) and spread[0] == pytest.approx(1.0)
    assert (np.diff(spread) <= 1e-9).all()
    assert Components.of(np.ones((10, 3)))(np.ones((10, 3))).shape == (10, 0)
