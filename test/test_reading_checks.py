import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CT_GRID, HEAD_GRID, head, tiny_ct, tiny_pet

from hmvnet.case import Case, CaseError, Grid, Verdict
from hmvnet.reading.checks import checked_case

OUTSIDE = np.hypot(*(np.indices(HEAD_GRID.shape)[1:] - 27.5)) > 27.5  # of a round field of view


def checked(ct: np.ndarray, pet: np.ndarray | None = None) -> Case:
    pet = head()[1] if pet is None else pet
    return checked_case("x", HEAD_GRID.image(ct), HEAD_GRID.image(pet))


def test_a_few_nan_voxels_are_repaired_and_many_refused():
    pet = sitk.GetArrayFromImage(tiny_pet())
    grid = Grid.of(tiny_pet())
    pet[0, 0, :5] = np.nan
    case = checked_case("x", tiny_ct(), grid.image(pet))
    assert np.isfinite(sitk.GetArrayFromImage(case.pet)).all()
    assert any("5 NaN" in w for w in case.notes)
    pet[:10] = np.inf
    with pytest.raises(CaseError, match="NaN or infinite"):
        checked_case("x", tiny_ct(), grid.image(pet))


def test_truth_on_another_grid_is_refused():
    other = Grid(CT_GRID.size, CT_GRID.spacing, (0.0, 0.0, 0.0))
    truth = other.image(np.zeros(other.shape, np.uint8))
    with pytest.raises(CaseError, match="label grid"):
        checked_case("x", tiny_ct(), tiny_pet(), truth=truth)


# --- a CT that is not in HU (case 06 and its siblings) -------------------------------------------


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (lambda ct: ct + 1024, "intercept -1024"),
        (lambda ct: (ct + 1024).astype(np.uint16), "intercept -1024"),
        (lambda ct: ct + 1000, "intercept -1000"),
        (lambda ct: ct.astype(np.int32) + 8192, "intercept -8192"),
        (lambda ct: (ct.astype(np.int32) + 32768).astype(np.uint16), "intercept -32768"),
        (lambda ct: ct.astype(np.uint16), "above 32767"),
        (lambda ct: ct.astype(np.uint16).astype(np.float32), "above 32767"),
        (lambda ct: (ct + 1024).astype(np.float64), "intercept -1024"),
    ],
)
def test_what_was_done_to_a_ct_is_undone_aloud(stored, said):
    ct, _ = head()
    case = checked(stored(ct))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(case.ct), ct)
    assert Verdict.of(case.findings) == Verdict("review", ("ct-repaired",))
    assert any(said in note for note in case.notes)


@pytest.mark.parametrize("fill", [-1200, -2000, -3024, -32768])
@pytest.mark.parametrize("offset", [0, 1024])
def test_padding_outside_the_field_of_view_becomes_air(fill, offset):
    ct, _ = head()
    case = checked(np.where(OUTSIDE, fill, ct.astype(np.int32) + offset))
    expected = np.where(OUTSIDE, -1000, ct)
    if offset == 0 or fill < -1200:  # else the padding is no further from air than air itself
        np.testing.assert_array_equal(sitk.GetArrayFromImage(case.ct), expected)
        assert any("padding" in note for note in case.notes)
    assert bool(case.findings) == bool(offset)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda ct: (ct + 1000) / 2000.0,  # scaled to 0..1
        lambda ct: np.clip((ct + 200) / 500.0 * 255, 0, 255).astype(np.uint8),  # a window
        lambda ct: 0.02 * (ct / 1000.0 + 1),  # attenuation, 1/mm
        lambda ct: -ct,
        lambda ct: ct + 150,  # of another calibration
        lambda ct: 10 * ct.astype(np.int32),
        lambda ct: np.where(ct > -500, ct, 0),  # outside set to water
        lambda ct: head()[1],  # the PET
        lambda ct: 5000 * head()[1],  # the PET in Bq/mL
    ],
)
def test_a_ct_that_cannot_be_hu_is_refused(wrong):
    with pytest.raises(CaseError, match="expected HU") as refused:
        checked(np.asarray(wrong(head()[0])))
    assert refused.value.code == "ct-not-hu"


def test_a_ct_in_hu_is_passed_through_untouched():
    rng = np.random.default_rng(0)
    ct = head()[0] + rng.normal(0, 25, HEAD_GRID.shape).astype(np.int16)
    image = HEAD_GRID.image(ct)
    case = checked_case("x", image, HEAD_GRID.image(head()[1]))
    assert case.ct is image and not case.notes and not case.findings


def test_a_body_cut_out_of_its_air_is_to_be_reviewed():
    """Masked or cropped within the body: fat, soft tissue and bone are where HU has them."""
    ct, _ = head()
    fat = (ct == 40) & (np.indices(ct.shape)[2] % 4 == 0)
    case = checked(np.where(fat, -90, np.where(ct < -500, 0, ct)))
    assert Verdict.of(case.findings).codes == ("ct-without-air",)


def test_ct_and_pet_exchanged_are_refused():
    ct, pet = head()
    with pytest.raises(CaseError, match="exchanged"):
        checked(pet, ct)


def test_a_pet_that_is_mostly_negative_is_refused_and_a_little_is_said():
    ct, pet = head()
    with pytest.raises(CaseError, match="negative") as refused:
        checked(ct, ct)
    assert refused.value.code == "pet-not-suv"
    pet[0, 0, :5] = -1
    case = checked(ct, pet)
    assert any("negative" in note for note in case.notes)
    found = sitk.GetArrayFromImage(case.pet)
    np.testing.assert_array_equal(found, np.maximum(pet, 0))
