import weakref

import numpy as np
import pytest
import torch
from conftest import SMALL_NETWORK, tiny_ct, tiny_pet

from hmvnet.bundle import Bundle, WeightsError, load_bundle, write_bundle
from hmvnet.config import InferenceSettings
from hmvnet.networks.output import Output
from hmvnet.networks.registry import build_network
from hmvnet.pipeline import Pipeline
from hmvnet.reading.checks import checked_case
from hmvnet.segmentation import ensemble
from hmvnet.segmentation.ensemble import (
    Ensemble,
    _Sum,
    load_ensemble,
    load_network,
    pick_device,
)
from hmvnet.segmentation.forward import TorchForward


class Constant:
    """A member whose GTVp probability is its number, and that takes a second of a false clock."""

    notes, own = (), None

    def __init__(self, value: float, clock: list[float]) -> None:
        self.value, self.clock, self.calls = value, clock, 0

    def __call__(self, volume, axes=()):
        self.calls += 1
        self.clock[0] += 1.0
        p = torch.zeros(1, 3, *volume.shape[2:])
        p[:, 1] = self.value
        p[:, 1, ..., 0] = 1.0  # the left edge
        return p.flip(axes), []


def test_ensemble_averages_members_and_flips():
    clock = [0.0]
    members = [Constant(0.2, clock), Constant(0.4, clock)]
    ensemble = Ensemble(members, "left-right", 100.0, clock=lambda: clock[0])
    output = ensemble(np.zeros((2, 4, 4, 6), np.float32))
    assert output.probabilities[1, 0, 0, 2] == pytest.approx(0.3)
    # Mirrored passes are mirrored back: both edges get half of each pass.
    assert output.probabilities[1, 0, 0, 0] == pytest.approx((1.0 + 0.3) / 2)
    assert output.probabilities[1, 0, 0, 5] == pytest.approx((1.0 + 0.3) / 2)
    assert output.notes[0].startswith("4 of 4")


def test_time_budget_leaves_passes_out_and_says_so():
    clock = [0.0]
    members = [Constant(0.1 * i, clock) for i in range(5)]
    output = Ensemble(members, "none", 2.5, clock=lambda: clock[0])(
        np.zeros((2, 4, 4, 4), np.float32)
    )
    assert [m.calls for m in members] == [1, 1, 0, 0, 0]
    assert "2 of 5" in output.notes[0] and "3 left out" in output.notes[0]


@pytest.mark.parametrize(
    ("tumours", "expected"),
    [
        ([(1, 8)], None),
        ([(1, 8), (1, 8)], 0.0),
        ([(0, 0), (0, 0)], 0.0),
        # The mean is the first, which both of the first two have; half of the third is beside it.
        ([(1, 8), (1, 8), (1, 16)], (0 + 0 + 8 / 24) / 3),
        ([(1, 8), (1, 8), (2, 8)], 1 / 3),  # another class is no agreement
        ([(1, 8), (1, 8), (0, 0)], 1 / 3),
    ],
)
def test_passes_that_differ_are_counted(tumours, expected):
    class Tumour(Constant):
        def __init__(self, label: int, voxels: int) -> None:
            self.label, self.voxels = label, voxels

        def __call__(self, volume, axes=()):
            p = torch.zeros(1, 3, *volume.shape[2:])
            p[:, 0] = 1
            p.flatten(2)[:, 0, : self.voxels] = 0
            p.flatten(2)[:, self.label, : self.voxels] = 1
            return p, []

    ensemble = Ensemble([Tumour(*one) for one in tumours])
    found = ensemble(np.zeros((2, 4, 4, 4), np.float32)).disagreement
    assert found == (expected if expected is None else pytest.approx(expected))


def test_probabilities_that_are_not_finite_are_an_error():
    ensemble = Ensemble([Constant(float("nan"), [0.0])])
    with pytest.raises(RuntimeError, match="NaN"):
        ensemble(np.zeros((2, 4, 4, 4), np.float32))


def test_half_precision_on_the_cpu_is_nearly_the_same(tiny_bundle):
    bundle, device = load_bundle(tiny_bundle), torch.device("cpu")
    volume = np.random.default_rng(0).random((2, 40, 36, 44), np.float32)
    full, half = (
        load_ensemble(bundle, device, InferenceSettings(precision=p))(volume).probabilities
        for p in ("32", "bf16")
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


SHORT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


def fails_above(network: torch.nn.Module, voxels: int, error: Exception) -> torch.nn.Module:
    """The network, that raises where its input is longer than that."""

    def check(module, arguments):
        if max(arguments[0].shape[2:]) > voxels:
            raise error

    network.register_forward_pre_hook(check)
    return network


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=str)
def test_a_region_too_large_for_the_memory_is_done_in_windows(error):
    torch.manual_seed(0)
    network = build_network("hmvnet", SMALL_NETWORK)
    forward = TorchForward(network, torch.device("cpu"), (40, 40, 40))
    volume = torch.rand(1, 2, 80, 30, 70)
    whole, maps = forward(volume)
    assert forward.notes == ()
    fails_above(network, 64, error)
    found, found_maps = forward(volume)
    (note,) = forward.notes
    assert "one pass on cpu did not fit into memory: done in sliding windows on cpu" in note
    assert [m.shape for m in found_maps] == [m.shape for m in maps]
    # Untrained, of random voxels: windows see other borders.
    assert 0 < (found - whole).abs().mean() < 0.05
    # Of noise, windows beginning between a map's voxels: the coarser, the less alike.
    for ours, theirs, least in zip(found_maps, maps, (0.9, 0.88, 0.85, 0.77), strict=True):
        assert alike(ours, theirs) > least
        # Most of that is each channel's mean; what is left hangs on where the maps lie.
        ours, theirs = (m - m.mean((2, 3, 4), keepdim=True) for m in (ours, theirs))
        assert alike(ours, theirs) > 0.2 > 2 * alike(ours.roll(1, 2), theirs)


