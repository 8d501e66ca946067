import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import COARSE, FAST_PROGNOSIS, SMALL_NETWORK, described_patients, two_folds_of_two
from rich.console import Console

from hmvnet.bundle import load_bundle
from hmvnet.case import Outcomes
from hmvnet.cli import main
from hmvnet.config import DataSettings, NetworkSettings, Settings, TrainingSettings
from hmvnet.exits import Exit, RefusedError, UnfinishedError
from hmvnet.experiments import compare_networks as networks_room
from hmvnet.experiments import compare_survival as survival_room
from hmvnet.experiments.compare_networks import Contender, compare_networks, parse_contender
from hmvnet.experiments.compare_survival import TRUTH, compare_survival, load_cohort
from hmvnet.experiments.compare_table import Cost, Scored, comparison
from hmvnet.settings_file import load_settings
from hmvnet.training.ways import Ways

QUIET = Console(quiet=True)


# --- Task 1 --------------------------------------------------------------------------------------


def test_a_contender_is_a_name_and_options():
    contender = Contender.parse("hmvnet channels=8 head_channels=8 depths=1,1,1,1")
    assert contender.network == NetworkSettings(
        name="hmvnet", options={"channels": 8, "head_channels": 8, "depths": (1, 1, 1, 1)}
    )
    assert "/" not in contender.folder and " " not in contender.folder


@pytest.mark.parametrize("text", ["vnet9", "hmvnet colour=red"])
def test_a_wrong_contender_stops_before_training(text):
    with pytest.raises(ValueError, match=r"unknown network|does not take|no option 'colour'"):
        parse_contender(text)


def test_a_contender_without_a_name_is_refused():
    with pytest.raises(RefusedError, match=r"--network '': expected one of hmvnet"):
        parse_contender(" ")


@pytest.mark.parametrize("words", ["--train-minutes nan", "--minutes 0", "--train-minutes=-1"])
def test_minutes_that_are_none_are_refused_before_anything(words, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["segmentation", "compare", "--run", str(tmp_path / "run"), *words.split()])
    assert ended.value.code == Exit.REFUSED and not (tmp_path / "run").exists()
    assert "expected a number above 0" in capfd.readouterr().err


@pytest.fixture
def task1(tmp_path):
    """Settings of two short folds, and two contenders."""
    settings = Settings(
        data=two_folds_of_two(tmp_path / "data"),
        preprocessing=COARSE,
        training=TrainingSettings(steps=2, patch_size=(32, 32, 32), warmup_steps=1),
    )
    options = " ".join(f"{k}={v}" for k, v in SMALL_NETWORK.items())
    return settings, [Contender.parse(f"hmvnet {options}"), Contender.parse("unet3d width=4")]


def test_networks_side_by_side(task1, tmp_path):
    """Every patient once, by the fold that did not see them; a second call computes nothing."""
    settings, contenders = task1
    run = tmp_path / "run"
    table = compare_networks(settings, contenders, run, None, QUIET)
    assert list(table["network"]) == [c.label for c in contenders]
    assert (table["patients"] == 4).all()
    for name in ("segmentation.md", "segmentation.csv", "segmentation.png"):
        assert (run / name).stat().st_size > 50
    stored = run / contenders[0].folder / "scores.json"
    assert len(json.loads(stored.read_text())["scores"]) == 4
    assert (run / contenders[0].folder / "fold0" / "examples.png").stat().st_size > 1000
    before = stored.stat().st_mtime_ns
    again = compare_networks(settings, contenders, run, None, QUIET)
    assert stored.stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(table, again)


def test_one_fold_of_a_comparison_of_all_is_scored_by_its_own_network(task1, tmp_path):
    settings, contenders = task1
    both = compare_networks(settings, contenders[1:], tmp_path / "both", None, QUIET)
    again = compare_networks(settings, contenders[1:], tmp_path / "both", [1], QUIET)
    alone = compare_networks(settings, contenders[1:], tmp_path / "alone", [1], QUIET)
    figures = ["network", "patients", "GTVp mean Dice", "GTVp HD95 mm", "steps a fold"]
    pd.testing.assert_frame_equal(again[figures], alone[figures])
    assert list(both["patients"]) == [4] and list(again["patients"]) == [2]
    bundle = tmp_path / "both" / contenders[1].folder / "bundle"
    assert load_bundle(bundle).manifest.segmentation.files == [
        "fold0.safetensors",
        "fold1.safetensors",
    ]


