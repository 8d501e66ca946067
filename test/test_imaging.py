import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CT_GRID, ball, tiny_ct, tiny_pet
from scipy import ndimage

from hmvnet.case import GTVN, GTVP, Case, Grid
from hmvnet.config import AugmentationSettings, PostprocessingSettings, PreprocessingSettings
from hmvnet.imaging.augment import MARGIN, draw_patch
from hmvnet.imaging.intensity import denormalise, normalise
from hmvnet.imaging.postprocess import (
    _any_of_block,
    _distance_to_air,
    apply_thresholds,
    correct_by_airway,
    fill_holes,
    keep_one_primary,
    merge_fragments,
    postprocess,
    remove_from_brain,
    remove_outside_body,
    remove_specks,
)
from hmvnet.imaging.resample import labels_onto, resample, resample_pet_ct

SETTINGS = PostprocessingSettings()
ONE_MM = Grid((40, 40, 40), (1.0, 1.0, 1.0))


def probabilities(*lesions: tuple[int, np.ndarray, float]) -> np.ndarray:
    shape = lesions[0][1].shape if lesions else ONE_MM.shape
    p = np.zeros((3, *shape), np.float32)
    for kind, mask, value in lesions:
        p[kind][mask] = value
    p[0] = 1 - p[1] - p[2]
    return p


TISSUE = np.full(ONE_MM.shape, 0.5, np.float32)


