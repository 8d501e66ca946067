"""A scan as a network sees it that brings its own preprocessing, and back."""

import numpy as np
import pytest
import torch

from hmvnet.case import Grid
from hmvnet.imaging.network_input import ChannelScaling, NetworkInput

NONE = ChannelScaling(scheme="none")
GRID = Grid((10, 8, 6), (2.0, 3.0, 4.0), (5.0, -7.0, 11.0))


def own(**changes) -> NetworkInput:
    """Of voxels as the scan's, nothing scaled."""
    plain = {"field": "region", "channels": (NONE, NONE), "spacing_mm": GRID.spacing[::-1]}
    return NetworkInput(**(plain | changes))


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 5, (2, *GRID.shape)).astype(np.float32)


def test_channels_are_scaled_in_their_own_ways():
    image = np.array([[[-300.0, 0.0, 50.0, 400.0]]], np.float32)
    ct = ChannelScaling(scheme="ct", low=-100, high=200, mean=50, deviation=10)
    np.testing.assert_allclose(ct(image, None), [[[-15, -5, 0, 15]]])
    z = ChannelScaling(scheme="z-score")(image, None)
    assert z.mean() == pytest.approx(0, abs=1e-6) and z.std() == pytest.approx(1)
    rescaled = ChannelScaling(scheme="rescale")(image, None)
    np.testing.assert_allclose(rescaled, (image + 300) / 700)
    np.testing.assert_array_equal(NONE(image, None), image)
    assert ChannelScaling(scheme="z-score")(np.full((2, 2, 2), 3.0), None).max() == 0


def test_a_masked_channel_leaves_what_is_outside_as_it_is():
    image, inside = np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 4), bool)
    image[1:3], inside[1:3] = np.arange(32, dtype=np.float32).reshape(2, 4, 4), True
    found = ChannelScaling(scheme="z-score", masked=True)(image, inside)
    assert found[inside].mean() == pytest.approx(0, abs=1e-6) and (found[~inside] == 0).all()


def test_a_hole_inside_counts_as_inside():
    raw = np.full((2, *GRID.shape), 5.0, np.float32)
    raw[:, 2:4, 3:5, 4:6] = 0
    masked = ChannelScaling(scheme="z-score", masked=True)
    plain = ChannelScaling(scheme="z-score")
    found = own(channels=(masked, masked)).prepare(raw, GRID).array
    np.testing.assert_allclose(found, own(channels=(plain, plain)).prepare(raw, GRID).array)


def test_what_is_zero_in_both_is_cropped():
    raw = np.zeros((2, *GRID.shape), np.float32)
    raw[0, 1:4, 2:6], raw[1, 2:5, 2:6] = 1, 1
    prepared = own().prepare(raw, GRID)
    assert prepared.array.shape == (2, 4, 4, 10)
    assert prepared.grid.same_as(GRID.crop((slice(1, 5), slice(2, 6), slice(0, 10))))
    assert own().prepare(np.zeros_like(raw), GRID).array.shape == raw.shape


def test_pet_may_come_first():
    raw = scan()
    np.testing.assert_array_equal(own(pet_first=True).prepare(raw, GRID).array, raw[::-1])


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
def test_the_lattice_lies_where_the_scan_lies(transpose):
    """A scan whose values are its positions is still that on the network's lattice."""
    z, y, x = np.indices(GRID.shape)
    points = GRID.points(np.stack([x, y, z], -1).reshape(-1, 3)).reshape(*GRID.shape, 3)
    raw = np.stack([points[..., 0] + 100, points[..., 2] + 100]).astype(np.float32)
    spacing = [GRID.spacing[::-1][axis] * 1.5 for axis in transpose]
    prepared = own(transpose=transpose, spacing_mm=spacing, order=1).prepare(raw, GRID)
    grid = prepared.grid
    assert grid.shape == prepared.array.shape[1:]
    c, b, a = (n // 2 for n in grid.shape)
    at = grid.points(np.array([[a, b, c]]))[0]
    assert prepared.array[0][c, b, a] == pytest.approx(at[0] + 100, abs=1e-3)
    assert prepared.array[1][c, b, a] == pytest.approx(at[2] + 100, abs=1e-3)
    np.testing.assert_allclose(grid.extent(), GRID.extent(), atol=1e-9)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_logits_go_back_to_where_they_came_from(transpose):
    settings = own(transpose=transpose, spacing_mm=[GRID.spacing[::-1][a] for a in transpose])
    prepared = settings.prepare(scan(), GRID)
    logits = torch.randn(3, *prepared.array.shape[1:])
    whole = tuple(slice(0, n) for n in GRID.shape)
    found = prepared.probabilities(logits, whole)
    back = logits.permute(0, *(1 + int(i) for i in np.argsort(transpose)))
    np.testing.assert_allclose(found, torch.softmax(back, 0), atol=1e-6)
    box = (slice(1, 5), slice(0, 8), slice(3, 4))
    np.testing.assert_allclose(prepared.probabilities(logits, box), found[:, 1:5, :, 3:4])


def test_outside_the_crop_all_is_background():
    raw = np.zeros((2, *GRID.shape), np.float32)
    raw[:, 2:4] = 1
    prepared = own().prepare(raw, GRID)
    logits = torch.zeros(3, *prepared.array.shape[1:])
    found = prepared.probabilities(logits, tuple(slice(0, n) for n in GRID.shape))
    assert (found[0, :2] == 1).all() and (found[1:, 4:] == 0).all()
    np.testing.assert_allclose(found[:, 2:4], 1 / 3, atol=1e-6)
    beyond = prepared.probabilities(logits, (slice(4, 6), slice(0, 8), slice(0, 10)))
    assert (beyond[0] == 1).all() and (beyond[1:] == 0).all()


def test_several_outputs_may_be_one_class():
    prepared = own(heads=(0, 2, 1, 0)).prepare(scan(), GRID)
    logits = torch.randn(4, *prepared.array.shape[1:])
    found = prepared.probabilities(logits, tuple(slice(0, n) for n in GRID.shape))
    shares = torch.softmax(logits, 0).numpy()
    np.testing.assert_allclose(found, [shares[0] + shares[3], shares[2], shares[1]], atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"transpose": (0, 0, 2)}, {"heads": (0, 1)}, {"heads": (0, 1, 3)}, {"step": 0.0}]
)
def test_settings_that_say_nothing_are_refused(change):
    with pytest.raises(ValueError, match="validation error"):
        own(**change)
