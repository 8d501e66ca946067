"""STU-Net: sizes and names of its published checkpoints."""

import pytest
import torch

from hmvnet.networks.registry import build_network

TINY = {"channels": [2, 4, 4], "depths": [1, 2, 1], "strides": [[2, 2, 2], [2, 1, 1]]}


def test_the_small_one_has_its_published_size():
    """14.6 million parameters; a little less with three classes than with the paper's 105."""
    count = sum(p.numel() for p in build_network("stu-net").parameters())
    assert count == 14_546_287


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