def test_intensity_windows_and_back():
    settings = PreprocessingSettings()
    volume = np.array([[-3000, -200, 50, 300, 3000], [-1, 0, 10, 20, 90]], np.float32)
    volume = volume.reshape(2, 1, 1, 5)
    scaled = normalise(volume, settings)
    assert volume.min() == -3000  # left alone
    in_place = volume.copy()
    assert normalise(in_place, settings, out=in_place) is in_place
    np.testing.assert_array_equal(in_place, scaled)
    np.testing.assert_allclose(scaled[0, 0, 0], [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(scaled[1, 0, 0], [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(
        denormalise(scaled, settings)[1, 0, 0], [0, 0, 10, 20, 20], atol=1e-4
    )


def test_resampling_does_not_overshoot():
    box = np.zeros(CT_GRID.shape, np.float32)
    box[10:20, 10:20, 10:20] = 20
    fine = Grid((100, 100, 100), (1.3, 1.3, 1.3), (-60.0, -60.0, -60.0))
    values = resample(CT_GRID.image(box), fine, fill=0)
    assert values.min() >= 0 and values.max() <= 20


def test_outside_the_scan_is_air_and_no_uptake():
    case = Case.of("x", tiny_ct(), tiny_pet())
    far = Grid((4, 4, 4), (1.0, 1.0, 1.0), (500.0, 0.0, 0.0))
    volume = resample_pet_ct(case, far)
    assert (volume[0] == -1000).all() and (volume[1] == 0).all()


SHARED_AXES = {
    "as the region": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "flipped": (-1, 0, 0, 0, 1, 0, 0, 0, -1),
    "permuted": (0, 0, 1, -1, 0, 0, 0, 1, 0),
}


@pytest.mark.parametrize("axes", SHARED_AXES.values(), ids=SHARED_AXES)
def test_resampling_along_shared_axes_equals_simpleitk(axes):
    """Also where the scan ends inside the region, and half a voxel beyond its last centres."""
    noise = np.random.default_rng(0).normal(size=(30, 25, 20)).astype(np.float32)
    matrix = np.reshape(axes, (3, 3)).astype(float)
    origin = -matrix @ (np.array([19, 24, 29]) * [2.1, 1.7, 3.3] / 2)
    ct = Grid((20, 25, 30), (2.1, 1.7, 3.3), tuple(origin), tuple(map(float, axes)))
    turned = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    region = Grid((60, 50, 70), (1.0, 1.0, 1.0), (-28.3, -22.1, 35.6), turned)
    case = Case("x", ct.image(noise), tiny_pet())
    expected = resample(case.ct, region, fill=-1000)
    np.testing.assert_allclose(resample_pet_ct(case, region)[0], expected, atol=1e-4)
    assert (expected == -1000).any() and (expected > -1000).any()


def test_an_oblique_scan_is_resampled_by_simpleitk():
    matrix = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.3).GetMatrix()
    ct = tiny_ct()
    ct.SetDirection(matrix)
    case = Case("x", ct, tiny_pet())
    region = Grid((30, 30, 30), (2.0, 2.0, 2.0), (-30.0, -30.0, -30.0))
    np.testing.assert_array_equal(
        resample_pet_ct(case, region)[0], resample(ct, region, fill=-1000)
    )


def test_distance_to_air_is_exact_within_reach():
    air = np.random.default_rng(2).random((30, 30, 30)) > 0.9995
    lesion = ball(Grid((12, 12, 12), (1.0, 1.0, 1.0)), (5, 5, 5), 4)
    grid = Grid((60, 60, 60), (1.0, 1.0, 1.5))
    everywhere = ndimage.distance_transform_edt(~air, (3.0, 2.0, 2.0))
    for corner in ((0, 0, 0), (20, 30, 10), (48, 48, 48)):
        box = tuple(slice(c, c + 12) for c in corner)
        found = _distance_to_air(air, grid, box, lesion, within_mm=20)
        at = (np.argwhere(lesion) + corner) // 2
        expected = everywhere[tuple(at.T)]
        near = expected <= 20
        np.testing.assert_allclose(found[near], expected[near])
        assert (found[~near] > 20).all()
    far = _distance_to_air(np.zeros_like(air), grid, box, lesion, within_mm=20)
    assert np.isinf(far).all()


AFFINES = [
    sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()
    for angles in [(0, 0, 0), (0.1, 0, 0), (0, 0.2, 0), (0, 0, 0.3), (0.2, -0.3, 0.5), (0, 0, 3.14)]
] + [(-1, 0, 0, 0, 1, 0, 0, 0, 1), (1, 0, 0, 0, -1, 0, 0, 0, 1), (1, 0, 0, 0, 1, 0, 0, 0, -1),
     (0, 0, 1, 1, 0, 0, 0, 1, 0)]  # fmt: skip


@pytest.mark.parametrize("axes", AFFINES, ids=range(len(AFFINES)))
@pytest.mark.parametrize("spacing", [(0.9, 0.9, 2.0), (1.4, 1.4, 3.3)])
def test_mask_goes_back_to_any_grid_within_a_voxel(axes, spacing):
    """Ten affines: the mask on the CT grid is the lesion, wherever the CT's axes point."""
    centre, radius = np.array([12.0, -8.0, 30.0]), 14.0
    working = Grid((120, 120, 120), (1.0, 1.0, 1.0), (-50.0, -70.0, -30.0))
    labels = ball(working, centre, radius).astype(np.uint8)
    matrix = np.reshape(axes, (3, 3)).astype(float)
    size = (110, 100, 60)
    origin = centre - matrix @ ((np.array(size) - 1) / 2 * spacing)
    target = Grid(size, spacing, tuple(origin.tolist()), tuple(matrix.ravel().tolist()))
    back = labels_onto(labels, working, target) > 0
    index = np.argwhere(back)[:, ::-1]
    offset = target.points(index.mean(axis=0, keepdims=True))[0] - centre
    assert np.abs(offset).max() < 0.5
    volume = back.sum() * target.voxel_ml
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.04)
    inside, outside = ball(target, centre, radius - 1.8), ball(target, centre, radius + 1.8)
    assert back[inside].all() and not back[~outside].any()


def test_mask_that_lies_outside_the_target_is_empty():
    labels = np.ones(ONE_MM.shape, np.uint8)
    far = Grid((5, 5, 5), (1.0, 1.0, 1.0), (999.0, 0.0, 0.0))
    assert not labels_onto(labels, ONE_MM, far).any()


def test_thresholds_are_per_class():
    a, b = ball(ONE_MM, (10, 10, 10), 4), ball(ONE_MM, (30, 30, 30), 4)
    p = probabilities((GTVP, a, 0.4), (GTVN, b, 0.4))
    mask = apply_thresholds(p, SETTINGS.model_copy(update={"threshold_gtvn": 0.3}))
    assert not (mask == GTVP).any() and (mask[b] == GTVN).all()


def test_holes_are_filled_but_not_over_the_other_class():
    shell = ball(ONE_MM, (20, 20, 20), 8) & ~ball(ONE_MM, (20, 20, 20), 5)
    mask = shell.astype(np.uint8)
    mask[20, 20, 20] = GTVN
    filled = fill_holes(mask)
    assert (filled[ball(ONE_MM, (20, 20, 20), 8)] > 0).all()
    assert filled[20, 20, 20] == GTVN


def test_specks_have_a_limit_per_class():
    mask = np.zeros(ONE_MM.shape, np.uint8)
    mask[5:10, 5:10, 5:10] = GTVP  # 0.125 mL
    mask[25:30, 25:30, 25:30] = GTVN
    kept = remove_specks(mask, ONE_MM.voxel_ml, SETTINGS)
    assert not (kept == GTVP).any() and (kept == GTVN).sum() == 125


@pytest.mark.parametrize("chance_of_node, becomes", [(0.1, GTVN), (0.01, 0)])
def test_one_primary_is_kept_and_the_second_becomes_a_node_if_it_can_be_one(
    chance_of_node, becomes
):
    big, small = ball(ONE_MM, (12, 12, 12), 8), ball(ONE_MM, (32, 32, 32), 5)
    mask = (big | small).astype(np.uint8)
    p = probabilities((GTVP, big, 0.6), (GTVP, small, 0.9))
    p[GTVN][small] = chance_of_node
    out = keep_one_primary(mask, p, ONE_MM.voxel_ml, SETTINGS)
    assert (out[big] == GTVP).all() and (out[small] == becomes).all()


def test_fragment_takes_the_lesions_name():
    node = ball(ONE_MM, (20, 20, 20), 8)
    mask = node * np.uint8(GTVN)
    mask[node & (np.indices(ONE_MM.shape)[0] > 26)] = GTVP
    assert set(np.unique(merge_fragments(mask))) == {0, GTVN}


def test_nothing_outside_the_body():
    ct = np.zeros(ONE_MM.shape, np.float32)
    ct[:, :, :20] = 0.5
    mask = np.zeros(ONE_MM.shape, np.uint8)
    mask[10:15, 10:15, 5:10] = GTVN
    mask[10:15, 10:15, 32:38] = GTVN
    out = remove_outside_body(mask, ct)
    assert (out[10:15, 10:15, 5:10] == GTVN).all() and not out[..., 32:38].any()


NECK = Grid((60, 60, 60), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))  # 12 cm, an airway up its middle
NECK_CT = np.full(NECK.shape, 0.5, np.float32)
NECK_CT[:, 25:35, 25:35] = 0.0
NECK_CT[:, :3] = NECK_CT[:, -3:] = 0.0
ON_MUCOSA = ball(NECK, (76, 60, 60), 7)
FAR_AWAY = ball(NECK, (108, 60, 60), 7)  # its near side 31 mm from the airway


def correct(mask, ct=NECK_CT, chance_of_node=0.2):
    lesion = (mask > 0).astype(np.float32)
    found = np.stack([1 - lesion, 0.6 * lesion, chance_of_node * lesion])
    return correct_by_airway(mask.astype(np.uint8), ct, NECK, found, 30.0)


def test_a_primary_where_none_can_be_becomes_a_node():
    out = correct(ON_MUCOSA * GTVP + FAR_AWAY * GTVP)
    assert (out[ON_MUCOSA] == GTVP).all() and (out[FAR_AWAY] == GTVN).all()


def test_what_can_be_neither_primary_nor_node_goes():
    out = correct(ON_MUCOSA * GTVP + FAR_AWAY * GTVP, chance_of_node=0.01)
    assert (out[ON_MUCOSA] == GTVP).all() and not out[FAR_AWAY].any()


def test_a_node_on_the_mucosa_becomes_the_primary_where_there_is_none():
    out = correct(ON_MUCOSA * GTVN + FAR_AWAY * GTVN)
    assert (out[ON_MUCOSA] == GTVP).all() and (out[FAR_AWAY] == GTVN).all()
    nearer = ball(NECK, (60, 76, 60), 7)
    with_primary = nearer * GTVP + (ON_MUCOSA & ~nearer) * GTVN
    np.testing.assert_array_equal(correct(with_primary), with_primary)


def test_without_an_airway_nothing_is_renamed():
    mask = FAR_AWAY * GTVP
    np.testing.assert_array_equal(correct(mask, np.full_like(NECK_CT, 0.5)), mask)


def test_blocks_that_hold_a_voxel():
    voxels = np.random.default_rng(0).random((9, 12, 10)) > 0.97
    blocks = voxels[:8, :, :8].reshape(2, 4, 3, 4, 2, 4).any((1, 3, 5))
    np.testing.assert_array_equal(_any_of_block(voxels, 4), blocks)


def test_uptake_inside_the_skull_is_the_brains():
    grid = Grid((60, 60, 60), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    head, hollow = ball(grid, (88, 88, 100), 70), ball(grid, (88, 88, 100), 62)
    ct = np.where(head, 1.0, 0.0).astype(np.float32)
    ct[hollow] = 0.48
    brain, neck = ball(grid, (88, 88, 110), 40), ball(grid, (88, 88, 15), 10)
    mask = brain * np.uint8(GTVP) + neck * np.uint8(GTVN)
    out = remove_from_brain(mask, ct, grid)
    assert not out[brain].any() and (out[neck] == GTVN).all()
    np.testing.assert_array_equal(remove_from_brain(mask, np.full_like(ct, 0.5), grid), mask)
    # One piece from the brain to far below it: only what is near the brain goes.
    column = ball(grid, (88, 88, 110), 40)
    column[:24, 15:44, 15:44] = True
    out = remove_from_brain(column * np.uint8(GTVP), ct, grid)
    assert (out[:4][column[:4]] == GTVP).all() and not out[24:].any()


def test_what_was_ruled_out_does_not_come_back_as_the_confident_lesion():
    found = probabilities((GTVP, FAR_AWAY, 0.9))
    assert not postprocess(found, NECK_CT, NECK, SETTINGS).any()
    found[GTVN][FAR_AWAY] = 0.05
    assert (postprocess(found, NECK_CT, NECK, SETTINGS)[FAR_AWAY] == GTVN).all()


def test_a_confident_lesion_is_never_lost():
    tiny = ball(ONE_MM, (20, 20, 20), 2)  # 0.033 mL: a speck for both classes
    sure = postprocess(probabilities((GTVN, tiny, 0.95)), TISSUE, ONE_MM, SETTINGS)
    unsure = postprocess(probabilities((GTVN, tiny, 0.6)), TISSUE, ONE_MM, SETTINGS)
    assert (sure[tiny] == GTVN).all() and not unsure.any()


def test_empty_probabilities_give_an_empty_mask():
    assert not postprocess(probabilities(), TISSUE, ONE_MM, SETTINGS).any()


NOTHING = AugmentationSettings(
    flip=0, affine=0, elastic=0, intensity=0, noise=0, blur=0, low_resolution=0,
    misalignment=0, drop_modality=0,
)  # fmt: skip
PATCH = (24, 24, 24)


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
