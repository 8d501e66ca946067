"""Networks by name: HM-VNet and the peers it is compared with.

The contract, which is all that callers ask: ``network(x, scales=False)`` takes ``[b, 2, z, y, x]``
to an ``hmvnet.networks.output.Output``, with deep-supervision logits where ``scales`` asks
for them and the network has them; ``whole_region`` says whether it may see a whole region at once
or wants windows of the size it was trained on. A new network is one class (in a file of its own,
or, of another library, a ``Peer`` here) and one line in ``NETWORKS``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from monai.networks.nets import UNETR, SegResNet, SwinUNETR
from monai.networks.nets import UNet as PlainUNet
from torch import Tensor, nn

from hmvnet.case import CLASSES
from hmvnet.exits import one_line
from hmvnet.networks.hmvnet import HMVNet, HMVNetConfig
from hmvnet.networks.output import Output
from hmvnet.networks.stunet import STUNet
from hmvnet.networks.unet import UNet

IN_CHANNELS, OUT_CHANNELS = 2, len(CLASSES)


class Peer(nn.Module):
    """Makes another library's network keep the contract: the base before that network's class.

    A base rather than a wrapper, so that the names of the parameters stay the library's own.
    """

    whole_region = False

    def forward(self, x: Tensor, scales: bool = False) -> Output:
        return Output(super().forward(x))


def _hmvnet(**options: Any) -> nn.Module:
    return HMVNet(HMVNetConfig(in_channels=IN_CHANNELS, classes=OUT_CHANNELS, **options))


def _sized(channels: int) -> Callable[..., nn.Module]:
    """HM-VNet of a size; options may be given beside it, or in its place."""
    return lambda **options: _hmvnet(**{"channels": channels, **options})


class _SegResNet(Peer, SegResNet):  # type: ignore[misc]
    def __init__(self, init_filters: int = 32, **options: Any) -> None:
        super().__init__(
            in_channels=IN_CHANNELS, out_channels=OUT_CHANNELS, init_filters=init_filters, **options
        )


class _SwinUNETR(Peer, SwinUNETR):
    def __init__(self, feature_size: int = 48, **options: Any) -> None:
        super().__init__(IN_CHANNELS, OUT_CHANNELS, feature_size=feature_size, **options)


def _unet(classes: int = OUT_CHANNELS, **options: Any) -> nn.Module:
    return UNet(IN_CHANNELS, classes, **options)


def _resenc_unet(width: int = 32, stages: int = 6, **options: Any) -> nn.Module:
    """nnU-Net's residual-encoder U-Net; with the default options its preset M."""
    return UNet(
        IN_CHANNELS,
        OUT_CHANNELS,
        features=[min(width << i, 10 * width) for i in range(stages)],
        strides=[(2 if i else 1,) * 3 for i in range(stages)],
        kernels=[(3, 3, 3)] * stages,
        blocks=(1, 3, 4, 6, 6, 6, 6)[:stages],
        decoder=[1] * (stages - 1),
        residual=True,
        **options,
    )


def _stunet(classes: int = OUT_CHANNELS, **options: Any) -> nn.Module:
    return STUNet(IN_CHANNELS, classes, **options)


class _UNet(Peer, PlainUNet):  # type: ignore[misc]
    def __init__(self, width: int = 16, **options: Any) -> None:
        channels = tuple(width << i for i in range(5))
        super().__init__(
            3, IN_CHANNELS, OUT_CHANNELS, channels, (2,) * 4, num_res_units=2, **options
        )


class _UNETR(Peer, UNETR):
    def __init__(self, img_size: tuple[int, ...] = (96, 96, 96), **options: Any) -> None:
        super().__init__(IN_CHANNELS, OUT_CHANNELS, img_size, **options)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "hmvnet": _hmvnet,
    "hmvnet-s": _sized(16),  # the default, under a name beside the others
    "hmvnet-b": _sized(32),
    "hmvnet-l": _sized(48),
    "segresnet": _SegResNet,
    "swinunetr": _SwinUNETR,
    "resenc-unet": _resenc_unet,
    "stu-net": _stunet,
    "nnunet": _unet,
    "unet3d": _UNet,
    "unetr": _UNETR,
}


def _options_of(name: str) -> str:
    """Which options there are, where the network is our own."""
    if not name.startswith("hmvnet"):
        return ""
    given = {"in_channels", "classes"}
    names = [field.name for field in fields(HMVNetConfig) if field.name not in given]
    return f", expected one of {', '.join(names)}"


def sees_region(name: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether a network may see a whole region at once, or works in windows.

    Raises:
        ValueError: as ``build_network``.
    """
    key = name, json.dumps(options or {}, sort_keys=True)
    if key not in _SEES_REGION:  # large networks take seconds to build
        _SEES_REGION[key] = bool(build_network(name, options).whole_region)
    return _SEES_REGION[key]


_SEES_REGION: dict[tuple[str, str], bool] = {}


def build_network(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A fresh network that keeps the contract above.

    Raises:
        ValueError: the name is unknown, or the network does not take the options, whatever its
            library raises there.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network '{name}', expected one of {', '.join(NETWORKS)}")
    options = options or {}
    try:
        network = NETWORKS[name](**options)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        why = f"no option '{unknown[1]}'{_options_of(name)}" if unknown else one_line(str(error))
        raise ValueError(f"network '{name}': {why}") from error
    if any(not parameter.numel() for parameter in network.parameters()):
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ValueError(f"network '{name}': with {given} it has a layer without channels")
    return network
