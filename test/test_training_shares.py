import numpy as np
import pytest

from hmvnet.case import Outcomes, harrell_c
from hmvnet.training.shares import judged_shares

GIVEN = {"good": 0.25, "poor": 0.75}


def cohort(n: int) -> tuple[dict[str, np.ndarray], Outcomes, np.ndarray]:
    """Two parts in different units, one of which knows more; three folds."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=n)
    days = rng.exponential(900 * np.exp(-truth))
    good = truth + rng.normal(size=n)
    risks = {"good": good, "poor": 50 * (good + 2 * rng.normal(size=n))}
    return risks, Outcomes(days, rng.random(n) < 0.5), np.arange(n) % 3


def shares(risks, outcomes, fold, given) -> dict[str, float]:
    """Weights in units of the parts' deviations."""
    weights = judged_shares(risks, outcomes, fold, given)
    assert sum(weights.values()) == pytest.approx(1)
    parts = {name: weight * risks[name].std() for name, weight in weights.items()}
    return {name: part / sum(parts.values()) for name, part in parts.items()}


def test_the_more_patients_the_less_a_part_has_that_adds_nothing() -> None:
    found = [shares(*cohort(n), GIVEN)["good"] for n in (60, 300, 6000)]
    assert 0.25 < found[0] < found[1] < found[2] and found[2] > 0.8


def test_what_a_part_adds_counts_and_not_how_good_it_is_alone() -> None:
    """Two parts that know the same half, and a weaker one that alone knows the other."""
    rng = np.random.default_rng(1)
    n, same, other = 1500, *rng.normal(size=(2, 1500))
    days = rng.exponential(900 * np.exp(-same - 0.8 * other))
    risks = {name: same + 0.2 * rng.normal(size=n) for name in ("one", "two")}
    risks["weak"] = other + 0.2 * rng.normal(size=n)
    outcomes, fold = Outcomes(days, rng.random(n) < 0.6), np.arange(n) % 3
    alone = {name: harrell_c(outcomes, risk) for name, risk in risks.items()}
    found = shares(risks, outcomes, fold, dict.fromkeys(risks, 1 / 3))
    assert min(alone, key=alone.get) == "weak" == max(found, key=found.get)


def test_equals_keep_what_they_were_given_and_units_do_not_matter() -> None:
    risks, outcomes, fold = cohort(200)
    same = {"good": risks["good"], "poor": 10 * risks["good"]}
    assert shares(same, outcomes, fold, GIVEN)["poor"] == pytest.approx(0.75, abs=0.01)


def test_levels_of_folds_do_not_matter() -> None:
    """Risks of two folds are of two fits: nobody compares them."""
    risks, outcomes, fold = cohort(300)
    shifted = {name: risk + 0.5 * risk.std() * fold for name, risk in risks.items()}
    spread = {name: shifted[name].std() / risks[name].std() for name in risks}
    assert spread["good"] == pytest.approx(spread["poor"], rel=0.05)
    before, after = (shares(some, outcomes, fold, GIVEN)["good"] for some in (risks, shifted))
    assert after == pytest.approx(before, abs=0.05)


@pytest.mark.parametrize("why", ["no event", "risks the wrong way round", "risks of one value"])
def test_parts_that_order_nobody_keep_what_they_were_given(why: str) -> None:
    risks, outcomes, fold = cohort(90)
    if why == "no event":
        outcomes = Outcomes(outcomes.days, np.zeros(90, bool))
    elif why == "risks the wrong way round":
        risks = {name: -risk for name, risk in risks.items()}
    else:
        risks = {name: np.zeros(90) for name in risks}
        assert judged_shares(risks, outcomes, fold, GIVEN) == pytest.approx(GIVEN)
        return
    assert shares(risks, outcomes, fold, GIVEN) == pytest.approx(GIVEN)
