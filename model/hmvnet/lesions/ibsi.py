"""Building blocks of the Image Biomarker Standardisation Initiative (IBSI): arrays -> numbers.

Intensity statistics and histogram, co-occurrence, morphology and intensity peak, after the
definitions of Zwanenburg et al., "Image biomarker standardisation initiative - feature
definitions", arXiv 1612.07003, and Radiology 2020 (doi 10.1148/radiol.2020191145). They are tested
against its digital phantom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.signal import fftconvolve
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist
from skimage.measure import marching_cubes

from hmvnet.imaging.components import bounding_box, widened

Spacing = Sequence[float] | np.ndarray

FEW = 100  # points, of which all distances are looked at
PEAK_RADIUS_MM = 10 * (3 / (4 * math.pi)) ** (1 / 3)  # a sphere of 1 mL

# Half of the 26 neighbours: a co-occurrence matrix is symmetric, so the other half adds nothing.
DIRECTIONS = tuple(d for d in product((-1, 0, 1), repeat=3) if d > (0, 0, 0))

FIRST_ORDER = (
    "mean", "variance", "skewness", "kurtosis", "median", "minimum", "p10", "p90", "maximum",
    "interquartile_range", "range", "mean_absolute_deviation", "robust_mean_absolute_deviation",
    "median_absolute_deviation", "coefficient_of_variation", "quartile_dispersion", "energy",
    "root_mean_square",
)  # fmt: skip
HISTOGRAM = ("entropy", "uniformity")
# IBSI's 25 without three that are others in disguise: dissimilarity (difference_average), sum
# average (2 x joint_average), cluster tendency (sum_variance).
GLCM = (
    "joint_maximum", "joint_average", "joint_variance", "joint_entropy", "difference_average",
    "difference_variance", "difference_entropy", "sum_variance", "sum_entropy",
    "angular_second_moment", "contrast", "inverse_difference", "inverse_difference_normalised",
    "inverse_difference_moment", "inverse_difference_moment_normalised", "inverse_variance",
    "correlation", "autocorrelation", "cluster_shade", "cluster_prominence",
    "information_correlation_1", "information_correlation_2",
)  # fmt: skip


def intensity_statistics(values: np.ndarray) -> dict[str, float]:
    """IBSI intensity-based statistics (section 3.3) of the intensities ``[n]`` in a region.

    Names as in ``FIRST_ORDER``; kurtosis is the excess. A region of one intensity has skewness,
    kurtosis and dispersion 0; an empty region has NaN throughout.
    """
    if not values.size:
        return dict.fromkeys(FIRST_ORDER, math.nan)
    x = values.astype(np.float64)
    mean, variance = x.mean(), x.var()
    deviation = x - mean
    p10, p25, median, p75, p90 = np.percentile(x, [10, 25, 50, 75, 90])
    robust = x[(x >= p10) & (x <= p90)]
    results = (
        mean,
        variance,
        _ratio((deviation**3).mean(), variance**1.5),
        _ratio((deviation**4).mean(), variance**2) - (3 if variance > 0 else 0),
        median,
        x.min(),
        p10,
        p90,
        x.max(),
        p75 - p25,
        np.ptp(x),
        np.abs(deviation).mean(),
        np.abs(robust - robust.mean()).mean(),
        np.abs(x - median).mean(),
        _ratio(math.sqrt(variance), mean),
        _ratio(p75 - p25, p75 + p25),
        (x**2).sum(),
        math.sqrt((x**2).mean()),
    )
    return dict(zip(FIRST_ORDER, map(float, results), strict=True))


def discretise(values: np.ndarray, width: float, limits: tuple[float, float]) -> np.ndarray:
    """Grey levels from 1 in bins of fixed size counted from ``limits[0]``, values clipped first."""
    clipped = np.clip(values, *limits)
    return np.floor((clipped - limits[0]) / width).astype(np.int64) + 1


def histogram_features(levels: np.ndarray) -> dict[str, float]:
    """IBSI intensity-histogram entropy (bits) and uniformity (3.4.18, 3.4.19) of levels ``[n]``."""
    if not levels.size:
        return dict.fromkeys(HISTOGRAM, math.nan)
    p = np.bincount(levels.ravel()) / levels.size
    return {"entropy": _entropy(p), "uniformity": float((p**2).sum())}


def glcm(levels: np.ndarray) -> np.ndarray:
    """Grey-level co-occurrence counts at distance 1 for the 13 directions (IBSI 3.6).

    Args:
        levels: whole numbers ``[z, y, x]``; 0 outside the region, grey levels from 1 inside.

    Returns:
        ``[13, n, n]``, each symmetric, n the highest level. Sum over the first axis for the
        volume-merged matrix; features of each, averaged, are the volume-averaged ones.
    """
    padded = np.pad(levels, 1).astype(np.int64)
    n = int(padded.max(initial=0))
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    flat = padded.ravel()
    inside = np.flatnonzero(flat)
    counts = np.zeros((len(DIRECTIONS), n, n), dtype=np.int64)
    for k, direction in enumerate(DIRECTIONS):
        neighbour = flat[inside + int(strides @ direction)]
        pair = neighbour > 0
        code = (flat[inside[pair]] - 1) * n + neighbour[pair] - 1
        counts[k] = np.bincount(code, minlength=n * n).reshape(n, n)
    return counts + counts.transpose(0, 2, 1)


def glcm_features(counts: np.ndarray) -> dict[str, float]:
    """IBSI co-occurrence features (3.6.1 to 3.6.25) of one symmetric matrix ``[n, n]`` of counts.

    Names as in ``GLCM``; entropies are in bits, level ``i`` is row ``i - 1``. Without a single
    pair of neighbours all are NaN; with one grey level only, correlation is 1.
    """
    total = counts.sum()
    if not total:
        return dict.fromkeys(GLCM, math.nan)
    p = counts / total
    n = len(p)
    level = np.arange(1, n + 1)
    i, j = level[:, None], level[None, :]
    difference, addition = np.abs(i - j), i + j
    p_difference = np.bincount(difference.ravel(), p.ravel())  # k = 0 .. n - 1
    p_sum = np.bincount(addition.ravel(), p.ravel())  # k = 0 .. 2 n
    k_difference, k_sum = np.arange(n), np.arange(2 * n + 1)
    marginal = p.sum(axis=0)
    mean = float(marginal @ level)
    variance = float(marginal @ (level - mean) ** 2)
    difference_average = float(p_difference @ k_difference)
    product_ij = marginal[:, None] * marginal[None, :]
    # H_xy1, H_xy2 and H_x of the information correlations, over the cells where log2 is defined.
    seen = product_ij > 0
    log_product = np.log2(product_ij[seen])
    h_xy, h_x = _entropy(p), _entropy(marginal)
    h_xy1, h_xy2 = -float(p[seen] @ log_product), -float(product_ij[seen] @ log_product)
    off = difference > 0
    cluster = addition - 2 * mean
    results = (
        p.max(),
        mean,
        variance,
        h_xy,
        difference_average,
        p_difference @ (k_difference - difference_average) ** 2,
        _entropy(p_difference),
        p_sum @ (k_sum - 2 * mean) ** 2,
        _entropy(p_sum),
        (p**2).sum(),
        (p * difference**2).sum(),
        (p / (1 + difference)).sum(),
        (p / (1 + difference / n)).sum(),
        (p / (1 + difference**2)).sum(),
        (p / (1 + (difference / n) ** 2)).sum(),
        (p[off] / difference[off] ** 2).sum(),
        ((p * (i - mean) * (j - mean)).sum() / variance) if variance > 0 else 1.0,
        (p * i * j).sum(),
        (p * cluster**3).sum(),
        (p * cluster**4).sum(),
        _ratio(h_xy - h_xy1, h_x),
        math.sqrt(max(0.0, 1 - math.exp(-2 * (h_xy2 - h_xy)))),
    )
    return dict(zip(GLCM, map(float, results), strict=True))


@dataclass(frozen=True)
class Morphology:
    """IBSI morphology (3.1) of one region; lengths in mm.

    Mesh values are those of the marching-cubes surface at half height; axis lengths are four
    standard deviations of the voxel centres along their principal axes; elongation and flatness
    are minor/major and least/major axis length.
    """

    mesh_volume_mm3: float
    voxel_volume_mm3: float
    surface_mm2: float
    sphericity: float
    diameter_mm: float
    major_axis_mm: float
    elongation: float
    flatness: float


def morphology(mask: np.ndarray, spacing_zyx: Spacing) -> Morphology:
    """Shape of the True voxels of ``mask`` ``[z, y, x]``, at least one of them.

    The mask may touch the array's border: what is outside counts as background.
    """
    spacing = np.asarray(spacing_zyx, dtype=float)
    box = bounding_box(mask)
    region = np.pad(mask[box], 1)
    vertices, faces, _, _ = marching_cubes(
        region.astype(np.float32), level=0.5, spacing=tuple(spacing.tolist())
    )
    corners = vertices[faces].astype(np.float64)  # [face, corner, zyx]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    surface = float(np.linalg.norm(normals, axis=1).sum() / 2)
    volume = abs(float((normals * corners[:, 0]).sum() / 6))  # divergence theorem
    centres = np.argwhere(region) * spacing
    lengths = 4 * np.sqrt(_principal_variances(centres))  # least, minor, major
    return Morphology(
        mesh_volume_mm3=volume,
        voxel_volume_mm3=float(len(centres) * spacing.prod()),
        surface_mm2=surface,
        sphericity=(36 * math.pi * volume**2) ** (1 / 3) / surface,
        diameter_mm=_farthest_mm(vertices),
        major_axis_mm=float(lengths[2]),
        elongation=_ratio(lengths[1], lengths[2]),
        flatness=_ratio(lengths[0], lengths[2]),
    )


def greatest_dimension(mask: np.ndarray, spacing_zyx: Spacing) -> float:
    """Of a boolean volume ``[z, y, x]``, in mm, between voxels' centres; much faster than a mesh's.

    0 where no voxel, or only one, is True.
    """
    inner = mask.copy()  # a voxel between two on every axis is no end
    for axis in range(mask.ndim):
        shifted = np.moveaxis(mask, axis, 0)
        view = np.moveaxis(inner, axis, 0)
        view[1:-1] &= shifted[:-2] & shifted[2:]
        view[[0, -1]] = False
    points = np.argwhere(mask & ~inner) * np.asarray(spacing_zyx, float)
    return _farthest_mm(points) if len(points) > 1 else 0.0


def _farthest_mm(points: np.ndarray) -> float:
    """The greatest distance between two of the points ``[n, 3]``, in mm."""
    try:
        hull = ConvexHull(points)
    except QhullError:  # few points, or all in one plane
        hull = ConvexHull(points, qhull_options="QJ") if len(points) > FEW else None
    return float(pdist(points[hull.vertices] if hull else points).max())


def intensity_peak(image: np.ndarray, mask: np.ndarray, spacing_zyx: Spacing) -> float:
    """IBSI global intensity peak (3.2.2): SUV peak where the image is a PET.

    The highest mean over a sphere of 1 mL (radius 6.2 mm) whose centre is a voxel of the mask. The
    sphere takes in voxels outside the mask, but none outside the image.

    Args:
        image: intensities ``[z, y, x]``.
        mask: boolean ``[z, y, x]``, at least one voxel True.
    """
    reach = np.floor(PEAK_RADIUS_MM / np.asarray(spacing_zyx)).astype(int)
    axes = [np.arange(-r, r + 1) * s for r, s in zip(reach, spacing_zyx, strict=True)]
    squares = [a**2 for a in np.meshgrid(*axes, indexing="ij")]
    sphere = (sum(squares) <= PEAK_RADIUS_MM**2).astype(np.float64)
    around = widened(bounding_box(mask), reach, mask.shape)
    values = image[around].astype(np.float64)
    sums = fftconvolve(values, sphere, mode="same")
    counts = fftconvolve(np.ones_like(values), sphere, mode="same").round()
    inside = mask[around]
    return float((sums[inside] / counts[inside]).max())


def _principal_variances(points: np.ndarray) -> np.ndarray:
    """Sample variances ``[3]``, ascending, of points ``[n, 3]`` along their principal axes."""
    centred = points - points.mean(axis=0)
    return np.linalg.eigvalsh(centred.T @ centred / max(1, len(points) - 1)).clip(min=0)


def _entropy(p: np.ndarray) -> float:
    """Shannon entropy in bits."""
    p = p[p > 0]
    return -float((p * np.log2(p)).sum())


def _ratio(numerator: float, denominator: float) -> float:
    """The quotient, and 0 where the denominator is 0."""
    return float(numerator / denominator) if denominator else 0.0
