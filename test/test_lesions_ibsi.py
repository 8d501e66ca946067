"""IBSI's digital phantom, and shapes and intensities with known values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ball

from hmvnet.case import Grid
from hmvnet.lesions.ibsi import (
    GLCM,
    PEAK_RADIUS_MM,
    discretise,
    glcm,
    glcm_features,
    greatest_dimension,
    histogram_features,
    intensity_peak,
    intensity_statistics,
    morphology,
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


def test_ball() -> None:
    radius = 15.3
    shape = morphology(ball(Grid((40, 40, 40), MM), (19.5, 19.5, 19.5), radius), MM)
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


@pytest.mark.parametrize(
    ("box", "longest"),
    [
        (np.s_[3:13, 4:9, 5:7], math.sqrt(9**2 + 4**2 + 1)),
        (np.s_[3:13, 4:5, 0:30], math.sqrt(9**2 + 29**2)),  # flat
        (np.s_[3:13, 4:5, 5:6], 9.0),
        (np.s_[3:4, 4:5, 5:6], 0.0),
        (np.s_[0:0, 0:0, 0:0], 0.0),
        (np.s_[:, :, :], math.sqrt(29**2 + 19**2 + 29**2)),  # the whole array
    ],
)
def test_greatest_dimension_is_that_between_the_farthest_voxels(box, longest):
    mask = np.zeros((30, 20, 30), bool)
    mask[box] = True
    assert greatest_dimension(mask, MM) == pytest.approx(longest, abs=1e-3)
    assert greatest_dimension(mask, (2, 2, 2)) == pytest.approx(2 * longest, abs=1e-3)


def test_greatest_dimension_of_a_ball_is_close_to_the_meshs():
    grid = Grid((41, 41, 41), MM, (0.0, 0.0, 0.0))
    mask = ball(grid, (20, 20, 20), 15)
    mesh = morphology(mask, MM).diameter_mm
    assert mesh - 1.5 < greatest_dimension(mask, MM) < mesh
