import numpy as np
import pytest

from hmvnet.case import Outcomes
from hmvnet.survival.decision import decision_curve


def test_without_censoring_it_is_hits_less_weighed_false_alarms() -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(size=400)
    event = rng.random(400) < chance
    outcomes = Outcomes(np.where(event, 200.0, 2000.0), event)
    found = decision_curve(outcomes, chance, 1000.0, np.array([0.1, 0.5]))
    for i, threshold in enumerate((0.1, 0.5)):
        acted = chance >= threshold
        hits, alarms = (acted & event).mean(), (acted & ~event).mean()
        assert found.model[i] == pytest.approx(hits - alarms * threshold / (1 - threshold))
    assert found.everyone[1] == pytest.approx(2 * event.mean() - 1)
    assert found.model[1] > max(found.everyone[1], 0) + 0.1


def test_nobody_to_act_on_is_worth_nothing() -> None:
    outcomes = Outcomes(np.array([100.0, 900.0, 1000.0]), np.array([True, False, False]))
    found = decision_curve(outcomes, np.full(3, 0.05), 500.0, np.array([0.2]))
    assert found.model[0] == 0 and found.everyone[0] == pytest.approx(1 / 3 - 2 / 3 * 0.25)
    with pytest.raises(ValueError, match="follow-up ends"):
        decision_curve(outcomes, np.full(3, 0.05), 5000.0)
