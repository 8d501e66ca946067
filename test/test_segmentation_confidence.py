"""How sure a segmentation is, where that is known by construction."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import predicted
from test_writing_page import TWO

from hmvnet.case import Grid
from hmvnet.segmentation.confidence import entropy, lesion_confidences
from hmvnet.segmentation.segmenter import Volume


def test_entropy_is_none_where_certain_and_one_where_all_are_alike():
    probabilities = np.zeros((3, 1, 1, 4), np.float32)
    probabilities[:, 0, 0, 0] = 0, 1, 0
    probabilities[:, 0, 0, 1] = 1 / 3
    probabilities[:, 0, 0, 2] = 0.5, 0.5, 0
    probabilities[:, 0, 0, 3] = 1 + 1e-6, 0, -1e-9
    found = entropy(probabilities)[0, 0]
    assert found.dtype == np.float32
    assert found == pytest.approx([0, 1, np.log(2) / np.log(3), 0], abs=1 / 255)


def test_confidence_is_the_mean_of_the_lesions_own_class():
    made = predicted(*TWO)
    segmentation = made.segmentation
    segmentation.probabilities[1] = np.linspace(0, 1, made.numbers.shape[2])  # along x
    segmentation.probabilities[2] = 0.25
    primary, node = lesion_confidences(segmentation, made.numbers, [1, 2])
    assert primary == pytest.approx(60 / 89, abs=1e-3) and node == pytest.approx(0.25)


def test_confidence_of_networks_that_see_the_ct_is_of_its_voxels():
    """Their probabilities lie on the CT's grid: here of half as many voxels along each axis."""
    made = predicted(*TWO)
    segmentation, grid = made.segmentation, made.segmentation.volume.grid
    size = tuple(n // 2 for n in grid.size)
    coarse = Grid(size, (2.0, 2.0, 2.0), grid.origin)
    probabilities = np.zeros((3, *coarse.shape), np.float32)
    probabilities[1], probabilities[2, :, :, :25] = 0.75, 0.5
    seen = Volume(replace(segmentation.volume.region, grid=coarse), *[probabilities[:2]] * 2)
    other = replace(
        segmentation, probabilities=probabilities, on_ct=(seen, np.zeros(coarse.shape, np.uint8))
    )
    assert lesion_confidences(other, made.numbers, [1, 2]) == pytest.approx((0.75, 0.5))
    nothing = np.zeros_like(made.numbers)
    assert lesion_confidences(other, nothing, [1]) == (None,)


def test_the_three_hundredth_lesion_has_its_own_confidence_on_the_ct():
    segmentation = predicted(*TWO).segmentation
    grid = segmentation.volume.grid
    numbers = np.zeros(grid.shape, np.int32)
    numbers[:3, :10, :10] = 1 + np.arange(300).reshape(3, 10, 10)  # a voxel each
    probabilities = np.zeros((3, *grid.shape), np.float32)
    probabilities[1] = numbers / 400
    on_ct = (segmentation.volume, np.zeros(grid.shape, np.uint8))
    other = replace(segmentation, probabilities=probabilities, on_ct=on_ct)
    found = lesion_confidences(other, numbers, [1] * 300)
    assert found == pytest.approx((1 + np.arange(300)) / 400)
