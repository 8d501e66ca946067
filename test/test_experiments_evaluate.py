import json

import pandas as pd
import pytest
from conftest import write_patient
from rich.console import Console

from hmvnet.config import DataSettings, Settings
from hmvnet.experiments.evaluate import evaluate_segmentation
from hmvnet.settings_file import load_settings


def test_scores_of_ours_and_the_platform_stand_in_one_table(tiny_bundle, tmp_path):
    for name in ("A-1", "A-2"):
        write_patient(tmp_path / "data", name, "plain")
    wanted = Settings(data=DataSettings(root=str(tmp_path / "data")))
    table = evaluate_segmentation(wanted, tiny_bundle, tmp_path, 0, Console(quiet=True))
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert rows["patient_id"].tolist() == ["A-1", "A-2"]
    assert rows["gtvp_dice"].mean() == pytest.approx(table.gtvp_mean_dice)
    for name in ("gtvp", "gtvn"):
        some = rows[rows[f"{name}_truth_mm3"] + rows[f"{name}_prediction_mm3"] > 0]
        assert some[f"{name}_platform_dice"].tolist() == pytest.approx(
            some[f"{name}_dice"].tolist()
        )
        assert some[f"{name}_platform_jaccard"].between(0, 1).all()


def test_what_is_given_takes_the_bundles_place_and_is_said(tiny_bundle, tmp_path, capsys):
    """Evaluation once read these settings and used the bundle's own without a word."""
    write_patient(tmp_path / "data", "A-1", "plain")
    given = ["data.region=centre", "postprocessing.threshold_gtvp=0.05"]
    found = {}
    for name, overrides in (("bundle", []), ("given", given)):
        wanted = load_settings(None, [f"data.root={tmp_path / 'data'}", *overrides])
        evaluate_segmentation(wanted, tiny_bundle, tmp_path / name, 0, Console())
        found[name] = json.loads((tmp_path / name / "scores.json").read_text())
    rows = {name: pd.read_csv(tmp_path / name / "scores.csv") for name in found}
    assert rows["given"]["gtvp_prediction_mm3"][0] > rows["bundle"]["gtvp_prediction_mm3"][0]
    assert found["bundle"]["notes"] == [] and found["bundle"]["bundle"] == "tiny"
    assert len(found["given"]["notes"]) == 2
    said = capsys.readouterr().out
    assert "postprocessing.threshold_gtvp=0.05" in said and "data.region=centre" in said


def test_names_are_shown_and_never_obeyed(tiny_bundle, tmp_path, capsys):
    names = ["=1+1", "<b>-1", "[red]-1", "a\n\x1b[J-1"]
    for name in names:
        write_patient(tmp_path / "data", name, "plain")
    wanted = Settings(data=DataSettings(root=str(tmp_path / "data")))
    evaluate_segmentation(wanted, tiny_bundle, tmp_path, 0, Console(width=200))
    said = capsys.readouterr()
    assert "[red]" in said.out and "\x1b[J" not in said.out + said.err
    assert r"a \x1b[J (1)" in said.err.splitlines()[1] and "[red] (1)" in said.err
    written = pd.read_csv(tmp_path / "scores.csv")["patient_id"].tolist()
    assert written == sorted([*names[1:], "'=1+1"], key=lambda name: name.removeprefix("'"))
