import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from conftest import (
    SMALL_NETWORK,
    short_training,
    write_patient,
)

from hmvnet.bundle import load_bundle
from hmvnet.config import AugmentationSettings, NetworkSettings, Settings
from hmvnet.networks.registry import build_network
from hmvnet.training import segmentation
from hmvnet.training.engine import make_fabric
from hmvnet.training.patches import PatchSampler
from hmvnet.training.segmentation import (
    SETTLING_PATCHES,
    evaluate,
    run_key,
    take_over,
    train_segmentation,
)


def test_settled_norms_are_of_the_averaged_weights(cases, tmp_path):
    run = train_segmentation(
        make_fabric(tmp_path), short_training(freeze_norms_at=1.0), cases, [], tmp_path
    )
    sampler = PatchSampler(cases, short_training(freeze_norms_at=1.0))
    run.network.eval()
    seen = []
    first = next(m for m in run.network.modules() if isinstance(m, torch.nn.BatchNorm3d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3, 4))))
    with torch.no_grad():
        for number in range(SETTLING_PATCHES):
            run.network(sampler(number)[0][None])
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(0), atol=1e-5, rtol=1e-4)


def weights_of(network) -> dict:
    return {k: v.clone() for k, v in network.state_dict().items()}


def test_killed_and_resumed_equals_uninterrupted(cases, tmp_path):
    whole = train_segmentation(
        make_fabric(tmp_path / "a"), short_training(), cases, [], tmp_path / "a"
    )
    killed = tmp_path / "b"
    train_segmentation(
        make_fabric(killed), short_training(), cases, [], killed, stop=lambda step: step == 3
    )
    resumed = train_segmentation(make_fabric(killed), short_training(), cases, [], killed)
    for key, value in weights_of(whole.network).items():
        assert torch.equal(value, weights_of(resumed.network)[key]), key
    assert [r["step"] for r in resumed.history.losses] == list(range(6))


def test_patches_drawn_ahead_are_those_of_the_loop(cases, tmp_path):
    """Also after a kill, and with the rest drawn by another number, of processes."""
    options = {"freeze_norms_at": 0.5, "batch_size": 2, "steps": 4}
    alone = short_training(workers=0, **options)
    whole = train_segmentation(make_fabric(tmp_path / "a"), alone, cases, [], tmp_path / "a")
    run = tmp_path / "b"
    for workers, kind, stop in ((2, "threads", 3), (1, "processes", 0)):
        settings = short_training(workers=workers, workers_are=kind, **options)
        found = train_segmentation(
            make_fabric(run), settings, cases, [], run, stop=lambda step, at=stop: step == at
        )
    for key, value in weights_of(whole.network).items():
        assert torch.equal(value, weights_of(found.network)[key]), key
    assert found.history.losses == whole.history.losses
    assert not [t for t in threading.enumerate() if t.name.startswith("draw")]


def test_a_cached_volume_that_is_gone_is_named_though_a_thread_misses_it(cases, tmp_path):
    def gone(where):
        raise OSError("A-0.b2nd: the cached volume cannot be read any more")

    shape = cases[0].volume.shape
    broken = type("Gone", (), {"shape": shape, "__getitem__": lambda self, where: gone(where)})()
    lost = [replace(case, volume=broken) for case in cases]
    with pytest.raises(OSError, match=r"A-0.b2nd: the cached volume"):
        train_segmentation(make_fabric(tmp_path), short_training(workers=2), lost, [], tmp_path)
    assert not [t for t in threading.enumerate() if t.name.startswith("draw")]


def grouped(**training) -> Settings:
    """Of a network whose norms have no statistics of a batch."""
    network = NetworkSettings(options=SMALL_NETWORK | {"norm": "group"})
    return short_training(**training).model_copy(update={"network": network})


def test_accumulated_batches_are_one_large_one(cases, tmp_path):
    runs = [
        train_segmentation(make_fabric(run), settings, cases, [], run)
        for run, settings in (
            (tmp_path / "one", grouped(steps=2, batch_size=2)),
            (tmp_path / "two", grouped(steps=2, batch_size=1, accumulate=2)),
        )
    ]
    one, two = ([row["total"] for row in run.history.losses] for run in runs)
    assert one == pytest.approx(two, rel=1e-5)
    for key, value in weights_of(runs[0].network).items():
        # AdamW divides by the gradient: single weights whose gradient is next to none may differ.
        assert (weights_of(runs[1].network)[key] - value).abs().mean() < 1e-5, key


def test_how_a_training_is_computed_is_not_what_it_hangs_on(cases):
    usual = run_key(short_training(), cases)
    how = {"workers": 3, "log_every": 7, "compile": "eager", "checkpoint_activations": True}
    assert run_key(short_training(**how), cases) == usual
    assert run_key(short_training(accumulate=2), cases) != usual
    assert run_key(short_training(seed=1), cases) != usual


def test_a_version_of_patches_counts_where_something_moves_them(cases, monkeypatch):
    def keys() -> list[str]:
        still = {"affine": 0.0, "elastic": 0.0, "misalignment": 0.0}
        moves = [AugmentationSettings(**still | one) for one in ({}, {"affine": 0.5})]
        usual = short_training()
        return [run_key(usual.model_copy(update={"augmentation": m}), cases) for m in moves]

    before = keys()
    monkeypatch.setattr(segmentation, "PATCHES_VERSION", segmentation.PATCHES_VERSION + 1)
    assert [old == new for old, new in zip(before, keys())] == [True, False]


