"""nnU-Net as a contender; with nnU-Net itself (extra ``nnunet``) in minutes."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import two_folds_of_two, write_patient
from rich.console import Console

from hmvnet.config import InferenceSettings, Settings, TrainingSettings
from hmvnet.exits import RefusedError, UnfinishedError
from hmvnet.experiments import nnunet_peer as room
from hmvnet.experiments import nnunet_process
from hmvnet.experiments.budgets import parse_budgets
from hmvnet.experiments.compare_budgets import compare_budgets
from hmvnet.experiments.compare_networks import Contender, compare_networks, parse_contender
from hmvnet.experiments.nnunet_peer import NNUNet
from hmvnet.reading.folder import find_patients
from hmvnet.segmentation.metrics import score_case
from hmvnet.state import write_state
from hmvnet.training.nnunet_model import read_model

QUIET = Console(quiet=True)


@pytest.fixture
def task(tmp_path):
    """Settings of two folds of two patients each."""
    return Settings(
        data=two_folds_of_two(tmp_path / "data"),
        training=TrainingSettings(steps=3, warmup_steps=1),
    )


@pytest.fixture
def installed(monkeypatch):
    """As if nnU-Net were."""
    monkeypatch.setattr(room, "require_nnunet", lambda: None)


class StandIn:
    """In nnU-Net's place: its masks are the true ones, less all nodes. Counts what it was told."""

    def __init__(self, root):
        self.truth = {p.patient_id: p.label for p in find_patients(root)}
        self.orders = []

    def __call__(self, shop, job, order, title):
        self.orders.append((job, order))
        if job == "plan":
            return {"spacing": [5, 4, 4], "patch_size": [32, 32, 32], "batch_size": 2}
        if job == "train":
            if order["deadline"] is not None:
                raise UnfinishedError("stopped after step 1")
            return {"steps": order["steps"] or 7, "seconds": 30.0, "parameters": 9, "model": "m"}
        for case in order["cases"]:
            name = case["out"].rpartition("/")[2]
            label = sitk.ReadImage(str(self.truth[name]))
            mask = sitk.ChangeLabel(label, {2: 0})
            images = [sitk.ReadImage(path) for path in case["images"]]
            assert all(image.GetSize() == mask.GetSize() for image in images)
            (shop.trained / order["model"]).mkdir(parents=True, exist_ok=True)
            out = room.Path(case["out"])
            out.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(mask, f"{out}.nii.gz")
            write_state(
                out.with_name(f"{out.name}.json"), case["key"], {"seconds": 2, "peak_mb": 5}
            )
        return {}

    @property
    def jobs(self):
        return [job for job, _ in self.orders]


@pytest.fixture
def stand_in(task, installed, monkeypatch):
    made = StandIn(room.Path(task.data.root))
    monkeypatch.setattr(room, "run_job", made)
    return made


def test_a_name_and_options(installed):
    found = parse_contender("nnunet plan=ResEncL iterations=10 spacing_mm=2,1,1 gpu_memory_gb=4")
    assert isinstance(found, NNUNet) and found.options.spacing_mm == (2, 1, 1)
    assert found.options.planned == {
        "preset": "ResEncL",
        "configuration": "3d_fullres",
        "gpu_memory_gb": 4,
        "spacing_mm": [2, 1, 1],
    }
    assert isinstance(parse_contender("unet3d width=4"), Contender)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nnunet plan=S", r"option plan: .*ResEncM.*expected of plan, configuration"),
        ("nnunet width=4", r"option width: "),
        ("nnunet training.learning_rate=1", r"option training.learning_rate: "),
        ("nnunet iterations=0", r"option iterations: "),
    ],
)
def test_wrong_options(installed, text, said):
    with pytest.raises(RefusedError, match=said):
        parse_contender(text)


def test_it_is_refused_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(nnunet_process, "find_spec", lambda name: None)
    with pytest.raises(RefusedError, match="extra 'nnunet'"):
        parse_contender("nnunet")


def test_it_has_no_part_in_budgets(task, installed, tmp_path):
    with pytest.raises(RefusedError, match="compare it at equal steps, or with --train-minutes"):
        budgets = parse_budgets("3steps")
        compare_budgets(task, [NNUNet.parse("nnunet")], tmp_path / "run", budgets, None, QUIET)


def test_a_row_of_the_same_patients_and_folds(task, stand_in, tmp_path):
    run, contender = tmp_path / "run", NNUNet.parse("nnunet")
    table = compare_networks(task, [contender], run, None, QUIET)
    row = table.iloc[0]
    assert (row["patients"], row["steps a fold"], row["training min"]) == (4, 3, "1.0")
    assert (row["GTVp mean Dice"], row["GTVn agg. Dice"]) == ("1.000", "0.000")
    assert stand_in.jobs == ["plan", "train", "train", "predict", "predict"]
    folder = run / contender.folder
    splits = json.loads((folder / "preprocessed/Dataset501_Compared/splits_final.json").read_text())
    predicted = [order["cases"] for job, order in stand_in.orders if job == "predict"]
    for split, cases in zip(splits, predicted):
        assert [case["out"].rpartition("/")[2] for case in cases] == split["val"]
        assert not set(split["train"]) & set(split["val"])
        assert len({*split["train"], *split["val"]}) == 4
    before = len(stand_in.orders)
    compare_networks(task, [contender], run, None, QUIET)
    assert len(stand_in.orders) == before  # nothing is done twice


