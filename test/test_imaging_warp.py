import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from hmvnet.imaging import warp

PATCH = (9, 14, 11)


@pytest.fixture
def volume():
    return torch.rand(2, 13, 12, 15, generator=torch.Generator().manual_seed(0))


def points(field=None, scale=1.3) -> warp.Points:
    """Some lie outside the volume."""
    matrix = scale * Rotation.from_euler("xyz", [14, -20, 8], degrees=True).as_matrix()
    return warp.Points(PATCH, matrix, np.array([0.7, -1.2, 2.3]), field)


def by_torch(volume, where: warp.Points, mode: str) -> torch.Tensor:
    """The same by grid_sample, which wants x, y, z in shares of the volume."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in PATCH]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).double()
    offsets = offsets @ torch.from_numpy(where.matrix.T) + torch.from_numpy(where.shift)
    if where.field is not None:
        offsets = offsets + where.field.movedim(0, -1)
    half = torch.tensor([n / 2 for n in volume.shape[1:]], dtype=torch.float64)
    grid = (offsets / half).flip(-1)[None]
    return F.grid_sample(volume.double()[None], grid, mode, "border", align_corners=False)[0]


@pytest.mark.parametrize("bent", [False, True])
def test_values_are_those_of_grid_sample(volume, bent):
    where = points(torch.randn(3, *PATCH) if bent else None)
    found = warp.linear(volume, where)
    expected = by_torch(volume, where, "bilinear")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    labels = (volume[0] > 0.6).to(torch.uint8)
    near = by_torch(labels[None].float(), where, "nearest")[0].to(torch.uint8)
    assert torch.equal(warp.nearest(labels, where), near) and near.any()


def test_any_layout_is_read_as_it_is(volume):
    found = warp.linear(volume.half(), points())
    assert torch.equal(found, warp.linear(volume.half().float(), points()))
    turned = volume.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(warp.linear(turned, points()), warp.linear(volume, points()))
    assert torch.equal(warp.nearest(turned[0], points()), warp.nearest(volume[0], points()))
    field = torch.randn(*PATCH, 3).movedim(-1, 0)
    assert torch.equal(
        warp.linear(volume, points(field)), warp.linear(volume, points(field.contiguous()))
    )


def test_the_last_voxel_is_inside(volume):
    """A point on the last corner has no cell beyond it."""
    whole = warp.Points(tuple(volume.shape[1:]), np.eye(3), np.zeros(3))
    assert torch.equal(warp.linear(volume, whole), volume)
    assert torch.equal(warp.nearest(volume[0], whole), volume[0])


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 4), (9, 30, 2), (31, 12, 20), (2, 6, 40)])
def test_stretched_is_linear_interpolation(shape, corners):
    values = torch.randn(3, *shape)
    for size in (PATCH, shape, (2, 3, 50)):
        expected = F.interpolate(values[None], size, mode="trilinear", align_corners=corners)[0]
        found = warp.stretched(values, size, corners)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bent", [False, True])
def test_labels_are_found_wherever_they_lie(bent):
    """A label in one corner, in the middle, at two ends, and nowhere; shrunk to where it is."""
    field = torch.randn(3, *PATCH) if bent else None
    where = points(field)
    boxes = [[], [(0, 0, 0)], [(6, 5, 7)], [(0, 9, 3), (10, 2, 10)], [(12, 11, 14)]]
    seen = 0
    for corners in boxes:
        labels = torch.zeros(13, 12, 15, dtype=torch.uint8)
        for z, y, x in corners:
            labels[z : z + 3, y : y + 2, x : x + 4] = 2
        near = by_torch(labels[None].float(), where, "nearest")[0].to(torch.uint8)
        found = warp.nearest(labels, where)
        assert torch.equal(found, near)
        seen += int(found.any())
    assert seen >= 2


def test_a_plane_alone_is_refused(volume):
    """The loops look for no end of the memory."""
    with pytest.raises(ValueError, match="two voxels"):
        warp.linear(volume[:, :1], points())


def test_nothing_is_found_where_nothing_is(volume):
    assert not warp.nearest(torch.zeros(13, 12, 15, dtype=torch.uint8), points()).any()
