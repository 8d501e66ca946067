"""nnU-Net's U-Nets are those of its own package, wherever that is there."""

import pytest
import torch
from torch import nn

from hmvnet.networks.registry import build_network

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
SIZES = {"features": [4, 6, 8], "strides": STRIDES, "kernels": KERNELS, "classes": 4}


def theirs(residual: bool) -> nn.Module:
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    blocks = {"n_blocks_per_stage": [1, 2, 2]} if residual else {"n_conv_per_stage": [2, 2, 2]}
    network = unet.ResidualEncoderUNet if residual else unet.PlainConvUNet
    return network(
        input_channels=2,
        n_stages=3,
        features_per_stage=SIZES["features"],
        conv_op=nn.Conv3d,
        kernel_sizes=KERNELS,
        strides=STRIDES,
        num_classes=4,
        n_conv_per_stage_decoder=[1, 1],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **blocks,
    ).eval()


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_a_checkpoint_of_nnunet_loads_and_says_the_same(residual):
    torch.manual_seed(0)
    network = theirs(residual)
    blocks = [1, 2, 2] if residual else [2, 2, 2]
    options = {"blocks": blocks, "decoder": [1, 1], "residual": residual, "deep_supervision": True}
    own = build_network("nnunet", SIZES | options).eval()
    own.load_state_dict(network.state_dict())
    x = torch.randn(1, 2, 8, 16, 12)
    with torch.inference_mode():
        expected, found = network(x), own(x, scales=True)
        assert own(x).scales == ()
    for one, other in zip(expected, [found.logits, *found.scales], strict=True):
        torch.testing.assert_close(other, one)
    assert [m.shape[1:] for m in found.features] == [(8, 4, 4, 3)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": [1, 1]}, "as many strides"),
        ({"kernels": [[2, 2, 2]] * 3}, "odd"),
        ({"features": [4], "decoder": []}, "at least two"),
    ],
)
def test_sizes_that_do_not_belong_together(change, said):
    with pytest.raises(ValueError, match=said):
        build_network("nnunet", SIZES | {"blocks": [1, 1, 1], "decoder": [1, 1]} | change)
