"""Connected pieces and their boxes, against scipy and masks that can be counted by hand."""

import numpy as np
import pytest
from scipy import ndimage

from hmvnet.imaging.components import (
    CONNECTIVITY,
    FACES,
    bounding_box,
    fill_slices,
    label_pieces,
    largest_component,
    lesions_of,
    pieces_of,
    widened,
    within,
    without_specks,
)


def test_slices_are_filled_as_scipy_fills_them():
    noise = np.random.default_rng(1).random((9, 31, 27)) > 0.45
    expected = np.stack([ndimage.binary_fill_holes(s) for s in noise])
    assert expected.sum() > noise.sum()
    np.testing.assert_array_equal(fill_slices(noise), expected)


def test_bounding_box_holds_all_that_is_set_and_no_more():
    mask = np.zeros((9, 8, 7), np.uint8)
    assert bounding_box(mask) == (slice(0, 0),) * 3 and mask[bounding_box(mask)].size == 0
    mask[3, 2, 6] = mask[5, 4, 1] = 2
    assert bounding_box(mask) == (slice(3, 6), slice(2, 5), slice(1, 7))
    block = np.zeros((20, 24, 28), bool)
    block[2:8, 3:9, 4:10] = True
    assert bounding_box(block) == (slice(2, 8), slice(3, 9), slice(4, 10))
    assert block[bounding_box(block & False)].size == 0


def test_lesions_touch_across_corners():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    assert len(list(lesions_of(mask))) == 2
    assert label_pieces(mask)[1] == 2
    assert len(list(pieces_of(mask, FACES))) == label_pieces(mask, FACES)[1] == 3


@pytest.mark.parametrize("connectivity, rank", [(FACES, 1), (CONNECTIVITY, 3)])
def test_pieces_are_scipys(connectivity, rank):
    mask = np.zeros((20, 22, 24), bool)
    mask[4:18, 3:20, 5:21] = np.random.default_rng(3).random((14, 17, 16)) > 0.85
    labels, count = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))
    expected = {np.flatnonzero(labels == i).tobytes() for i in range(1, count + 1)}
    found = set()
    for box, voxels in pieces_of(mask, connectivity):
        piece = np.zeros_like(mask)
        piece[box] = voxels
        assert box == bounding_box(piece)
        found.add(np.flatnonzero(piece).tobytes())
    assert found == expected


def test_nothing_has_no_pieces():
    nothing = np.zeros((3, 4, 5), bool)
    assert not list(lesions_of(nothing)) and label_pieces(nothing)[1] == 0
    assert not largest_component(nothing).any() and not without_specks(nothing, 2).any()


def test_specks_are_below_the_least():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[5, 5, 5] = True
    assert np.argwhere(without_specks(mask, 2)).tolist() == [[0, 0, 0], [1, 1, 1]]
    np.testing.assert_array_equal(without_specks(mask, 1), mask)


def test_a_box_is_widened_as_far_as_the_array_reaches():
    box = np.s_[1:3, 4:6, 8:10]
    assert widened(box, 2, (10, 20, 10)) == np.s_[0:5, 2:8, 6:10]
    assert widened(box, np.array([0, 1, 3]), (10, 20, 20)) == np.s_[1:3, 3:7, 5:13]


def test_a_piece_lies_where_it_was_in_a_wider_box():
    mask = np.zeros((10, 20, 10), bool)
    mask[1:3, 4, 8:10] = mask[2, 4:6, 9] = True
    ((box, where),) = lesions_of(mask)
    wide = widened(box, 3, mask.shape)
    np.testing.assert_array_equal(within(where, box, wide), mask[wide])
