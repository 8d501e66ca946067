import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import COARSE, SMALL_NETWORK
from test_reading_folder import write_patient

from hmvnet.bundle import load_bundle
from hmvnet.config import DataSettings, NetworkSettings, Settings, TrainingSettings
from hmvnet.reading.folder import find_patients
from hmvnet.training.cache import Cache
from hmvnet.training.engine import LoopSettings, learning_rate, make_fabric
from hmvnet.training.losses import SegmentationLoss, shrink_label
from hmvnet.training.patches import PatchSampler
from hmvnet.training.segmentation import (
    SETTLING_PATCHES,
    evaluate,
    take_over,
    train_segmentation,
)
from hmvnet.training.segmentation_bundle import plan_folds, train_segmentation_bundle

PATCH = (32, 32, 32)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for i in range(3):
        write_patient(root, f"A-{i}", "plain")
    cache = Cache(root / "cache", COARSE, "centre")
    return [cache.get(p) for p in find_patients(root)]


def settings(**training) -> Settings:
    defaults = {"patch_size": PATCH, "warmup_steps": 2, "checkpoint_every": 2, "steps": 6}
    return Settings(
        preprocessing=COARSE,
        network=NetworkSettings(options=SMALL_NETWORK),
        training=TrainingSettings(**(defaults | training)),
    )


def test_a_sample_depends_on_its_number_alone(cases):
    sampler = PatchSampler(cases, settings())
    image, label = sampler(7)
    sampler(3)
    again, label_again = PatchSampler(cases, settings())(7)
    assert torch.equal(image, again) and torch.equal(label, label_again)
    assert image.shape == (2, *PATCH) and label.shape == PATCH
    assert not torch.equal(image, sampler(8)[0])


def test_tumour_patches_hold_tumour_and_all_patients_come_up(cases):
    sampler = PatchSampler(cases, settings(tumour_fraction=1.0))
    labels = [sampler(i)[1] for i in range(12)]
    assert np.mean([(label > 0).any().item() for label in labels]) > 0.8


def test_patches_at_the_border_are_padded_with_air(cases):
    sampler = PatchSampler(cases, settings(patch_size=(96, 64, 64), tumour_fraction=0.0))
    image, _ = sampler(0)
    assert image.shape == (2, 96, 64, 64) and torch.isfinite(image).all()


def test_shrink_takes_the_commonest_class():
    label = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    label[:, :2, :2, :2] = 2
    label[:, 2:, 2:, 3] = 1
    small = shrink_label(label, (2, 2, 2))
    assert small[0, 0, 0, 0] == 2 and small[0, 1, 0, 0] == 0


def test_loss_is_least_at_the_truth():
    label = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    label[:, :3], label[:, 5:] = 1, 2
    right = torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 1).float() * 20
    for loss in (SegmentationLoss(), SegmentationLoss(focal_weight=1.0)):
        best, worst = loss([right], label), loss([-right], label)
        assert best < 0.01 < worst


def test_absent_classes_do_not_pull_towards_background():
    """A patch without GTVn: its Dice says nothing, and the loss is that of GTVp alone."""
    label = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    label[:, :3] = 1
    logits = torch.zeros(1, 3, 8, 8, 8)
    dice = SegmentationLoss()._dice(logits, label[:, None])
    # Uniform probabilities of 1/3: GTVp (2 * 64 + 1) / (512 / 3 + 192 + 1), GTVn 1 / (512 / 3 + 1).
    assert float(dice) == pytest.approx(1 - 129 / (512 / 3 + 193), abs=1e-4)
    weighted = SegmentationLoss(absent_weight=0.5)._dice(logits, label[:, None])
    assert float(weighted - dice) == pytest.approx(0.5 * (1 - 1 / (512 / 3 + 1)), abs=1e-4)
    assert float(SegmentationLoss()._dice(logits, torch.zeros_like(label)[:, None])) == 0


def test_settled_norms_are_of_the_averaged_weights(cases, tmp_path):
    run = train_segmentation(
        make_fabric(tmp_path), settings(freeze_norms_at=1.0), cases, [], tmp_path
    )
    sampler = PatchSampler(cases, settings(freeze_norms_at=1.0))
    run.network.eval()
    seen = []
    first = next(m for m in run.network.modules() if isinstance(m, torch.nn.BatchNorm3d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3, 4))))
    with torch.no_grad():
        for number in range(SETTLING_PATCHES):
            run.network(sampler(number)[0][None])
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(0), atol=1e-5, rtol=1e-4)