def test_patients_to_be_scored_are_not_trained_on_and_that_is_known_before(
    task1, tmp_path, monkeypatch
):
    settings, contenders = task1
    monkeypatch.setattr(
        networks_room, "train_segmentation_bundle", lambda *_, **__: pytest.fail("trained")
    )
    with pytest.raises(ValueError, match=r"4 of the 4 patients to be scored would be trained on"):
        compare_networks(
            settings, contenders, tmp_path / "run", None, QUIET, Path(settings.data.root)
        )


def test_no_way_of_inference_is_chosen_on_whom_it_is_scored_on(task1, tmp_path, monkeypatch):
    """Fold 0 would have windows and fold 1 one pass: each is run as the other would have it."""
    settings, contenders = task1

    def ways(network, validation, settings, device, key, folder):
        windows = 0.9 if folder.name == "fold0" else 0.1
        return Ways(2, {"never": 0.5, "always": windows, "both": 0.0}, {})

    ran = []

    class Watched(networks_room.Pipeline):
        def __init__(self, bundle, device, inference, **more):
            (file,) = bundle.manifest.segmentation.files
            ran.append((file, inference.windows))
            super().__init__(bundle, device, inference, **more)

    monkeypatch.setattr(Ways, "of", ways)
    monkeypatch.setattr(networks_room, "Pipeline", Watched)
    compare_networks(settings, contenders[:1], tmp_path / "run", None, QUIET)
    assert ran == [("fold0.safetensors", "never"), ("fold1.safetensors", "always")]


def test_patches_that_a_network_does_not_take_are_refused_at_once(task1, tmp_path):
    settings, contenders = task1
    wrong = [contenders[0], Contender.parse("resenc-unet width=4 training.patch_size=40,40,40")]
    with pytest.raises(ValueError, match=r"network 'resenc-unet' cannot be trained on 1 x 2 x 40"):
        compare_networks(settings, wrong, tmp_path / "run", None, QUIET)
    small = [Contender.parse("hmvnet channels=8 head_channels=8 training.patch_size=16,16,16")]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        compare_networks(settings, small, tmp_path / "run", None, QUIET)
    assert not (tmp_path / "run" / contenders[0].folder).exists()


def test_time_is_up_and_the_next_call_goes_on(task1, tmp_path):
    settings, contenders = task1
    run = tmp_path / "run"
    with pytest.raises(UnfinishedError, match="step 1 of 2"):
        compare_networks(settings, contenders[:1], run, [0], QUIET, minutes=1e-9)
    with pytest.raises(UnfinishedError, match="step 1 of 2"):  # the first fold is there now
        compare_networks(settings, contenders[:1], run, None, QUIET, minutes=1e-9)
    assert len(compare_networks(settings, contenders[:1], run, None, QUIET)) == 1


def test_equal_time_gives_each_network_its_own_steps(task1, tmp_path, monkeypatch):
    settings, contenders = task1
    pace = {"hmvnet": 2.0, "unet3d": 6.0}
    monkeypatch.setattr(networks_room, "seconds_a_step", lambda own, *_: pace[own.network.name])
    run = tmp_path / "run"
    table = compare_networks(settings, contenders, run, [0], QUIET, train_minutes=0.2)
    assert list(table["steps a fold"]) == [6, 2]
    pace.clear()  # the pace is measured once
    compare_networks(settings, contenders, run, [0], QUIET, train_minutes=0.2)


def test_the_pace_is_measured_on_real_steps(task1, tmp_path):
    settings, contenders = task1
    run, peer = tmp_path / "run", contenders[1]
    table = compare_networks(settings, [peer], run, [0], QUIET, train_minutes=0.02)
    pace = json.loads((run / peer.folder / "pace.json").read_text())["seconds_a_step"]
    assert list(table["steps a fold"]) == [max(1, int(1.2 / pace))] and 0 < pace < 60


