"""One pass, windows or both, by what validation patients say."""

import numpy as np
import pytest
import torch
from conftest import COARSE, SMALL_NETWORK, no_memory_for_one_pass, write_patient
from pydantic import ValidationError

from hmvnet.bundle import SegmentationPart, load_bundle, write_bundle
from hmvnet.config import InferenceSettings, Settings
from hmvnet.networks.registry import build_network
from hmvnet.reading.folder import find_patients
from hmvnet.segmentation.ensemble import Ensemble, load_ensemble
from hmvnet.segmentation.forward import TorchForward
from hmvnet.training import ways
from hmvnet.training.cache import Cache
from hmvnet.training.ways import GAIN, WAYS, Ways, wanted

CPU = torch.device("cpu")


def way(one_pass: float, windows: float, both: float = 0.0, patients: int = 5) -> Ways:
    dice = {"never": one_pass, "always": windows, "both": both}
    return Ways(patients, dice, {"never": 1.0, "always": 10.0, "both": 11.0})


def test_what_costs_more_is_chosen_where_it_is_worth_it():
    less, more = 0.9 * GAIN, 1.1 * GAIN
    assert wanted([]) == "never"
    assert wanted([way(0.7, 0.7 + less), way(0.7, 0.6)]) == "never"
    assert wanted([way(0.7, 0.7 + more)]) == "always"
    assert wanted([way(0.7, 0.73, patients=1), way(0.7, 0.7, patients=9)]) == "never"
    assert wanted([way(0.7, 0.6, 0.7 + more)]) == "both"
    assert wanted([way(0.7, 0.7 + more, 0.7 + more + less)]) == "always"
    assert wanted([way(0.7, 0.7 + less, 0.7 + more)]) == "both"


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


def test_each_is_measured_once(prepared, tmp_path, monkeypatch):
    ran, scored = [], []

    class Forward(TorchForward):
        def __call__(self, volume, axes=()):
            ran.append(self.windows)
            return super().__call__(volume, axes)

    def score(ensemble, case, settings):
        scored.append(ensemble(np.asarray(case.volume[:], dtype=np.float32)).probabilities)
        return len(scored) % 3  # which of the three ways it is

    most = 3
    monkeypatch.setattr(ways, "MOST_PATIENTS", most)
    monkeypatch.setattr(ways, "TorchForward", Forward)
    monkeypatch.setattr(ways, "score", score)
    dice = [0.7, 0.4, 0.6]  # both, one pass, windows

    def figures(scores):
        (one,) = set(scores)
        return {"gtvp_mean_dice": dice[one], "gtvn_aggregated_dice": np.nan}

    monkeypatch.setattr(ways, "figures_of", figures)
    network, many = build_network("hmvnet", SMALL_NETWORK), prepared * most
    found = Ways.of(network, many, settings(), CPU, "key", tmp_path)
    assert ran == ["never", "always"] * most  # for both nothing is run again
    one_pass, windows, both = scored[-3:]
    np.testing.assert_allclose(both, (one_pass + windows) / 2, atol=1e-6)
    assert (one_pass != windows).any()
    assert set(found.seconds) == set(ways.ALL) and min(found.seconds.values()) > 0
    np.testing.assert_allclose(
        found.seconds["both"], found.seconds["never"] + found.seconds["always"]
    )
    assert found is not None and found.figures() == {
        "patients": most,
        "one_pass": 0.4,
        "windows": 0.6,
        "both": 0.7,
    }
    assert Ways.of(network, many, settings(), CPU, "key", tmp_path) == found
    assert len(ran) == 2 * most
    Ways.of(network, many, settings(), CPU, "another training", tmp_path)
    assert len(ran) == 4 * most and (tmp_path / WAYS).is_file()
    assert Ways.of(network, [], settings(), CPU, "key", tmp_path) is None
    network.whole_region = False
    assert Ways.of(network, many, settings(), CPU, "key", tmp_path) is None


def test_a_way_that_memory_does_not_suffice_for_is_not_compared(prepared, tmp_path, capsys):
    network = build_network("hmvnet", SMALL_NETWORK)
    with no_memory_for_one_pass():
        assert Ways.of(network, prepared, settings(), CPU, "key", tmp_path) is None
    assert "ways of inference not compared: one pass on cpu did not fit" in capsys.readouterr().err
    assert not (tmp_path / WAYS).exists()


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
    for windows in ("never", "always"):
        ensemble = ways_ensemble(network, windows)
        tumour = ensemble(volume).probabilities.argmax(0) > 0
        dice[windows] = tumour
    both = int((dice["never"] & dice["always"]).sum())
    whole = int(dice["never"].sum() + dice["always"].sum())
    apart = 1 - (2 * both / whole if whole else 1.0)
    assert (apart > GAIN) is gap


def ways_ensemble(network, windows):
    return Ensemble([TorchForward(network, CPU, (16, 16, 16), windows=windows)])


def test_a_bundle_says_how_its_networks_are_run(tiny_bundle, tmp_path):
    tiny = load_bundle(tiny_bundle)
    part = tiny.manifest.segmentation.model_copy(update={"windows": "both"})
    manifest = tiny.manifest.model_copy(update={"segmentation": part, "prognosis": None})
    weights = {file: tiny.tensors(file) for file in part.files}
    own = load_bundle(write_bundle(tmp_path / "own", manifest, weights))
    for bundle, said, expected in (
        (tiny, "bundle", "never"),
        (own, "bundle", "both"),
        (own, "never", "never"),
        (tiny, "always", "always"),
    ):
        (member,) = load_ensemble(bundle, CPU, InferenceSettings(windows=said)).members
        assert member.windows == expected
    (member,) = (ensemble := load_ensemble(own, CPU, InferenceSettings(backend="onnx"))).members
    assert member.windows == "both" and "its graph is of one pass" in ensemble.notes[0]


def test_bundles_of_before_say_true_or_false(tiny_bundle):
    part = load_bundle(tiny_bundle).manifest.segmentation.model_dump()
    for before, now in ((True, "always"), (False, "never"), ("both", "both")):
        assert SegmentationPart.model_validate({**part, "windows": before}).windows == now
    with pytest.raises(ValidationError):
        SegmentationPart.model_validate({**part, "windows": "sometimes"})
