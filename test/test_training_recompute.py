import copy

import pytest
import torch
from conftest import SMALL_NETWORK
from torch import nn

from hmvnet.networks.registry import build_network
from hmvnet.training.recompute import recompute_activations


def passed(network: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients and norms' statistics after one step's way there and back."""
    out = network(x, scales=True)
    sum(part.square().mean() for part in (out.logits, *out.scales)).backward()
    gradients = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    return gradients | dict(network.named_buffers())


@pytest.mark.parametrize("options", [{}, {"norm": "group"}])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_and_statistics_are_the_same(options, frozen):
    torch.manual_seed(0)
    plain = build_network("hmvnet", SMALL_NETWORK | options).train()
    again = copy.deepcopy(plain)
    recompute_activations(again, "hmvnet")
    for network in (plain, again):
        for module in network.modules():
            if frozen and isinstance(module, nn.BatchNorm3d):
                module.eval()
    x = torch.rand(1, 2, 32, 32, 32)
    expected, found = passed(plain, x), passed(again, x)
    assert expected.keys() == found.keys() and len(expected) > 20
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert all(m.momentum == 0.1 for m in again.modules() if isinstance(m, nn.BatchNorm3d))


def kept_bytes(network: nn.Module, x: torch.Tensor) -> int:
    """Of what is kept for the way back."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        network(x, scales=True)
    return sum(sizes.values())


def test_less_is_kept():
    network = build_network("hmvnet", SMALL_NETWORK).train()
    x = torch.rand(1, 2, 32, 32, 32)
    before = kept_bytes(network, x)
    recompute_activations(network, "hmvnet")
    assert kept_bytes(network, x) < 0.6 * before


def test_a_copy_recomputes_with_its_own_weights():
    """The averaged network is a copy of the trained one."""
    network = build_network("hmvnet", SMALL_NETWORK).train()
    recompute_activations(network, "hmvnet")
    other = copy.deepcopy(network)
    passed(other, torch.rand(1, 2, 32, 32, 32))
    assert all(p.grad is None for p in network.parameters())


def test_a_network_that_cannot_is_refused():
    with pytest.raises(ValueError, match="network 'unet3d' cannot, only hmvnet can"):
        recompute_activations(build_network("unet3d", {"width": 4}), "unet3d")