def test_a_compiled_training_leaves_a_plain_network(cases, tmp_path):
    run = train_segmentation(
        make_fabric(tmp_path), short_training(steps=1, compile="eager"), cases, [], tmp_path
    )
    plain = build_network("hmvnet", SMALL_NETWORK)
    assert run.network.state_dict().keys() == plain.state_dict().keys()
    both = short_training(compile="eager", checkpoint_activations=True)
    with pytest.raises(ValueError, match="do not go together"):
        train_segmentation(make_fabric(tmp_path), both, cases, [], tmp_path)


def test_checkpoint_of_another_network_is_refused(cases, tmp_path):
    train_segmentation(make_fabric(tmp_path), short_training(steps=1), cases, [], tmp_path)
    other = short_training().model_copy(
        update={"network": NetworkSettings(options=SMALL_NETWORK | {"channels": 16})}
    )
    with pytest.raises(ValueError, match="another network"):
        train_segmentation(make_fabric(tmp_path), other, cases, [], tmp_path)


def test_unknown_network_stops_before_training(cases, tmp_path):
    wrong = short_training().model_copy(update={"network": NetworkSettings(name="vnet9")})
    with pytest.raises(ValueError, match="unknown network"):
        train_segmentation(make_fabric(tmp_path), wrong, cases, [], tmp_path)


def test_initial_weights_are_taken_over(tiny_bundle):
    network = build_network("hmvnet", SMALL_NETWORK)
    assert take_over(network, tiny_bundle) == set(network.state_dict())
    with pytest.raises(ValueError, match="nothing in bundle"):
        take_over(build_network("unet3d", {"width": 4}), tiny_bundle)


def test_frozen_norms_of_another_width_are_refused_and_what_is_taken_over_is_said(
    cases, tiny_bundle, tmp_path, capfd
):
    """Statistics that were never fitted would be kept, and a network nearly new be trained on."""
    options = SMALL_NETWORK | {"channels": 2 * SMALL_NETWORK["channels"]}
    other = short_training(steps=1, initial_weights=str(tiny_bundle)).model_copy(
        update={"network": NetworkSettings(options=options)}
    )
    train_segmentation(make_fabric(tmp_path), other, cases, [], tmp_path)
    said = re.search(r"initial_weights: (\d+) of (\d+) tensors taken over", capfd.readouterr().err)
    assert said and 0 < int(said[1]) < int(said[2])
    training = other.training.model_copy(update={"frozen_norms": True})
    with pytest.raises(
        ValueError, match="frozen_norms keeps the statistics of initial_weights, but"
    ):
        train_segmentation(
            make_fabric(tmp_path),
            other.model_copy(update={"training": training}),
            cases,
            [],
            tmp_path / "frozen",
        )


def test_frozen_norms_keep_the_statistics_they_came_with(cases, tiny_bundle, tmp_path):
    frozen = short_training(steps=2, frozen_norms=True, initial_weights=str(tiny_bundle))
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
            make_fabric(tmp_path), short_training(frozen_norms=True), cases, [], tmp_path / "other"
        )


def test_mixed_precision_reaches_the_network(cases, tmp_path):
    """Deep supervision must not slip past Fabric's autocast."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        run = tmp_path / precision
        fabric = make_fabric(run, precision)
        losses.append(
            train_segmentation(fabric, short_training(steps=1), cases, [], run).history.losses
        )
    full, mixed = (rows[0]["total"] for rows in losses)
    assert full != mixed and full == pytest.approx(mixed, rel=0.05)


def test_evaluation_runs_the_whole_region(cases, tmp_path):
    run = train_segmentation(make_fabric(tmp_path), short_training(steps=1), cases, [], tmp_path)
    scores = evaluate(run.network, cases[:1], short_training(), torch.device("cpu"))
    assert scores[0].patient_id == "A-0" and 0 <= scores[0].gtvp.dice <= 1


SCRIPT = """
import json, sys, torch
sys.path.insert(0, {here!r})
from pathlib import Path
from conftest import COARSE, short_training
from hmvnet.reading.folder import find_patients
from hmvnet.training.cache import Cache
from hmvnet.training.engine import make_fabric
from hmvnet.training.segmentation import evaluate, train_segmentation
torch.set_num_threads(1)
root, run = Path({data!r}), Path({run!r})
cache = Cache(root / "cache", COARSE, "centre")
cases = [cache.get(p) for p in find_patients(root)]
fabric = make_fabric(run)
out = train_segmentation(fabric, short_training(steps=3, batch_size=2), cases, [], run)
if fabric.global_rank == 0:
    scores = evaluate(out.network, cases, short_training(), torch.device("cpu"))
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


SETTLE = """
import json, sys, torch
from pathlib import Path
from hmvnet.training.engine import make_fabric
from hmvnet.training.segmentation import settle_norms
fabric = make_fabric(Path({run!r}))
norm = torch.nn.BatchNorm3d(1)
def batch(number):
    value = 10.0 * fabric.global_rank + number
    return torch.tensor([value - 1, value + 1]).reshape(1, 1, 2, 1, 1), None
settle_norms(norm, batch, 3, fabric)
found = [norm.running_mean.item(), norm.running_var.item()]
Path({run!r}, f"{{fabric.global_rank}}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_processes_settle_norms_on_the_batches_of_all(tmp_path):
    script = tmp_path / "settle.py"
    script.write_text(SETTLE.format(run=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in (0, 1):  # means 0, 1, 2 and 10, 11, 12; each batch's variance 2
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == pytest.approx([6.0, 2.0])


def test_norms_are_settled_once_and_then_kept(cases, tmp_path):
    """Under kept statistics the last steps train what inference runs; also when resumed."""
    options = short_training(steps=6, freeze_norms_at=0.5)

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
