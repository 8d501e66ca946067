"""The forward pass of inference against the plain one, which training and export take."""

import pytest
import torch
from torch import nn

from hmvnet.networks import lean
from hmvnet.networks.hmvnet import HMVNet, HMVNetConfig
from hmvnet.networks.norms import make_norm

SMALL = {"channels": 8, "head_channels": 8, "depths": (2, 2), "window": 4}
SMALL |= {"convs": (1, 1), "mlp_ratios": (2, 2)}


def network(**options) -> HMVNet:
    """Of norms that have seen something and heads that say something."""
    torch.manual_seed(0)
    made = HMVNet(HMVNetConfig(**(SMALL | options)))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm3d | nn.GroupNorm | nn.LayerNorm):
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return made.to(memory_format=torch.channels_last_3d).eval()


def plain(made: HMVNet, x: torch.Tensor, **options):
    with torch.enable_grad():
        return made(x, **options)


@pytest.mark.parametrize("options", [{}, {"norm": "group"}, {"norm": "voxel"}])
@pytest.mark.parametrize("size", [(40, 24, 16), (33, 19, 22), (16, 8, 31), (2, 3, 5), (18, 17, 15)])
def test_the_lean_pass_says_what_the_plain_one_says(size, options):
    made, x = network(**options), torch.randn(1, 2, *size)
    for scales in (False, True):
        expected = plain(made, x, scales=scales)
        with torch.inference_mode():
            found = made(x, scales=scales)
        assert len(found.scales) == len(expected.scales)
        for group in zip(found, expected, strict=True):
            torch.testing.assert_close(*group, atol=2e-4, rtol=1e-4)


def test_a_batch_and_any_layout():
    made = network()
    x = torch.randn(2, 2, 20, 12, 18)
    with torch.inference_mode():
        both = made(x).logits
        for i in range(2):
            one = x[i : i + 1].contiguous(memory_format=torch.channels_last_3d)
            torch.testing.assert_close(both[i : i + 1], made(one).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both, plain(made, x).logits, atol=2e-4, rtol=1e-4)


def test_the_input_is_left_as_it_was():
    made = network()
    for size in ((16, 16, 16), (13, 16, 9)):
        x = torch.randn(1, 2, *size)
        before = x.clone()
        with torch.inference_mode():
            made(x)
        assert torch.equal(x, before)


def test_only_inference_is_lean():
    made = network()
    with torch.no_grad():
        assert lean.allowed(made)
        assert not lean.allowed(made.train())
    assert not lean.allowed(made.eval())


def test_a_folded_norm():
    norm = network().stem[1].norm2
    conv = nn.Conv3d(8, 8, 3, padding=1)
    x = torch.randn(1, 8, 5, 6, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            lean.conv_and_norm(conv, norm, x), norm(conv(x)), atol=1e-4, rtol=1e-4
        )
        group = make_norm(8, "group")
        assert torch.equal(lean.conv_and_norm(conv, group, x), group(conv(x)))


def test_pairs_of_voxels_give_what_single_ones_give():
    torch.manual_seed(0)
    refine = nn.Sequential(nn.Conv3d(5, 8, 3, padding=1), nn.GELU(), nn.Conv3d(8, 3, 1))
    seen = torch.randn(1, 6, 5, 8, 5)
    with torch.no_grad():
        pairs, single = lean.in_pairs(refine)(seen), lean.one_by_one(refine)(seen)
        expected = refine(seen.movedim(-1, 1))[:, :, 1:-1]
    torch.testing.assert_close(single, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pairs, expected, atol=1e-5, rtol=1e-5)


def test_in_lower_precision_what_comes_out_is_near():
    made, x = network(), torch.randn(1, 2, 24, 24, 20)
    with torch.inference_mode():
        exact = made(x).logits
        with torch.autocast("cpu", torch.bfloat16):
            near = made(x)
    assert near.logits.dtype == torch.float32
    assert 0 < (near.logits - exact).abs().mean() < 0.02 * exact.abs().mean() + 0.02
