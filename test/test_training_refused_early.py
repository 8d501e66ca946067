"""What no model can be fitted to is refused before the networks run, which takes hours."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_patient
from rich.console import Console

from hmvnet.config import Settings
from hmvnet.experiments.compare_staging import compare_staging
from hmvnet.experiments.compare_survival import compare_survival
from hmvnet.experiments.evaluate_survival import recalibrate_survival
from hmvnet.experiments.external_survival import compare_elsewhere
from hmvnet.settings_file import load_settings
from hmvnet.training.staging_bundle import train_staging_bundle
from hmvnet.training.survival_bundle import train_survival_bundle

QUIET = Console(quiet=True)
SHIPPED = Path(__file__).parents[1] / "weights" / "hmvnet-base"


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    """No network may run."""
    for room in ("hmvnet.training.descriptions", "hmvnet.training.staging"):
        monkeypatch.setattr(f"{room}.Segmenter", lambda *_: pytest.fail("a network was loaded"))


@pytest.fixture
def settings(tmp_path) -> Settings:
    """Twelve patients, two relapses, one stage of N."""
    rows = ["PatientID,Age,T-stage,N-stage,Relapse,RFS"]
    for i in range(12):
        write_patient(tmp_path / "data", f"A-{i}", "plain")
        rows.append(f"A-{i},{50 + i},T{1 + i % 4},N0,{int(i < 2)},{100 * (i % 5 + 1)}")
    (tmp_path / "data" / "t.csv").write_text("\n".join(rows) + "\n")
    return load_settings(None, [f"data.root={tmp_path / 'data'}"])


@pytest.fixture
def run(tmp_path) -> Path:
    """An empty run folder."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_too_few_relapses(settings, run):
    with pytest.raises(ValueError, match="2 relapses, expected at least 5 to recalibrate by"):
        recalibrate_survival(settings, SHIPPED, run, QUIET)
    with pytest.raises(ValueError, match="5 folds need that many patients with and without"):
        compare_survival(settings, SHIPPED, run, QUIET, ["icare"], 1)
    halves = load_settings(None, [f"data.root={settings.data.root}", "data.folds=2"])
    few = [line.replace(",1,", ",0,") for line in _table(settings).read_text().splitlines(True)]
    _table(settings).write_text("".join(few))
    with pytest.raises(ValueError, match="6 patients with 0 relapses, expected at least 10"):
        train_survival_bundle(halves, SHIPPED, run)
    with pytest.raises(ValueError, match="12 patients with 0 relapses, expected at least 10"):
        compare_elsewhere(settings, run, SHIPPED, run, QUIET, ["icare"])


@pytest.mark.parametrize("name", ["oracle", "coxph+images"])
def test_models_that_there_are_not(settings, run, name):
    with pytest.raises(ValueError, match=f"unknown survival model '{name.replace('+', '.')}'"):
        compare_survival(settings, SHIPPED, run, QUIET, [name], 1)
    with pytest.raises(ValueError, match="reference 'coxph' is not compared"):
        compare_survival(settings, SHIPPED, run, QUIET, ["icare"], 1, reference="coxph")


def test_too_few_of_a_stage(settings, run):
    for work in (compare_staging, train_staging_bundle):
        with pytest.raises(ValueError, match="12 patients of whom fewer than 2 have N1, N2, N3"):
            work(settings, SHIPPED, run, QUIET)


def _table(settings: Settings) -> Path:
    return Path(settings.data.root) / "t.csv"
