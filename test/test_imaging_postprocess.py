import numpy as np
import pytest
from conftest import ball
from scipy import ndimage

from hmvnet.case import GTVN, GTVP, Grid
from hmvnet.config import PostprocessingSettings, PreprocessingSettings
from hmvnet.imaging.intensity import normalise
from hmvnet.imaging.postprocess import (
    _widened,
    any_of_block,
    apply_thresholds,
    correct_by_airway,
    distance_to_air,
    fill_holes,
    keep_one_primary,
    merge_fragments,
    postprocess,
    remove_from_brain,
    remove_outside_body,
    remove_specks,
)

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
WINDOW = PreprocessingSettings().suv_window


def pet_of(grid: Grid, suv: float, *spots: tuple[np.ndarray, float]) -> np.ndarray:
    """A PET as the network sees it: one SUV, and others in some places."""
    pet = np.full(grid.shape, suv, np.float32)
    for where, value in spots:
        pet[where] = value
    return normalise(np.stack([pet, pet]), PreprocessingSettings())[1]


def with_pet(ct: np.ndarray) -> np.ndarray:
    """CT and PET as the network sees them, of even uptake."""
    return np.stack([ct, np.zeros_like(ct)])


def test_distance_to_air_is_exact_within_reach():
    air = np.random.default_rng(2).random((30, 30, 30)) > 0.9995
    lesion = ball(Grid((12, 12, 12), (1.0, 1.0, 1.0)), (5, 5, 5), 4)
    grid = Grid((60, 60, 60), (1.0, 1.0, 1.5))
    everywhere = ndimage.distance_transform_edt(~air, (3.0, 2.0, 2.0))
    for corner in ((0, 0, 0), (20, 30, 10), (48, 48, 48)):
        box = tuple(slice(c, c + 12) for c in corner)
        found = distance_to_air(air, grid, box, lesion, within_mm=20)
        at = (np.argwhere(lesion) + corner) // 2
        expected = everywhere[tuple(at.T)]
        near = expected <= 20
        np.testing.assert_allclose(found[near], expected[near])
        assert (found[~near] > 20).all()
    far = distance_to_air(np.zeros_like(air), grid, box, lesion, within_mm=20)
    assert np.isinf(far).all()


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


def test_pinholes_are_closed_and_clefts_are_not():
    block = np.zeros(ONE_MM.shape, bool)
    block[10:30, 10:30, 10:30] = True
    mask = block.astype(np.uint8) * GTVN
    mask[:, 20, 20] = 0  # a hole of one voxel, open at both ends
    mask[10:30, 14:17, 12:30] = 0  # a cleft of three
    filled = fill_holes(mask)
    assert (filled[11:29, 20, 20] == GTVN).all() and not filled[10:30, 15, 13:30].any()
    assert not filled[~block].any()


def test_specks_have_a_limit_per_class():
    mask = np.zeros(ONE_MM.shape, np.uint8)
    mask[5:10, 5:10, 5:10] = GTVP  # 0.125 mL
    mask[25:30, 25:30, 25:30] = GTVN
    kept = remove_specks(mask, ONE_MM.voxel_ml, SETTINGS)
    assert not (kept == GTVP).any() and (kept == GTVN).sum() == 125
    exactly = SETTINGS.model_copy(update={"min_ml_gtvn": 0.125, "min_ml_gtvp": 0.125})
    np.testing.assert_array_equal(remove_specks(mask, ONE_MM.voxel_ml, exactly), mask)


def test_a_tie_of_the_classes_is_the_primarys():
    lesion = ball(ONE_MM, (10, 10, 10), 4)
    alike = probabilities((GTVP, lesion, 0.5), (GTVN, lesion, 0.5))
    assert (apply_thresholds(alike, SETTINGS)[lesion] == GTVP).all()


@pytest.mark.parametrize("chance_of_node, becomes", [(0.1, GTVN), (0.01, 0)])
def test_one_primary_is_kept_and_the_second_becomes_a_node_if_it_can_be_one(
    chance_of_node, becomes
):
    big, small = ball(ONE_MM, (12, 12, 12), 8), ball(ONE_MM, (32, 32, 32), 5)
    mask = (big | small).astype(np.uint8)
    p = probabilities((GTVP, big, 0.6), (GTVP, small, 0.9))
    p[GTVN][small] = chance_of_node
    even = pet_of(ONE_MM, 5.0)
    out = keep_one_primary(mask, p, even, ONE_MM.voxel_ml, SETTINGS, WINDOW)
    assert (out[big] == GTVP).all() and (out[small] == becomes).all()


