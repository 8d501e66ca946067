import numpy as np
import pytest
import torch
from monai.networks.layers import gaussian_1d, separable_filtering

from hmvnet.config import AugmentationSettings
from hmvnet.imaging import augment, warp
from hmvnet.imaging.augment import Move, blurred, coarsened, compile_loops, draw_patch, toned

NOTHING = AugmentationSettings(
    flip=0, affine=0, elastic=0, intensity=0, noise=0, blur=0, low_resolution=0,
    misalignment=0, drop_modality=0,
)  # fmt: skip


PATCH = (24, 24, 24)
MARGIN = 12


@pytest.fixture
def crop():
    rng = np.random.default_rng(0)
    size = tuple(n + 2 * MARGIN for n in PATCH)
    volume = rng.random((2, *size), np.float32)
    return volume, (volume[0] > 0.7).astype(np.uint8)


def draw(crop, seed=0, **changes):
    settings = NOTHING.model_copy(update=changes)
    return draw_patch(*crop, PATCH, settings, np.random.default_rng(seed))


def test_no_augmentation_is_the_inner_crop(crop):
    image, label = draw(crop)
    inner = (slice(MARGIN, -MARGIN),) * 3
    np.testing.assert_allclose(image.numpy(), crop[0][(slice(None), *inner)], atol=1e-6)
    np.testing.assert_array_equal(label.numpy(), crop[1][inner])


def test_flip_moves_image_and_label_together(crop):
    image, label = draw(crop, flip=1.0)
    plain, plain_label = draw(crop)
    np.testing.assert_allclose(image.numpy(), plain.flip(-1).numpy(), atol=1e-6)
    np.testing.assert_array_equal(label.numpy(), plain_label.flip(-1).numpy())


def test_identity_warp_equals_the_crop(crop):
    image, label = draw(crop, affine=1.0, rotation_degrees=0.0, scale=0.0)
    plain, plain_label = draw(crop)
    np.testing.assert_allclose(image.numpy(), plain.numpy(), atol=1e-4)
    np.testing.assert_array_equal(label.numpy(), plain_label.numpy())


def test_misalignment_moves_pet_only(crop):
    image, label = draw(crop, misalignment=1.0)
    plain, plain_label = draw(crop)
    np.testing.assert_allclose(image[0].numpy(), plain[0].numpy(), atol=1e-4)
    assert np.abs(image[1].numpy() - plain[1].numpy()).max() > 0.05
    np.testing.assert_array_equal(label.numpy(), plain_label.numpy())


@pytest.mark.parametrize(
    "kind", ["affine", "elastic", "intensity", "noise", "blur", "low_resolution", "drop_modality"]
)
def test_each_augmentation_acts_and_repeats(crop, kind):
    image, label = draw(crop, **{kind: 1.0})
    again, label_again = draw(crop, **{kind: 1.0})
    assert (image == again).all() and (label == label_again).all()
    assert not np.allclose(image.numpy(), draw(crop)[0].numpy(), atol=1e-3)
    assert image.shape == (2, *PATCH) and np.isfinite(image.numpy()).all()
    assert set(np.unique(label.numpy())) <= {0, 1}


