import errno
import time
import warnings
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import files_of_at_most
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hmvnet import files
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.training import checkpoints, engine
from hmvnet.training.checkpoints import CHECKPOINT, costs_so_far, fork
from hmvnet.training.engine import LoopSettings, learning_rate, make_fabric, train, work_clock
from hmvnet.training.schedule import ENDLESS, Decay, Trunk

STEPS = 8
LOOP = LoopSettings(STEPS, 0.01, 0.1, 2, 1.0, 0.9, 3, 4)
KEYS = "key step precision network average optimizer losses validations seconds"
ADDED = ["spent"]  # later; files without it resume


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def loss_of_step(network: nn.Module, step: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    x = torch.from_numpy(np.random.default_rng(step).normal(size=(5, 3))).float()
    return {"total": scale * (network(x) - x.sum(1, keepdim=True)).square().mean()}


def fit(run, loop=LOOP, fabric=None, losses=loss_of_step, **options):
    fabric = fabric or make_fabric(run, "32-true")
    return train(fabric, small_network(), loop, losses, run, key="k", quiet=True, **options)


def half_precision() -> tuple[Fabric, torch.amp.GradScaler]:
    """fp16 with a gradient scaler, on the CPU, which changes its scale within a few steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    return fabric, scaler


def stored(run) -> dict:
    return torch.load(run / CHECKPOINT, weights_only=True)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_before_step_comes_between_train_mode_and_the_losses(tmp_path):
    seen = []

    def before_step(network, step):
        seen.append(("before", step, network.training))
        network.eval()

    def losses(network, step):
        seen.append(("losses", step, network.training))
        return loss_of_step(network, step)

    fit(tmp_path, losses=losses, before_step=before_step, stop=lambda done: done == 2)
    assert seen == [
        (name, step, training)
        for step in range(2)
        for name, training in (("before", True), ("losses", False))
    ]


def test_networks_come_back_without_wrappers(tmp_path):
    validated = []

    def validate(network, step):
        validated.append(type(network))
        return {}

    average, _ = fit(tmp_path, validate=validate)
    assert type(average) is nn.Sequential and set(validated) == {nn.Sequential}
    assert stored(tmp_path)["network"].keys() == small_network().state_dict().keys()


def test_learning_rate_warms_up_and_falls():
    loop = LoopSettings(100, 1.0, 0, 10, 1, 0.9, 1, 1)
    rates = [learning_rate(s, loop) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02 and rates[10:] == sorted(rates[10:], reverse=True)


def test_checkpoint_of_the_first_version_resumes(tmp_path):
    """A file made of torch's own state dicts under the names that checkpoints had from the start.

    It is what the loop has after three steps, so that the rest is as if never interrupted.
    """
    whole, history = fit(tmp_path / "whole")
    fit(tmp_path / "part", stop=lambda done: done == 3)
    part = stored(tmp_path / "part")
    network = small_network()
    network.load_state_dict(part["network"])
    average = AveragedModel(small_network())
    average.load_state_dict(part["average"])
    weights = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    optimizer.load_state_dict(part["optimizer"])
    file = {
        "key": "k",
        "step": 3,
        "precision": {},
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": history.losses[:3],
        "validations": [],
        "seconds": 12.5,
    }
    assert list(file) == KEYS.split() and list(part) == [*file, *ADDED]
    (tmp_path / "old").mkdir()
    torch.save(file, tmp_path / "old" / CHECKPOINT)
    resumed, found = fit(tmp_path / "old")
    assert_same_weights(resumed, whole)
    assert found.losses == history.losses and found.seconds > 12.5


def test_tables_of_the_history_go_on_over_a_resume(tmp_path):
    def validate(network, step):
        return {"figure": step / 10}

    fit(tmp_path, validate=validate, stop=lambda done: done == 5)
    fit(tmp_path, validate=validate)
    assert (tmp_path / "validations.csv").read_text() == "step,figure\n4,0.4\n8,0.8\n"
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 1 + STEPS


def test_a_kill_in_any_save_leaves_tables_that_the_same_training_completes(tmp_path, monkeypatch):
    def validate(network, step):
        return {"figure": step / 10}

    fit(tmp_path / "whole", validate=validate)
    whole, written = files.replacing, 0
    for fatal in range(1, 8):  # the files of two saves, and one more
        run, written = tmp_path / str(fatal), 0

        @contextmanager
        def killed(path, fatal=fatal):
            nonlocal written
            written += 1
            if written == fatal:
                raise SystemExit(143)
            with whole(path) as temporary:
                yield temporary

        monkeypatch.setattr(files, "replacing", killed)
        monkeypatch.setattr(checkpoints, "replacing", killed)
        with suppress(SystemExit):
            fit(run, validate=validate)
        monkeypatch.undo()
        fit(run, validate=validate)
        for name in ("losses.csv", "validations.csv"):
            assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), fatal


def test_dropout_goes_on_over_a_resume(tmp_path):
    def losses(network, step):
        dropped = nn.functional.dropout(torch.ones(5, 3), 0.5)
        return {"total": (network(dropped) - dropped.sum(1, keepdim=True)).square().mean()}

    whole, history = fit(tmp_path / "whole", losses=losses, seed=0)
    fit(tmp_path / "part", losses=losses, seed=0, stop=lambda done: done == 3)
    torch.manual_seed(5)
    torch.rand(7)
    resumed, found = fit(tmp_path / "part", losses=losses, seed=0)
    assert_same_weights(resumed, whole)
    assert found.losses == history.losses
    assert len({row["total"] for row in history.losses}) == STEPS


def test_gradients_that_are_never_finite_end_the_training(tmp_path, monkeypatch):
    """A loss may well be finite where its gradient is not; a step now and then is skipped."""
    monkeypatch.setattr(engine, "MOST_SKIPPED", 3)

    def losses(network, step, bad):
        loss = loss_of_step(network, step)["total"]
        root = (0 * loss).sqrt()  # 0, and its gradient infinity times 0
        return {"total": loss + root if step in bad else loss}

    _, history = fit(tmp_path / "some", losses=partial(losses, bad={1, 2, 4, 5}))
    assert len(history.losses) == STEPS and set(history.losses[0]) == {"step", "total"}
    with pytest.raises(RuntimeError, match=r"the gradients of 3 steps up to step 6 are not finite"):
        fit(tmp_path / "all", losses=partial(losses, bad={4, 5, 6}))


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    fit(tmp_path, stop=lambda done: done == 1)

    whole = type(tmp_path).open

    def stale(self, *args, **named):
        if self.name == CHECKPOINT:
            raise OSError(errno.ESTALE, "Stale file handle", str(self))
        return whole(self, *args, **named)

    monkeypatch.setattr(type(tmp_path), "open", stale)
    for read in (partial(costs_so_far, tmp_path, "k"), partial(fit, tmp_path)):
        with pytest.raises(OSError, match=r"Stale file handle.*checkpoint\.pt"):
            read()
    monkeypatch.undo()
    assert costs_so_far(tmp_path / "none", "k") == []


def test_a_checkpoint_of_something_else_is_damaged(tmp_path):
    torch.save([1, 2], tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="cut or damaged"):
        fit(tmp_path)
    assert costs_so_far(tmp_path, "k") == []


def test_trainings_and_inference_run_on_the_same_devices(tmp_path, monkeypatch):
    """A Mac's GPU is not one of them."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert make_fabric(tmp_path, "32-true").device == pick_device() == torch.device("cpu")


def test_checkpoint_of_other_data_is_refused(tmp_path):
    fit(tmp_path, stop=lambda done: done == 1)
    fabric = make_fabric(tmp_path, "32-true")
    with pytest.raises(ValueError, match="other data"):
        train(fabric, small_network(), LOOP, loss_of_step, tmp_path, key="other", quiet=True)


@pytest.mark.parametrize("kept", [0, 100, 2000, 0.9, "another bit"])
def test_a_damaged_checkpoint_is_named(tmp_path, kept):
    fit(tmp_path, stop=lambda done: done == 1)
    path = tmp_path / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    if kept == "another bit":
        weight = stored(tmp_path)["network"]["0.weight"].numpy().tobytes()
        data[data.index(weight)] ^= 1
        kept = len(data)
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"checkpoint.pt: the checkpoint is cut or damaged"):
        fit(tmp_path)


