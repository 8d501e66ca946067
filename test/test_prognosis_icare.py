from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sksurv.metrics import concordance_index_censored

from hmvnet.case import Outcomes
from hmvnet.prognosis.icare import (
    BaggedIcare,
    Icare,
    follows_correlated,
)

REFERENCE = Path(__file__).parent / "data" / "icare_reference.npz"


def reference_cases() -> dict[str, dict[str, np.ndarray]]:
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(REFERENCE, allow_pickle=False) as stored:
        for key in stored:
            name, field = key.split("/")
            cases.setdefault(name, {})[field] = stored[key]
    return cases


CASES = reference_cases()


def fitted(case: dict[str, np.ndarray]) -> Icare | BaggedIcare:
    rho, cmin, seed, bags = case["settings"]
    rho, cmin = (None if np.isnan(v) else float(v) for v in (rho, cmin))
    model = BaggedIcare(rho, cmin, int(bags)) if bags else Icare(rho, cmin)
    outcomes = Outcomes(case["time"], case["event"])
    return model.fit(case["x"], outcomes, np.random.default_rng(int(seed)))


def cohort(seed: int, n: int = 80, p: int = 12) -> tuple[np.ndarray, Outcomes]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    failure = rng.exponential(900 * np.exp(-x[:, 0] + 0.5 * x[:, 1]))
    censoring = rng.exponential(1500, size=n)
    return x, Outcomes(np.ceil(np.minimum(failure, censoring)), failure <= censoring)


@pytest.mark.parametrize("name", CASES)
def test_same_variables_signs_and_ranking_as_the_package(name: str) -> None:
    case = CASES[name]
    model = fitted(case)
    signs = [bag.sign_ for bag in getattr(model, "bags_", [model])]
    np.testing.assert_array_equal(signs, case["sign"])
    for x, expected in ((case["x"], case["train_risk"]), (case["probe"], case["probe_risk"])):
        risk = model.predict_risk(x)
        # The package computes its z-scores in float32.
        np.testing.assert_allclose(risk, expected, rtol=1e-4, atol=1e-5)
        clear = np.abs(expected[:, None] - expected[None, :]) > 2e-5
        ours = np.sign(risk[:, None] - risk[None, :])
        np.testing.assert_array_equal(
            ours[clear], np.sign(expected[:, None] - expected[None, :])[clear]
        )


def test_reference_selects_some_and_drops_some() -> None:
    shares = [np.mean(case["sign"] != 0) for case in CASES.values()]
    assert min(shares) < 0.6
    assert max(shares) == 1.0
    assert any((case["sign"] < 0).any() and (case["sign"] > 0).any() for case in CASES.values())


def test_higher_risk_means_earlier_event() -> None:
    x, outcomes = cohort(1, n=300)
    model = Icare(cmin=0.55).fit(x, outcomes, np.random.default_rng(0))
    assert model.sign_[0] == 1
    assert model.sign_[1] == -1
    risk = model.predict_risk(x)
    assert concordance_index_censored(outcomes.event, outcomes.days, risk)[0] > 0.7


def test_correlation_matches_pandas_with_gaps() -> None:
    import pandas as pd

    x = cohort(2)[0]
    x[:, 6] = x[:, 2] + 0.5 * x[:, 3]
    x[:, 7] = 4.0
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    correlation = pd.DataFrame(x).corr().abs().to_numpy()
    for rho in (0.1, 0.2, 0.5, 0.8):
        expected = [(correlation[:k, k] > rho).any() for k in range(x.shape[1])]
        np.testing.assert_array_equal(follows_correlated(x, rho), expected)


@pytest.mark.parametrize("model", [Icare(0.8, 0.52), BaggedIcare(0.8, 0.52, bags=5)])
def test_contributions_sum_to_the_risk(model: Icare | BaggedIcare) -> None:
    x, outcomes = cohort(3)
    x[np.random.default_rng(2).random(x.shape) < 0.2] = np.nan
    x[0] = np.nan
    model.fit(x, outcomes, np.random.default_rng(4))
    parts = model.contributions(x)
    assert parts.shape == x.shape
    np.testing.assert_allclose(parts.sum(axis=1), model.predict_risk(x), atol=1e-12)
    assert (parts[np.isnan(x)] == 0).all()
    assert model.predict_risk(x)[0] == 0


