from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import tiny_ct, tiny_pet

from hmvnet.case import Grid
from hmvnet.config import PreprocessingSettings
from hmvnet.imaging.coarse import Coarse, outline
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


# --- on lattices that are made for a rule --------------------------------------------------------

TISSUE_HU, BONE, AIR = 40.0, 900.0, -1000.0


def lattice(nz: int = 80, ny: int = 110, nx: int = 110) -> tuple[np.ndarray, ...]:
    """Air without uptake, and the indices of its voxels, ``[nz, ny, nx]`` of 4 mm."""
    z, y, x = np.indices((nz, ny, nx)).astype(float)
    return np.full(z.shape, AIR), np.full(z.shape, 0.0), z, y, x


def coarse_of(ct: np.ndarray, pet: np.ndarray) -> Coarse:
    grid = Grid(ct.shape[::-1], (4.0, 4.0, 4.0))
    return Coarse(grid, ct, pet, outline(ct > -300), np.ones(ct.shape, bool))


def head_scan(
    *, brain_ml: float = 1200.0, bone: float = BONE, suv: float = 8.0, upside_down: bool = False
) -> Coarse:
    """A skull with a brain over a torso; y runs to the back."""
    ct, pet, z, y, x = lattice()
    ct[(z < 45) & (abs(y - 55) < 28) & (abs(x - 55) < 40)] = TISSUE_HU
    ct[(z < 55) & (np.hypot(y - 55, x - 55) < 14)] = TISSUE_HU  # the neck
    away = np.sqrt((z - 60) ** 2 + (y - 50) ** 2 + (x - 55) ** 2)
    radius = (brain_ml * 1000 / 64 * 3 / (4 * np.pi)) ** (1 / 3)
    ct[away < radius + 4] = bone
    ct[away < radius + 1] = TISSUE_HU
    pet[away < radius] = suv
    if upside_down:
        ct, pet = ct[::-1], pet[::-1]
    return coarse_of(ct, pet)


