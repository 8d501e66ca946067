"""One network, mirrored and in windows."""

import pytest
import torch
from conftest import SMALL_NETWORK
from torch import nn

from hmvnet.imaging.network_input import ChannelScaling, NetworkInput
from hmvnet.networks.output import Output
from hmvnet.networks.registry import build_network
from hmvnet.segmentation.forward import (
    TorchForward,
    in_windows,
    mirrored,
    mirrored_axes,
    whole_windows,
)

CPU = torch.device("cpu")
NONE = ChannelScaling(scheme="none")
OWN = NetworkInput(field="ct", channels=(NONE, NONE), spacing_mm=(1, 1, 1), mirror_axes=(0, 2))


class Position(nn.Module):
    """Logits that are the input plus how far along each axis a voxel lies."""

    whole_region = False

    def forward(self, x, scales=False):
        steps = torch.arange(x.shape[-1], dtype=x.dtype)
        return Output(torch.cat([x, x[:, :1] + steps], 1), (), (x[:, :, ::2, ::2, ::2],))


def test_the_mirrored_passes_of_a_network():
    assert mirrored_axes(None, "left-right") == [(-1,)]
    assert len(mirrored_axes(None, "all")) == 7
    assert mirrored_axes(None, "none") == mirrored_axes(OWN, "none") == []
    for flips in ("left-right", "all"):
        assert mirrored_axes(OWN, flips) == [(2,), (4,), (2, 4)]
        assert mirrored_axes(OWN.model_copy(update={"mirror_axes": ()}), flips) == []


def test_what_a_mirrored_network_says_lies_where_it_belongs():
    x = torch.randn(1, 2, 4, 4, 4)
    (found,) = mirrored(lambda part: [part + torch.arange(4.0)], (-1,))(x)
    torch.testing.assert_close(found, x + torch.arange(4.0).flip(0))


@pytest.mark.parametrize("patch", [None, (32, 32, 32)], ids=["one pass", "windows"])
def test_a_mirrored_volume_gives_what_the_volume_gives_mirrored(patch):
    """Where windows lie evenly as well, from both ends."""
    torch.manual_seed(0)
    network = build_network("hmvnet", SMALL_NETWORK)
    network.whole_region = patch is None
    forward = TorchForward(network, CPU, patch or (96, 96, 96))
    x = torch.rand(1, 2, 32, 32, 64)
    found, maps = forward(x, (-1,))
    expected, theirs = forward(x.flip(-1))
    if patch is None:
        torch.testing.assert_close(found, expected.flip(-1))
        torch.testing.assert_close(maps[0], theirs[0].flip(-1))
    else:  # the middle of an even window is not the middle of its mirror image
        assert 0 < (found - expected.flip(-1)).abs().mean() < 0.05


class Precision(nn.Module):
    """Says in which precision a product was taken."""

    whole_region = True

    def forward(self, x, scales=False):
        half = (x[0, 0, 0] @ x[0, 0, 0].T).dtype == torch.bfloat16
        return Output(torch.full_like(x, 1.0 + half)[:, [0, 0, 0]])


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("precision", "own"), [("auto", None), ("auto", OWN), ("32", None)])
def test_a_cpu_that_multiplies_bf16_does_so_by_itself(monkeypatch, fast, precision, own):
    """Not for nnU-Net's networks, which are to give what nnU-Net gives."""
    monkeypatch.setattr("hmvnet.segmentation.forward.has_fast_bf16", lambda: fast)
    seen = []
    network = Precision()
    network.register_forward_hook(lambda module, inputs, out: seen.append(float(out[0].mean())))
    TorchForward(network, CPU, (16, 16, 16), precision, own)(torch.zeros(1, 2, 16, 16, 16))
    half = fast and precision == "auto" and own is None
    assert seen == [1.0 + half]


def test_networks_with_their_own_input_give_logits_and_are_padded_around():
    forward = TorchForward(Position(), CPU, (8, 8, 8), own=OWN)
    x = torch.full((1, 2, 5, 8, 6), 3.0)
    logits, (coarse,) = forward(x)
    assert logits.shape == (1, 3, 5, 8, 6) and (logits[:, :2] == 3).all()
    # One voxel of padding before six of eight.
    torch.testing.assert_close(logits[0, 2, 0, 0], 3 + torch.arange(1.0, 7.0))
    assert coarse.shape[2:] == (3, 4, 3)  # at strides from its first voxel on


