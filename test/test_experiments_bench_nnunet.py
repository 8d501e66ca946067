"""nnU-Net's predictor on the benchmark's case: which windows are timed, and what is said."""

import numpy as np
import pytest
from conftest import CT_GRID

from hmvnet.experiments import bench_nnunet as room
from hmvnet.experiments.bench import Ledger, case_table
from hmvnet.experiments.bench_nnunet import Timed, _Windows, _with_any


class Predictor:
    """With seven windows, of which each takes as long as the clock says."""

    def _internal_get_sliding_window_slicers(self, size):
        return list(range(7))

    def _internal_maybe_mirror_and_predict(self, x):
        return x


def predicted(monkeypatch, wanted: int, starts: list[float]) -> _Windows:
    predictor, clock = Predictor(), iter(starts)
    monkeypatch.setattr(room.time, "perf_counter", lambda: next(clock))
    windows = _Windows(predictor, wanted, lambda **_: None)
    for one in predictor._internal_get_sliding_window_slicers(None):
        assert predictor._internal_maybe_mirror_and_predict(one) == one
    return windows


def test_windows_left_out_are_counted_at_the_median_of_those_timed(monkeypatch):
    """The first, which warms up, does not count; the last's start ends the one before."""
    found = predicted(monkeypatch, 3, [0.0, 50.0, 52.0, 55.0, 59.0])
    assert (found.timed, found.windows, found.left_out) == (3, 7, 2 * 3.0)


@pytest.mark.parametrize("wanted", [0, 5, 20])
def test_all_windows(monkeypatch, wanted):
    found = predicted(monkeypatch, wanted, [float(i) for i in range(7)])
    assert (found.timed, found.windows, found.left_out) == (7, 7, 0.0)


def test_what_is_said_of_it():
    some = Timed(Ledger({"network": 90.0}, {"network": 700.0}), (80, 192, 160), 3, 48)
    assert "3 of 48 windows timed" in some.title and "80 x 192 x 160" in some.title
    whole = Timed(some.ledger, some.patch, 48, 48)
    assert "timed" not in whole.title and "(48 windows)" in whole.title
    ours = Ledger({"network": 3.0}, {"network": 500.0})
    table = case_table(ours, some.ledger, "nnU-Net", some.title)
    assert [str(c.header) for c in table.columns][1:4] == ["nnU-Net s", "HM-VNet s", "ratio"]
    assert list(table.columns[3].cells)[-1] == "30.0 x"


def test_a_plan_needs_a_foreground():
    empty = _with_any(CT_GRID.image(np.zeros(CT_GRID.shape, np.uint8)))
    assert (
        empty.GetSize() == CT_GRID.size and np.asarray(room.sitk.GetArrayViewFromImage(empty)).any()
    )
