import numpy as np
import pytest
from conftest import HEAD_GRID, head

from hmvnet.case import CaseError, Grid
from hmvnet.config import PreprocessingSettings
from hmvnet.imaging.agreement import check_agreement, check_covered
from hmvnet.imaging.coarse import Coarse
from hmvnet.imaging.roi import centre_region, find_region
from hmvnet.reading.checks import checked_case
from hmvnet.segmentation.segmenter import prepare


def codes(pet: np.ndarray, grid: Grid = HEAD_GRID) -> list[str]:
    case = checked_case("x", HEAD_GRID.image(head()[0]), grid.image(np.ascontiguousarray(pet)))
    return [finding.code for finding in check_agreement(case, Coarse.of(case))]


def moved(*shift: float) -> Grid:
    origin = tuple(np.add(HEAD_GRID.origin, shift).tolist())
    return Grid(HEAD_GRID.size, HEAD_GRID.spacing, origin)


def test_one_patient_in_one_place_is_fine():
    assert codes(head()[1]) == []


@pytest.mark.parametrize("axis", [0, 1])
def test_a_pet_the_other_way_up_is_refused(axis):
    pet = head()[1]
    if axis == 1:  # the head is as deep in front as behind: lean it
        pet = np.roll(pet, 14, axis=1)
    with pytest.raises(CaseError, match="turned over along its") as refused:
        codes(np.flip(pet, axis)) if axis == 0 else _leaning(pet)
    assert refused.value.code == "pet-turned"


def _leaning(pet: np.ndarray) -> list[str]:
    """A patient who lies towards the table, the PET's rows stored the other way round."""
    ct = np.roll(head()[0], 14, axis=1)
    case = checked_case("x", HEAD_GRID.image(ct), HEAD_GRID.image(np.flip(pet, 1).copy()))
    return [finding.code for finding in check_agreement(case, Coarse.of(case))]


@pytest.mark.parametrize("shift", [(100, 0, 0), (0, 120, 0)])
def test_outlines_that_do_not_meet_are_refused(shift):
    with pytest.raises(CaseError, match="one patient in one place") as refused:
        codes(head()[1], moved(*shift))
    assert refused.value.code == "outlines-apart"


def test_outlines_that_hardly_meet_are_to_be_reviewed():
    assert codes(head()[1], moved(50, 0, 0)) == ["outlines-apart", "pet-aside"]


@pytest.mark.parametrize("shift", [(16, 0, 0), (0, -16, 0), (0, 0, 20), (-24, 0, 0)])
def test_a_pet_aside_is_to_be_reviewed(shift):
    """20 mm cost half of the Dice, and the verdict was ok."""
    assert codes(head()[1], moved(*shift)) == ["pet-aside"]


@pytest.mark.parametrize(("first", "expected"), [(0, []), (3, []), (20, ["pet-short"])])
def test_a_pet_that_ends_inside_the_region_is_to_be_reviewed(first, expected):
    """Nothing beyond it was found, and the verdict was ok."""
    ct, pet = (HEAD_GRID.image(array) for array in head())
    case = checked_case("x", ct, pet[:, :, first:])
    coarse, settings = Coarse.of(case), PreprocessingSettings()
    for region in (find_region(coarse, settings), centre_region(coarse, settings)):
        found = check_covered(case, coarse, region.grid)
        assert [finding.code for finding in found] == expected
    padded = head()[1].copy()
    padded[:first] = 0  # on the CT's grid, as resampling leaves it
    other = checked_case("x", ct, HEAD_GRID.image(padded))
    assert [one.code for one in check_covered(other, Coarse.of(other), region.grid)] == expected
    for x in (1e4, -1e4):
        apart = Grid(HEAD_GRID.size, HEAD_GRID.spacing, (x, 0.0, 0.0))
        assert check_covered(case, coarse, apart) == ()
    volume = prepare(case, settings, "head-neck")
    assert [f.code for f in volume.findings if f.code == "pet-short"] == expected


@pytest.mark.parametrize(("first", "expected"), [(0, []), (3, []), (20, ["ct-short"])])
def test_a_ct_that_ends_inside_the_region_is_to_be_reviewed(first, expected):
    """A tumour that the PET alone shows is in no mask, and the verdict was ok."""
    ct, pet = (HEAD_GRID.image(array) for array in head())
    case = checked_case("x", ct[:, :, first:], pet)
    volume = prepare(case, PreprocessingSettings(), "head-neck")
    assert [finding.code for finding in volume.findings] == expected


def test_breathing_and_voxel_sizes_are_no_displacement():
    assert codes(head()[1], moved(2, 2, 2)) == []


@pytest.mark.parametrize("factor", [0.001, 0.01, 100, 1000, 10_000])
def test_uptake_far_from_suv_is_refused(factor):
    with pytest.raises(CaseError, match="SUV") as refused:
        codes(head()[1] * np.float32(factor))
    assert refused.value.code == "pet-not-suv"


@pytest.mark.parametrize(
    ("factor", "expected"), [(0.1, ["pet-unit"]), (5, ["pet-unit"]), (1.5, [])]
)
def test_unusual_uptake_is_to_be_reviewed(factor, expected):
    assert codes(head()[1] * np.float32(factor)) == expected


def test_a_voxel_that_no_organ_reaches_is_to_be_reviewed():
    pet = head()[1]
    pet[30, 28, 28] = 2000
    assert codes(pet) == ["pet-unit"]


def test_images_that_share_a_corner_only_are_to_be_reviewed():
    ct, pet = head()
    corner = moved(184, 170, 210)
    case = checked_case("x", HEAD_GRID.image(ct), corner.image(pet))
    assert [f.code for f in check_agreement(case, Coarse.of(case))] == ["little-body"]
