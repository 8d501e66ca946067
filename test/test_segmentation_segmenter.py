"""The stages in a row, and that all who use them use the same."""

import numpy as np
import pytest
import torch
from conftest import COARSE, SMALL_NETWORK, tiny_ct, tiny_pet

from hmvnet.bundle import Manifest, SegmentationPart, load_bundle, write_bundle
from hmvnet.case import Case, Grid
from hmvnet.config import PostprocessingSettings
from hmvnet.networks.registry import build_network
from hmvnet.reading.checks import checked_case
from hmvnet.segmentation.segmenter import Segmenter, Stages, label_map, prepare

CPU = torch.device("cpu")


@pytest.fixture
def case() -> Case:
    return checked_case("A-1", tiny_ct(), tiny_pet())


def test_a_case_becomes_a_label_map_on_any_grid(case, tiny_bundle):
    stages = Stages()
    found = Segmenter(load_bundle(tiny_bundle), CPU)(case, stages)
    before = ["check", "region", "resample", "normalise"]
    assert list(stages.timings) == [*before, "network", "postprocess"]
    shape = found.volume.grid.shape
    assert found.probabilities.shape == (3, *shape) and found.labels.shape == shape
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert len(found.encoder_maps) == 4 and "1 of 1 network passes" in found.notes
    assert Grid.of(found.on(Grid.of(case.ct))).same_as(Grid.of(case.ct))


def test_its_parts_are_what_training_and_tuning_call(case, tiny_bundle):
    segmenter = Segmenter(load_bundle(tiny_bundle), CPU)
    found = segmenter(case)
    volume = prepare(case, COARSE, "head-neck")
    np.testing.assert_array_equal(volume.raw, found.volume.raw)
    np.testing.assert_array_equal(volume.scaled, found.volume.scaled)
    assert volume.raw[0].min() < -900 and volume.scaled.min() == -1 and volume.scaled.max() <= 1
    labels = label_map(
        found.probabilities,
        volume.scaled,
        volume.grid,
        segmenter.postprocessing,
        "head-neck",
        COARSE,
        Grid.of(case.ct),
    )
    np.testing.assert_array_equal(labels, found.labels)


def test_anatomy_is_asked_in_the_head_and_neck_only():
    """A primary far from all air becomes a node, unless the region holds no head or neck."""
    grid = Grid((40, 40, 40), (2.0, 2.0, 2.0))
    ct = np.full(grid.shape, 0.5, np.float32)
    ct[:, :6] = 0
    ct[10:30, 8:20, 8:20] = 0  # air inside the body, far from the lesion
    probabilities = np.zeros((3, *grid.shape), np.float32)
    probabilities[1, 30:36, 32:38, 32:38], probabilities[2, 30:36, 32:38, 32:38] = 0.7, 0.2
    rules = PostprocessingSettings()
    scaled, window = np.stack([ct, ct]), COARSE
    for region, expected in (("head-neck", {0, 2}), ("centre", {0, 1})):
        labels = label_map(probabilities, scaled, grid, rules, region, window, grid)
        assert set(np.unique(labels)) == expected


def test_members_can_be_left_out(case, tmp_path):
    """Networks trained apart share no channels: with several, no maps, whichever run."""
    torch.manual_seed(0)
    networks = {f"fold{i}.safetensors": build_network("hmvnet", SMALL_NETWORK) for i in range(2)}
    part = SegmentationPart(
        network="hmvnet", options=SMALL_NETWORK, patch_size=(32, 32, 32), files=list(networks)
    )
    manifest = Manifest(
        name="two",
        preprocessing=COARSE,
        postprocessing=PostprocessingSettings(),
        segmentation=part,
    )
    states = {name: network.state_dict() for name, network in networks.items()}
    both = Segmenter(load_bundle(write_bundle(tmp_path / "two", manifest, states)), CPU)
    found = [s(case) for s in (both, both.only([0]), both.only([1]))]
    assert all(one.encoder_maps == () for one in found)
    mean = (found[1].probabilities + found[2].probabilities) / 2
    np.testing.assert_allclose(found[0].probabilities, mean, atol=1e-6)
    assert "1 of 1" in found[1].notes[0] and "2 of 2" in both(case).notes[0]
