"""Phantoms and what is wrong with them: rows that are kept."""

from types import SimpleNamespace

import pandas as pd
from rich.console import Console

from hmvnet.bundle import load_bundle
from hmvnet.experiments import bench_verdict as room


def test_rows_are_of_one_bundle_and_its_settings_and_none_are_lost(
    tiny_bundle, tmp_path, monkeypatch
):
    manifest, made = load_bundle(tiny_bundle).manifest, []

    def pipeline(bundle, overrides, needs_risk):
        return SimpleNamespace(manifest=manifest, overrides=overrides)

    def outcome(phantom, ct, pet, pipeline):
        made.append(list(pipeline.overrides))
        return {"verdict": "review" if pipeline.overrides else "ok", "codes": "", "dice": 0.5}

    monkeypatch.setattr(room, "load_pipeline", pipeline)
    monkeypatch.setattr(room, "render", lambda plan: SimpleNamespace(ct=0, pet=0))
    monkeypatch.setattr(room, "_outcome", outcome)

    def verdicts(*overrides, count=2, seed=3):
        console = Console(quiet=True)
        room.bench_verdict(tiny_bundle, tmp_path, count, seed, overrides, console, ["as it is"])
        return (tmp_path / "verdicts.md").read_text()

    plain = verdicts()
    flipped = verdicts("inference.flips=true")
    assert made == [[], [], ["inference.flips=true"], ["inference.flips=true"]]
    assert verdicts() == plain != flipped and len(made) == 4
    rows = pd.read_csv(tmp_path / "verdicts.csv")
    assert len(rows) == 4 and rows["of"].nunique() == 2
    # What is told is of the cohort that was asked for, whatever else is kept.
    assert verdicts(count=1) != plain == verdicts()
    assert sorted(verdicts(count=1, seed=4).split()) == sorted(verdicts(count=1).split())
