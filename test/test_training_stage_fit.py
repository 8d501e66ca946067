"""Fits of one axis: thresholds that rise, a choice by inner folds, decisions by shares."""

from __future__ import annotations

import numpy as np
import pytest

from hmvnet.ajcc import T_STAGES
from hmvnet.staging.metrics import balanced_accuracy
from hmvnet.training.stage_fit import fit_one, fit_stage_model

NAMES = ("size", "bone", "noise")


def staged(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """T1 to T3 by size; T4 by bone, whatever the size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = np.digitize(x[:, 0] + 0.3 * rng.normal(size=n), (-0.8, 0.8))
    return x, np.where(x[:, 1] > 1.0, 3, y)


@pytest.mark.parametrize("kind", ["multinomial", "ordered"])
def test_both_kinds_give_probabilities(kind: str) -> None:
    x, y = staged()
    y = np.digitize(x[:, 0], (-1, 0, 1))
    model = fit_one(x, y, T_STAGES, NAMES, kind, 1.0)
    p = model.probabilities(x)
    assert p.shape == (300, 4) and p.sum(axis=1) == pytest.approx(1, abs=1e-6) and (p >= 0).all()
    assert model.ordered == (kind == "ordered")
    assert (model.decide(p) == y).mean() > 0.85
    if model.ordered:
        assert (np.diff(model.intercepts) > 0).all()


def test_proportional_odds_are_found() -> None:
    """Weak regularisation finds the coefficients and thresholds that drew the stages."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 3))
    latent = x @ (1.5, -0.7, 0.0) + rng.logistic(size=4000)
    model = fit_one(x, np.digitize(latent, (-1.5, 0.0, 2.0)), T_STAGES, NAMES, "ordered", 1e3)
    assert model.coefficients[0] / model.scale == pytest.approx((1.5, -0.7, 0.0), abs=0.12)
    shift = model.coefficients[0] @ (model.mean / model.scale)
    assert model.intercepts + shift == pytest.approx((-1.5, 0.0, 2.0), abs=0.15)


def test_inner_folds_choose_the_kind_that_fits() -> None:
    x, y = staged()
    assert not fit_stage_model(x, y, T_STAGES, NAMES).ordered  # T4 is off the line of sizes
    rng = np.random.default_rng(2)
    line = x[:60]
    latent = 1.5 * line[:, 0] + rng.logistic(size=60)
    assert fit_stage_model(line, np.digitize(latent, (-1.5, 0, 1.5)), T_STAGES, NAMES).ordered


def test_rare_stages_are_given_as_balanced_accuracy_wants() -> None:
    x, y = staged(2000)
    keep = (y != 3) | (np.random.default_rng(0).random(2000) < 0.1)
    x, y = x[keep], y[keep]
    x[:, 1] += np.random.default_rng(1).normal(size=len(y))  # seen through noise
    model = fit_one(x, y, T_STAGES, NAMES, "multinomial", 1.0)
    p = model.probabilities(x)
    balanced = balanced_accuracy(y, model.decide(p), 4)[0]
    assert balanced > balanced_accuracy(y, p.argmax(axis=1), 4)[0] + 0.05
    assert p.mean(axis=0) == pytest.approx(model.shares, abs=0.02)  # and stay calibrated


def test_what_is_missing_counts_as_the_mean() -> None:
    x, y = staged()
    x[::7, 2] = np.nan
    x = np.concatenate([x, np.full((300, 1), np.nan)], axis=1)  # nobody has it
    model = fit_stage_model(x, y, T_STAGES, (*NAMES, "never"))
    assert np.isfinite(model.probabilities(np.full((1, 4), np.nan))).all()


def test_a_stage_of_one_patient_is_refused() -> None:
    x, y = staged(40)
    y = np.where(y == 3, 2, y)
    with pytest.raises(ValueError, match="fewer than 2 have T4"):
        fit_stage_model(x, y, T_STAGES, NAMES)


def test_features_that_do_not_help_are_left_out() -> None:
    rng = np.random.default_rng(5)
    rule = rng.integers(0, 4, 70)
    x = np.concatenate([np.eye(4)[rule], rng.normal(size=(70, 30))], axis=1)
    y = np.where(rng.random(70) < 0.85, rule, rng.integers(0, 4, 70))
    names = [*(f"rule_{s}" for s in T_STAGES), *(f"noise_{i}" for i in range(30))]
    model = fit_stage_model(x, y, T_STAGES, names, starts=[("rule_",), ("rule_", "noise_")])
    assert not model.coefficients[:, 4:].any() and model.coefficients[:, :4].any()
    assert (model.decide(model.probabilities(x)) == rule).mean() > 0.95