def test_bag_in_which_nothing_is_observed_does_not_vote() -> None:
    x, outcomes = cohort(8, n=40, p=4)
    model = BaggedIcare(cmin=0.6, bags=12).fit(x, outcomes, np.random.default_rng(1))
    selected = np.array([bag.sign_ != 0 for bag in model.bags_])
    sometimes = int(np.flatnonzero((selected.any(axis=0)) & (~selected.all(axis=0)))[0])
    patient = np.full((1, 4), np.nan)
    patient[0, sometimes] = x[0, sometimes]
    votes = [bag.predict_risk(patient)[0] for bag in model.bags_ if bag.sign_[sometimes]]
    assert model.predict_risk(patient)[0] == pytest.approx(np.mean(votes))
    np.testing.assert_allclose(model.contributions(patient).sum(axis=1), np.mean(votes))


def test_variable_constant_in_training_cannot_move_the_risk() -> None:
    x, outcomes = cohort(4)
    x[:, 3] = 0.1
    model = Icare().fit(x, outcomes, np.random.default_rng(0))
    other = x.copy()
    other[:, 3] = 7.0
    np.testing.assert_array_equal(model.predict_risk(other), model.predict_risk(x))


def test_nothing_selected_gives_risk_zero() -> None:
    x, outcomes = cohort(4)
    model = Icare(cmin=0.99).fit(x, outcomes, np.random.default_rng(0))
    assert len(model.selected_) == 0
    np.testing.assert_array_equal(model.predict_risk(x), np.zeros(len(x)))
    assert not model.contributions(x).any()


@pytest.mark.parametrize("kind", [Icare, BaggedIcare])
def test_state_survives_a_round_trip(kind: type, tmp_path: Path) -> None:
    x, outcomes = cohort(6)
    model = kind(0.9, 0.52).fit(x, outcomes, np.random.default_rng(0))
    np.savez(tmp_path / "state.npz", **model.state())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as stored:
        again = kind.from_state(dict(stored))
    np.testing.assert_array_equal(again.predict_risk(x), model.predict_risk(x))
    np.testing.assert_array_equal(again.contributions(x), model.contributions(x))
    assert (again.rho, again.cmin) == (0.9, 0.52)


@pytest.mark.parametrize("kind", [Icare, BaggedIcare])
def test_damaged_state_is_refused(kind: type) -> None:
    x, outcomes = cohort(6)
    state = kind().fit(x, outcomes, np.random.default_rng(0)).state()
    with pytest.raises(ValueError, match="lacks mean"):
        kind.from_state({k: v for k, v in state.items() if k != "mean"})
    with pytest.raises(ValueError, match="'scale' has shape"):
        kind.from_state(state | {"scale": state["scale"][..., :-1]})


def test_same_seed_same_model() -> None:
    x, outcomes = cohort(7)
    first, second = (
        BaggedIcare(0.5, 0.52).fit(x, outcomes, np.random.default_rng(9)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.predict_risk(x), second.predict_risk(x))
    other = BaggedIcare(0.5, 0.52).fit(x, outcomes, np.random.default_rng(10))
    assert not np.array_equal(first.predict_risk(x), other.predict_risk(x))


def test_bad_input_is_named() -> None:
    x, outcomes = cohort(7)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="features of 80 patients, but outcomes of 79"):
        Icare().fit(x, outcomes[:-1], rng)
    with pytest.raises(ValueError, match="no comparable pair"):
        Icare().fit(x, Outcomes(outcomes.days, np.zeros(len(x), dtype=bool)), rng)
    with pytest.raises(ValueError, match="no comparable pair"):
        Icare().fit(x, Outcomes(np.full(len(x), 5.0), np.ones(len(x), dtype=bool)), rng)
    infinite = x.copy()
    infinite[3, 2] = np.inf
    with pytest.raises(ValueError, match="column 2 holds an infinite"):
        Icare().fit(infinite, outcomes, rng)
    with pytest.raises(ValueError, match="fitted on 12 variables, found 5"):
        Icare().fit(x, outcomes, rng).predict_risk(x[:, :5])
    with pytest.raises(ValueError, match="bags must be at least 1"):
        BaggedIcare(bags=0)
