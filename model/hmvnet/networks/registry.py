"""Networks by name: HM-VNet and the peers it is compared with.

Every factory takes keyword options and gives a module from ``[b, 2, z, y, x]`` to logits
``[b, 3, z, y, x]``. A new network is one more line in ``NETWORKS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai.networks.nets import UNETR, SegResNet, SwinUNETR, UNet
from torch import nn

from hmvnet.networks.hmvnet import HMVNet, HMVNetConfig

IN_CHANNELS, CLASSES = 2, 3


def _hmvnet(**options: Any) -> nn.Module:
    return HMVNet(HMVNetConfig(in_channels=IN_CHANNELS, classes=CLASSES, **options))


def _segresnet(init_filters: int = 32, **options: Any) -> nn.Module:
    return SegResNet(
        in_channels=IN_CHANNELS, out_channels=CLASSES, init_filters=init_filters, **options
    )


def _swinunetr(feature_size: int = 48, **options: Any) -> nn.Module:
    return SwinUNETR(IN_CHANNELS, CLASSES, feature_size=feature_size, **options)


def _resenc_unet(width: int = 32, stages: int = 6, **options: Any) -> nn.Module:
    """nnU-Net's residual-encoder U-Net; with the default options its preset M."""
    try:
        from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    except ImportError as error:
        raise ValueError(
            "resenc-unet needs the package dynamic-network-architectures (make setup installs it)"
        ) from error
    blocks = (1, 3, 4, 6, 6, 6, 6)[:stages]
    return ResidualEncoderUNet(
        input_channels=IN_CHANNELS,
        n_stages=stages,
        features_per_stage=[min(width << i, 10 * width) for i in range(stages)],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (stages - 1),
        n_blocks_per_stage=blocks,
        num_classes=CLASSES,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **options,
    )


def _unet3d(width: int = 16, **options: Any) -> nn.Module:
    channels = tuple(width << i for i in range(5))
    return UNet(3, IN_CHANNELS, CLASSES, channels, (2,) * 4, num_res_units=2, **options)


def _unetr(img_size: tuple[int, ...] = (96, 96, 96), **options: Any) -> nn.Module:
    return UNETR(IN_CHANNELS, CLASSES, img_size, **options)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "hmvnet": _hmvnet,
    "segresnet": _segresnet,
    "swinunetr": _swinunetr,
    "resenc-unet": _resenc_unet,
    "unet3d": _unet3d,
    "unetr": _unetr,
}


def build_network(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A fresh network.

    Raises:
        ValueError: the name is unknown, or the network does not take the options.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network '{name}', expected one of {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](**(options or {}))
    except TypeError as error:
        raise ValueError(f"network '{name}': {error}") from error
