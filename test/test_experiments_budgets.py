import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import no_memory_for_one_pass, two_folds_of_two
from rich.console import Console

from hmvnet.bundle import load_bundle
from hmvnet.config import PreprocessingSettings, Settings, TrainingSettings
from hmvnet.exits import RefusedError, UnfinishedError
from hmvnet.experiments import budgets as budgets_room
from hmvnet.experiments import compare_budgets as room
from hmvnet.experiments.budget_jobs import InTurn, Processes, run_units
from hmvnet.experiments.budget_table import load_results
from hmvnet.experiments.budgets import Budget, Unit, _settling, parse_budgets, run_unit
from hmvnet.experiments.compare_budgets import compare_budgets, read_paces
from hmvnet.experiments.compare_networks import Contender, compare_networks
from hmvnet.state import read_state
from hmvnet.training.checkpoints import CHECKPOINT

QUIET = Console(quiet=True)
SMALL = "hmvnet channels=8 head_channels=8 window=4 depths=1,1,1,1"


# --- what a budget is ----------------------------------------------------------------------------


def test_budgets_are_minutes_or_steps():
    assert parse_budgets("10,3, 0.5") == [Budget(0.5), Budget(3), Budget(10)]
    assert parse_budgets("300steps,100 steps") == [Budget(100, "steps"), Budget(300, "steps")]
    assert [str(b) for b in parse_budgets("3,3,1min")] == ["1 min", "3 min"]
    assert Budget(100, "steps").folder == "100steps"


