import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CT_GRID, ball, tiny_ct, tiny_pet

from hmvnet.case import Case, Grid
from hmvnet.imaging.resample import labels_onto, resample, resample_pet_ct
from hmvnet.reading.checks import checked_case

ONE_MM = Grid((40, 40, 40), (1.0, 1.0, 1.0))


def test_resampling_does_not_overshoot():
    box = np.zeros(CT_GRID.shape, np.float32)
    box[10:20, 10:20, 10:20] = 20
    fine = Grid((100, 100, 100), (1.3, 1.3, 1.3), (-60.0, -60.0, -60.0))
    values = resample(CT_GRID.image(box), fine, fill=0)
    assert values.min() >= 0 and values.max() <= 20


def test_outside_the_scan_is_air_and_no_uptake():
    case = checked_case("x", tiny_ct(), tiny_pet())
    far = Grid((4, 4, 4), (1.0, 1.0, 1.0), (500.0, 0.0, 0.0))
    volume = resample_pet_ct(case, far)
    assert (volume[0] == -1000).all() and (volume[1] == 0).all()


SHARED_AXES = {
    "as the region": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "flipped": (-1, 0, 0, 0, 1, 0, 0, 0, -1),
    "permuted": (0, 0, 1, -1, 0, 0, 0, 1, 0),
}


@pytest.mark.parametrize("axes", SHARED_AXES.values(), ids=SHARED_AXES)
def test_resampling_along_shared_axes_equals_simpleitk(axes):
    """Also where the scan ends inside the region, and half a voxel beyond its last centres."""
    noise = np.random.default_rng(0).normal(size=(30, 25, 20)).astype(np.float32)
    matrix = np.reshape(axes, (3, 3)).astype(float)
    origin = -matrix @ (np.array([19, 24, 29]) * [2.1, 1.7, 3.3] / 2)
    ct = Grid((20, 25, 30), (2.1, 1.7, 3.3), tuple(origin), tuple(map(float, axes)))
    turned = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    region = Grid((60, 50, 70), (1.0, 1.0, 1.0), (-28.3, -22.1, 35.6), turned)
    case = Case("x", ct.image(noise), tiny_pet())
    expected = resample(case.ct, region, fill=-1000)
    np.testing.assert_allclose(resample_pet_ct(case, region)[0], expected, atol=1e-4)
    assert (expected == -1000).any() and (expected > -1000).any()


def test_an_oblique_scan_is_resampled_by_simpleitk():
    matrix = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.3).GetMatrix()
    ct = tiny_ct()
    ct.SetDirection(matrix)
    case = Case("x", ct, tiny_pet())
    region = Grid((30, 30, 30), (2.0, 2.0, 2.0), (-30.0, -30.0, -30.0))
    np.testing.assert_array_equal(
        resample_pet_ct(case, region)[0], resample(ct, region, fill=-1000)
    )


AFFINES = [
    sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()
    for angles in [(0, 0, 0), (0.1, 0, 0), (0, 0.2, 0), (0, 0, 0.3), (0.2, -0.3, 0.5), (0, 0, 3.14)]
] + [(-1, 0, 0, 0, 1, 0, 0, 0, 1), (1, 0, 0, 0, -1, 0, 0, 0, 1), (1, 0, 0, 0, 1, 0, 0, 0, -1),
     (0, 0, 1, 1, 0, 0, 0, 1, 0)]  # fmt: skip


@pytest.mark.parametrize("axes", AFFINES, ids=range(len(AFFINES)))
@pytest.mark.parametrize("spacing", [(0.9, 0.9, 2.0), (1.4, 1.4, 3.3)])
def test_mask_goes_back_to_any_grid_within_a_voxel(axes, spacing):
    """Ten affines: the mask on the CT grid is the lesion, wherever the CT's axes point."""
    centre, radius = np.array([12.0, -8.0, 30.0]), 14.0
    working = Grid((120, 120, 120), (1.0, 1.0, 1.0), (-50.0, -70.0, -30.0))
    labels = ball(working, centre, radius).astype(np.uint8)
    matrix = np.reshape(axes, (3, 3)).astype(float)
    size = (110, 100, 60)
    origin = centre - matrix @ ((np.array(size) - 1) / 2 * spacing)
    target = Grid(size, spacing, tuple(origin.tolist()), tuple(matrix.ravel().tolist()))
    back = labels_onto(labels, working, target) > 0
    index = np.argwhere(back)[:, ::-1]
    offset = target.points(index.mean(axis=0, keepdims=True))[0] - centre
    assert np.abs(offset).max() < 0.5
    volume = back.sum() * target.voxel_ml
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.04)
    inside, outside = ball(target, centre, radius - 1.8), ball(target, centre, radius + 1.8)
    assert back[inside].all() and not back[~outside].any()


def test_mask_that_lies_outside_the_target_is_empty():
    labels = np.ones(ONE_MM.shape, np.uint8)
    far = Grid((5, 5, 5), (1.0, 1.0, 1.0), (999.0, 0.0, 0.0))
    assert not labels_onto(labels, ONE_MM, far).any()
