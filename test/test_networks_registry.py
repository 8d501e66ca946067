import hashlib
import json
import re
import textwrap

import pytest
import torch
from conftest import ROOT
from monai.networks import nets

from hmvnet.networks import registry
from hmvnet.networks.output import Output
from hmvnet.networks.registry import NETWORKS, build_network
from hmvnet.segmentation.forward import TorchForward

FEATURES = {"hmvnet": 4, "resenc-unet": 2, "stu-net": 4}  # encoder maps; others give none
SMALL = {"channels": 8, "head_channels": 8, "depths": (2, 2, 2, 2), "window": 4}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hmvnet", SMALL),
        ("segresnet", {"init_filters": 8}),
        ("swinunetr", {"feature_size": 12}),
        ("resenc-unet", {"width": 4, "stages": 4}),
        ("stu-net", {"channels": [2, 2, 4, 4, 6, 6]}),
        ("unet3d", {"width": 4}),
        ("unetr", {"img_size": (32, 32, 32), "feature_size": 8}),
    ],
)
def test_networks_by_name(name, options):
    network = build_network(name, options).eval()
    assert network.whole_region is (name == "hmvnet")
    with torch.inference_mode():
        size = (64 if name in ("swinunetr", "stu-net") else 32,) * 3  # they fail on 32
        x = torch.zeros(1, 2, *size)
        output = network(x)
        assert isinstance(output, Output) and output.logits.shape == (1, 3, *size)
        assert output.scales == () and len(output.features) == FEATURES.get(name, 0)
        assert len(network(x, scales=True).scales) == (3 if name == "hmvnet" else 0)


def test_sizes_of_hmvnet_are_its_width():
    same = shapes_of(build_network("hmvnet"))
    assert shapes_of(build_network("hmvnet-s")) == same
    for name, width in (("hmvnet-b", 32), ("hmvnet-l", 48)):
        wide = build_network(name)
        assert shapes_of(wide) == shapes_of(build_network("hmvnet", {"channels": width}))
        assert wide.whole_region
    narrow = build_network("hmvnet-l", {"channels": 16, "norm": "group"})
    assert shapes_of(narrow) == shapes_of(build_network("hmvnet", {"norm": "group"}))


def test_logits_of_several_scales_from_another_library():
    network = build_network("resenc-unet", {"width": 4, "stages": 4, "deep_supervision": True})
    x = torch.zeros(1, 2, 32, 32, 32)
    output = network(x, scales=True)
    assert [t.shape[-1] for t in (output.logits, *output.scales)] == [32, 16, 8]
    assert network(x).scales == ()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hmvnet", {"channels": 0}),
        ("hmvnet", {"channels": 1e6}),
        ("segresnet", {"init_filters": 0}),
        ("segresnet", {"init_filters": -8}),
        ("resenc-unet", {"width": 0}),
        ("unet3d", {"width": 0}),
        ("swinunetr", {"feature_size": 7}),
        ("segresnet", {"chanels": 32}),
    ],
)
def test_options_that_make_no_network_are_refused_by_its_name(name, options):
    with pytest.raises(ValueError, match=f"^network '{name}': "):
        build_network(name, options)


def test_an_option_that_there_is_not_is_told_with_those_that_there_are():
    with pytest.raises(ValueError, match="hmvnet-b': no option 'chanels', expected one of channel"):
        build_network("hmvnet-b", {"chanels": 32})


@pytest.mark.parametrize(
    ("name", "options", "own"),
    [
        ("segresnet", {"init_filters": 8}, lambda: nets.SegResNet(3, 8, 2, 3)),
        ("swinunetr", {"feature_size": 12}, lambda: nets.SwinUNETR(2, 3, feature_size=12)),
        (
            "unet3d",
            {"width": 4},
            lambda: nets.UNet(3, 2, 3, (4, 8, 16, 32, 64), (2,) * 4, num_res_units=2),
        ),
        (
            "unetr",
            {"img_size": (32, 32, 32), "feature_size": 8},
            lambda: nets.UNETR(2, 3, (32, 32, 32), feature_size=8),
        ),
    ],
)
def test_parameters_keep_the_names_of_their_library(name, options, own):
    """And so the weights of a bundle still load."""
    assert shapes_of(build_network(name, options)) == shapes_of(own())


@pytest.mark.parametrize(
    ("name", "options", "known"),
    [
        ("hmvnet", {}, "6b57e15417df03c1"),
        ("hmvnet", {"norm": "group"}, "61afe4b5b26992c8"),
        ("resenc-unet", {}, "bc06e434e9633d2f"),
    ],
)
def test_parameters_keep_their_names(name, options, known):
    """Names and shapes of all tensors, as in the bundles written so far."""
    listing = json.dumps(shapes_of(build_network(name, options)), sort_keys=True)
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == known


def shapes_of(network: torch.nn.Module) -> dict[str, list[int]]:
    """Name and shape of every tensor in a state dict."""
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def test_unknown_network_and_option():
    with pytest.raises(ValueError, match=r"unknown network 'hmvnet2'.*segresnet"):
        build_network("hmvnet2")
    for name in NETWORKS:
        with pytest.raises(ValueError, match="bogus"):
            build_network(name, {"bogus": 1})


def test_the_example_of_the_how_to_is_a_network(monkeypatch):
    """What docs/how-to/add-a-network.md shows is trained and run like any other."""
    page = (ROOT / "docs" / "how-to" / "add-a-network.md").read_text(encoding="utf-8")
    block = re.search(r"^ *```python\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    assert block
    names: dict = {}
    exec(textwrap.dedent(block[1]), names)  # noqa: S102  a page of ours
    monkeypatch.setattr(registry, "NETWORKS", {**registry.NETWORKS, "mine": names["Mine"]})
    network = registry.build_network("mine", {"width": 4})
    volume = torch.rand(1, 2, 9, 10, 11)
    assert network(volume, scales=True).logits.shape == (1, 3, 9, 10, 11)
    probabilities, _ = TorchForward(network, torch.device("cpu"))(volume)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 9, 10, 11))