def test_gradient_scaler_goes_on_over_a_resume(tmp_path):
    fabric, scaler = half_precision()
    whole, _ = fit(tmp_path / "whole", fabric=fabric)
    fit(tmp_path / "part", fabric=half_precision()[0], stop=lambda done: done == 3)
    kept = stored(tmp_path / "part")["precision"]
    assert kept["scale"] == 2048.0 and kept["_growth_tracker"] == 1
    fabric, resumed_scaler = half_precision()
    resumed, _ = fit(tmp_path / "part", fabric=fabric)
    assert_same_weights(resumed, whole)
    assert resumed_scaler.state_dict() == scaler.state_dict() and scaler.get_scale() == 1024.0 * 16


def test_a_step_of_infinite_gradients_is_skipped_and_the_scale_halved(tmp_path):
    """The loss is finite; scaled, it is beyond what float32 holds."""
    fabric, scaler = half_precision()
    huge = partial(loss_of_step, scale=3e37)
    average, history = fit(tmp_path, fabric=fabric, losses=huge, stop=lambda done: done == 1)
    assert np.isfinite(history.losses[0]["total"]) and scaler.get_scale() == 512.0
    state = stored(tmp_path)
    assert_same_weights(average, small_network())
    assert state["average"]["n_averaged"] == 0 and not state["optimizer"]["state"]


