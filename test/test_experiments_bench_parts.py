from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import FAST_PROGNOSIS
from rich.console import Console

from hmvnet.config import Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments import bench_parts as room

QUIET = Console(quiet=True)


def test_the_regret_is_to_the_best_on_average() -> None:
    """Not to the best of each draw, which nobody can be."""
    words = [*room.PARTS.values(), *room.OTHERS.values()]
    rows = [
        {
            **{"size": 100, "events": 40, "fusion": fusion, "fusion with MTLR": 0.7},
            **dict.fromkeys(words, 0.5),
            **better,
        }
        for fusion, better in (
            (0.70, {"Cox": 0.72, "ICARE": 0.60}),
            (0.68, {"Cox": 0.68, "ICARE": 0.75}),
        )
    ]
    (row,) = room.regrets(pd.DataFrame(rows)).to_dict("records")
    assert row["best"] == "Cox" and row["draws"] == 2
    assert row["regret"] == pytest.approx(0.01) and row["standard error"] == pytest.approx(0.01)
    assert row["MTLR: gain as a part"] == pytest.approx(0.01) == row["MTLR: its error"]


def test_draws_are_kept(tmp_path, monkeypatch) -> None:
    settings = Settings(prognosis=FAST_PROGNOSIS.model_copy(update={"members": 1}))
    monkeypatch.setattr(room, "MOST_TESTED", 200)
    monkeypatch.setattr(room, "OTHERS", {"rsf": "random survival forest"})
    table = room.bench_parts(settings, "whas500", tmp_path, [100], 2, 0, QUIET)
    assert (table[["fusion", "Cox", "ICARE"]] > 0.65).all().all()
    assert 0 < abs(table["random survival forest: gain as a part"][0]) < 0.05
    draws = pd.read_csv(tmp_path / "draws.csv")
    assert list(draws["draw"]) == [0, 1] and draws["Cox"].nunique() == 2
    monkeypatch.setattr(room, "_score", lambda *_: pytest.fail("it is there"))
    again = room.bench_parts(settings, "whas500", tmp_path, [100], 2, 0, QUIET)
    np.testing.assert_allclose(again["regret"], table["regret"])


def test_what_cannot_be_drawn_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="data set 'mnist'"):
        room.bench_parts(Settings(), "mnist", tmp_path, [100], 2, 0, QUIET)
    none = Settings(prognosis={"forest_weight": 0.0})
    with pytest.raises(RefusedError, match=r"prognosis.forest_weight is 0; expected every part"):
        room.bench_parts(none, "whas500", tmp_path, [100], 2, 0, QUIET)
    with pytest.raises(ValueError, match="500 patients: none are left to test with 480"):
        room.bench_parts(Settings(), "whas500", tmp_path, [480], 2, 0, QUIET)


def test_draws_are_of_these_very_outcomes_and_none_are_lost(tmp_path, monkeypatch) -> None:
    made, schema = room._patients(Settings(), "whas500", tmp_path)
    given, scored = [made], []

    def score(patients, schema, options, size, seed):
        scored.append(seed)
        return {"events": 1, "mean": np.mean([p.outcome.days for p in patients])}

    monkeypatch.setattr(room, "_patients", lambda *_: (given[-1], schema))
    monkeypatch.setattr(room, "_score", score)
    monkeypatch.setattr(room, "regrets", lambda draws: draws[["mean"]])

    def mean(seed=0) -> float:
        return room.bench_parts(Settings(), "", tmp_path, [100], 1, seed, QUIET)["mean"][0]

    before = mean()
    later = [replace(p, outcome=replace(p.outcome, days=2 * p.outcome.days)) for p in made]
    given.append(later)
    assert mean() == pytest.approx(2 * before) and len(scored) == 2
    given.append(made)
    assert mean() == before and len(scored) == 2  # what another call found is still there
    mean(seed=1)
    assert mean() == before and len(scored) == 3


def test_without_patients_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no patients: expected --data, one of .*flchain"):
        room._patients(Settings(), "", tmp_path)
