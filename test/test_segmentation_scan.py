"""A case as each network sees it, and one grid for what they say."""

import numpy as np
import pytest
import torch
from conftest import COARSE, tiny_ct, tiny_pet
from torch.nn import functional as F

from hmvnet.case import Grid
from hmvnet.imaging.network_input import ChannelScaling, NetworkInput
from hmvnet.imaging.roi import Region
from hmvnet.reading.checks import checked_case
from hmvnet.segmentation.forward import in_windows
from hmvnet.segmentation.scan import Scan, Volume
from hmvnet.segmentation.segmenter import prepare

NONE = ChannelScaling(scheme="none")
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def own(field, **changes) -> NetworkInput:
    return NetworkInput(field=field, channels=(NONE, NONE), spacing_mm=(8, 8, 8), **changes)


@pytest.fixture
def case():
    return checked_case("A-1", tiny_ct(), tiny_pet())


def test_what_networks_see(case):
    volume = prepare(case, COARSE, "centre")
    scan = Scan(case, volume)
    assert scan.seen_by(None) is volume.scaled
    # 192 x 192 x 200 mm of CT, and the working region of 200 x 200 x 310, at 8 mm.
    assert scan.seen_by(own("ct")).shape == (2, 25, 24, 24)
    assert scan.seen_by(own("region")).shape == (2, 39, 25, 25)
    assert scan.seen_by(own("ct")) is scan.seen_by(own("ct"))  # made once for all folds


def test_probabilities_are_wanted_on_the_working_grid_or_on_the_cts(case):
    volume = prepare(case, COARSE, "centre")
    assert Scan(case, volume).grid == volume.grid
    on_ct = Scan(case, volume, on_ct=True)
    assert on_ct.grid.same_as(Grid.of(case.ct).crop(on_ct.box))
    mean = torch.rand(3, *volume.grid.shape)
    mean[:] = torch.tensor([0.2, 0.3, 0.5])[:, None, None, None]
    found = on_ct.probabilities(None, mean)
    assert found.shape == (3, *on_ct.grid.shape)
    middle = tuple(n // 2 for n in on_ct.grid.shape)
    np.testing.assert_allclose(found[(slice(None), *middle)], [0.2, 0.3, 0.5], atol=1e-6)


@pytest.mark.parametrize("direction", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("field", ["ct", "region"])
def test_encoder_maps_lie_over_the_working_region(direction, transpose, field):
    """A map of positions is one of positions still, whatever lattice it was made on."""
    ct = tiny_ct(Grid((48, 48, 40), (4.0, 4.0, 5.0), (-96.0, -96.0, -100.0)))
    if direction:
        ct = tiny_ct(Grid((60, 60, 40), (4.0, 4.0, 5.0), (-23.6, -165.2, -100.0), direction))
    case = checked_case("A-1", ct, tiny_pet())
    volume = prepare(case, COARSE, "centre")
    scan, settings = Scan(case, volume, True), own(field, transpose=transpose)
    lattice = scan._own(settings).grid
    z, y, x = np.indices(lattice.shape)
    points = lattice.points(np.stack([x, y, z], -1).reshape(-1, 3)).reshape(*lattice.shape, 3)
    maps = torch.from_numpy(points.astype(np.float32)).movedim(-1, 0)[None]
    (found,) = scan.maps(settings, [maps])
    # At 8 mm over a grid of 4 mm: a stride of two.
    assert found.shape == (3, *(-(-n // 2) for n in volume.grid.shape))
    c, b, a = (n // 2 for n in found.shape[1:])
    expected = volume.grid.points(np.array([[2 * a + 0.5, 2 * b + 0.5, 2 * c + 0.5]]))[0]
    np.testing.assert_allclose(found[:, c, b, a], expected, atol=0.05)


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("length", [64, 100, 310, 50], ids="{} voxels".format)
def test_a_networks_maps_lie_where_its_windows_saw_them(length, stride):
    """Where the lattice is no multiple of the stride as well, or padded around to a window."""
    grid = Grid((64, 64, length), (1.0, 1.0, 1.0))
    raw = np.ones((2, *grid.shape), np.float32)
    raw[0] = np.arange(length)[:, None, None]  # the CT says how high a voxel lies
    settings = NetworkInput(field="region", channels=(NONE, NONE), spacing_mm=(1, 1, 1))
    scan = Scan(None, Volume(Region(grid, "centre", 1.0), raw, raw))
    volume = torch.from_numpy(scan.seen_by(settings))[None]
    _, maps = in_windows(
        volume, lambda w: (w[:, :1], F.avg_pool3d(w[:, :1], stride)), (64, 64, 64), settings
    )
    found = scan.maps(settings, maps)[0][0, :, 0, 0]
    assert len(found) == -(-length // stride)
    inner = [i for i in range(len(found)) if stride <= i * stride <= length - 2 * stride]
    expected = [(i + 0.5) * stride - 0.5 for i in inner]
    np.testing.assert_allclose(found[inner], expected, atol=0.05)


def test_maps_of_the_working_volume_stay_as_they_are(case):
    scan = Scan(case, prepare(case, COARSE, "centre"))
    (found,) = scan.maps(None, [torch.ones(1, 4, 3, 3, 3, dtype=torch.float16)])
    assert found.shape == (4, 3, 3, 3) and found.dtype == np.float32
