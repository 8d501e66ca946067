"""Rule and models on the same folds, with paired intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from test_training_staging import staged_patients

from hmvnet.config import DataSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments import compare_staging as compared
from hmvnet.training.staging import StageData


@pytest.fixture
def table(tiny_bundle, tmp_path, monkeypatch) -> pd.DataFrame:
    monkeypatch.setattr(compared, "load_staged", lambda *_: staged_patients())
    monkeypatch.setattr(compared, "SAMPLES", 200)
    settings = Settings(data=DataSettings(root=str(tmp_path), folds=3))
    console = Console(quiet=True)
    masks = compared.known_masks(["predicted"])
    return compared.compare_staging(settings, tiny_bundle, tmp_path / "run", console, masks)


def test_one_table_of_every_method(table, tmp_path) -> None:
    assert set(table["folds"]) == {"3 folds", "centre left out"}
    t = table[(table["axis"] == "T") & (table["folds"] == "3 folds")].set_index("method")
    assert list(t.index) == ["rule", "size alone", "without invasion", "model"]
    assert t.loc["rule", "to the rule"] == "" and t.loc["model", "to the rule"].startswith("+")
    accuracy = t["balanced accuracy"].str.split(" ").str[0].astype(float)
    assert accuracy["model"] > accuracy["without invasion"] and accuracy["rule"] == 0.25
    area = t["area of T4"].str.split(" ").str[0].astype(float)
    assert area["model"] > 0.9 > area["rule"]
    for name in ("staging.md", "staging.csv", "centres.csv", "stages.csv"):
        assert (tmp_path / "run" / name).is_file()
    long = pd.read_csv(tmp_path / "run" / "stages.csv")
    assert len(long) == 2 * (89 + 89) and set(long["stage"].str[0]) == {"T", "N"}


def test_the_rule_is_read_from_the_features() -> None:
    patients = staged_patients()
    for axis, said in (("t", "T2"), ("n", None)):
        data = StageData.of(patients, axis)
        given = compared.by_rule(data, patients, axis).given
        expected = data.y if said is None else np.full(len(data.y), data.stages.index(said))
        assert np.array_equal(given, expected)


def test_unknown_masks_are_refused() -> None:
    assert compared.known_masks(()) == ("true", "predicted")
    with pytest.raises(RefusedError, match="--masks best: expected true or predicted"):
        compared.known_masks(["best"])
