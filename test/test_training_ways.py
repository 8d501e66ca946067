"""One pass or windows, by what validation patients say."""

import numpy as np
import pytest
import torch
from conftest import COARSE, SMALL_NETWORK, write_patient

from hmvnet.bundle import load_bundle, write_bundle
from hmvnet.config import InferenceSettings, Settings
from hmvnet.networks.registry import build_network
from hmvnet.reading.folder import find_patients
from hmvnet.segmentation.ensemble import load_ensemble
from hmvnet.training import ways
from hmvnet.training.cache import Cache
from hmvnet.training.ways import GAIN, MOST_PATIENTS, WAYS, Ways, wants_windows

CPU = torch.device("cpu")


def way(one_pass: float, windows: float, patients: int = 5) -> Ways:
    return Ways(patients, one_pass, windows, (1.0, 10.0))


def test_windows_are_chosen_where_they_are_worth_it():
    assert not wants_windows([])
    assert not wants_windows([way(0.7, 0.7 + 0.9 * GAIN), way(0.7, 0.6)])
    assert wants_windows([way(0.7, 0.7 + 1.1 * GAIN)])
    assert not wants_windows([way(0.7, 0.73, patients=1), way(0.7, 0.7, patients=9)])


@pytest.fixture
def prepared(tmp_path):
    for number in range(2):
        write_patient(tmp_path / "data", f"A-{number}", "plain")
    cache = Cache(tmp_path / "cache", COARSE, "centre")
    return [cache.get(patient) for patient in find_patients(tmp_path / "data")]


def settings() -> Settings:
    network = {"name": "hmvnet", "options": SMALL_NETWORK}
    return Settings.model_validate(
        {
            "preprocessing": COARSE.model_dump(),
            "network": network,
            "training": {"patch_size": (16, 16, 16)},
            "data": {"region": "centre"},
        }
    )


def test_both_are_measured_once(prepared, tmp_path, monkeypatch):
    asked = []

    def evaluate(network, cases, settings, device, windows=False):
        asked.append((windows, len(cases)))
        return windows

    monkeypatch.setattr(ways, "evaluate", evaluate)
    dice = {False: 0.4, True: 0.6}
    monkeypatch.setattr(
        ways,
        "figures_of",
        lambda scores: {"gtvp_mean_dice": dice[scores], "gtvn_aggregated_dice": np.nan},
    )
    network, many = build_network("hmvnet", SMALL_NETWORK), prepared * MOST_PATIENTS
    found = Ways.of(network, many, settings(), CPU, "key", tmp_path)
    assert asked == [(False, MOST_PATIENTS), (True, MOST_PATIENTS)]
    assert found is not None and found.figures() == {
        "patients": MOST_PATIENTS,
        "one_pass": 0.4,
        "windows": 0.6,
    }
    assert Ways.of(network, many, settings(), CPU, "key", tmp_path) == found
    assert len(asked) == 2
    Ways.of(network, many, settings(), CPU, "another training", tmp_path)
    assert len(asked) == 4 and (tmp_path / WAYS).is_file()
    assert Ways.of(network, [], settings(), CPU, "key", tmp_path) is None
    network.whole_region = False
    assert Ways.of(network, many, settings(), CPU, "key", tmp_path) is None


@pytest.mark.parametrize(("norm", "gap"), [("batch", False), ("voxel", False), ("group", True)])
def test_without_statistics_of_what_is_seen_one_pass_is_as_good(prepared, norm, gap):
    """Held: where one pass is chosen it differs from windows by less than 0.005 Dice.

    A network that reads the uptake of its own voxel and its norm's statistics, and nothing around:
    one of its channels is a PET, the other is hot in the patch and cold in the region.
    """
    torch.manual_seed(0)
    network = build_network("hmvnet", {**SMALL_NETWORK, "norm": norm})
    head = network.refine[-1]
    with torch.no_grad():  # the thin head alone, which has no norm, or what the norms leave
        for scale in network.scale_heads:
            scale[-1].weight.mul_(6.0 if gap else 0.0)
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, -1.0, -9.0]))
    volume = prepared[0].volume[:].astype(np.float32)
    dice = {}
    for windows in (False, True):
        ensemble = ways_ensemble(network, windows)
        tumour = ensemble(volume).probabilities.argmax(0) > 0
        dice[windows] = tumour
    both = int((dice[False] & dice[True]).sum())
    whole = int(dice[False].sum() + dice[True].sum())
    apart = 1 - (2 * both / whole if whole else 1.0)
    assert (apart > GAIN) is gap


def ways_ensemble(network, windows):
    from hmvnet.training.segmentation import one_network

    return one_network(network.eval(), settings(), CPU, windows)


def test_a_bundle_says_how_its_networks_are_run(tiny_bundle, tmp_path):
    tiny = load_bundle(tiny_bundle)
    part = tiny.manifest.segmentation.model_copy(update={"windows": True})
    manifest = tiny.manifest.model_copy(update={"segmentation": part, "prognosis": None})
    weights = {file: tiny.tensors(file) for file in part.files}
    own = load_bundle(write_bundle(tmp_path / "own", manifest, weights))
    for bundle, said, expected in (
        (tiny, "bundle", False),
        (own, "bundle", True),
        (own, "never", False),
        (tiny, "always", True),
    ):
        (member,) = load_ensemble(bundle, CPU, InferenceSettings(windows=said)).members
        assert member.windows is expected
