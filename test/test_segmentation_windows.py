"""Windows as nnU-Net lays them: evenly, and weighted."""

import pytest
import torch
from torch.nn import functional as F

from hmvnet.segmentation.windows import importance, slide, starts


def test_windows_lie_evenly():
    assert starts(110, 64, 0.5) == [0, 23, 46]  # nnU-Net's own example
    assert starts(64, 64, 0.5) == [0]
    assert starts(65, 64, 0.5) == [0, 1]
    assert starts(10, 4, 1.0) == [0, 3, 6]
    with pytest.raises(ValueError, match="windows of 64"):
        starts(60, 64, 0.5)


def test_the_middle_counts_most_and_nothing_counts_for_nothing():
    weights = importance((8, 16, 4))
    assert weights.shape == (8, 16, 4) and weights.max() == weights[4, 8, 2] == 10
    assert weights.min() > 0 and weights[0, 0, 0] < 1e-3


def test_what_does_not_depend_on_the_window_is_put_together_as_it_is():
    x = torch.randn(1, 2, 9, 12, 10)
    whole, pooled = slide(x, (4, 8, 6), 0.5, lambda p: (2 * p, F.avg_pool3d(p, (1, 1, 1))))
    torch.testing.assert_close(whole, 2 * x)
    torch.testing.assert_close(pooled, x)


def test_where_windows_disagree_their_weighted_mean_counts():
    seen = []

    def number(part):
        seen.append(part)
        return [torch.full_like(part, float(len(seen)))]

    (found,) = slide(torch.zeros(1, 1, 6, 4, 4), (4, 4, 4), 0.5, number)
    assert len(seen) == 2
    weight = importance((4, 4, 4))[:, 0, 0]
    first, second = weight[2], weight[0]  # of voxel 2 in either window
    assert found[0, 0, 2, 0, 0] == pytest.approx(float((first + 2 * second) / (first + second)))
    assert found[0, 0, 0, 0, 0] == 1 and found[0, 0, 5, 0, 0] == 2


def test_coarse_maps_have_their_share_of_the_size():
    x = torch.randn(1, 1, 16, 8, 8)
    (found,) = slide(x, (8, 8, 8), 0.5, lambda part: [F.avg_pool3d(part, 4)])
    assert found.shape == (1, 1, 4, 2, 2)
    torch.testing.assert_close(found, F.avg_pool3d(x, 4))


def test_windows_that_begin_between_a_coarse_maps_voxels():
    """Of what grows evenly, the maps are those of the whole, up to its border."""
    z, y, x = (torch.arange(n, dtype=torch.float32) for n in (22, 9, 16))
    volume = (z[:, None, None] + 2 * y[:, None] - x)[None, None]

    def network(part):  # an axis of n to n / 4, rounded up
        more = [-n % 4 for n in part.shape[2:]]
        part = F.pad(part, (0, more[2], 0, more[1], 0, more[0]), mode="replicate")
        return [F.avg_pool3d(part, 4)]

    (found,) = slide(volume, (16, 8, 16), 0.5, network)
    (whole,) = network(volume)
    assert found.shape == whole.shape == (1, 1, 6, 3, 4)
    torch.testing.assert_close(found[:, :, :5, :2], whole[:, :, :5, :2], atol=0.05, rtol=0)
    assert (found - whole).abs().max() < 6  # within a map's voxel of it, along z and y


def test_maps_between_windows_are_whole_under_half_precision():
    """The least shares are 0 there: what one window alone sees was NaN."""
    x = torch.rand(1, 1, 23, 22, 21)

    def network(part):
        more = [-n % 4 for n in part.shape[2:]]
        return [F.avg_pool3d(F.pad(part, (0, more[2], 0, more[1], 0, more[0])), 4)]

    (expected,) = slide(x, (16, 16, 16), 0.5, network)
    with torch.autocast("cpu", torch.float16):
        (found,) = slide(x, (16, 16, 16), 0.5, network)
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)