@pytest.mark.parametrize("kind", ["elastic", "blur", "low_resolution"])
def test_a_patch_is_the_same_within_a_loop_of_mixed_precision(crop, kind):
    image, label = draw(crop, **{kind: 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        within, label_within = draw(crop, **{kind: 1.0})
    assert within.dtype == torch.float32
    assert (image == within).all() and (label == label_within).all()


def test_all_loops_are_compiled_beforehand(crop):
    compile_loops()
    loops = (warp._linear, warp._nearest, augment._blur)
    before = [len(loop.signatures) for loop in loops]
    for kind in ("affine", "elastic", "blur", "misalignment", "low_resolution"):
        draw(crop, **{kind: 1.0})
    assert [len(loop.signatures) for loop in loops] == before and min(before) > 0


@pytest.mark.parametrize("sigma", [0.4, 0.8, 1.2])
def test_blurred_is_a_gaussian_filter(sigma):
    values = torch.rand(9, 12, 7)
    kernel = [gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True)] * 3
    expected = separable_filtering(values[None, None], kernel, mode="replicate")[0, 0]
    torch.testing.assert_close(blurred(values, sigma), expected)
    torch.testing.assert_close(
        blurred(torch.full((5, 6, 7), 0.3), sigma), torch.full((5, 6, 7), 0.3)
    )


def test_tones_are_a_power_with_gain_and_offset():
    """Of air as well, which has no logarithm."""
    values = torch.tensor([-0.1, 0.0, 1e-7, 0.2, 1.0, 1.3]).reshape(1, 2, 3)
    expected = values.clamp(0, 1) ** 0.8 * 1.1 + 0.02
    torch.testing.assert_close(toned(values.clone(), 0.8, 1.1, 0.02), expected)


def test_coarsened_keeps_what_is_linear_and_loses_what_is_fine():
    slope = torch.linspace(0, 1, 24)[:, None, None].expand(24, 24, 24)
    found = coarsened(slope, 2.0)
    torch.testing.assert_close(found[3:-3], slope[3:-3], atol=1e-5, rtol=0)
    fine = (torch.arange(24) % 2).float().expand(24, 24, 24)
    assert coarsened(fine, 2.0).std() < 0.3 * fine.std()


def test_flip_comes_after_every_other_move(crop):
    """A flipped patch is the mirror image of what the mirrored crop becomes: as ever."""
    kinds = {"affine": 1.0, "elastic": 1.0, "misalignment": 1.0}
    image, label = draw(crop, flip=1.0, **kinds)
    mirrored = tuple(np.ascontiguousarray(array[..., ::-1]) for array in crop)
    plain, plain_label = draw(mirrored, flip=0.0, **kinds)
    np.testing.assert_allclose(image.numpy(), plain.numpy(), atol=1e-4)
    assert (label.numpy() == plain_label.numpy()).mean() > 0.9999


@pytest.mark.parametrize("changes", [{"affine": 1.0}, {"elastic": 1.0}, {"misalignment": 1.0}, {}])
def test_a_margin_is_as_wide_as_a_move_needs(changes):
    """A patch is what it is with more around it, and hardly more than it needs is read."""
    usual = {"affine": 1.0, "elastic": 1.0, "misalignment": 1.0, "flip": 0.5}
    settings = NOTHING.model_copy(update=changes or usual)
    patch, narrower = (40, 24, 16), 0
    rng = np.random.default_rng(7)
    volume = rng.random((2, 120, 90, 80), np.float32)
    label = rng.integers(0, 3, volume.shape[1:], dtype=np.uint8)
    for seed in range(25):
        move = Move.drawn(settings, np.random.default_rng(seed))
        whole = draw_patch(volume, label, patch, settings, np.random.default_rng(0), move)
        for less in (0, 2):
            size = [n + 2 * max(m - less, 0) for n, m in zip(patch, move.margin(patch))]
            first = [(n - m) // 2 for n, m in zip(label.shape, size)]
            box = (..., *(slice(f, f + n) for f, n in zip(first, size)))
            read = draw_patch(
                volume[box], label[box], patch, settings, np.random.default_rng(0), move
            )
            near = (read[1] == whole[1]).float().mean() > 0.999  # places are rounded
            same = bool(near) and torch.allclose(read[0], whole[0], atol=1e-3)
            assert same or less
            narrower += not same
    assert narrower > (5 if "elastic" not in changes else 0)


def test_what_need_not_be_read_is_not_missed(crop):
    """Without a move that interpolates, the patch needs no margin."""
    settings = NOTHING.model_copy(update={"flip": 0.5, "noise": 1.0})
    move = Move.drawn(settings, np.random.default_rng(0))
    assert move.margin(PATCH) == (0, 0, 0)
    inner = (..., *(slice(MARGIN, -MARGIN),) * 3)
    found = draw_patch(
        crop[0][inner], crop[1][inner], PATCH, settings, np.random.default_rng(5), move
    )
    expected = draw_patch(*crop, PATCH, settings, np.random.default_rng(5), move)
    assert all((a == b).all() for a, b in zip(found, expected))
