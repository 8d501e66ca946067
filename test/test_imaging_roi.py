import numpy as np
import pytest
import SimpleITK as sitk
from conftest import tiny_ct, tiny_pet

from hmvnet.case import Grid
from hmvnet.config import PreprocessingSettings
from hmvnet.imaging.coarse import Coarse
from hmvnet.imaging.roi import centre_region, find_region
from hmvnet.phantom import PhantomSettings, make_phantom
from hmvnet.reading.checks import checked_case

SETTINGS = PreprocessingSettings()


@pytest.fixture(scope="module")
def phantom():
    return next(
        p for seed in range(20) if _brain(p := make_phantom(seed, PhantomSettings(center="MDA")))
    )


def _brain(phantom) -> bool:
    return find_region(_coarse(phantom.ct, phantom.pet), SETTINGS).landmark == "brain"


def _coarse(ct, pet) -> Coarse:
    return Coarse.of(checked_case("x", ct, pet))


def coverage(grid: Grid, mask: sitk.Image) -> float:
    """Share of the mask's voxels inside a grid."""
    index = np.argwhere(sitk.GetArrayViewFromImage(mask))[:, ::-1]
    inside = grid.indices(Grid.of(mask).points(index))
    return float(((inside > -0.5) & (inside < np.array(grid.size) - 0.5)).all(axis=1).mean())


def moved(image: sitk.Image, matrix: np.ndarray, shift) -> sitk.Image:
    """The same voxels, the patient rotated or mirrored in physical space."""
    out = sitk.Image(image)
    grid = Grid.of(image)
    out.SetDirection((matrix @ grid.axes).ravel().tolist())
    out.SetOrigin((matrix @ np.array(grid.origin) + shift).tolist())
    return out


def test_region_has_the_stated_size_and_covers_the_lesions(phantom):
    region = find_region(_coarse(phantom.ct, phantom.pet), SETTINGS)
    assert region.grid.size == (200, 200, 310) and region.grid.spacing == (1.0, 1.0, 1.0)
    assert region.landmark == "brain" and region.confidence > 0.7 and not region.note
    assert coverage(region.grid, phantom.mask) > 0.99


@pytest.mark.parametrize("angles", [(0.15, 0, 0), (0, 0.15, 0), (0.1, -0.1, 0.3)])
def test_oblique_acquisition(phantom, angles):
    """Slices stored obliquely: other direction cosines, the same patient."""
    case_ct, case_pet, mask = phantom.ct, phantom.pet, phantom.mask
    rotation = np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix(), (3, 3))
    shift = np.array([40.0, -30.0, 200.0])
    ct, pet, mask = (moved(i, rotation, shift) for i in (case_ct, case_pet, mask))
    region = find_region(_coarse(ct, pet), SETTINGS)
    assert region.landmark == "brain"
    assert coverage(region.grid, mask) > 0.99


def test_axes_stored_backwards_change_nothing(phantom):
    """The same patient with z stored from head to feet: direction -1, no note."""
    flipped = [sitk.Flip(i, (True, False, True)) for i in (phantom.ct, phantom.pet, phantom.mask)]
    region = find_region(_coarse(*flipped[:2]), SETTINGS)
    plain = find_region(_coarse(phantom.ct, phantom.pet), SETTINGS)
    assert not region.note
    assert np.abs(np.subtract(region.grid.origin, plain.grid.origin)).max() <= 4.0


def test_head_at_the_wrong_end_is_said_and_turned_over(phantom):
    """Slices in reverse order without a word in the header: the head lies at the inferior end."""
    mirror = np.diag([1.0, 1.0, -1.0])
    ct, pet, mask = (moved(i, mirror, 0) for i in (phantom.ct, phantom.pet, phantom.mask))
    region = find_region(_coarse(ct, pet), SETTINGS)
    assert "inferior" in region.note and region.confidence < 0.7
    assert region.grid.direction[-1] == -1.0
    assert coverage(region.grid, mask) > 0.99


def test_scan_that_starts_below_the_brain(phantom):
    low, high = Grid.of(phantom.ct).extent()
    keep = int((high[2] - low[2] - 150) / phantom.ct.GetSpacing()[2])
    ct, mask = phantom.ct[:, :, :keep], phantom.mask[:, :, :keep]
    region = find_region(_coarse(ct, phantom.pet), SETTINGS)
    assert region.landmark == "neck" and 0.3 < region.confidence < 0.8
    assert coverage(region.grid, mask) > 0.95


def test_pet_that_ends_below_the_ct(phantom):
    slices = phantom.pet.GetSize()[2]
    region = find_region(_coarse(phantom.ct, phantom.pet[:, :, : int(0.8 * slices)]), SETTINGS)
    assert coverage(region.grid, phantom.mask) > 0.95


def test_neither_head_nor_neck_is_a_guess_that_says_so():
    region = find_region(_coarse(tiny_ct(), tiny_pet()), SETTINGS)
    assert region.landmark == "centre" and region.confidence < 0.2 and region.note
    assert region.grid == centre_region(_coarse(tiny_ct(), tiny_pet()), SETTINGS).grid


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whole_body(seed):
    phantom = make_phantom(seed, PhantomSettings(whole_body=True))
    region = find_region(_coarse(phantom.ct, phantom.pet), SETTINGS)
    assert region.landmark == "brain"
    assert coverage(region.grid, phantom.mask) > 0.99