def test_learning_rate_warms_up_and_falls():
    loop = LoopSettings(100, 1.0, 0, 10, 1, 0.9, 1, 1)
    rates = [learning_rate(s, loop) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02 and rates[10:] == sorted(rates[10:], reverse=True)


def weights_of(network) -> dict:
    return {k: v.clone() for k, v in network.state_dict().items()}


def test_killed_and_resumed_equals_uninterrupted(cases, tmp_path):
    whole = train_segmentation(make_fabric(tmp_path / "a"), settings(), cases, [], tmp_path / "a")
    killed = tmp_path / "b"
    train_segmentation(
        make_fabric(killed), settings(), cases, [], killed, stop=lambda step: step == 3
    )
    resumed = train_segmentation(make_fabric(killed), settings(), cases, [], killed)
    for key, value in weights_of(whole.network).items():
        assert torch.equal(value, weights_of(resumed.network)[key]), key
    assert [r["step"] for r in resumed.history.losses] == list(range(6))


def test_checkpoint_of_another_network_is_refused(cases, tmp_path):
    train_segmentation(make_fabric(tmp_path), settings(steps=1), cases, [], tmp_path)
    other = settings().model_copy(
        update={"network": NetworkSettings(options=SMALL_NETWORK | {"channels": 16})}
    )
    with pytest.raises(ValueError, match="another network"):
        train_segmentation(make_fabric(tmp_path), other, cases, [], tmp_path)


def test_unknown_network_stops_before_training(cases, tmp_path):
    wrong = settings().model_copy(update={"network": NetworkSettings(name="vnet9")})
    with pytest.raises(ValueError, match="unknown network"):
        train_segmentation(make_fabric(tmp_path), wrong, cases, [], tmp_path)


def test_initial_weights_are_taken_over(tiny_bundle):
    from hmvnet.networks.registry import build_network

    network = build_network("hmvnet", SMALL_NETWORK)
    assert take_over(network, tiny_bundle) == len(network.state_dict())
    with pytest.raises(ValueError, match="nothing in bundle"):
        take_over(build_network("unet3d", {"width": 4}), tiny_bundle)


def test_frozen_norms_keep_the_statistics_they_came_with(cases, tiny_bundle, tmp_path):
    frozen = settings(steps=2, frozen_norms=True, initial_weights=str(tiny_bundle))
    run = train_segmentation(make_fabric(tmp_path), frozen, cases, [], tmp_path)
    bundle = load_bundle(tiny_bundle)
    before = bundle.tensors(bundle.manifest.segmentation.files[0])
    after = run.network.state_dict()
    statistics = [k for k in before if k.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(before[k], after[k]) for k in statistics)
    weight = "stem.1.conv1.weight"
    assert not torch.equal(before[weight], after[weight])
    with pytest.raises(ValueError, match="frozen_norms needs initial_weights"):
        train_segmentation(
            make_fabric(tmp_path), settings(frozen_norms=True), cases, [], tmp_path / "other"
        )


def test_mixed_precision_reaches_the_network(cases, tmp_path):
    """Deep supervision must not slip past Fabric's autocast."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        run = tmp_path / precision
        fabric = make_fabric(run, precision)
        losses.append(train_segmentation(fabric, settings(steps=1), cases, [], run).history.losses)
    full, mixed = (rows[0]["total"] for rows in losses)
    assert full != mixed and full == pytest.approx(mixed, rel=0.05)


def test_evaluation_runs_the_whole_region(cases, tmp_path):
    run = train_segmentation(make_fabric(tmp_path), settings(steps=1), cases, [], tmp_path)
    scores = evaluate(run.network, cases[:1], settings(), torch.device("cpu"))
    assert scores[0].patient_id == "A-0" and 0 <= scores[0].gtvp.dice <= 1


SCRIPT = """
import json, sys, torch
sys.path.insert(0, {here!r})
from pathlib import Path
from test_training_segmentation import settings, PATCH
from conftest import COARSE
from hmvnet.reading.folder import find_patients
from hmvnet.training.cache import Cache
from hmvnet.training.engine import make_fabric
from hmvnet.training.segmentation import evaluate, train_segmentation
torch.set_num_threads(1)
root, run = Path({data!r}), Path({run!r})
cache = Cache(root / "cache", COARSE, "centre")
cases = [cache.get(p) for p in find_patients(root)]
fabric = make_fabric(run)
out = train_segmentation(fabric, settings(steps=3, batch_size=2), cases, [], run)
if fabric.global_rank == 0:
    scores = evaluate(out.network, cases, settings(), torch.device("cpu"))
    losses = [row["total"] for row in out.history.losses]
    (run / "found.json").write_text(json.dumps([losses, [s.gtvp.prediction_mm3 for s in scores]]))
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    for i in range(2):
        write_patient(tmp_path / "data", f"A-{i}", "plain")
    found = []
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        run.mkdir()
        script = tmp_path / f"train{processes}.py"
        here = os.path.dirname(__file__)
        script.write_text(SCRIPT.format(here=here, data=str(tmp_path / "data"), run=str(run)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads((run / "found.json").read_text()))
    # Not the weights: Adam's first steps are signs of gradients, be they only rounding.
    for one, two in zip(*found):
        assert one == pytest.approx(two, rel=1e-3)


def test_scores_of_ours_and_the_platform_stand_in_one_table(tiny_bundle, tmp_path):
    import pandas as pd
    from rich.console import Console

    from hmvnet.experiments.evaluate import evaluate_segmentation

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


def test_postprocessing_is_tuned_on_unseen_patients_only(tiny_bundle, tmp_path):
    from rich.console import Console

    from hmvnet.bundle import all_tensors, fingerprint, load_bundle, write_bundle
    from hmvnet.experiments.tune import tune

    write_patient(tmp_path / "data", "A-1", "plain")
    wanted = Settings(data={"root": str(tmp_path / "data")})
    quiet = Console(quiet=True)
    tuned = load_bundle(tune(wanted, tiny_bundle, tmp_path / "run", 0, quiet))
    # The survival model was fitted to lesions of the old postprocessing: it does not come along.
    assert list(tuned.manifest.files) == ["fold0.safetensors"] and not tuned.manifest.prognosis
    part = tuned.manifest.segmentation.model_copy(update={"seen": [[fingerprint("A-1")]]})
    known = tuned.manifest.model_copy(update={"segmentation": part})
    folder = write_bundle(tmp_path / "known", known, all_tensors(tuned))
    with pytest.raises(ValueError, match="trained on A-1"):
        tune(wanted, folder, tmp_path / "run2", 0, quiet)


def test_tuning_finds_the_threshold_that_fits():
    """A lesion of probability 0.35 is found once the threshold is below that."""
    from conftest import CT_GRID, ball
    from rich.console import Console

    from hmvnet.config import PostprocessingSettings
    from hmvnet.experiments.tune import Kept, search

    lesion = ball(CT_GRID, (0, 0, 0), 25)
    probabilities = np.zeros((3, *CT_GRID.shape), np.float16)
    probabilities[1] = np.where(lesion, 0.35, 0.0)
    ct = np.full(CT_GRID.shape, 0.5, np.float32)
    kept = [Kept("A", CT_GRID, probabilities, ct, lesion.astype(np.uint8))]
    found = search(PostprocessingSettings(), kept, "head-neck", Console(quiet=True))
    assert found.threshold_gtvp < 0.35


def test_norms_are_settled_once_and_then_kept(cases, tmp_path):
    """Under kept statistics the last steps train what inference runs; also when resumed."""
    options = settings(steps=6, freeze_norms_at=0.5)

    def train_until(folder: str, step: int) -> tuple[dict, dict]:
        run = tmp_path / folder
        found = train_segmentation(
            make_fabric(run), options, cases, [], run, stop=lambda done: done == step
        )
        state = torch.load(run / "checkpoint.pt", weights_only=True)["network"]
        live = {k: v for k, v in state.items() if "running" in k}
        return live, weights_of(found.network)

    moving, kept, last = (train_until("parts", step)[0] for step in (3, 4, 6))
    assert not all(torch.equal(moving[k], kept[k]) for k in kept)
    assert all(torch.equal(last[k], kept[k]) for k in kept)
    whole = train_until("whole", 6)[1]
    assert all(torch.equal(whole[k], kept[k]) for k in kept)
    for key, value in train_until("parts", 6)[1].items():
        assert torch.equal(value, whole[key]), key


def two_folders(root, own: str, more: str, **data) -> DataSettings:
    """Patients of these names in ``data.root`` and in ``data.extra_root``."""
    for folder, names in (("own", own), ("more", more)):
        for name in names.split():
            write_patient(root / folder, name, "plain")
    return DataSettings(root=str(root / "own"), extra_root=str(root / "more"), **data)


def test_extra_patients_are_trained_on_and_remembered(tmp_path):
    data = two_folders(tmp_path, "A-0 A-1 A-2 A-3", "B-0 B-1", region="centre", folds=2)
    options = settings(steps=1, validate_every=1).model_copy(update={"data": data})
    fold = plan_folds(options, [1])[0]
    assert [p.patient_id for p in fold.extra] == ["B-0", "B-1"]
    bundle = load_bundle(train_segmentation_bundle(options, tmp_path / "run", [1]))
    assert bundle.manifest.trained_on["patients"] == len(fold.train) + 2
    everyone = [f"A-{i}" for i in range(4)] + ["B-0", "B-1"]
    trained = {p.patient_id for p in fold.seen}
    assert set(bundle.seen_among(everyone)) == trained
    assert not trained & {p.patient_id for p in fold.validation}


def test_a_patient_in_both_folders_is_refused(tmp_path):
    data = two_folders(tmp_path, "A-0 A-1", "A-0 A-1", folds=2)
    with pytest.raises(ValueError, match=r"A-0 is both in data\.root and in data\.extra_root"):
        plan_folds(Settings(data=data), None)


def test_a_left_out_centre_is_not_trained_on_by_way_of_the_extra_folder(tmp_path):
    data = two_folders(tmp_path, "A-0 B-1", "B-2", fold_by="leave-one-centre-out")
    with pytest.raises(ValueError, match="left-out centre B"):
        plan_folds(Settings(data=data), None)
