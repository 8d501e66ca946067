import numpy as np
import pytest
from rich.console import Console

from hmvnet.exits import RefusedError
from hmvnet.experiments.bench_against import _Side, _table, bench_against, mask_change

ROWS = [
    {"wall": 4.0, "cpu": 6.0, "network": 3.0, "peak_mb": 3000.0},
    {"wall": 8.0, "cpu": 6.0, "network": 3.0, "peak_mb": 3200.0},
]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="expected model/hmvnet in it"):
        bench_against(tmp_path, tmp_path / "run", tmp_path, 1, Console())
    assert not (tmp_path / "run").exists()


def test_a_checkout_that_cannot_run_the_case_is_refused(tmp_path):
    package = tmp_path / "model"
    (package / "hmvnet").mkdir(parents=True)
    (package / "hmvnet/__init__.py").touch()  # an earlier one, without what is asked of it
    side = _Side(package, tmp_path, tmp_path, tmp_path / "mask.mha")
    with pytest.raises(RefusedError, match="could not run the case"):
        side.turn(counts=True)
    side.end()


def test_ratios_are_of_the_same_turn():
    after = [dict(row, wall=row["wall"] / 2, peak_mb=1000.0) for row in ROWS]
    columns = [list(column.cells) for column in _table(ROWS, after, "2").columns]
    assert columns[0] == ["whole case s", "processor s", "network s", "peak memory MB"]
    assert columns[1] == ["6.00", "6.00", "3.00", "3200"]
    assert columns[3] == ["0.50", "1.00", "1.00", "0.31"]


def test_what_changed_in_a_mask():
    before = np.array([0, 1, 1, 2, 2, 2])
    assert mask_change(before, before) == (0, 1.0)
    assert mask_change(before, np.array([0, 1, 1, 2, 2, 0])) == (1, pytest.approx(0.8))
    assert mask_change(before, np.array([0, 1, 1, 0, 0, 0]))[1] == 0.0