def test_a_brain_is_avid_of_its_size_and_in_a_skull():
    found = find_region(head_scan(), SETTINGS)
    assert found.landmark == "brain" and not found.note
    # Its top lies 15 mm above the brain's, of which one percent is left out at either end.
    top = found.grid.extent()[1][2]
    radius = (1200 * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    assert top == pytest.approx(60 * 4 + radius + 15, abs=8)
    for other in (
        {"brain_ml": 150.0},  # smaller than any
        {"brain_ml": 2700.0},  # larger
        {"bone": 200.0},  # of no bone
    ):
        assert find_region(head_scan(**other), SETTINGS).landmark != "brain", other


def test_a_head_whose_brain_is_cold_is_found_by_its_skull():
    """At a high blood sugar a brain takes up little, and the PET may end below it."""
    plain = find_region(head_scan(), SETTINGS)
    for suv in (2.5, 0.0):
        found = find_region(head_scan(suv=suv), SETTINGS)
        assert found.landmark == "skull" and found.note.startswith("head found by its skull")
        assert np.abs(np.subtract(found.grid.origin, plain.grid.origin)).max() <= 4.0
        assert found.code == ""
    turned = find_region(head_scan(suv=0.0, upside_down=True), SETTINGS)
    assert turned.code == "head-below" and turned.grid.direction[-1] == -1.0
    assert "by its skull" in turned.note and "reverse order" in turned.note
    scan = head_scan(suv=0.0)
    for hu in (-800.0, 300.0):  # what bone encloses and is no brain: a lung, metal's shadow
        ct = scan.ct.copy()
        z, y, x = np.indices(ct.shape)
        ct[np.sqrt((z - 60) ** 2 + (y - 50) ** 2 + (x - 55) ** 2) < 15] = hu
        other = Coarse(scan.grid, ct, scan.pet, scan.body, scan.shown)
        assert find_region(other, SETTINGS).landmark != "skull"
    for other in ({"brain_ml": 80.0}, {"brain_ml": 2900.0}, {"bone": 200.0}):
        assert find_region(head_scan(suv=0.0, **other), SETTINGS).landmark != "skull", other


def test_the_region_follows_the_neck_half_of_the_way_and_no_farther_than_30_mm():
    """The brain's centre lies at y = 50, 10 mm before it the head's; the torso's at y = 55."""
    plain = find_region(head_scan(), SETTINGS)
    middle = np.mean(plain.grid.extent(), axis=0)
    assert middle[0] == pytest.approx(55 * 4, abs=3)
    assert 50 * 4 - 10 < middle[1] < 55 * 4
    scan = head_scan()
    ct = scan.ct.copy()
    ct[:45] = AIR
    z, y, x = np.indices(ct.shape)
    ct[(z < 45) & (abs(y - 74) < 8) & (abs(x - 55) < 14)] = TISSUE_HU  # far behind the head
    bent = find_region(coarse_of(ct, scan.pet), SETTINGS)
    assert np.mean(bent.grid.extent(), axis=0)[1] == pytest.approx(50 * 4 - 10 + 30, abs=3)


def test_a_head_below_its_body_is_turned_over_and_less_sure():
    found = find_region(head_scan(upside_down=True), SETTINGS)
    plain = find_region(head_scan(), SETTINGS)
    assert found.code == "head-below" and found.grid.direction[-1] == -1.0
    assert found.confidence == pytest.approx(0.6 * plain.confidence, abs=0.02)


def neck_scan(*, half_width: int = 14, airway: float = 2.0, share: float = 1.0, wander: int = 0):
    """A neck, and an airway up so much of it, of a radius in voxels."""
    ct, pet, z, y, x = lattice(nz=60)
    ct[(abs(y - 55) < 14) & (abs(x - 55) < half_width)] = TISSUE_HU
    middle = 55 + (wander * np.where(z % 2, 1, -1) if wander else 0)
    ct[(np.hypot(y - 50, x - middle) < airway) & (z >= 60 - 36 * share)] = AIR
    return coarse_of(ct, pet)


def test_a_neck_is_an_airway_in_a_narrow_body_at_the_upper_end():
    found = find_region(neck_scan(), SETTINGS)
    assert found.landmark == "neck" and found.confidence == pytest.approx(0.7, abs=0.02)
    assert found.note == "scan starts below the brain"
    assert found.grid.extent()[1][2] == pytest.approx(60 * 4, abs=4.1)
    # Halfway between the airway (y = 50) and the body's middle.
    assert np.mean(found.grid.extent(), axis=0)[1] == pytest.approx(52.5 * 4, abs=4)
    less = find_region(neck_scan(share=0.7), SETTINGS)
    assert less.landmark == "neck" and less.confidence == pytest.approx(0.3 + 0.4 * 0.7, abs=0.03)
    for other in (
        {"share": 0.4},  # of the upper 14 cm
        {"half_width": 38},  # a chest, 30 cm wide
        {"airway": 0.9},  # 0.2 cm2 at most
        {"airway": 7.0},  # more than 15 cm2
        {"wander": 8},  # bowel gas, here and there
    ):
        assert find_region(neck_scan(**other), SETTINGS).landmark == "centre", other


def test_the_centre_is_the_bodys_and_specks_do_not_move_it():
    ct, pet, z, y, x = lattice(nz=60)
    ct[(abs(z - 30) < 15) & (abs(y - 60) < 12) & (abs(x - 40) < 30)] = TISSUE_HU
    scan = coarse_of(ct, pet)
    found = find_region(scan, SETTINGS)
    assert (found.landmark, found.code) == ("centre", "no-head")
    np.testing.assert_allclose(np.mean(found.grid.extent(), axis=0), [160, 240, 120], atol=4.1)
    body = scan.body.copy()
    body[59, 109, 109] = True
    moved = centre_region(replace(scan, body=body), SETTINGS)
    assert moved.grid == centre_region(scan, SETTINGS).grid
    empty = centre_region(coarse_of(np.full(ct.shape, AIR), pet), SETTINGS)
    np.testing.assert_allclose(np.mean(empty.grid.extent(), axis=0), [220, 220, 120], atol=4.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whole_body(seed):
    phantom = make_phantom(seed, PhantomSettings(whole_body=True))
    region = find_region(_coarse(phantom.ct, phantom.pet), SETTINGS)
    assert region.landmark == "brain"
    assert coverage(region.grid, phantom.mask) > 0.99