def test_differences_are_paired_and_nodes_left_out_where_there_are_none():
    from hmvnet.segmentation.metrics import CaseScore, LabelScore, LesionCount

    def scored(dice):
        hit = [LabelScore(d * 10, 10.0, 10.0, 1.0) for d in dice]
        none = LabelScore(0, 0, 0, np.nan)
        scores = [CaseScore(h, none, LesionCount(0, 0, 0), f"P{i}") for i, h in enumerate(hit)]
        return Scored(scores, Cost(10, 5, 1.0, 1.0, 1.0))

    dice = np.linspace(0.3, 0.9, 20)
    table = comparison({"a": scored(dice), "b": scored(dice - 0.1)})
    assert not any("GTVn" in column for column in table.columns)
    # The same loss in every patient: the paired interval has no width.
    assert table.loc[1, "less a, GTVp mean Dice"] == "-0.100 (-0.100 to -0.100)"


# --- Task 2 --------------------------------------------------------------------------------------


def task2_settings(**data) -> Settings:
    return Settings(data=DataSettings(folds=3, **data), prognosis=FAST_PROGNOSIS)


def test_survival_models_side_by_side(tmp_path, monkeypatch, tiny_bundle):
    patients = described_patients(45)
    monkeypatch.setattr(survival_room, "load_described", lambda *_: patients)
    eta = [-np.log(p.outcome.days) for p in patients]
    (tmp_path / "data").mkdir()
    pd.DataFrame({"PatientID": [p.patient_id for p in patients], "linear_predictor": eta}).to_csv(
        tmp_path / "data" / "truth.csv", index=False
    )
    names = ["fusion-no-image", "coxph", "icare+lesions"]
    settings = task2_settings(root=str(tmp_path / "data"))
    table = compare_survival(settings, tiny_bundle, tmp_path / "run", QUIET, names, repeats=2)
    assert set(table.index) == {*names, TRUTH}
    assert table.index[0] == TRUTH  # the negative log of the time itself orders perfectly
    there = table["C, centres left out"].str.split().str[0].astype(float)
    assert there[TRUTH] > 0.99 and there.between(0, 1).all()  # of three centres
    risks = pd.read_csv(tmp_path / "run" / "risks.csv")
    assert len(risks) == 2 * 45 and np.isfinite(risks[names]).all().all()
    files = ("survival.md", "survival.csv", "forest.png", "kaplan-meier.png", "calibration.png")
    for file in files:
        assert (tmp_path / "run" / file).stat().st_size > 100
    assert [p.name for p in (tmp_path / "run").iterdir() if p.is_dir()] == ["predictions"]


def test_kept_predictions_are_those_of_the_same_settings_only(tables, tmp_path):
    settings = load_settings(tables / "settings.xml", [f"data.root={tables}", "data.folds=3"])
    run, names = tmp_path / "run", ["icare", "coxph"]
    first = compare_survival(settings, None, run, QUIET, names, repeats=1)
    files = {p: p.stat().st_mtime_ns for p in (run / "predictions").iterdir()}
    again = compare_survival(settings, None, run, QUIET, names, repeats=1)
    pd.testing.assert_frame_equal(first, again)
    assert {p: p.stat().st_mtime_ns for p in (run / "predictions").iterdir()} == files
    compare_survival(settings, None, run, QUIET, names, repeats=2)
    assert len(list((run / "predictions").iterdir())) == 4


@pytest.fixture
def tables(tmp_path):
    """Two CSV files of 60 patients, and a settings file with their columns."""
    rng = np.random.default_rng(0)
    grade = rng.integers(1, 4, 60)
    days = 1500 * np.exp(-0.8 * grade + 0.3 * rng.normal(size=60))
    ids = [f"{i:03d}" for i in range(60)]
    record = pd.DataFrame({"id": ids, "age": rng.integers(40, 80, 60), "grade": grade})
    record.to_csv(tmp_path / "record.csv", index=False)
    outcome = pd.DataFrame(
        {"id": ids, "days": days.round(), "relapse": rng.choice(["yes", "no"], 60)}
    )
    outcome.to_csv(tmp_path / "outcome.csv", index=False)
    (tmp_path / "settings.xml").write_text(
        """<hmvnet><clinical><tables>outcome.csv record.csv</tables><patient>id</patient>
        <time>days</time><event>relapse</event>
        <column name="age" kind="numeric" low="0" high="120" other_units="months:0.0833"/>
        <column name="grade" kind="categorical" codes="1, 2, 3" aliases="low: 1"/>
        </clinical></hmvnet>"""
    )
    return tmp_path


