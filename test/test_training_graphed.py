from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric

from hmvnet.config import TrainingSettings
from hmvnet.networks.registry import build_network
from hmvnet.training.graphed import GraphedLoss, Judged, can_be_graphed
from hmvnet.training.losses import SegmentationLoss

SMALL = {"channels": 8, "depths": (1, 1), "convs": (1, 0), "mlp_ratios": (2.0, 2.0), "window": 2}


def network_of(norm="batch"):
    torch.manual_seed(0)
    return build_network("hmvnet", {**SMALL, "norm": norm, "head_channels": 8})


def batch_of(device="cpu"):
    images = torch.rand(2, 2, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    labels = (images[:, 1] > 0.8).to(torch.uint8)
    return images.to(device), labels.to(device)


def fabric_of(kind="cuda", precision="bf16-mixed", processes=1):
    strategy = SimpleNamespace(precision=SimpleNamespace(precision=precision))
    return SimpleNamespace(device=torch.device(kind), world_size=processes, strategy=strategy)


def test_what_is_recorded():
    settings = TrainingSettings()
    assert can_be_graphed(fabric_of(), settings)
    assert can_be_graphed(fabric_of(precision="32-true"), settings)
    for fabric in (fabric_of("cpu"), fabric_of(precision="16-mixed"), fabric_of(processes=2)):
        assert not can_be_graphed(fabric, settings)
    for other in (
        {"cuda_graph": False},
        {"accumulate": 2},
        {"compile": "inductor"},
        {"checkpoint_activations": True},
    ):
        assert not can_be_graphed(fabric_of(), TrainingSettings(**other))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_network_and_loss_together_are_what_they_are_apart(precision):
    """With Fabric's mixed precision, as the loop has it where nothing is recorded."""
    images, labels = batch_of()
    fabric = Fabric(accelerator="cpu", precision=precision)
    loss, apart = SegmentationLoss(0.5, 0.2), network_of()
    out = fabric.setup_module(apart)(images, scales=True)
    expected = loss([out.logits, *out.scales], labels)
    fabric.backward(expected)
    together = network_of()
    reduced = torch.bfloat16 if precision == "bf16-mixed" else None
    found = Judged(together, loss, reduced)(images, labels)
    found.backward()
    assert torch.equal(found, expected)
    for one, other in zip(apart.parameters(), together.parameters()):
        assert torch.equal(one.grad, other.grad)


def test_what_cannot_be_recorded_is_said_once_and_leaves_nothing_behind(monkeypatch, capsys):
    network = network_of()
    asked = []

    def refuse(judged, sample, **_):
        asked.append(sample)
        judged(*sample).backward()  # as far as it came
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    images, labels = batch_of()
    graphed = GraphedLoss(network, SegmentationLoss(), "32-true")
    first = graphed(images, labels)
    tracked = [int(n) for name, n in network.named_buffers() if name.endswith("tracked")]
    assert set(tracked) == {1}  # one batch was seen
    graphed.forget()
    graphed(images, labels)
    assert len(asked) == 1 and torch.equal(
        first, Judged(network_of(), SegmentationLoss(), None)(images, labels)
    )
    assert all(p.grad is None for p in network.parameters())
    said = capsys.readouterr().err
    assert said.count("no CUDA graph: operation not permitted") == 1 and "more" not in said


def test_too_little_memory_is_not_taken_for_a_refusal(monkeypatch):
    def refuse(judged, sample, **_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        GraphedLoss(network_of(), SegmentationLoss(), "32-true")(*batch_of())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_graph_trains_as_kernels_one_by_one_do(norm):
    images, labels = batch_of("cuda")
    courses = []
    for recorded in (False, True):
        network = network_of(norm).cuda().train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
        graphed = GraphedLoss(network, SegmentationLoss(), "32-true")
        losses = []
        for step in range(8):
            if step == 4:  # from here on under kept statistics
                graphed.forget()
                for module in network.modules():
                    if isinstance(module, torch.nn.BatchNorm3d):
                        module.eval()
            optimizer.zero_grad(set_to_none=True)
            loss = (graphed if recorded else graphed.judged)(images + step / 100, labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        courses.append(torch.tensor(losses))
        if recorded:
            assert graphed._recorded is not None
    torch.testing.assert_close(*courses, rtol=1e-3, atol=1e-4)