def test_a_checkpoint_without_scaler_resumes_with_one(tmp_path):
    """From a machine that trains in full precision to one that trains in fp16."""
    fit(tmp_path, stop=lambda done: done == 4)
    fabric, scaler = half_precision()
    _, history = fit(tmp_path, fabric=fabric)
    assert len(history.losses) == STEPS and scaler.get_scale() == 1024.0 * 4


def test_an_infinite_loss_ends_the_training(tmp_path):
    endless = partial(loss_of_step, scale=float("inf"))
    with pytest.raises(RuntimeError, match="the loss became inf at step 0"):
        fit(tmp_path, losses=endless)


def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(tmp_path):
    whole, history = fit(tmp_path / "whole")
    run = tmp_path / "run"
    fit(run, stop=lambda done: done == 3)
    before = (run / CHECKPOINT).read_bytes()
    with files_of_at_most(len(before) // 2), pytest.raises(OSError) as raised:
        fit(run)
    assert raised.value.filename == str(run / CHECKPOINT) and raised.value.errno == errno.EFBIG
    assert (run / CHECKPOINT).read_bytes() == before and not list(run.glob(".part-*"))
    resumed, found = fit(run)
    assert_same_weights(resumed, whole)
    assert found.losses == history.losses


@pytest.mark.parametrize("fault", ["no room", "no folder"])
def test_a_log_that_cannot_be_written_costs_nothing_else(tmp_path, capfd, monkeypatch, fault):
    whole, _ = fit(tmp_path / "whole")
    run, loop = tmp_path / "run", replace(LOOP, checkpoint_every=STEPS + 1)
    (run).mkdir()
    if fault == "no folder":
        (run / "logs").write_text("a file is in its place")

    fabric = make_fabric(run, "32-true")
    log_dict = fabric.log_dict

    def log(row, step):
        with files_of_at_most(10) if fault == "no room" else nullcontext():
            log_dict(row, step)
            fabric.loggers[0].experiment.flush()  # else a thread writes, when it gets its turn

    monkeypatch.setattr(fabric, "log_dict", log)
    average, _ = fit(run, loop=loop, fabric=fabric)
    assert_same_weights(average, whole)
    assert (run / CHECKPOINT).is_file()
    said = capfd.readouterr().err.strip().splitlines()
    assert [line.startswith("warning: log not written") for line in said] == [True], said


def ticking(pace: float = 2.0):
    """A clock that goes on by ``pace`` seconds at every second look: a step's cost."""
    looks = iter(range(10**6))
    return lambda: pace * ((next(looks) + 1) // 2)


def test_steps_are_charged_and_validations_are_not(tmp_path):
    looks = iter(range(1000))

    def clock():  # a second a look
        return float(next(looks))

    def validate(network, step):
        clock()
        return {"figure": 0.0}

    _, history = fit(tmp_path, clock=clock, validate=validate)
    assert len(history.validations) == 2
    assert history.spent == [float(step + 1) for step in range(STEPS)]


def test_what_was_charged_goes_on_over_a_resume(tmp_path):
    fit(tmp_path, clock=ticking(), stop=lambda done: done == 3)
    assert stored(tmp_path)["spent"] == [2.0, 4.0, 6.0]
    _, history = fit(tmp_path, clock=ticking(5.0))
    assert history.spent[:5] == [2.0, 4.0, 6.0, 11.0, 16.0]
    assert costs_so_far(tmp_path, "k") == history.spent
    assert costs_so_far(tmp_path, "other") == [] == costs_so_far(tmp_path / "none", "k")


def test_the_cpu_is_charged_for_what_this_process_computes_only():
    clock = work_clock(torch.device("cpu"))
    assert clock is time.process_time and work_clock(torch.device("cuda")) is time.perf_counter


def test_a_trunk_cut_anywhere_is_the_uncut_one(tmp_path):
    trunk = Trunk(0.01, 2)
    loop = replace(LOOP, steps=ENDLESS)

    def go(run, at):
        return fit(run, loop=loop, rate=trunk.rate, ema_warmup=True, stop=lambda done: done == at)

    whole, history = go(tmp_path / "whole", 8)
    for at in (1, 4, 5, 8):
        cut, _ = go(tmp_path / "cut", at)
    assert_same_weights(cut, whole)
    assert stored(tmp_path / "cut")["losses"] == history.losses


def test_a_branch_goes_on_where_its_trunk_stands_and_leaves_it_alone(tmp_path):
    trunk, loop = Trunk(0.01, 2), replace(LOOP, steps=ENDLESS)
    fit(tmp_path / "trunk", loop=loop, rate=trunk.rate, stop=lambda done: done == 6)
    before = (tmp_path / "trunk" / CHECKPOINT).read_bytes()
    fork(tmp_path / "trunk", "k", tmp_path / "branch", "k")
    decay = Decay(trunk, 6, 2)
    branch, history = fit(tmp_path / "branch", rate=decay.rate)
    # One training of the whole course, which was never cut.
    planned, expected = fit(tmp_path / "planned", rate=decay.rate)
    assert_same_weights(branch, planned)
    assert history.losses == expected.losses
    assert (tmp_path / "trunk" / CHECKPOINT).read_bytes() == before
    with pytest.raises(ValueError, match="of another training"):
        fork(tmp_path / "trunk", "other", tmp_path / "branch", "k")


@pytest.mark.parametrize("every", [3, 100])
def test_losses_that_are_read_later_are_the_same(tmp_path, monkeypatch, every):
    whole, history = fit(tmp_path / "whole")
    monkeypatch.setattr(engine, "_read_every", lambda fabric, settings: every)
    run = tmp_path / "run"
    fit(run, stop=lambda done: done == 5)
    assert stored(run)["losses"] == history.losses[:5]  # with the checkpoint of the last step
    resumed, found = fit(run)
    assert_same_weights(resumed, whole)
    assert found.losses == history.losses
    for name in ("losses.csv",):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_loss_that_is_read_later_is_named_by_its_own_step(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_read_every", lambda fabric, settings: 100)
    loop = replace(LOOP, checkpoint_every=6)

    def losses(network, step):
        return loss_of_step(network, step, scale=float("nan") if step == 4 else 1.0)

    with pytest.raises(RuntimeError, match="the loss became nan at step 4"):
        fit(tmp_path, loop=loop, losses=losses)
    assert not (tmp_path / CHECKPOINT).exists()


def test_the_fused_optimiser_skips_infinite_gradients_by_itself(tmp_path, monkeypatch):
    """As on a GPU, where nobody waits to see whether they are finite; it runs on CPUs, too."""
    monkeypatch.setattr(engine, "_is_fused", lambda fabric: True)

    def losses(network, step):  # the loss is finite, its gradients are beyond float32
        return loss_of_step(network, step, scale=3e38 if step == 1 else 1.0)

    fit(tmp_path / "plain", stop=lambda done: done == 1)
    before = stored(tmp_path / "plain")["network"]
    fit(tmp_path / "infinite", losses=losses, stop=lambda done: done == 2)
    after = stored(tmp_path / "infinite")
    assert all(torch.equal(before[k], after["network"][k]) for k in before)
    moments = after["optimizer"]["state"][0]
    assert torch.isfinite(moments["exp_avg"]).all() and float(moments["step"]) == 1
    monkeypatch.undo()
    usual, _ = fit(tmp_path / "usual")
    monkeypatch.setattr(engine, "_is_fused", lambda fabric: True)
    fused, _ = fit(tmp_path / "fused")
    for key, value in usual.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key], value)


@pytest.mark.parametrize("first", [True, False])
def test_a_training_goes_on_with_the_other_optimiser(tmp_path, monkeypatch, first):
    """From a CPU to a GPU, whose AdamW is fused, or back."""
    whole, _ = fit(tmp_path / "whole")
    for fused, stop in ((first, 3), (not first, 0)):
        monkeypatch.setattr(engine, "_is_fused", lambda fabric, fused=fused: fused)
        found, _ = fit(tmp_path / "run", stop=lambda done, stop=stop: done == stop)
    assert bool(stored(tmp_path / "run")["optimizer"]["param_groups"][0]["fused"]) is not first
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value)


def test_accumulated_gradients_are_those_of_the_batches_together(tmp_path):
    def together(network, step):
        losses = [loss_of_step(network, 2 * step + part)["total"] for part in range(2)]
        return {"total": (losses[0] + losses[1]) / 2}

    whole, history = fit(tmp_path / "whole", losses=together)
    parts, found = fit(tmp_path / "parts", loop=replace(LOOP, accumulate=2))
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, atol=1e-6, rtol=1e-5)
    one, other = ([row["total"] for row in h.losses] for h in (history, found))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_compiled_network_keeps_its_names(tmp_path):
    whole, _ = fit(tmp_path / "whole")
    compiled, _ = fit(tmp_path / "compiled", compiler="eager")
    assert_same_weights(compiled, whole)
    for name in ("network", "average"):
        assert stored(tmp_path / "compiled")[name].keys() == stored(tmp_path / "whole")[name].keys()
    assert not any("_orig_mod" in key for key in stored(tmp_path / "compiled")["network"])
    assert type(compiled) is nn.Sequential
