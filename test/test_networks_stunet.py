"""STU-Net: sizes and names of its published checkpoints."""

import pytest
import torch

from hmvnet.networks.registry import build_network
from hmvnet.networks.stunet import STUNet

TINY = {"channels": [2, 4, 4], "depths": [1, 2, 1], "strides": [[2, 2, 2], [2, 1, 1]]}


@pytest.mark.parametrize(
    ("size", "millions"),
    [("small", 14.60), ("base", 58.26), ("large", 440.30), ("huge", 1457.33)],
)
def test_sizes_are_those_of_the_paper(size, millions):
    """Of a CT and TotalSegmentator's 105 classes (arXiv 2304.06716)."""
    with torch.device("meta"):  # counted, not allocated
        network = STUNet(1, 105, size)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


def test_the_small_one_of_two_images_and_three_classes():
    count = sum(p.numel() for p in build_network("stu-net").parameters())
    assert count == 14_546_287


def test_its_deep_supervision_trains_all_of_it():
    """As a peer: every parameter has a gradient."""
    network = build_network("stu-net", TINY | {"deep_supervision": True})
    output = network(torch.randn(1, 2, 8, 8, 6), scales=True)
    sum(logits.square().mean() for logits in (output.logits, *output.scales)).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_names_are_those_of_its_checkpoints():
    names = set(build_network("stu-net", TINY).state_dict())
    for name in (
        "conv_blocks_context.0.0.conv1.weight",
        "conv_blocks_context.1.1.norm2.bias",
        "conv_blocks_context.2.0.conv3.weight",
        "upsample_layers.1.conv.bias",
        "conv_blocks_localization.0.0.conv3.weight",
        "seg_outputs.1.weight",
    ):
        assert name in names
    assert "conv_blocks_context.1.1.conv3.weight" not in names


def test_strides_scales_and_features():
    network = build_network("stu-net", TINY | {"classes": 5, "deep_supervision": True}).eval()
    x = torch.randn(1, 2, 8, 8, 6)
    with torch.inference_mode():
        output = network(x, scales=True)
        assert network(x).scales == ()
    assert output.logits.shape == (1, 5, 8, 8, 6)
    assert [s.shape for s in output.scales] == [(1, 5, 4, 4, 3)]
    assert [m.shape for m in output.features] == [(1, 4, 2, 4, 3)]


def test_a_block_adds_its_input():
    """With its second norm at 0 a block without projection is a leaky ReLU."""
    network = build_network("stu-net", TINY).eval()
    block = network.conv_blocks_context[1][1]
    with torch.no_grad():
        block.norm2.weight.zero_()
        block.norm2.bias.zero_()
        x = torch.randn(1, 4, 4, 4, 4)
        torch.testing.assert_close(block(x), torch.nn.functional.leaky_relu(x))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"size": "tiny"}, "small, base, large, huge"), ({"depths": [1, 1]}, "as many depths")],
)
def test_what_is_no_stunet(options, said):
    with pytest.raises(ValueError, match=said):
        build_network("stu-net", TINY | options)
