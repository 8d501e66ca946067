import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hmvnet.networks.hmvnet import (
    HMVNet,
    HMVNetConfig,
    WindowAttention,
    partition,
    unpartition,
    window_runs,
)
from hmvnet.networks.norms import make_norm

SMALL = {"channels": 8, "head_channels": 8, "depths": (2, 2, 2, 2), "window": 4}


def small_network(**options) -> HMVNet:
    torch.manual_seed(0)
    return HMVNet(HMVNetConfig(**(SMALL | options))).eval()


def naive_attention(layer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Token by token, from the definition: a token sees those of its (shifted) window."""
    _, *size, channels = x.shape
    window = [min(layer.window, n) for n in size]
    shift = [w // 2 if layer.shift and n > w else 0 for w, n in zip(window, size)]
    points = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), -1).reshape(-1, 3)
    # Windows start at -shift: window k covers [k*w + shift - w, k*w + shift).
    number = torch.stack([(points[:, i] - shift[i]) // window[i] for i in range(3)], 1)
    same = (number[:, None] == number[None]).all(-1)
    q, k, v = layer.qkv(x.reshape(-1, channels)).chunk(3, -1)
    span = 2 * layer.window - 1
    offset = points[:, None] - points[None]
    index = offset + layer.window - 1
    index = (index[..., 0] * span + index[..., 1]) * span + index[..., 2]
    out = []
    width = channels // layer.heads
    for h in range(layer.heads):
        part = slice(h * width, (h + 1) * width)
        bias = torch.full_like(same, 0, dtype=x.dtype)
        bias[same] = layer.position_bias[h][index[same]]
        scores = (q[:, part] @ k[:, part].T) / width**0.5 + bias
        out.append(scores.masked_fill(~same, -torch.inf).softmax(-1) @ v[:, part])
    return layer.proj(torch.cat(out, -1)).reshape(x.shape)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [(4, 4, 4), (8, 4, 8), (7, 9, 5), (3, 2, 10)])
def test_window_attention_equals_its_definition(size, shift):
    torch.manual_seed(1)
    layer = WindowAttention(8, 2, 4, shift)
    torch.nn.init.normal_(layer.position_bias)
    x = torch.randn(1, *size, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), naive_attention(layer, x), atol=1e-5, rtol=1e-4)


def test_attention_in_a_batch_equals_one_map_after_the_other():
    layer = WindowAttention(8, 2, 4, True).eval()
    x = torch.randn(2, 10, 9, 11, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.cat([layer(x[:1]), layer(x[1:])]))


def test_position_bias_follows_the_weights():
    layer = WindowAttention(8, 2, 4, False).eval()
    x = torch.randn(1, 4, 4, 4, 8)
    with torch.inference_mode():
        before = layer(x)
        state = layer.state_dict()
        state["position_bias"] = torch.randn_like(state["position_bias"]) * 3
        layer.load_state_dict(state)
        assert not torch.allclose(layer(x), before)


def test_partition_and_back():
    x = torch.randn(2, 8, 4, 12, 3)
    windows = partition(x, (4, 2, 6))
    assert windows.shape == (2 * 2 * 2 * 2, 4 * 2 * 6, 3)
    assert torch.equal(unpartition(windows, x.shape[:4], (4, 2, 6)), x)


@pytest.mark.parametrize(
    ("size", "shift", "runs"),
    [
        (12, False, [(12, 4)]),  # one call of attention for all windows
        (14, False, [(12, 4), (2, 2)]),
        (12, True, [(2, 2), (8, 4), (2, 2)]),
        (15, True, [(2, 2), (12, 4), (1, 1)]),
        (5, True, [(2, 2), (3, 3)]),
        (4, True, [(4, 4)]),
        (3, True, [(3, 3)]),
    ],
)
def test_runs_of_windows(size, shift, runs):
    assert window_runs(size, 4, shift) == runs


@pytest.mark.parametrize("size", [(32, 32, 32), (33, 50, 7), (2, 2, 2), (64, 31, 40)])
def test_any_input_size(size):
    network = small_network()
    with torch.inference_mode():
        logits, scales, features = network(torch.randn(1, 2, *size))
    assert logits.shape == (1, 3, *size) and scales == ()
    assert [f.shape[1] for f in features] == [16, 32, 64, 128]
    assert torch.isfinite(logits).all()


def test_deep_supervision_scales():
    output = small_network()(torch.randn(1, 2, 32, 32, 64), scales=True)
    assert [tuple(s.shape[2:]) for s in (output.logits, *output.scales)] == [
        (32, 32, 64),
        (16, 16, 32),
        (8, 8, 16),
        (4, 4, 8),
    ]


def test_coarse_heads_run_only_when_asked_for():
    network, calls = small_network(), []
    for head in network.scale_heads[1:]:
        head.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 2, 32, 32, 32)
    with torch.inference_mode():
        alone = network(x)
        assert not calls
        torch.testing.assert_close(network(x, scales=True).logits, alone.logits)
    assert len(calls) == 2


def test_features_are_the_maps_of_the_encoder_stages():
    network, maps = small_network(), []
    for stage in network.stages:
        stage.register_forward_hook(lambda module, inputs, found: maps.append(found))
    with torch.inference_mode():
        features = network(torch.randn(1, 2, 40, 32, 33)).features
    assert [tuple(f.shape) for f in features] == [
        (1, 16, 10, 8, 9),
        (1, 32, 5, 4, 5),
        (1, 64, 3, 2, 3),
        (1, 128, 2, 1, 2),
    ]
    assert all(torch.equal(f, m) for f, m in zip(features, maps, strict=True))


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5), (20, 33, 17)])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_nothing_is_padded_to_a_multiple(size, norm):
    """Norms see the region and no air behind it, of which training's patches hold none."""
    network, seen = small_network(norm=norm), set()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d | nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, x: seen.add(tuple(x[0].shape[2:])))
    found = network(torch.rand(1, 2, *size), scales=True)
    assert found.logits.shape == (1, 3, *size)
    assert seen == {tuple(-(-n // 2**level) for n in size) for level in range(1, 5)}
    assert [s.shape[2:] for s in found.scales] == [
        tuple(-(-n // 2**level) for n in size) for level in (1, 2, 3)
    ]


def test_the_last_plane_of_an_odd_axis_counts_twice():
    stage = small_network().stages[0]
    x = torch.rand(1, 8, 4, 5, 6)
    with torch.inference_mode():
        assert torch.equal(stage(x), stage(torch.cat([x, x[:, :, :, -1:]], 3)))


def test_far_air_does_not_change_what_is_seen():
    """Without statistics of what is seen, one pass over the region equals a patch."""
    x = torch.rand(1, 2, 32, 32, 64)
    apart = {}
    for norm in ("batch", "group", "voxel"):
        network = small_network(depths=(0, 0), convs=(0, 0), mlp_ratios=(2, 2), norm=norm)
        with torch.inference_mode():
            alone, wide = network(x[..., :32]).logits, network(x).logits
        # Convolutions reach some voxels past the cut; away from it the two agree.
        apart[norm] = float((alone[..., :8] - wide[..., :8]).abs().max())
    assert max(apart["batch"], apart["voxel"]) < 1e-5 < apart["group"]


def test_a_voxels_norm_is_its_channels_root_mean_square():
    x = torch.randn(2, 5, 3, 4, 6).contiguous(memory_format=torch.channels_last_3d)
    norm = make_norm(5, "voxel")
    torch.nn.init.constant_(norm.weight, 2.0)
    torch.nn.init.constant_(norm.bias, -1.0)
    found = norm(x)
    mean_square = x.square().mean(1, keepdim=True)
    torch.testing.assert_close(found, 2 * x / (mean_square + 1e-5).sqrt() - 1)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_number_of_stages(stages):
    network = small_network(
        depths=(1,) * stages, convs=(1,) * stages, mlp_ratios=(2,) * stages, channels=4
    )
    logits, _, features = network(torch.randn(1, 2, 32, 32, 20))
    assert logits.shape == (1, 3, 32, 32, 20) and len(features) == stages
    assert len(network(torch.randn(1, 2, 32, 32, 32), scales=True).scales) == min(3, stages)


def test_every_parameter_gets_a_gradient():
    network = small_network().train()
    output = network(torch.randn(1, 2, 64, 64, 64), scales=True)
    sum(s.square().mean() for s in (output.logits, *output.scales)).backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]


def test_left_right_learning_signal_reaches_the_loss():
    network = small_network().train()
    x, target = torch.rand(1, 2, 32, 32, 32), torch.zeros(1, 32, 32, 32, dtype=torch.long)
    target[:, 8:20, 8:20, 8:20] = 1
    x[:, 1, 8:20, 8:20, 8:20] += 1
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(network(x).logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    "wrong",
    [{"depths": (2, 2)}, {"head_channels": 5}, {"norm": "layer"}],
    ids=lambda w: next(iter(w)),
)
def test_impossible_settings(wrong):
    with pytest.raises(ValueError):
        HMVNetConfig(**(SMALL | wrong))