def test_a_small_primary_of_high_uptake_is_kept_rather_than_a_large_pale_one():
    big, small = ball(ONE_MM, (12, 12, 12), 8), ball(ONE_MM, (32, 32, 32), 5)
    mask = (big | small).astype(np.uint8)
    p = probabilities((GTVP, big, 0.6), (GTVP, small, 0.9))
    pale = pet_of(ONE_MM, 1.0, (small, 8.0))
    out = keep_one_primary(mask, p, pale, ONE_MM.voxel_ml, SETTINGS, WINDOW)
    assert (out[small] == GTVP).all() and not (out[big] == GTVP).any()


def test_a_second_primary_too_small_for_a_node_goes_though_it_might_be_one():
    big, tiny = ball(ONE_MM, (12, 12, 12), 8), ball(ONE_MM, (32, 32, 32), 2)
    mask = (big | tiny).astype(np.uint8)
    p = probabilities((GTVP, big, 0.6), (GTVP, tiny, 0.6))
    p[GTVN][tiny] = 0.3
    out = keep_one_primary(mask, p, pet_of(ONE_MM, 5.0), ONE_MM.voxel_ml, SETTINGS, WINDOW)
    assert (out[big] == GTVP).all() and not out[tiny].any()


@pytest.mark.parametrize("lesion, fragment", [(GTVP, GTVN), (GTVN, GTVP)])
def test_a_fragment_is_less_than_15_percent(lesion, fragment):
    mask = np.zeros(ONE_MM.shape, np.uint8)
    mask[10:30, 10:20, 10:20] = lesion
    mask[10:13, 10:20, 10:20] = fragment  # 15%
    np.testing.assert_array_equal(merge_fragments(mask), mask)
    mask[10, 10, 10] = lesion
    np.testing.assert_array_equal(merge_fragments(mask), (mask > 0) * lesion)


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
    # A coarse voxel beyond the skin is the body's still: its border is uncertain.
    mask[10:15, 10:15, 15:30] = GTVN
    out = remove_outside_body(mask, ct)
    assert (out[10:15, 10:15, 15:24] == GTVN).all() and not out[..., 24:].any()


def test_nothing_beyond_the_ct_however_it_is_cleaned():
    """The last resort took up again what lay beyond the CT, and closing reached over its end."""
    ct = TISSUE.copy()
    ct[28:] = 0
    shown = Grid((40, 40, 28), ONE_MM.spacing)
    beyond = ball(ONE_MM, (20, 20, 33), 4)
    across = ball(ONE_MM, (20, 20, 27), 6)
    for rules in (SETTINGS, SETTINGS.model_copy(update={"cleanup": False})):
        found = postprocess(
            probabilities((GTVP, beyond, 0.95)), with_pet(ct), ONE_MM, rules, WINDOW, shown
        )
        assert not found.any()
        cut = postprocess(
            probabilities((GTVP, across, 0.95)), with_pet(ct), ONE_MM, rules, WINDOW, shown
        )
        np.testing.assert_array_equal(np.flatnonzero(cut.any(axis=(1, 2))), np.arange(21, 28))
        turned = Grid((28, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0, 1, 0, 0, 0, 1, 1, 0, 0))
        same = postprocess(
            probabilities((GTVP, across, 0.95)), with_pet(ct), ONE_MM, rules, WINDOW, turned
        )
        np.testing.assert_array_equal(same, cut)


def test_what_lies_outside_the_body_does_not_come_back():
    ct = np.zeros(ONE_MM.shape, np.float32)
    ct[:, :, :20] = 0.5
    outside = ball(ONE_MM, (33, 20, 20), 4)
    found = postprocess(
        probabilities((GTVP, outside, 0.95)), with_pet(ct), ONE_MM, SETTINGS, WINDOW
    )
    assert not found.any()


def test_a_sure_tumour_of_another_piece_of_the_body_comes_back():
    """Of two legs the larger is the body; the other one's tumour is none the less one."""
    ct = np.zeros(ONE_MM.shape, np.float32)
    ct[:, 5:35, :22], ct[:, 10:30, 30:] = 0.5, 0.5
    tumour = np.zeros(ONE_MM.shape, bool)
    tumour[15:25, 15:25, 36:] = True
    found = postprocess(probabilities((GTVP, tumour, 0.97)), with_pet(ct), ONE_MM, SETTINGS, WINDOW)
    assert ((found == GTVP) == tumour).all()


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


def column(start_x: int, stop_x: int) -> np.ndarray:
    """A bar beside the airway, whose wall is at x = 35, from one voxel to before another."""
    bar = np.zeros(NECK.shape, bool)
    bar[28:32, 28:32, start_x:stop_x] = True
    return bar


