import pickle

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CT_GRID

from hmvnet.case import (
    CaseError,
    ClinicalRecord,
    Finding,
    Grid,
    Outcome,
    Outcomes,
    Verdict,
    harrell_c,
    has_comparable_pair,
)
from hmvnet.exits import RefusedError

OBLIQUE = tuple(sitk.Euler3DTransform((0, 0, 0), 0.2, -0.3, 0.5).GetMatrix())


@pytest.mark.parametrize("direction", [CT_GRID.direction, OBLIQUE, (-1, 0, 0, 0, 1, 0, 0, 0, -1)])
def test_grid_agrees_with_simpleitk(direction):
    grid = Grid((5, 6, 7), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), tuple(map(float, direction)))
    image = grid.image(np.zeros(grid.shape, np.uint8))
    assert Grid.of(image) == grid
    index = np.array([[0.5, 1.25, 6.0], [-0.5, 0, 2]])
    expected = [image.TransformContinuousIndexToPhysicalPoint(i.tolist()) for i in index]
    np.testing.assert_allclose(grid.points(index), expected)
    np.testing.assert_allclose(grid.indices(grid.points(index)), index, atol=1e-9)


def test_grid_crop_keeps_physical_positions():
    grid = Grid((8, 9, 10), (1.0, 2.0, 3.0), (5.0, 5.0, 5.0), OBLIQUE)
    part = grid.crop((slice(2, 7), slice(1, 4), slice(3, 8)))
    assert part.shape == (5, 3, 5)
    np.testing.assert_allclose(part.points(np.zeros((1, 3))), grid.points(np.array([[3, 1, 2]])))


def test_how_deep_a_point_lies_in_a_grid_whatever_way_its_axes_run():
    turned = Grid((10, 20, 30), (1.0, 2.0, 3.0), (5.0, 0.0, 0.0), (0, 0, 1, 1, 0, 0, 0, 1, 0))
    centre = turned.points(np.array([[4.5, 9.5, 14.5]]))
    assert turned.depth(centre) == pytest.approx([5.0])  # along x, the shortest way out
    assert turned.depth(turned.corners()) == pytest.approx(np.zeros(8), abs=1e-9)
    last = turned.points(np.array([[4.5, 9.5, 29.0], [4.5, 9.5, 30.0], [-1.5, 9.5, 14.5]]))
    assert turned.depth(last) == pytest.approx([1.5, -1.5, -1.0])
    inner = turned.crop((slice(0, 30), slice(2, 20), slice(1, 9)))
    assert turned.covers(turned) and turned.covers(inner) and not inner.covers(turned)


def test_index_box_is_none_without_overlap():
    far = Grid((5, 5, 5), (1.0, 1.0, 1.0), (1e4, 0.0, 0.0))
    assert CT_GRID.index_box(far) is None
    assert CT_GRID.intersection(far) is None


def test_grid_refuses_an_array_of_another_shape():
    with pytest.raises(ValueError, match="shape"):
        CT_GRID.image(np.zeros((2, 2, 2)))


def test_a_verdict_names_each_code_once():
    assert str(Verdict.of(())) == "ok"
    found = Verdict.of(Finding(code, "x") for code in ("no-head", "no-lesion", "no-head"))
    assert found == Verdict("review", ("no-head", "no-lesion"))
    assert str(found) == "review (no-head, no-lesion)"
    assert Verdict.refusing(CaseError("x", "ct-not-hu")) == Verdict("refused", ("ct-not-hu",))
    assert Verdict.refusing(RefusedError("x")) == Verdict("refused", ("input",))


def test_outcomes_are_those_of_the_patients_in_order():
    outcomes = Outcomes.of([Outcome(30, True), Outcome(10.5, False), Outcome(20, True)])
    assert len(outcomes) == 3 and (outcomes.days.dtype, outcomes.event.dtype) == (float, bool)
    assert outcomes.days.tolist() == [30, 10.5, 20]
    again = outcomes[[2, 0, 2]]
    assert again.days.tolist() == [20, 30, 20] and again.event.all()
    early = outcomes.until(15)
    assert early.days.tolist() == [16, 10.5, 16] and not early.event.any()
    assert len(Outcomes.of([])) == 0


def test_outcomes_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"days and event must be \[n\] each"):
        Outcomes([1.0, 2.0], [True])
    for days in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            Outcomes([1.0, days], [True, False])
    with pytest.raises(ValueError, match="True/False or 1/0"):
        Outcomes([1.0, 2.0], [1, 2])


@pytest.mark.parametrize(
    ("days", "event", "expected"),
    [
        ([1, 2], [1, 0], True),
        ([1, 2], [0, 1], False),  # who was lost before may have had the event before, too
        ([1, 1], [1, 0], True),  # censored at the time of the event: outlasts it
        ([1, 1], [1, 1], False),
        ([1, 2], [0, 0], False),
        ([], [], False),
    ],
)
def test_who_compares(days, event, expected):
    assert has_comparable_pair(Outcomes(days, event)) is expected


def test_harrells_concordance_is_scikit_survivals():
    """Ties in time, in risk (to 1e-8) and between events and censored patients included."""
    from sksurv.metrics import concordance_index_censored

    for seed in range(20):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 60))
        days, event = rng.integers(1, 12, n).astype(float), rng.random(n) < 0.5
        risk = rng.integers(0, 6, n) + rng.choice([0.0, 5e-9, 2e-8], n)
        outcomes = Outcomes(days, event)
        found = harrell_c(outcomes, risk)
        if has_comparable_pair(outcomes):
            assert found == concordance_index_censored(event, days, risk)[0]
        else:
            assert np.isnan(found)


def test_a_record_goes_to_another_process():
    record = ClinicalRecord({"Age": 60.0, "M-stage": "M0", "Treatment": None})
    assert pickle.loads(pickle.dumps(record)) == record  # noqa: S301  our own


@pytest.mark.parametrize(
    ("value", "centre"),
    [(3.0, "3"), (1000002.0, "1000002"), (20230101.0, "20230101"), ("CHUM", "CHUM"), (None, None)],
)
def test_a_record_names_its_centre(value: float | str | None, centre: str | None) -> None:
    assert ClinicalRecord({"CenterID": value}).centre == centre
    assert ClinicalRecord({"Age": 1.0, "Center ID": value}).centre == centre
    assert ClinicalRecord().centre is None