def test_budgets_stand_beside_one_another_and_other_data_are_refused(task, stand_in, tmp_path):
    run, contender = tmp_path / "run", NNUNet.parse("nnunet iterations=5")
    assert compare_networks(task, [contender], run, [0], QUIET)["steps a fold"].item() == 5
    timed = compare_networks(task, [contender], run, [0], QUIET, train_minutes=0.5)
    assert timed["steps a fold"].item() == 7
    assert stand_in.orders[-2][1]["seconds"] == 30 and stand_in.orders[-2][1]["steps"] is None
    assert stand_in.jobs.count("plan") == 1
    write_patient(tmp_path / "data", "A-9", "plain")
    with pytest.raises(RefusedError, match="of other patients or plans; use another --run"):
        compare_networks(task, [contender], run, [0], QUIET)


def test_patients_of_another_folder(task, stand_in, tmp_path):
    for name in ("B-1", "B-2"):
        write_patient(tmp_path / "test", name, "plain")
    stand_in.truth |= {p.patient_id: p.label for p in find_patients(tmp_path / "test")}
    contender = NNUNet.parse("nnunet")
    table = compare_networks(task, [contender], tmp_path / "run", None, QUIET, tmp_path / "test")
    assert table["patients"].item() == 2
    job, order = stand_in.orders[-1]
    assert job == "predict" and order["folds"] == [0, 1] and len(order["cases"]) == 2
    write_patient(tmp_path / "test", "A-1", "plain")
    with pytest.raises(
        ValueError, match=r"A-1: 1 of the 3 patients to be scored would be trained on"
    ):
        compare_networks(task, [contender], tmp_path / "run", None, QUIET, tmp_path / "test")


def test_one_device_only(task, stand_in, tmp_path, monkeypatch):
    """Each process of a distributed training would start it; what is finished is taken over."""
    run, contender = tmp_path / "run", NNUNet.parse("nnunet")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RefusedError, match=r"on one device here.*CUDA_VISIBLE_DEVICES=0"):
        compare_networks(task, [contender], run, None, QUIET)
    monkeypatch.delenv("WORLD_SIZE")
    compare_networks(task, [contender], run, None, QUIET)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(compare_networks(task, [contender], run, None, QUIET)) == 1


def test_time_is_up(task, stand_in, tmp_path):
    with pytest.raises(UnfinishedError, match="stopped after step 1"):
        contenders = [NNUNet.parse("nnunet")]
        compare_networks(task, contenders, tmp_path / "run", [0], QUIET, minutes=1e-9)


# --- nnU-Net itself ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nnunet_itself_plans_trains_and_predicts(tmp_path, capsys):
    """Ten steps in two calls on four small patients: it runs, goes on, and its masks are scored."""
    pytest.importorskip("nnunetv2", reason="the extra 'nnunet'")
    settings = Settings(
        data=two_folds_of_two(tmp_path / "data"),
        inference=InferenceSettings(flips="none"),
    )
    run = tmp_path / "run"
    contender = NNUNet.parse("nnunet iterations=10 gpu_memory_gb=0.1 spacing_mm=10,8,8")
    with pytest.raises(UnfinishedError, match=r"stopped after step 1, 10% of the budget"):
        compare_networks(settings, [contender], run, [0], QUIET, minutes=1e-9)
    table = compare_networks(settings, [contender], run, [0], QUIET)
    assert table["steps a fold"].item() == 10 and table["patients"].item() == 2
    folder = run / contender.folder
    assert "nnU-Net: fold 0 goes on from step 1\n" in capsys.readouterr().err
    stored = json.loads((folder / "scores.json").read_text())
    for row in stored["scores"]:
        patient = next(
            p for p in find_patients(tmp_path / "data") if p.patient_id == row["patient_id"]
        )
        mask = folder / f"results-10steps/predicted-0/{patient.patient_id}.nii.gz"
        case = patient.read()
        arrays = [sitk.GetArrayFromImage(i) for i in (sitk.ReadImage(str(mask)), case.truth)]
        assert arrays[0].shape == arrays[1].shape
        known = score_case(
            *(a.astype(np.uint8) for a in arrays), (5.0, 4.0, 4.0), patient.patient_id
        )
        assert known.to_dict() == row
    # What it trained is a model as nnU-Net's own, and can be imported as one.
    model = next((folder / "results-10steps/Dataset501_Compared").iterdir())
    assert read_model(model).configuration_name == "3d_fullres"
    # Another budget uses the same plans.
    again = compare_networks(settings, [contender], run, [0], QUIET, train_minutes=0.02)
    assert again["steps a fold"].item() >= 1
