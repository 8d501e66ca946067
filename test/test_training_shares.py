import numpy as np
import pytest

from hmvnet.case import Outcomes
from hmvnet.training.shares import judged_shares

GIVEN = {"good": 0.25, "poor": 0.75}


def cohort(n: int) -> tuple[dict[str, np.ndarray], Outcomes, np.ndarray]:
    """Two parts in different units, one of which knows more; three folds."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=n)
    days = rng.exponential(900 * np.exp(-truth))
    risks = {"good": truth + rng.normal(size=n), "poor": 50 * (truth + 3 * rng.normal(size=n))}
    return risks, Outcomes(days, rng.random(n) < 0.5), np.arange(n) % 3


def share(n: int) -> float:
    risks, outcomes, fold = cohort(n)
    weights = judged_shares(risks, outcomes, fold, GIVEN)
    assert sum(weights.values()) == pytest.approx(1)
    parts = {name: weight * risks[name].std() for name, weight in weights.items()}
    return parts["good"] / sum(parts.values())


def test_the_more_patients_the_more_the_better_part_has() -> None:
    shares = [share(n) for n in (60, 300, 3000)]
    assert 0.25 < shares[0] < shares[1] < shares[2] == 1.0


def test_equals_keep_what_they_were_given_and_units_do_not_matter() -> None:
    risks, outcomes, fold = cohort(200)
    same = {"good": risks["good"], "poor": 10 * risks["good"]}
    weights = judged_shares(same, outcomes, fold, GIVEN)
    assert weights["poor"] * 10 / weights["good"] == pytest.approx(3)


def test_folds_in_which_nobody_compares_judge_nobody() -> None:
    risks, outcomes, fold = cohort(30)
    nobody = Outcomes(outcomes.days, np.zeros(30, bool))
    weights = judged_shares(risks, nobody, fold, GIVEN)
    assert weights["poor"] * risks["poor"].std() == pytest.approx(
        3 * weights["good"] * risks["good"].std()
    )
