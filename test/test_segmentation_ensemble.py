import numpy as np
import pytest
import torch

from hmvnet.bundle import Bundle, WeightsError, load_bundle
from hmvnet.config import InferenceSettings
from hmvnet.networks.output import Output
from hmvnet.segmentation.ensemble import (
    Ensemble,
    TorchForward,
    load_ensemble,
    load_network,
    pick_device,
)


class Constant:
    """A member whose GTVp probability is its number, and that takes a second of a false clock."""

    def __init__(self, value: float, clock: list[float]) -> None:
        self.value, self.clock, self.calls = value, clock, 0

    def __call__(self, volume):
        self.calls += 1
        self.clock[0] += 1.0
        p = torch.zeros(1, 3, *volume.shape[2:])
        p[:, 1] = self.value
        p[:, 1, ..., 0] = 1.0  # the left edge
        return p, []


def test_ensemble_averages_members_and_flips():
    clock = [0.0]
    members = [Constant(0.2, clock), Constant(0.4, clock)]
    ensemble = Ensemble(members, True, 100.0, clock=lambda: clock[0])
    output = ensemble(np.zeros((2, 4, 4, 6), np.float32))
    assert output.probabilities[1, 0, 0, 2] == pytest.approx(0.3)
    # Mirrored passes are mirrored back: both edges get half of each pass.
    assert output.probabilities[1, 0, 0, 0] == pytest.approx((1.0 + 0.3) / 2)
    assert output.probabilities[1, 0, 0, 5] == pytest.approx((1.0 + 0.3) / 2)
    assert output.notes[0].startswith("4 of 4")


def test_time_budget_leaves_passes_out_and_says_so():
    clock = [0.0]
    members = [Constant(0.1 * i, clock) for i in range(5)]
    output = Ensemble(members, False, 2.5, clock=lambda: clock[0])(
        np.zeros((2, 4, 4, 4), np.float32)
    )
    assert [m.calls for m in members] == [1, 1, 0, 0, 0]
    assert "2 of 5" in output.notes[0] and "3 left out" in output.notes[0]


def test_probabilities_that_are_not_finite_are_an_error():
    ensemble = Ensemble([Constant(float("nan"), [0.0])])
    with pytest.raises(RuntimeError, match="NaN"):
        ensemble(np.zeros((2, 4, 4, 4), np.float32))


def test_half_precision_on_the_cpu_is_nearly_the_same(tiny_bundle):
    bundle, device = load_bundle(tiny_bundle), torch.device("cpu")
    volume = np.random.default_rng(0).random((2, 40, 36, 44), np.float32)
    full, half = (
        load_ensemble(bundle, device, InferenceSettings(precision=p))(volume).probabilities
        for p in ("auto", "bf16")
    )
    assert 0 < np.abs(full - half).max() < 0.05


def test_gpu_asked_for_but_not_there():
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    assert pick_device().type == "cpu"
    with pytest.raises(ValueError, match="no CUDA GPU"):
        pick_device("cuda")


def test_a_volume_smaller_than_a_window_is_padded_with_air():
    """MONAI would pad with zeros: a SUV of 10 around the patient."""

    class Largest(torch.nn.Module):
        whole_region = False

        def forward(self, x, scales=False):
            return Output(x.amax((2, 3, 4), keepdim=True).expand_as(x)[:, [0, 1, 1]])

    forward = TorchForward(Largest(), torch.device("cpu"), (16, 16, 16))
    volume = torch.full((1, 2, 10, 20, 7), -1.0)
    volume[:, 0] = 0.0
    probabilities, _ = forward(volume)
    assert probabilities.shape == (1, 3, 10, 20, 7)
    # Softmax of CT 0 and PET -1: nothing above air was seen.
    expected = torch.softmax(torch.tensor([0.0, -1.0, -1.0]), 0)
    torch.testing.assert_close(probabilities[0, :, 5, 5, 5], expected)


def test_weights_of_another_network_are_refused_in_one_line(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    part = bundle.manifest.segmentation
    wider = part.model_copy(update={"options": part.options | {"channels": 16}})
    manifest = bundle.manifest.model_copy(update={"segmentation": wider})
    with pytest.raises(WeightsError, match="not those of the network 'hmvnet'"):
        load_network(Bundle(bundle.folder, manifest), part.files[0])
