"""Lesion features: IBSI's digital phantom, shapes with known values, and what is not there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from hmvnet.case import CaseError
from hmvnet.lesions.features import (
    GLCM,
    PEAK_RADIUS_MM,
    LesionFeatures,
    discretise,
    feature_names,
    glcm,
    glcm_features,
    histogram_features,
    intensity_peak,
    intensity_statistics,
    lesion_features,
    lesion_table,
    morphology,
    pool_encoder_features,
)

MM = (1.0, 1.0, 1.0)

# Consensus values of the IBSI 1 digital phantom: A. Zwanenburg et al., "Image biomarker
# standardisation initiative", arXiv 1612.07003, benchmark tables of chapter 3 ("dig. phantom"; the
# same numbers are MIRP's test table ibsi_1_dig_phantom.csv). Values without a tolerance are exact
# to the three digits published.
IBSI_MORPHOLOGY = {  # value, tolerance
    "mesh_volume_mm3": (556, 4),
    "voxel_volume_mm3": (592, 4),
    "surface_mm2": (388, 3),
    "sphericity": (0.843, 0.005),
    "diameter_mm": (13.1, 0.1),
    "major_axis_mm": (11.4, 0.1),
    "elongation": (0.816, 0.005),
    "flatness": (0.749, 0.005),
}
IBSI_MINOR_AXIS, IBSI_LEAST_AXIS = (9.31, 0.06), (8.54, 0.05)
IBSI_GLOBAL_PEAK = 3.1
IBSI_FIRST_ORDER = {
    "mean": 2.15,
    "variance": 3.05,
    "skewness": 1.08,
    "kurtosis": -0.355,
    "median": 1,
    "minimum": 1,
    "p10": 1,
    "p90": 4,
    "maximum": 6,
    "interquartile_range": 3,
    "range": 5,
    "mean_absolute_deviation": 1.55,
    "robust_mean_absolute_deviation": 1.11,
    "median_absolute_deviation": 1.15,
    "coefficient_of_variation": 0.812,
    "quartile_dispersion": 0.6,
    "energy": 567,
    "root_mean_square": 2.77,
}
IBSI_HISTOGRAM = {"entropy": 1.27, "uniformity": 0.512}
IBSI_GLCM = {  # 3D averaged, 3D merged
    "joint_maximum": (0.503, 0.509),
    "joint_average": (2.14, 2.15),
    "joint_variance": (3.1, 3.13),
    "joint_entropy": (2.4, 2.57),
    "difference_average": (1.43, 1.38),
    "difference_variance": (3.06, 3.21),
    "difference_entropy": (1.56, 1.64),
    "sum_variance": (7.07, 7.41),
    "sum_entropy": (1.92, 2.11),
    "angular_second_moment": (0.303, 0.291),
    "contrast": (5.32, 5.12),
    "inverse_difference": (0.677, 0.688),
    "inverse_difference_normalised": (0.851, 0.856),
    "inverse_difference_moment": (0.618, 0.631),
    "inverse_difference_moment_normalised": (0.898, 0.902),
    "inverse_variance": (0.0604, 0.0574),
    "correlation": (0.157, 0.183),
    "autocorrelation": (5.06, 5.19),
    "cluster_shade": (16.6, 17.4),
    "cluster_prominence": (145, 147),
    "information_correlation_1": (-0.157, -0.0288),
    "information_correlation_2": (0.52, 0.269),
}


def three_digits(value: float) -> float:
    return float(f"{value:.3g}")


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Intensities and mask of IBSI's digital phantom, ``[z, y, x]``, voxels of 2 mm."""
    folder = Path(__file__).parent / "data" / "ibsi"
    image, mask = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}.nii.gz")))
        for name in ("phantom", "mask")
    )
    return image, mask > 0


def test_ibsi_morphology(phantom: tuple) -> None:
    shape = morphology(phantom[1], (2, 2, 2))
    for name, (value, tolerance) in IBSI_MORPHOLOGY.items():
        assert getattr(shape, name) == pytest.approx(value, abs=tolerance), name
    minor, least = (shape.major_axis_mm * r for r in (shape.elongation, shape.flatness))
    assert minor == pytest.approx(IBSI_MINOR_AXIS[0], abs=IBSI_MINOR_AXIS[1])
    assert least == pytest.approx(IBSI_LEAST_AXIS[0], abs=IBSI_LEAST_AXIS[1])