def test_a_primary_that_reaches_the_mucosa_stays_one_however_far_it_goes():
    bar = column(46, 58)  # 24 to 46 mm from the air: most of it beyond 30
    np.testing.assert_array_equal(correct(bar * GTVP), bar * GTVP)


def test_a_node_of_which_most_is_off_the_mucosa_stays_one():
    for bar in (column(35, 50), column(39, 41)):  # 2 to 32 mm, 10 to 12 mm
        np.testing.assert_array_equal(correct(bar * GTVN), bar * GTVN)
    on_it = column(35, 40)  # 2 to 10 mm
    np.testing.assert_array_equal(correct(on_it * GTVN), on_it * GTVP)


def test_of_nodes_on_the_mucosa_the_likeliest_primary_becomes_it():
    small, large = column(35, 38), ball(NECK, (60, 76, 60), 7)
    mask = (small | large).astype(np.uint8) * GTVN
    for likely, other in ((small, large), (large, small)):
        chances = np.zeros((3, *NECK.shape), np.float32)
        chances[GTVP][likely], chances[GTVP][other] = 0.4, 0.4 * 0.05
        chances[GTVN][likely], chances[GTVN][other] = 0.5, 0.9
        out = correct_by_airway(mask, NECK_CT, NECK, chances, 30.0)
        assert (out[likely] == GTVP).all() and (out[other] == GTVN).all()


def test_without_an_airway_nothing_is_renamed():
    mask = FAR_AWAY * GTVP
    np.testing.assert_array_equal(correct(mask, np.full_like(NECK_CT, 0.5)), mask)
    # Nor where all that is air are bubbles, however many, or too little of it.
    bubbles = np.full_like(NECK_CT, 0.5)
    bubbles[:, :3] = bubbles[:, -3:] = 0.0
    narrow = bubbles.copy()
    for z, y, x in np.ndindex(5, 5, 2):
        bubbles[8 + 10 * z :, 8 + 10 * y :, 8 + 10 * x :][:4, :4, :4] = 0.0  # 0.5 mL
        bubbles[8 + 10 * z, 8 + 10 * y, 8 + 10 * x] = 0.5  # less a bit
    assert (bubbles == 0)[:, 3:-3].sum() * NECK.voxel_ml > 20
    narrow[20:40, 26:34, 28:30] = 0.0  # 2.6 mL
    for ct in (bubbles, narrow):
        np.testing.assert_array_equal(correct(mask, ct), mask)


def test_blocks_that_hold_a_voxel():
    voxels = np.random.default_rng(0).random((9, 12, 10)) > 0.97
    blocks = voxels[:8, :, :8].reshape(2, 4, 3, 4, 2, 4).any((1, 3, 5))
    np.testing.assert_array_equal(any_of_block(voxels, 4), blocks)


def test_what_is_near_is_so_in_millimetres():
    """Slices of 12 mm beside pixels of 4: one step along z is as far as three in the plane."""
    point = np.zeros((9, 9, 9), bool)
    point[4, 4, 4] = True
    near = _widened(point, 8.0, (4.0, 4.0, 4.0))
    z, y, x = np.abs(np.indices(near.shape) - 4)
    np.testing.assert_array_equal(near, z + y + x <= 2)
    wide = _widened(point, 12.0, (12.0, 4.0, 4.0))
    assert [int(np.flatnonzero(wide.any(axis=axes)).max()) - 4 for axes in ((1, 2), (0, 1))] == [
        1,
        3,
    ]


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


