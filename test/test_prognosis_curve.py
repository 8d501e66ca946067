import numpy as np
import pytest

from hmvnet.prognosis.curve import RiskGroup, SurvivalCurve, days_of_knots

DAYS, HAZARD = (10.0, 100.0, 400.0), (0.1, 0.5, 0.9)


def curve(**changes) -> SurvivalCurve:
    return SurvivalCurve(
        **(
            {"days": DAYS, "cumulative_hazard": HAZARD, "slope": 0.5, "centre": 1.0}
            | {"horizon_days": 300.0}
            | changes
        )
    )


def test_steps_at_the_days() -> None:
    found = curve().survival(np.array([1.0, 3.0]), np.array([0.0, 9.9, 10.0, 399.0, 1e9]))
    hazard = np.array([0, 0, 0.1, 0.5, 0.9])
    np.testing.assert_allclose(found, [np.exp(-hazard), np.exp(-hazard * np.e)])


def test_the_mean_ends_at_the_horizon() -> None:
    found = curve().restricted_mean(np.array([1.0]))
    expected = 10 + 90 * np.exp(-0.1) + 200 * np.exp(-0.5)
    np.testing.assert_allclose(found, [expected])


def test_no_risk_overflows() -> None:
    with np.errstate(all="raise", under="ignore"):
        days = curve().expected_days(np.array([-1e12, 0.0, 1e12]))
    assert (np.diff(days) < 0).all() and (days > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"days": DAYS[:2]}, "2 days, but 3 hazards"),
        ({"days": (10.0, 10.0, 20.0)}, "must rise"),
        ({"cumulative_hazard": (0.5, 0.4, 0.9)}, "must rise"),
        ({"cumulative_hazard": (0.0, 0.4, 0.9)}, "first hazard"),
        ({"slope": 0.0}, "above 0"),
        ({"slope": np.inf}, "finite"),
        ({"groups": (RiskGroup(3, (1.0,)),)}, "a group of 1"),
    ],
)
def test_what_makes_no_curve_is_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curve(**changes)


KNOTS = [[-0.75, 2932.0], [0.06, 2388.0], [0.76, 1434.0]]


def test_days_pass_through_the_knots_and_fall_everywhere() -> None:
    risks, days = np.array(KNOTS).T
    np.testing.assert_allclose(days_of_knots(KNOTS, risks), days)
    far = np.concatenate([-np.logspace(3, -3, 50), np.logspace(-3, 3, 50)])
    found = days_of_knots(KNOTS, far)
    assert (np.diff(found) < 0).all() and (found > 0).all() and found.max() < 2 * days[0]


@pytest.mark.parametrize("knots", [[[0.0, 900.0], [1.0, 900.0], [2.0, 900.0]], [[0.0, 900.0]]])
def test_equal_knots_still_fall(knots) -> None:
    found = days_of_knots(knots, np.linspace(-5, 8, 200))
    assert (np.diff(found) < 0).all()