def test_ibsi_intensity_statistics_histogram_and_peak(phantom: tuple) -> None:
    image, mask = phantom
    found = intensity_statistics(image[mask]) | histogram_features(image[mask])
    expected = IBSI_FIRST_ORDER | IBSI_HISTOGRAM
    assert {k: three_digits(v) for k, v in found.items()} == expected
    assert three_digits(intensity_peak(image, mask, (2, 2, 2))) == IBSI_GLOBAL_PEAK


def test_ibsi_glcm_averaged_and_merged(phantom: tuple) -> None:
    image, mask = phantom
    levels = np.where(mask, discretise(image, 1, (1, 9)), 0)
    assert levels.max() == 6
    counts = glcm(levels)
    merged = glcm_features(counts.sum(axis=0))
    each = [glcm_features(direction) for direction in counts]
    found = {
        k: (three_digits(np.mean([one[k] for one in each])), three_digits(merged[k])) for k in GLCM
    }
    assert found == IBSI_GLCM


def test_glcm_counts_every_pair_of_neighbours_twice() -> None:
    levels = np.random.default_rng(0).integers(0, 4, (4, 5, 6))
    expected = np.zeros((3, 3), dtype=int)
    voxels = [tuple(v) for v in np.argwhere(levels)]
    for a in voxels:
        for b in voxels:
            if max(abs(i - j) for i, j in zip(a, b, strict=True)) == 1:
                expected[levels[a] - 1, levels[b] - 1] += 1
    assert (glcm(levels).sum(axis=0) == expected).all()


def test_discretise_counts_bins_from_the_lower_limit_and_clips() -> None:
    values = np.array([-5.0, 0.0, 0.49, 0.5, 99.9, 1e6])
    assert discretise(values, 0.5, (0.0, 100.0)).tolist() == [1, 1, 1, 2, 200, 201]


def test_statistics_of_one_intensity_and_of_nothing() -> None:
    same = intensity_statistics(np.full(7, 3.0))
    assert same["mean"] == 3.0
    assert same["variance"] == same["skewness"] == same["kurtosis"] == 0.0
    assert all(math.isnan(v) for v in intensity_statistics(np.array([])).values())
    one_level = glcm_features(glcm(np.ones((2, 2, 2), dtype=int)).sum(axis=0))
    assert one_level["correlation"] == one_level["joint_maximum"] == 1.0
    assert one_level["joint_entropy"] == one_level["information_correlation_1"] == 0.0
    assert all(math.isnan(v) for v in glcm_features(np.zeros((2, 2))).values())


# --- Shapes with known values --------------------------------------------------------------------


def ball(
    shape: tuple[int, int, int],
    centre: tuple[float, float, float],
    radius: float,
    spacing: tuple[float, float, float] = MM,
) -> np.ndarray:
    """Voxels whose centres lie within ``radius`` mm of ``centre`` (z, y, x in mm)."""
    axes = (np.arange(n) * s for n, s in zip(shape, spacing, strict=True))
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius**2


SHAPE = (80, 60, 90)