HEAD = Grid((90, 90, 90), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
IN_SKULL = ball(HEAD, (88, 88, 110), 62)


def skull(bone: float, hollow: np.ndarray = IN_SKULL) -> np.ndarray:
    """A head as the network sees it, its bone so bright, around what it encloses."""
    ct = np.where(ball(HEAD, (88, 88, 110), 70), bone, 0.0).astype(np.float32)
    ct[hollow] = 0.48
    return ct


def test_a_skull_is_of_200_hu_and_encloses_as_much_as_a_brain():
    mask = ball(HEAD, (88, 88, 110), 30) * np.uint8(GTVP)
    assert not remove_from_brain(mask, skull(0.81), HEAD).any()
    small = skull(1.0, ball(HEAD, (88, 88, 110), 40))  # 270 mL
    for ct in (skull(0.79), small):
        np.testing.assert_array_equal(remove_from_brain(mask, ct, HEAD), mask)


def test_of_what_reaches_into_the_skull_all_but_its_surroundings_is_kept():
    """More than half inside: all of it goes; a tenth or less: nothing does."""
    z = HEAD.points(np.indices(HEAD.shape)[::-1].reshape(3, -1).T)[:, 2].reshape(HEAD.shape)
    bar = np.zeros(HEAD.shape, bool)
    bar[:, 40:48, 40:48] = True
    floor = 48.0  # of the skull's inside, mm
    for top, bottom, kept in (
        (floor + 10, 0.0, 1.0),
        (floor + 30, 0.0, None),
        (floor + 60, 20.0, 0.0),
    ):
        lesion = bar & (z >= bottom) & (z <= top)
        out = remove_from_brain(lesion * np.uint8(GTVP), skull(1.0), HEAD)
        if kept is None:
            highest = z[out > 0].max()
            assert (out > 0)[lesion & (z <= highest)].all()
            assert floor - 8 - 8 <= highest <= floor - 8 + 8
        else:
            assert (out > 0)[lesion].mean() == kept


def test_what_was_ruled_out_does_not_come_back_as_the_confident_lesion():
    found = probabilities((GTVP, FAR_AWAY, 0.9))
    assert not postprocess(found, with_pet(NECK_CT), NECK, SETTINGS, WINDOW).any()
    found[GTVN][FAR_AWAY] = 0.05
    assert (postprocess(found, with_pet(NECK_CT), NECK, SETTINGS, WINDOW)[FAR_AWAY] == GTVN).all()


def test_a_confident_lesion_is_never_lost():
    tiny = ball(ONE_MM, (20, 20, 20), 2)  # 0.033 mL: a speck for both classes
    sure = postprocess(
        probabilities((GTVN, tiny, 0.95)), with_pet(TISSUE), ONE_MM, SETTINGS, WINDOW
    )
    unsure = postprocess(
        probabilities((GTVN, tiny, 0.6)), with_pet(TISSUE), ONE_MM, SETTINGS, WINDOW
    )
    assert (sure[tiny] == GTVN).all() and not unsure.any()


def test_of_several_sure_specks_the_likeliest_as_a_whole_is_kept():
    """Sure is a lesion whose peak is; of such the one with the most probability in it."""
    small, large = ball(ONE_MM, (8, 8, 8), 1), ball(ONE_MM, (30, 30, 30), 2.2)
    p = probabilities((GTVP, small, 0.99), (GTVN, large, 0.6))
    p[GTVN, 30, 30, 30], p[0, 30, 30, 30] = 0.95, 0.05
    found = postprocess(p, with_pet(TISSUE), ONE_MM, SETTINGS, WINDOW)
    np.testing.assert_array_equal(found, large * GTVN)


def test_a_node_that_becomes_the_primary_has_the_primarys_least_volume():
    """0.35 mL, too little for a primary of 0.5; and not sure enough to be kept all the same."""
    node = column(35, 38) & ~column(37, 40)
    node[:28] = node[32:] = False
    rules = SETTINGS.model_copy(update={"min_ml_gtvp": 0.5, "min_ml_gtvn": 0.1})
    found = postprocess(probabilities((GTVN, node, 0.6)), with_pet(NECK_CT), NECK, rules, WINDOW)
    assert not found.any()


def test_empty_probabilities_give_an_empty_mask():
    assert not postprocess(probabilities(), with_pet(TISSUE), ONE_MM, SETTINGS, WINDOW).any()


def test_a_threshold_of_0_takes_the_likeliest_class():
    """As nnU-Net does; background where both are alike."""
    shares = np.array(
        [[0.34, 0.4, 0.3, 0.5], [0.36, 0.3, 0.3, 0.5], [0.3, 0.3, 0.4, 0.0]], np.float32
    ).reshape(3, 1, 2, 2)
    likeliest = PostprocessingSettings(threshold_gtvp=0, threshold_gtvn=0)
    assert apply_thresholds(shares, likeliest).ravel().tolist() == [1, 0, 2, 0]
    assert apply_thresholds(shares, SETTINGS).ravel().tolist() == [
        0,
        0,
        0,
        1,
    ]


def test_without_cleanup_a_mask_stays_as_it_is():
    grid = Grid((20, 20, 20), (1.0, 1.0, 1.0))
    primary = np.zeros(grid.shape, np.float32)
    primary[5:12, 5:12, 5:12] = 1
    primary[8, 8, 8] = 0  # a hole, which cleaning fills
    shares = np.stack([1 - primary, primary, 0 * primary])
    rules = PostprocessingSettings(airway_mm=0, one_primary=False, min_ml_gtvp=0)
    ct = np.ones(grid.shape, np.float32)
    assert postprocess(shares, with_pet(ct), grid, rules, WINDOW).sum() == 7**3
    plain = rules.model_copy(update={"cleanup": False})
    np.testing.assert_array_equal(postprocess(shares, with_pet(ct), grid, plain, WINDOW), primary)
