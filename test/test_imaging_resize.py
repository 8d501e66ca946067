"""Resizing as nnU-Net does it."""

import numpy as np
import pytest
from skimage.transform import resize

from hmvnet.imaging.resize import flat_axis, resized, resized_box


@pytest.mark.parametrize(
    ("before", "after", "separate", "expected"),
    [
        ((1, 1, 1), (2, 2, 2), None, None),
        ((5, 1, 1), (1, 1, 1), None, 0),
        ((1, 1, 1), (1, 1, 4), None, 2),
        ((3, 1, 1), (1, 1, 1), None, None),  # more than three times, not three
        ((5, 5, 1), (1, 1, 1), None, None),  # two flat axes: none is resized apart
        ((2, 1, 1), (1, 1, 1), True, 0),
        ((9, 1, 1), (1, 1, 1), False, None),
    ],
)
def test_the_axis_along_which_voxels_are_flat(before, after, separate, expected):
    assert flat_axis(before, after, separate) == expected


def test_a_cubic_resize_is_that_of_scikit_image():
    volume = np.random.default_rng(0).normal(size=(2, 6, 7, 8)).astype(np.float32)
    found = resized(volume, (9, 5, 8))
    assert found.dtype == np.float32
    for one, other in zip(volume, found):
        expected = resize(one.astype(float), (9, 5, 8), 3, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(other, expected, atol=1e-6)
    assert resized(volume, (6, 7, 8)) is volume


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_flat_voxels_are_resized_slice_by_slice(flat):
    volume = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    shape = [8, 8, 8]
    found = np.moveaxis(resized(volume, shape, flat=flat)[0], flat, 0)
    for number, one in enumerate(np.moveaxis(volume[0], flat, 0)):
        expected = resize(one.astype(float), (8, 8), 3, mode="edge", anti_aliasing=False)
        for twice in (2 * number, 2 * number + 1):
            np.testing.assert_allclose(found[twice], expected, atol=1e-6)


@pytest.mark.parametrize("flat", [None, 1])
def test_a_box_is_a_part_of_the_whole(flat):
    volume = np.random.default_rng(0).normal(size=(3, 5, 6, 7)).astype(np.float32)
    shape, box = (11, 4, 7), (slice(2, 9), slice(1, 4), slice(0, 7))
    whole = resized(volume, shape, order=1, flat=flat)
    found = resized_box(volume, shape, box, flat)
    np.testing.assert_allclose(found, whole[:, 2:9, 1:4], atol=1e-6)