def test_tables_alone_by_a_schema_in_the_settings_file(tables, tmp_path):
    settings = load_settings(tables / "settings.xml", [f"data.root={tables}", "data.folds=3"])
    settings = settings.model_copy(update={"prognosis": FAST_PROGNOSIS})
    cohort = load_cohort(settings, None, tmp_path)
    assert len(cohort.patients) == 60 and not cohort.has_images
    table = compare_survival(
        settings, None, tmp_path / "run", QUIET, ["fusion-table", "icare"], repeats=1
    )
    assert set(table.index) == {"fusion-table", "icare"}
    # The grade decides; whoever could not use it would be at 0.5.
    assert all(float(text.split()[0]) > 0.7 for text in table["C (95% CI)"])


def test_what_is_lost_of_the_records_is_said(tables, tmp_path):
    """Sixty codes that nobody knows were a column less, without a word."""
    record = pd.read_csv(tables / "record.csv", dtype=str)
    record["grade"] = "G" + record["grade"]
    record.to_csv(tables / "record.csv", index=False)
    settings = load_settings(tables / "settings.xml", [f"data.root={tables}", "data.folds=3"])
    console = Console(file=io.StringIO(), width=200)
    compare_survival(settings, None, tmp_path / "run", console, ["icare"], repeats=1)
    said = console.file.getvalue()
    assert "grade: 60 values with an unknown code, treated as missing" in said
    assert "grade: one value or none in all training patients, left out" in said


def test_centres_are_left_out_only_where_that_can_be_done():
    days, event = np.arange(1.0, 31), np.arange(30) % 2 == 0
    centre = np.repeat(["a", "b", "c"], 10)
    found, why = survival_room._by_centre(centre, Outcomes(days, event))
    assert found.shape == (1, 30) and not why
    assert survival_room._by_centre(np.repeat("a", 30), Outcomes(days, event)) == (None, "")
    for other, events, said in (
        (np.repeat(["a", "b"], [22, 8]), event, "8 patients with 4 relapses are left"),
        (centre, event & (centre == "a"), "20 patients with 0 relapses are left"),
        (np.arange(30).astype(str), event, "no two patients of one centre can be compared"),
    ):
        found, why = survival_room._by_centre(other, Outcomes(days, events))
        assert found is None and said in why


def test_tables_tell_the_centre(tables, tmp_path):
    """By CenterID, no column of the schema; who has none goes with those of such a name."""
    record = pd.read_csv(tables / "record.csv", dtype=str)
    record.insert(1, "CenterID", ["7", "USZ", ""] * 20)
    record.to_csv(tables / "record.csv", index=False)
    settings = load_settings(tables / "settings.xml", [f"data.root={tables}"])
    cohort = load_cohort(settings, None, tmp_path)
    assert [p.centre for p in cohort.patients[:3]] == ["7", "USZ", "unknown"]
    found, why = survival_room._by_centre(
        np.array([p.centre for p in cohort.patients]),
        Outcomes.of(p.outcome for p in cohort.patients),
    )
    assert found is None and why == "the centre of 20 patients is not known"


def test_what_needs_images_is_refused_without(tables, tmp_path):
    settings = load_settings(tables / "settings.xml", [f"data.root={tables}"])
    for name in ("fusion", "coxph+lesions"):
        with pytest.raises(ValueError, match="needs images"):
            compare_survival(settings, None, tmp_path / "run", QUIET, [name])
    with pytest.raises(ValueError, match="unknown survival model 'cox'"):
        compare_survival(settings, None, tmp_path / "run", QUIET, ["cox"])


def test_a_column_of_the_schema_that_no_table_has(tables, tmp_path):
    (tables / "record.csv").write_text("id,age\n000,50\n")
    settings = load_settings(tables / "settings.xml", [f"data.root={tables}"])
    with pytest.raises(ValueError, match="grade"):
        load_cohort(settings, None, tmp_path)


def test_a_malformed_column_in_the_settings_file(tmp_path):
    path = tmp_path / "settings.xml"
    path.write_text('<hmvnet><clinical><column name="a" kind="number"/></clinical></hmvnet>')
    with pytest.raises(ValueError, match="kind must be numeric or categorical"):
        load_settings(path)