def alike(a, b):
    """Pearson's correlation of all values."""
    return torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1]


def test_windows_that_do_not_fit_either_end_it():
    network = fails_above(build_network("hmvnet", SMALL_NETWORK), 16, SHORT_OF_MEMORY[3])
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        TorchForward(network, torch.device("cpu"), (32, 32, 32))(torch.rand(1, 2, 64, 32, 32))


def test_another_error_is_not_tried_again():
    calls = []

    def fail(module, arguments):
        calls.append(module)
        raise RuntimeError("shapes cannot be multiplied")

    network = build_network("hmvnet", SMALL_NETWORK)
    network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes"):
        TorchForward(network, torch.device("cpu"), (32, 32, 32))(torch.rand(1, 2, 32, 32, 32))
    assert len(calls) == 1


UNUSABLE = [
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). CUDA unknown error"),
]


@pytest.mark.parametrize("error", [*SHORT_OF_MEMORY, *UNUSABLE], ids=str)
def test_after_the_gpu_comes_the_cpu(monkeypatch, error):
    run, tried = TorchForward._run, []

    def without_gpu(self, volume, way, *others):
        tried.append(str(way))
        if way.device.type == "cuda":
            raise error
        return run(self, volume, way, *others)

    monkeypatch.setattr(TorchForward, "_run", without_gpu)
    network = build_network("hmvnet", SMALL_NETWORK)
    forward = TorchForward(network, torch.device("cuda"), (32, 32, 32))
    output = Ensemble([forward], flips="left-right")(np.zeros((2, 32, 32, 32), np.float32))
    ways = ["one pass on cuda", "sliding windows on cuda", "one pass on cpu"]
    assert tried == ways * 2  # both passes, in the same way
    assert len(output.notes) == 3 and ways[2] in output.notes[2]
    assert np.isfinite(output.probabilities).all()


def test_a_patient_in_windows_still_has_a_risk(tiny_bundle):
    pipeline = Pipeline(load_bundle(tiny_bundle), torch.device("cpu"))
    case = checked_case("a", tiny_ct(), tiny_pet())
    (member,) = pipeline.segmenter.ensemble.members
    before = pipeline(case).risk
    fails_above(member.network, 32, SHORT_OF_MEMORY[0])
    found = pipeline(case)
    assert any("sliding windows on cpu" in note for note in found.notes)
    assert found.risk.value == pytest.approx(before.value, abs=0.2)


def test_outputs_that_count_as_background_do_not_disagree():
    """Of a network with an organ beside the tumours."""
    total = _Sum(keeps=True, heads=(0, 1, 2, 0))
    for organ in (5.0, -5.0):
        values = torch.zeros(4, 2, 2, 2)
        values[3], values[1, 0] = organ, 9.0
        total.add(values, Constant(0.0, [0.0]))
    assert total.disagreement == 0


def test_all_axes_are_mirrored_and_mirrored_back():
    clock = [0.0]
    shown: list[tuple[int, ...]] = []

    class Shown(Constant):
        def __call__(self, volume, axes=()):
            shown.append(axes)
            return super().__call__(volume, axes)

    output = Ensemble([Shown(0.2, clock)], "all")(np.zeros((2, 4, 4, 6), np.float32))
    every = [(2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    assert shown == [(), *every] and output.notes[0].startswith("8 of 8")
    # Mirrored from left to right, which moves the edge, in half of the passes.
    assert output.probabilities[1, 0, 0, [0, 5]] == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize(
    ("said", "meant"),
    [("true", "left-right"), ("false", "none"), (True, "left-right"), ("all",) * 2],
)
def test_mirroring_is_said_in_the_old_way_too(said, meant):
    assert InferenceSettings(flips=said).flips == meant


def test_more_networks_than_memory_holds_are_loaded_one_at_a_time(
    tiny_bundle, tmp_path, monkeypatch
):
    tiny = load_bundle(tiny_bundle)
    files = [f"fold{i}.safetensors" for i in range(3)]
    weights = {f: build_network("hmvnet", SMALL_NETWORK).state_dict() for f in files}
    part = tiny.manifest.segmentation.model_copy(update={"files": files, "seen": [[]] * 3})
    manifest = tiny.manifest.model_copy(update={"segmentation": part, "prognosis": None})
    bundle = load_bundle(write_bundle(tmp_path / "three", manifest, weights))
    volume = np.random.default_rng(0).random((2, 32, 32, 32), np.float32)
    together = load_ensemble(bundle, torch.device("cpu"), InferenceSettings())(volume)

    alive: list[weakref.ref] = []

    def load(*args):
        assert not any(one() for one in alive)
        network = load_network(*args)
        alive.append(weakref.ref(network))
        return network

    monkeypatch.setattr(ensemble, "load_network", load)
    monkeypatch.setattr(ensemble, "_free_bytes", lambda device: 1000)
    one_by_one = load_ensemble(bundle, torch.device("cpu"), InferenceSettings())
    found = one_by_one(volume)
    np.testing.assert_array_equal(found.probabilities, together.probabilities)
    assert len(alive) == 6 and any("one at a time" in note for note in found.notes)
    (tmp_path / "three" / files[2]).write_bytes(b"")
    with pytest.raises(WeightsError, match="fold2"):  # before the first patient
        load_ensemble(bundle, torch.device("cpu"), InferenceSettings())