def patient(
    *lesions: tuple[int, tuple[float, float, float], float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, CT and PET of balls, each (label, centre zyx, radius), in a body of 45 +- 40 mm (x)."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for label, centre, radius in lesions:
        mask[ball(SHAPE, centre, radius)] = label
    rng = np.random.default_rng(4)
    ct = rng.normal(40, 10, SHAPE).astype(np.float32)
    ct[:, :, :5] = ct[:, :, 86:] = -1000
    pet = rng.gamma(4, 0.25, SHAPE).astype(np.float32) + 5 * (mask > 0)
    return mask, ct, pet


def features(*args: np.ndarray) -> dict[str, float]:
    return lesion_features(*args, MM).to_dict()


def test_ball() -> None:
    radius = 15.3
    shape = morphology(ball((40, 40, 40), (19.5, 19.5, 19.5), radius), MM)
    assert shape.voxel_volume_mm3 == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    assert shape.mesh_volume_mm3 == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    assert shape.diameter_mm == pytest.approx(2 * radius, abs=1)
    # The mesh of a binary mask has steps: about 8 % more surface than the ball, at any radius.
    assert 0.90 < shape.sphericity < 0.95
    assert shape.elongation == pytest.approx(1, abs=0.01)
    assert shape.flatness == pytest.approx(1, abs=0.01)
    assert shape.major_axis_mm == pytest.approx(4 * radius / math.sqrt(5), rel=0.01)


def test_box_is_less_spherical_and_as_long_as_its_diagonal() -> None:
    shape = morphology(np.ones((40, 20, 10), dtype=bool), MM)
    assert shape.voxel_volume_mm3 == 8000
    assert shape.diameter_mm == pytest.approx(math.hypot(40, 20, 10), abs=1)
    assert shape.surface_mm2 == pytest.approx(2 * (800 + 400 + 200), rel=0.03)
    assert shape.sphericity == pytest.approx((36 * math.pi * 8000**2) ** (1 / 3) / 2800, rel=0.03)
    assert (shape.elongation, shape.flatness) == pytest.approx((0.5, 0.25), rel=0.01)


def test_anisotropic_voxels_in_the_table_and_refused_for_texture() -> None:
    spacing, shape = (3.0, 1.0, 2.0), (20, 60, 30)
    mask = ball(shape, (28.5, 29.5, 29.0), 16.0, spacing).astype(np.uint8)
    one = lesion_table(mask, np.zeros(shape), np.full(shape, 2.0), spacing)[0]
    assert one.volume_ml == pytest.approx(4 / 3 * math.pi * 16**3 / 1000, rel=0.02)
    assert one.diameter_mm == pytest.approx(32, abs=3)  # half a slice at either end
    assert one.centroid_mm == pytest.approx((29.0, 29.5, 28.5), abs=0.5)
    assert one.suv_peak == pytest.approx(2.0)
    with pytest.raises(ValueError, match="same on all axes"):
        lesion_features(mask, np.zeros(shape), np.zeros(shape), spacing)


def test_peak_is_the_mean_over_the_sphere_also_at_the_border() -> None:
    rng = np.random.default_rng(1)
    image, mask = rng.random((14, 15, 16)), rng.random((14, 15, 16)) < 0.05
    mask[0, 0, 0] = True
    voxels = np.argwhere(np.ones_like(mask))
    spacing = np.array((1.0, 2.0, 1.5))
    expected = max(
        image.ravel()[np.linalg.norm((voxels - v) * spacing, axis=1) <= PEAK_RADIUS_MM].mean()
        for v in np.argwhere(mask)
    )
    assert intensity_peak(image, mask, spacing) == pytest.approx(expected)


def test_suv_mtv_and_tlg_of_known_voxels() -> None:
    mask = np.zeros((10, 10, 10), dtype=np.uint8)
    pet = np.zeros(mask.shape, dtype=np.float32)
    mask[2, 2, 2:7] = 1
    pet[2, 2, 2:7] = [10, 4.2, 4.0, 3.9, 2.9]
    mask[8, 8, 8] = 2
    pet[8, 8, 8] = 3
    primary, node = lesion_table(mask, np.full(mask.shape, 30.0), pet, (2.0, 2.0, 2.0))
    assert (primary.label, node.label) == (1, 2)
    assert primary.volume_ml == pytest.approx(0.040)
    assert primary.mtv41_ml == pytest.approx(0.016)  # 10 and 4.2
    assert primary.mtv4_ml == pytest.approx(0.024)
    assert primary.tlg == pytest.approx(0.008 * 25.0)
    assert (primary.suv_max, primary.suv_mean) == pytest.approx((10, 5))
    assert (node.mtv41_ml, node.mtv4_ml) == pytest.approx((0.008, 0))
    assert node.hu_mean == 30.0
    assert node.centroid_mm == (16, 16, 16)
    vector = lesion_features(mask, np.full(mask.shape, 30.0), pet, (2.0, 2.0, 2.0)).to_dict()
    assert vector["total_mtv41_ml"] == pytest.approx(0.024)
    assert vector["total_suv_mean"] == pytest.approx(28 / 6)
    assert vector["total_tlg"] == pytest.approx(0.008 * 28)
    json.dumps([primary.to_dict(), node.to_dict()], allow_nan=False)


def test_primary_and_two_nodes() -> None:
    left, right = (40.0, 30.0, 70.0), (14.0, 34.0, 20.0)
    case = patient((1, (60, 30, 70), 8), (2, left, 5), (2, right, 7))
    table = lesion_table(*case, MM)
    assert [one.label for one in table] == [1, 2, 2]
    assert table[1].volume_ml > table[2].volume_ml
    assert table[1].centroid_mm == pytest.approx(right[::-1])
    found = features(*case)
    assert (found["nodes_count"], found["primary_present"], found["nodes_present"]) == (2, 1, 1)
    assert found["total_dissemination_mm"] == pytest.approx(math.dist((60, 30, 70), right))
    assert found["nodes_farthest_from_primary_mm"] == found["total_dissemination_mm"]
    assert found["nodes_lowest_caudal_mm"] == pytest.approx(46)
    assert 20 < found["nodes_mean_caudal_mm"] < 46
    assert found["primary_lateral_offset_mm"] == pytest.approx(70 - 45)
    assert found["nodes_bilateral"] == 1
    assert found["nodes_contralateral_volume_ml"] == pytest.approx(table[1].volume_ml)
    assert found["nodes_volume_ml"] == pytest.approx(table[1].volume_ml + table[2].volume_ml)
    assert found["nodes_largest_volume_ml"] == pytest.approx(table[1].volume_ml)
    assert found["total_diameter_sum_mm"] == pytest.approx(40, abs=3)
    assert found["nodes_diameter_max_mm"] == pytest.approx(14, abs=1)
    assert found["primary_ct_mean"] == pytest.approx(40, abs=2)
    assert found["nodes_pet_mean"] == pytest.approx(6, abs=0.2)


@pytest.mark.parametrize("hu, counted", [(18.0, True), (60.0, False), (-90.0, False)])
def test_necrosis_is_a_core_of_low_attenuation(hu: float, counted: bool) -> None:
    mask, ct, pet = patient((1, (45, 30, 45), 14))
    grid = np.indices(mask.shape) - np.array((45, 30, 45))[:, None, None, None]
    core = np.linalg.norm(grid, axis=0) <= 7
    ct[mask > 0] = 60
    ct[core] = hu
    found = features(mask, ct, pet)
    ml = core.sum() / 1000 if counted else 0
    # The Gaussian takes half a millimetre of the edge: 30 HU is nearer to 18 than to 60.
    assert found["primary_necrosis_ml"] == pytest.approx(ml, rel=0.35)
    fraction = found["primary_necrosis_ml"] / found["primary_volume_ml"]
    assert found["primary_necrosis_fraction"] == pytest.approx(fraction)
    assert found["total_necrosis_ml"] == found["primary_necrosis_ml"]
    assert found["nodes_necrosis_ml"] == 0
    assert math.isnan(found["nodes_necrosis_fraction"])


def test_low_attenuation_at_the_surface_is_no_necrosis() -> None:
    mask, ct, pet = patient((2, (45, 30, 45), 9))
    grid = np.indices(mask.shape) - np.array((45, 30, 45))[:, None, None, None]
    ct[mask > 0] = 60
    ct[(mask > 0) & (np.linalg.norm(grid, axis=0) > 7)] = 10
    assert features(mask, ct, pet)["nodes_necrosis_ml"] == 0


def test_features_are_selected_by_name() -> None:
    found = lesion_features(*patient((1, (60, 30, 65), 8)), MM)
    some = found.select(["nodes_count", "primary_volume_ml"])
    assert some.names == ("nodes_count", "primary_volume_ml")
    assert some.to_dict() == {name: found.to_dict()[name] for name in some.names}
    with pytest.raises(ValueError, match="1 of 2 lesion features"):
        found.select(["nodes_count", "primary_colour"])


def test_mirrored_patient_has_the_same_features() -> None:
    case = patient((1, (60, 30, 65), 8), (2, (40, 30, 70), 5), (2, (14, 34, 22), 7))
    mirrored = [np.ascontiguousarray(a[:, :, ::-1]) for a in case]
    there, back = features(*case), features(*mirrored)
    # Not symmetric about the array, so the midline must come from the body for this to hold.
    assert there == pytest.approx(back, rel=1e-4, nan_ok=True)


def test_lesion_on_the_border_is_measured_as_the_same_voxels_inside() -> None:
    mask, ct, pet = patient((1, (2, 3, 4), 9), (2, (78, 58, 80), 6))
    inside = [np.pad(mask, 8), np.pad(ct, 8, mode="edge"), np.pad(pet, 8)]
    for at_border, same in zip(
        lesion_table(mask, ct, pet, MM), lesion_table(*inside, MM), strict=True
    ):
        a, b = at_border.to_dict(), same.to_dict()
        assert np.subtract(b.pop("centroid_mm"), a.pop("centroid_mm")) == pytest.approx([8] * 3)
        assert a.pop("suv_peak") >= b.pop("suv_peak")  # the padding's zeros are in b's sphere
        assert a == pytest.approx(b)
    assert np.isfinite(lesion_features(mask, ct, pet, MM).values).all()


AMOUNTS = (
    "volume_ml", "mtv41_ml", "mtv4_ml", "tlg", "surface_mm2", "diameter_sum_mm", "diameter_max_mm",
    "necrosis_ml",
)  # fmt: skip


def test_no_lesion_has_zero_amounts_and_nothing_to_describe() -> None:
    mask, ct, pet = patient()
    assert lesion_table(mask, ct, pet, MM) == []
    found = features(mask, ct, pet)
    zero = {f"{group}_{name}" for group in ("total", "primary", "nodes") for name in AMOUNTS}
    zero |= {"primary_present", "nodes_present", "nodes_count", "nodes_largest_volume_ml"}
    zero |= {"total_dissemination_mm", "nodes_bilateral", "nodes_contralateral_volume_ml"}
    assert {name for name, value in found.items() if value == 0} == zero
    assert all(math.isnan(value) for name, value in found.items() if name not in zero)


@pytest.mark.parametrize("label", [1, 2])
def test_only_primary_or_only_nodes(label: int) -> None:
    found = features(*patient((label, (40, 30, 40), 6)))
    here, away = ("primary", "nodes") if label == 1 else ("nodes", "primary")
    assert (found[f"{here}_present"], found[f"{away}_present"]) == (1, 0)
    assert math.isfinite(found[f"{here}_pet_glcm_contrast"])
    assert math.isnan(found[f"{away}_pet_glcm_contrast"])
    assert math.isnan(found["nodes_lowest_caudal_mm"])
    assert found["total_dissemination_mm"] == 0


def test_single_voxels_and_constant_images_do_not_crash() -> None:
    mask = np.zeros((9, 9, 9), dtype=np.uint8)
    mask[0, 0, 0], mask[4, 4, 4], mask[8, 8, 8] = 1, 2, 2
    found = features(mask, np.full(mask.shape, -1000.0), np.zeros(mask.shape))
    assert found["nodes_count"] == 2
    assert found["primary_elongation"] == 0 and found["primary_suv_max"] == 0
    assert math.isnan(found["primary_pet_glcm_contrast"])  # no neighbour, no co-occurrence


def test_names_are_always_the_same_and_unique() -> None:
    names = lesion_features(*patient((1, (40, 30, 40), 6), (2, (20, 30, 20), 6)), MM).names
    assert names == feature_names() == lesion_features(*patient(), MM).names
    assert len(set(names)) == len(names)
    assert "nodes_ct_coefficient_of_variation" not in names


def test_metal_does_not_empty_or_blow_up_the_texture() -> None:
    mask, ct, pet = patient((1, (40, 30, 40), 6))
    ct[mask > 0], pet[40, 30, 40] = 30_000, 1e7
    found = features(mask, ct, pet)
    assert found["primary_ct_entropy"] == 0
    assert math.isfinite(found["primary_pet_glcm_contrast"])


def test_bad_input_is_named() -> None:
    mask, ct, pet = patient((1, (40, 30, 40), 6))
    holes = pet.copy()
    holes[0, 0, :3] = np.nan
    with pytest.raises(CaseError, match="PET has 3 voxels that are NaN"):
        lesion_features(mask, ct, holes, MM)
    with pytest.raises(CaseError, match=r"CT has shape \(79, 60, 90\)"):
        lesion_table(mask, ct[1:], pet, MM)
    with pytest.raises(CaseError, match="values from 0 to 3"):
        lesion_table(mask * 3, ct, pet, MM)
    with pytest.raises(CaseError, match="whole numbers"):
        lesion_table(mask.astype(float), ct, pet, MM)
    with pytest.raises(ValueError, match="three positive numbers"):
        lesion_table(mask, ct, pet, (1.0, 1.0))


# --- Encoder features ----------------------------------------------------------------------------


def maps(shape: tuple[int, int, int], strides: tuple[int, ...]) -> list[torch.Tensor]:
    """Two channels a stage: the voxel's z index in that stage's grid, and a constant."""
    stages = []
    for stride in strides:
        size = [math.ceil(n / stride) for n in shape]
        z = torch.arange(size[0], dtype=torch.float32)[:, None, None].expand(size)
        stages.append(torch.stack([z, torch.full(size, 7.0)]))
    return stages


def test_encoder_features_are_pooled_in_the_lesion() -> None:
    mask = np.zeros((33, 20, 18), dtype=np.uint8)
    mask[8:16, 4:8, 4:8] = 1
    mask[20, 5, 5] = 2
    found = pool_encoder_features(maps(mask.shape, (2, 4)), mask).to_dict()
    # Stage 0: z indices 4 to 7 with 2 x 2 voxels each, and 10 with one.
    assert found["encoder0_mean_0"] == pytest.approx((4 * (4 + 5 + 6 + 7) + 10) / 17)
    assert found["encoder0_max_0"] == 10
    assert found["encoder1_mean_0"] == pytest.approx((2 + 3 + 5) / 3)
    assert found["encoder1_max_1"] == found["encoder0_mean_1"] == 7
    assert found["encoder_lesion_present"] == 1
    assert len(found) == 2 * 2 * 2 + 1


def test_one_voxel_is_not_lost_on_a_coarse_grid_whose_input_was_padded() -> None:
    # 310 x 200 x 200 padded to 320 x 224 x 224 by the network, stride 32.
    mask = np.zeros((310, 200, 200), dtype=np.uint8)
    mask[309, 199, 0] = 2
    features = torch.zeros(1, 10, 7, 7)
    features[0, 9, 6, 0] = 5.0
    assert pool_encoder_features([features], mask).values.tolist() == [5.0, 5.0, 1.0]
    # 33 padded to 64, stride 16: slice 20 is in the second of four cells.
    mask = np.zeros((33, 33, 33), dtype=np.uint8)
    mask[20, 0, 0] = 1
    features = torch.arange(4.0)[None, :, None, None].expand(1, 4, 4, 4)
    assert pool_encoder_features([features], mask).values.tolist() == [1.0, 1.0, 1.0]


def test_without_lesion_encoder_features_are_the_overall_mean() -> None:
    found = pool_encoder_features(maps((16, 16, 16), (4,)), np.zeros((16, 16, 16), np.uint8))
    assert isinstance(found, LesionFeatures) and found.values.dtype == np.float32
    assert found.values.tolist() == [1.5, 7.0, 1.5, 7.0, 0.0]


def test_encoder_features_of_half_precision_maps() -> None:
    mask = np.ones((8, 8, 8), dtype=np.uint8)
    stages = [m.to(torch.bfloat16).requires_grad_() for m in maps(mask.shape, (2,))]
    assert pool_encoder_features(stages, mask).values.tolist() == [1.5, 7.0, 3.0, 7.0, 1.0]


def test_encoder_maps_of_other_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one map"):
        pool_encoder_features([torch.zeros(1, 2, 4, 4, 4)], np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="0 feature maps"):
        pool_encoder_features([], np.zeros((8, 8, 8), np.uint8))
