import numpy as np
import pandas as pd
from rich.console import Console

from hmvnet.experiments import bench_survival as room


def test_a_row_a_model_and_a_column_a_size(tmp_path, monkeypatch):
    seconds = {"quick": lambda x, outcomes: len(x) / 100, "slow": lambda x, outcomes: len(x) ** 2}
    monkeypatch.setattr(room, "_models", lambda icare: seconds)
    table = room.bench_survival(tmp_path, Console(quiet=True), (100, 400))
    np.testing.assert_allclose(table.loc["quick"], [1, 4, 1])
    np.testing.assert_allclose(table.loc["slow"], [1e4, 16e4, 2])
    assert list(pd.read_csv(tmp_path / "bench.csv")["seconds of a fit"]) == ["quick", "slow"]
    assert (tmp_path / "bench.md").stat().st_size > 50


def test_what_is_timed_is_fitted():
    x, outcomes = room.simulated(100, 12)
    models = room._models(None)
    del models["fusion, table alone"]
    assert all(timed(x, outcomes) > 0 for timed in models.values())