class HandsOn(nn.Module):
    """Logits and a map that are parts of what it was given."""

    whole_region = True

    def forward(self, x, scales=False):
        return Output(x[:, :3], (), (x[:, 1:],))


@pytest.mark.parametrize("windows", ["never", "always", "both"])
def test_nothing_of_a_volume_or_a_map_is_overwritten(windows):
    x = torch.randn(1, 4, 8, 8, 8)
    before = x.clone()
    found, maps = TorchForward(HandsOn(), CPU, (8, 8, 8), precision="32", windows=windows)(x)
    torch.testing.assert_close(found, torch.softmax(before[:, :3], 1))
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    torch.testing.assert_close(maps[0], before[:, 1:])


def test_maps_are_made_only_where_they_are_asked_for():
    forward = TorchForward(Position(), CPU, (8, 8, 8), own=OWN, wants_maps=False)
    assert forward(torch.zeros(1, 2, 8, 8, 8))[1] == []


def test_windows_are_as_far_apart_as_the_settings_say():
    seen = []

    def network(part):
        seen.append(part)
        return [part]

    x = torch.zeros(1, 2, 16, 8, 8)
    in_windows(x, network, (8, 8, 8), own=OWN)
    assert len(seen) == 3
    in_windows(x, network, (8, 8, 8), own=OWN.model_copy(update={"step": 1.0}))
    assert len(seen) == 5


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_one_window_over_the_whole_volume_is_the_one_pass(norm):
    """Its size is the patch's, though that is no multiple of the network's stride."""
    torch.manual_seed(0)
    network = build_network("hmvnet", {**SMALL_NETWORK, "norm": norm})
    x = torch.rand(1, 2, 40, 33, 32)
    once, maps = TorchForward(network, CPU, (40, 32, 24), "32")(x[..., :32, :24])
    again, theirs = TorchForward(network, CPU, (40, 32, 24), "32", windows="always")(
        x[..., :32, :24]
    )
    torch.testing.assert_close(again, once)
    for one, other in zip(maps, theirs, strict=True):
        torch.testing.assert_close(other, one)


def test_windows_are_whole_strides_no_longer_than_the_volume():
    assert whole_windows((96, 152, 96), 32, (200, 155, 80)) == (96, 155, 96)
    assert whole_windows((40, 40), 32, (64, 50)) == (64, 50)
    assert whole_windows((40,), 1, (200,)) == (40,)


def test_both_is_the_mean_of_one_pass_and_windows():
    torch.manual_seed(0)
    network = build_network("hmvnet", SMALL_NETWORK)
    x = torch.rand(1, 2, 48, 40, 40)
    found = {
        windows: TorchForward(network, CPU, (32, 32, 32), "32", windows=windows)(x)
        for windows in ("never", "always", "both")
    }
    one, windows, both = (found[name][0] for name in ("never", "always", "both"))
    assert not torch.allclose(one, windows, atol=1e-4)
    torch.testing.assert_close(both, (one + windows) / 2)
    for ours, of_one_pass in zip(found["both"][1], found["never"][1], strict=True):
        assert torch.equal(ours, of_one_pass)


def test_both_is_windows_alone_where_one_pass_does_not_fit():
    network = build_network("hmvnet", SMALL_NETWORK)
    seen = []

    def check(module, arguments):
        seen.append(tuple(arguments[0].shape[2:]))
        if max(seen[-1]) > 32:
            raise MemoryError

    network.register_forward_pre_hook(check)
    x = torch.rand(1, 2, 48, 32, 32)
    both, windows = (
        TorchForward(network, CPU, (32, 32, 32), windows=said) for said in ("both", "always")
    )
    values, _ = both(x)
    tried = len(seen)
    torch.testing.assert_close(values, windows(x)[0])
    assert len(both.notes) == 1 and tried == 1 + len(seen[tried:])  # not in windows twice