@pytest.mark.parametrize("text", ["", "3,", "0", "-3", "1steps", "2.5steps", "3h", "3,100steps"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(RefusedError, match="--budgets"):
        parse_budgets(text)


def test_trunk_and_decay_together_cost_the_budget():
    """Steps of half a second: of 3 minutes 288 steps at the constant rate, and 72 of decay."""
    budget, spent = Budget(3), list(0.5 * np.arange(1, 400))
    cut = next(n for n in range(400) if budget.is_spent(spent[:n], 0))
    assert cut == 288 and budget.decay_steps(spent[:cut]) == 72
    steps = Budget(100, "steps")
    assert next(n for n in range(100) if steps.is_spent(spent[:n], 0)) == 80
    assert steps.decay_steps(spent[:80]) == 20


def test_settling_is_paid_for_by_the_trunk():
    budget, spent = Budget(3), list(0.5 * np.arange(1, 400))
    cut = next(n for n in range(400) if budget.is_spent(spent[:n], 64 / 3))
    total = 0.5 * (cut + 64 / 3 + budget.decay_steps(spent[:cut]))
    assert cut == 267 and total == pytest.approx(180, abs=1)


# --- trainings -----------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path):
    """Settings of two folds of two patients each."""
    return Settings(
        data=two_folds_of_two(tmp_path / "data"),
        preprocessing=PreprocessingSettings(spacing_mm=4.0, size_mm=(128.0, 128.0, 128.0)),
        training=TrainingSettings(patch_size=(32, 32, 32), warmup_steps=1, checkpoint_every=2),
    )


def units_of(settings, run, *, network="unet3d width=4", budgets="6steps", folds=(0,), **options):
    """As ``compare_budgets`` makes them; nothing is trained."""
    made: list[Unit] = []

    def keep(units, hands):
        made.extend(units)
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "run_units", keep)
        contenders = [Contender.parse(network)]
        with pytest.raises(UnfinishedError):
            compare_budgets(settings, contenders, run, parse_budgets(budgets), folds, QUIET)
    return [replace(unit, quiet=True, **options) for unit in made]


def weights(unit) -> dict[str, torch.Tensor]:
    return load_bundle(unit.branch / "bundle").tensors(unit.fold.file)


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def measured(path: Path) -> dict:
    """A result without what hangs on the clock."""
    stored = json.loads(path.read_text())
    del stored["content"]
    stored["training"] = {k: v for k, v in stored["training"].items() if "minutes" not in k}
    for way in stored["ways"].values():
        del way["network_seconds"]
    return stored


def test_each_budget_is_as_if_it_were_the_only_one(task, tmp_path):
    small, large = units_of(task, tmp_path / "both", network=SMALL, budgets="4steps,8steps")
    for unit in (small, large):
        run_unit(unit)
    (alone,) = units_of(task, tmp_path / "alone", network=SMALL, budgets="8steps")
    run_unit(alone)
    assert_same(weights(large), weights(alone))
    assert large.key == alone.key and measured(large.result) == measured(alone.result)
    assert set(measured(large.result)["ways"]) == {"one pass", "windows", "both"}
    trained = load_bundle(small.branch / "bundle").manifest.trained_on
    assert (trained["steps"], trained["decay_steps"]) == (4, 1)
    # A budget in between, asked for when the trunk is beyond it.
    (between,) = units_of(task, tmp_path / "both", network=SMALL, budgets="6steps")
    (fresh,) = units_of(task, tmp_path / "fresh", network=SMALL, budgets="6steps")
    for unit in (between, fresh):
        run_unit(replace(unit, windows=False))
    assert_same(weights(between), weights(fresh))


def test_members_share_a_budget_and_are_averaged(task, tmp_path):
    """Two networks of four steps each are one of eight, of these seeds."""
    (both,) = units_of(task, tmp_path / "both", network=f"{SMALL} members=2", budgets="9steps")
    run_unit(both)
    bundle = load_bundle(both.branch / "bundle")
    part, said = bundle.manifest.segmentation, bundle.manifest.trained_on
    assert part.files == ["fold0.safetensors", "fold0-2.safetensors"]
    assert part.seen[0] == part.seen[1] and said["steps"] == 8 and said["key"] == both.key
    stored = json.loads(both.result.read_text())
    assert stored["network"] == f"{SMALL} members=2" and stored["budget"]["amount"] == 9
    assert len(stored["ways"]["both"]["scores"]) == len(both.fold.validation)
    for file, seed in zip(part.files, (0, 1)):
        network = f"{SMALL} training.seed={seed}"
        (alone,) = units_of(task, tmp_path / "alone", network=network, budgets="4steps")
        run_unit(replace(alone, windows=False))
        assert_same(bundle.tensors(file), weights(alone))
        assert (
            said["parameters"]
            == 2 * load_bundle(alone.branch / "bundle").manifest.trained_on["parameters"]
        )
    assert not both.missing() and both.key != units_of(task, tmp_path, network=SMALL)[0].key


def test_members_are_a_number_and_go_with_budgets(task, tmp_path):
    assert Contender.parse("hmvnet members=3 norm=group").single == "hmvnet norm=group"
    for wrong in ("members=0", "members=two", "members=2 members=2", "members="):
        with pytest.raises(RefusedError, match="expected members=2"):
            Contender.parse(f"hmvnet {wrong}")
    with pytest.raises(RefusedError, match="go with --budgets only"):
        compare_networks(task, [Contender.parse(f"{SMALL} members=2")], tmp_path, None, QUIET)
    with pytest.raises(RefusedError, match=r"share 5 steps, expected two steps"):
        units_of(task, tmp_path, network=f"{SMALL} members=3", budgets="5steps")


def test_killed_anywhere_it_goes_on_to_the_same_result(task, tmp_path, monkeypatch):
    (whole,) = units_of(task, tmp_path / "whole")
    run_unit(whole)
    (killed,) = units_of(task, tmp_path / "killed")
    write = torch.save
    for fatal in range(1, 20):
        saves = iter(range(1, 20))

        def save(*given, fatal=fatal, saves=saves):
            if next(saves) == fatal:
                raise SystemExit(143)
            write(*given)

        monkeypatch.setattr(torch, "save", save)
        try:
            run_unit(killed)
            break
        except SystemExit:  # each call dies one save later, or has come further
            continue
    monkeypatch.undo()
    assert fatal > 2 and measured(killed.result) == measured(whole.result)
    assert_same(weights(killed), weights(whole))
    assert not (killed.branch / CHECKPOINT).exists() and (killed.trunk / CHECKPOINT).exists()


def test_time_is_up_in_the_trunk_and_in_the_decay(task, tmp_path):
    (unit,) = units_of(task, tmp_path / "run", budgets="12steps", deadline=0.0)
    said = []
    for _ in range(20):
        try:
            run_unit(unit)
            break
        except UnfinishedError as error:
            said.append(str(error))
    assert len(said) > 8 and "stopped after step 1;" in said[0] and "in the decay" in said[-1]
    (whole,) = units_of(task, tmp_path / "whole", budgets="12steps")
    run_unit(whole)
    assert measured(unit.result) == measured(whole.result)


def test_minutes_are_those_of_the_clock_and_go_on_over_a_stop(task, tmp_path):
    """Steps of 1.5 seconds: a budget of one minute is 32 steps and 8 of decay."""

    def clock():
        clock.now += 1.5  # at the beginning and at the end of a step
        return clock.now

    clock.now = 0.0
    (unit,) = units_of(task, tmp_path / "run", budgets="1")
    stopped = replace(unit, deadline=0.0)
    with pytest.raises(UnfinishedError):
        run_unit(stopped, clock)
    run_unit(unit, clock)
    trained = load_bundle(unit.branch / "bundle").manifest.trained_on
    assert (trained["steps"], trained["decay_steps"]) == (40, 8)
    assert trained["minutes_charged"] == 1.0


def test_steps_are_charged_what_they_were_measured_to_cost_elsewhere(task, tmp_path):
    (unit,) = units_of(task, tmp_path / "run", budgets="1", pace=1.5)
    with pytest.raises(UnfinishedError):
        run_unit(replace(unit, deadline=0.0))
    run_unit(unit)
    trained = load_bundle(unit.branch / "bundle").manifest.trained_on
    assert (trained["steps"], trained["minutes_charged"]) == (40, 1.0)
    assert trained["seconds_a_step_from_elsewhere"] == 1.5


def test_settling_is_in_the_pace_already(task, tmp_path):
    """Which is the mean over trainings that had it; a network with BatchNorm has it."""
    (unit,) = units_of(task, tmp_path / "run", network=SMALL, budgets="1", pace=3.0)
    assert _settling(unit.settings) > 1
    run_unit(replace(unit, windows=False))
    trained = load_bundle(unit.branch / "bundle").manifest.trained_on
    assert (trained["steps"], trained["minutes_charged"]) == (20, 1.0)


def test_one_clock_charges_a_training(task, tmp_path):
    """What was charged by another before is not gone on from."""
    (short,) = units_of(task, tmp_path / "run", budgets="0.5", pace=1.5)
    run_unit(short)
    (unit,) = units_of(task, tmp_path / "run", budgets="1", pace=6.0)
    run_unit(unit)
    trained = load_bundle(unit.branch / "bundle").manifest.trained_on
    assert (trained["steps"], trained["minutes_charged"]) == (10, 1.0)


def test_minutes_of_other_processes_would_not_be_counted(task, tmp_path):
    drawn = {"workers": 1, "workers_are": "processes"}
    settings = task.model_copy(update={"training": task.training.model_copy(update=drawn)})
    with pytest.raises(RefusedError, match="workers_are=processes: budgets in minutes"):
        units_of(settings, tmp_path / "run", budgets="3")
    assert units_of(settings, tmp_path / "run", budgets="6steps")


def test_paces_are_read_from_a_table_of_runs(tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text(
        "network,fold,steps,minutes_charged\n"
        '"hmvnet norm=group training.patch_size=96,96,96",0,60,1\n'
        '"hmvnet norm=group training.patch_size=96,96,96",1,40,1.5\n'
        "unet3d,0,10,1\n"
    )
    label = "hmvnet norm=group training.patch_size=96,96,96"
    assert read_paces(table, [label, "unet3d"]) == {label: 1.5, "unet3d": 6.0}
    with pytest.raises(RefusedError, match=r"runs\.csv: no run of network 'segresnet'"):
        read_paces(table, ["segresnet"])
    table.write_text("network,steps\nunet3d,3\n")
    with pytest.raises(RefusedError, match="no column minutes_charged"):
        read_paces(table, ["unet3d"])
    table.write_text("")
    with pytest.raises(RefusedError, match="cannot be read as a table"):
        read_paces(table, ["unet3d"])
    with pytest.raises(RefusedError, match="cannot be read as a table"):
        read_paces(tmp_path / "none.csv", ["unet3d"])


def test_patients_that_the_first_weights_saw_are_refused_before_the_training(task, tmp_path):
    (first,) = units_of(task, tmp_path / "first", budgets="2steps")
    run_unit(first)
    training = {"initial_weights": str(first.branch / "bundle")}
    later = task.model_copy(update={"training": task.training.model_copy(update=training)})
    (same,) = units_of(later, tmp_path / "later", budgets="2steps")
    (other,) = units_of(later, tmp_path / "later", budgets="2steps", folds=(1,))
    with pytest.raises(ValueError, match="not to be scored"):
        run_unit(other)
    assert not other.trunk.exists()
    run_unit(same)


def test_ways_of_two_trainings_are_never_one_result(task, tmp_path, monkeypatch):
    """The small files alone are kept; a way that is missing then costs another training."""
    (unit,) = units_of(task, tmp_path / "run", network=SMALL, budgets="4steps")
    asked, scored = [], budgets_room._scored

    def watched(unit, bundle, ways):
        asked.append(list(ways))
        return scored(unit, bundle, ways)

    monkeypatch.setattr(budgets_room, "_scored", watched)
    run_unit(replace(unit, windows=False))
    run_unit(unit)
    shutil.rmtree(unit.trunk.parent)
    run_unit(replace(unit, windows=False))
    run_unit(unit)
    everything = ["one pass", "windows", "both"]
    assert asked == [everything[:1], everything[1:], everything[:1], everything[1:]]
    assert set(measured(unit.result)["ways"]) == set(everything)


def test_a_way_that_memory_does_not_suffice_for_is_not_scored_as_another(task, tmp_path):
    (unit,) = units_of(task, tmp_path / "run", network=SMALL, budgets="4steps")
    with (
        no_memory_for_one_pass(),
        pytest.raises(RefusedError, match=r"fold0.*: one pass: one pass on cpu did not fit"),
    ):
        run_unit(unit)
    assert unit.missing()
    run_unit(unit)


def test_results_of_another_pace_are_said_to_be(task, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    contenders, run = [Contender.parse("unet3d width=4")], tmp_path / "run"
    compare_budgets(task, contenders, run, parse_budgets("3steps"), [0], console)
    assert "another pace" not in console.file.getvalue()
    paces = tmp_path / "paces.csv"
    paces.write_text("network,steps,minutes_charged\nunet3d width=4,60,1\n")
    compare_budgets(task, contenders, run, parse_budgets("3steps"), [0], console, paces=paces)
    assert "note: 1 results that are there were charged by another" in console.file.getvalue()


def test_weights_to_start_from_are_known_by_what_they_are(task, tmp_path):
    """And by whom they saw: not by where they lie."""
    (first,) = units_of(task, tmp_path / "first", budgets="2steps")
    (other,) = units_of(task, tmp_path / "other", budgets="3steps")
    run_unit(first)
    run_unit(other)
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(first.branch / "bundle", here)

    def key(folder):
        training = task.training.model_copy(update={"initial_weights": str(folder)})
        (unit,) = units_of(task.model_copy(update={"training": training}), tmp_path / "later")
        return unit.key

    before = key(here)
    here.rename(there)
    assert key(there) == before
    shutil.copytree(other.branch / "bundle", here)
    assert key(here) != before
    manifest = json.loads((there / "manifest.json").read_text())
    manifest["segmentation"]["seen"][0].append("0123456789abcdef")
    (there / "manifest.json").write_text(json.dumps(manifest))
    assert key(there) != before


# --- a comparison --------------------------------------------------------------------------------


def test_jobs_side_by_side_give_the_rows_of_one_after_the_other(task, tmp_path):
    found = []
    for jobs in (1, 2):
        units = units_of(task, tmp_path / f"run{jobs}", folds=(0, 1))
        hands = InTurn() if jobs == 1 else Processes(2)
        assert [ended.code for ended in run_units(units, hands)] == [0, 0]
        found.append([measured(unit.result) for unit in units])
    assert found[0] == found[1]


def test_a_table_grows_from_call_to_call(task, tmp_path):
    run = tmp_path / "run"
    contenders = [Contender.parse("unet3d width=4"), Contender.parse("unet3d width=2")]
    budgets = parse_budgets("3steps")
    (first,) = compare_budgets(task, contenders[:1], run, budgets, [0], QUIET)
    assert first.folds == [0] and first.patients == 2 and not first.differences
    stamps = {path: path.stat().st_mtime_ns for path in (run / "results").iterdir()}
    one, other = compare_budgets(task, contenders, run, budgets, [0, 1], QUIET)
    assert (one.folds, other.folds) == ([0, 1], [0, 1]) and other.shared == 4
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps  # not computed again
    text = (run / "segmentation-budgets.md").read_text()
    assert "less unet3d width=4" in text and (run / "segmentation-budgets.png").exists()
    runs = pd.read_csv(run / "segmentation-budgets-runs.csv")
    assert len(runs) == 4
    each = pd.read_csv(run / "segmentation-budgets-patients.csv")
    assert len(each) == 2 * 4 and each["patient"].nunique() == 4
    means = each.groupby(["network", "fold"])["gtvp_dice"].mean()
    for _, row in runs.iterrows():
        assert means[row["network"], row["fold"]] == pytest.approx(row["gtvp_mean_dice"], abs=1e-4)

    # Brought to another machine, the small files alone are what is finished.
    moved = tmp_path / "moved"
    moved.mkdir()
    (run / "results").rename(moved / "results")
    again = compare_budgets(task, contenders, moved, budgets, None, QUIET)
    assert again == [one, other] and not (moved / contenders[0].folder).exists()

    # Other settings are kept apart, in the same folder.
    changed = task.model_copy(update={"training": task.training.model_copy(update={"seed": 1})})
    (alone,) = compare_budgets(changed, contenders[1:], moved, budgets, [0], QUIET)
    assert alone.folds == [0] and len(list((moved / "results").iterdir())) == 5


def test_a_checkpoint_of_other_settings_is_refused_and_the_others_go_on(task, tmp_path):
    run, budgets = tmp_path / "run", parse_budgets("3steps")
    contenders = [Contender.parse("unet3d width=4")]
    compare_budgets(task, contenders, run, budgets, [0], QUIET)
    changed = task.model_copy(update={"training": task.training.model_copy(update={"seed": 1})})
    with pytest.raises(RefusedError, match=r"fold0, 3 steps: .*other settings, other data"):
        compare_budgets(changed, contenders, run, budgets, [0, 1], QUIET)
    results = [read_state(p, p.stem.rpartition("--")[2]) for p in (run / "results").iterdir()]
    assert sorted(stored["fold"] for stored in results) == [0, 1]


def test_networks_have_settings_of_their_own(task):
    text = "unet3d width=4 training.learning_rate=5e-3 preprocessing.spacing_mm=6"
    contender = Contender.parse(text)
    own = contender.settings(task)
    assert contender.network.options == {"width": 4}
    assert own.training == task.training.model_copy(update={"learning_rate": 5e-3})
    assert own.preprocessing.spacing_mm == 6 and own.preprocessing.size_mm == (128, 128, 128)
    for wrong in ("training.steps=3", "data.root=x", "training.learning_rat=1"):
        with pytest.raises(RefusedError):
            Contender.parse(f"unet3d {wrong}")


def test_results_that_are_damaged_count_as_not_there(task, tmp_path):
    (unit,) = units_of(task, tmp_path / "run")
    unit.results.mkdir(parents=True)
    unit.result.write_text('{"key": "cut')
    assert unit.missing() == ["windows"] and load_results(unit.results, unit.protocol) == ([], 1)
