"""Lesion features: label mask + CT + PET (and encoder feature maps) -> named numbers.

Three layers, top to bottom in this file:

1. IBSI building blocks (:func:`intensity_statistics`, :func:`glcm`, :func:`morphology`, ...) after
   the definitions of the Image Biomarker Standardisation Initiative, Zwanenburg et al., "Image
   biomarker standardisation initiative - feature definitions", arXiv 1612.07003, and Radiology 2020
   (doi 10.1148/radiol.2020191145). They are tested against its digital phantom.
2. :func:`lesion_table`: one row for each lesion, a lesion being a 26-connected component of one
   label.
3. :func:`lesion_features`: one vector for each patient; :func:`pool_encoder_features`: the same
   for what the segmentation network saw in the lesions.

**Where something does not apply.** Amounts (volumes, MTV, TLG, counts, sums, dissemination) of
lesions that are not there are 0, for that is how much there is. Anything that describes a lesion
(its SUV, shape, texture, CT numbers, position) is NaN where there is none to describe, and
``primary_present`` and ``nodes_present`` (0 or 1) say so. Fill NaN with values of the training
fold's patients, as with any other missing value of a table.

Texture is that of the mask's voxels on the given grid, without resampling: PET in bins of 0.5 SUV
from 0, CT in bins of 25 HU. Before binning PET is clipped to [0, 100] SUV and CT to [-200, 300] HU
(clipped, where IBSI would drop the voxels, so that metal or air cannot empty a lesion).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import Any

import cc3d
import numpy as np
import torch
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter
from scipy.signal import fftconvolve
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist, pdist
from skimage.measure import marching_cubes
from torch.nn import functional

from hmvnet.case import GTVN, GTVP, CaseError
from hmvnet.imaging.components import CONNECTIVITY, bounding_box

Box = tuple[slice, ...]
Spacing = Sequence[float] | np.ndarray

PEAK_RADIUS_MM = 10 * (3 / (4 * math.pi)) ** (1 / 3)  # a sphere of 1 mL
PET_BIN_SUV, PET_RANGE_SUV = 0.5, (0.0, 100.0)
CT_BIN_HU, CT_RANGE_HU = 25.0, (-200.0, 300.0)
BODY_HU = -300.0
MIDLINE_MM = 10.0  # a centroid closer than this to the midline is on neither side
# Necrosis shows as low attenuation inside a lesion; fat and air in reach of the mask do not count.
NECROSIS_HU, NECROSIS_DEPTH_MM, NECROSIS_SIGMA_MM = (-30.0, 30.0), 3.0, 1.0

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
# Ratios to a mean that may be 0 HU.
NOT_FOR_CT = frozenset({"coefficient_of_variation", "quartile_dispersion"})


# --- 1. IBSI building blocks ---------------------------------------------------------------------


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
    hull = vertices[ConvexHull(vertices).vertices]
    centres = np.argwhere(region) * spacing
    lengths = 4 * np.sqrt(_principal_variances(centres))  # least, minor, major
    return Morphology(
        mesh_volume_mm3=volume,
        voxel_volume_mm3=float(len(centres) * spacing.prod()),
        surface_mm2=surface,
        sphericity=(36 * math.pi * volume**2) ** (1 / 3) / surface,
        diameter_mm=float(pdist(hull).max()),
        major_axis_mm=float(lengths[2]),
        elongation=_ratio(lengths[1], lengths[2]),
        flatness=_ratio(lengths[0], lengths[2]),
    )


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
    tight = bounding_box(mask)
    around = tuple(
        slice(max(0, s.start - r), s.stop + r) for s, r in zip(tight, reach.tolist(), strict=True)
    )
    values = image[around].astype(np.float64)
    sums = fftconvolve(values, sphere, mode="same")
    counts = fftconvolve(np.ones_like(values), sphere, mode="same").round()
    inside = mask[around]
    return float((sums[inside] / counts[inside]).max())


# --- 2. One row for each lesion ------------------------------------------------------------------


@dataclass(frozen=True)
class Lesion:
    """One lesion: a 26-connected component of one label.

    ``centroid_mm`` is (x, y, z), from the centre of the array's first voxel along the array's axes:
    on a grid with identity direction, add the grid's origin for LPS. Volume, MTV and TLG count
    voxels; surface, sphericity and diameter are those of the mesh (:class:`Morphology`).
    ``mtv41_ml`` is the volume at or above 41 % of the lesion's own SUV max, ``tlg`` the SUV mean
    times the whole volume (SUV x mL). ``necrosis_ml``: see :func:`necrosis_volume`.
    """

    label: int
    volume_ml: float
    centroid_mm: tuple[float, float, float]
    suv_max: float
    suv_mean: float
    suv_peak: float
    mtv41_ml: float
    mtv4_ml: float
    tlg: float
    diameter_mm: float
    surface_mm2: float
    sphericity: float
    hu_mean: float
    necrosis_ml: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or a data frame."""
        return asdict(self)


def lesion_table(
    mask: np.ndarray, ct_hu: np.ndarray, pet_suv: np.ndarray, spacing_zyx: Spacing
) -> list[Lesion]:
    """Every lesion of a label map, primary before nodes, the larger before the smaller.

    Args:
        mask: label map ``[z, y, x]`` of 0, 1 (GTVp), 2 (GTVn).
        ct_hu, pet_suv: CT in HU and PET in SUV on the same grid.
        spacing_zyx: voxel size in mm in the arrays' axis order; need not be the same on all axes.

    Raises:
        CaseError: shapes that differ, values that are not finite, labels other than 0, 1, 2.
        ValueError: a spacing that is not three positive numbers.
    """
    spacing = _check(mask, ct_hu, pet_suv, spacing_zyx)
    lesions = [
        _lesion(label, where, origin, ct_hu, pet_suv, spacing)
        for label, where, origin in _components(mask)
    ]
    return sorted(lesions, key=lambda one: (one.label, -one.volume_ml, one.centroid_mm))


def _components(mask: np.ndarray) -> Iterator[tuple[int, np.ndarray, Box]]:
    """Label, boolean mask and box in ``mask`` of each component, every mask cut to its box."""
    outer = bounding_box(mask > 0)
    labels = np.ascontiguousarray(mask[outer].astype(np.uint8))
    if not labels.size:
        return
    components = cc3d.connected_components(labels, connectivity=CONNECTIVITY)
    boxes = cc3d.statistics(components)["bounding_boxes"]
    for number, inner in enumerate(boxes[1:], start=1):
        where = components[inner] == number
        box = tuple(
            slice(o.start + int(i.start), o.start + int(i.stop))
            for o, i in zip(outer, inner, strict=True)
        )
        yield int(labels[inner][where][0]), where, box


def _lesion(
    label: int,
    where: np.ndarray,
    box: Box,
    ct_hu: np.ndarray,
    pet_suv: np.ndarray,
    spacing: np.ndarray,
) -> Lesion:
    suv = pet_suv[box][where].astype(np.float64)
    voxel_ml = float(spacing.prod()) / 1000
    shape = morphology(where, spacing)
    start = [s.start for s in box]
    centroid = (np.argwhere(where).mean(axis=0) + start) * spacing
    return Lesion(
        label=label,
        volume_ml=suv.size * voxel_ml,
        centroid_mm=tuple(centroid[::-1].tolist()),
        suv_max=float(suv.max()),
        suv_mean=float(suv.mean()),
        suv_peak=_peak_in_box(pet_suv, where, box, spacing),
        mtv41_ml=int((suv >= 0.41 * suv.max()).sum()) * voxel_ml,
        mtv4_ml=int((suv >= 4).sum()) * voxel_ml,
        tlg=float(suv.mean()) * suv.size * voxel_ml,
        diameter_mm=shape.diameter_mm,
        surface_mm2=shape.surface_mm2,
        sphericity=shape.sphericity,
        hu_mean=float(ct_hu[box][where].mean(dtype=np.float64)),
        necrosis_ml=necrosis_volume(ct_hu[box], where, spacing),
    )


def necrosis_volume(ct_hu: np.ndarray, lesion: np.ndarray, spacing_zyx: Spacing) -> float:
    """Volume in mL of a lesion's low-attenuating core, the radiologists' sign of necrosis.

    (van den Brekel et al., "Cervical lymph node metastasis: assessment of radiologic criteria",
    Radiology 1990.) Voxels more than 3 mm below the lesion's surface whose CT, smoothed by a
    Gaussian of 1 mm, is between -30 and 30 HU, and not within 2 mm of fat or air. In the phantoms,
    with true masks, it ranks the necrotic fraction at a Spearman correlation of 0.97; the CT
    minimum stays below 0.3.

    Args:
        ct_hu, lesion: CT in HU and boolean mask ``[z, y, x]``; outside the arrays is not lesion.
        spacing_zyx: voxel size in mm.
    """
    spacing = np.asarray(spacing_zyx, dtype=float)
    smooth = gaussian_filter(ct_hu.astype(np.float32), NECROSIS_SIGMA_MM / spacing)
    fat = smooth <= NECROSIS_HU[0]
    # A fatty hilum's rim passes through the same numbers. In voxels: the working grid is isotropic.
    fat = binary_dilation(fat, iterations=math.ceil(2 * NECROSIS_SIGMA_MM / spacing.min()))
    low = lesion & (smooth < NECROSIS_HU[1]) & ~fat
    if not low.any():
        return 0.0
    # Depth matters near the low voxels only, and up to NECROSIS_DEPTH_MM only.
    reach = np.ceil(NECROSIS_DEPTH_MM / spacing).astype(int) + 1
    low = np.pad(low, [(r, r) for r in reach])
    box = tuple(
        slice(s.start - r, s.stop + r) for s, r in zip(bounding_box(low), reach, strict=True)
    )
    inside = np.pad(lesion, [(r, r) for r in reach])[box]
    depth = distance_transform_edt(inside, sampling=spacing)
    return float((low[box] & (depth > NECROSIS_DEPTH_MM)).sum() * spacing.prod() / 1000)


def _peak_in_box(pet_suv: np.ndarray, where: np.ndarray, box: Box, spacing: np.ndarray) -> float:
    """:func:`intensity_peak` of a component, with the PET around it but no full-size mask."""
    reach = np.ceil(PEAK_RADIUS_MM / spacing).astype(int).tolist()
    wide = tuple(
        slice(max(0, s.start - r), min(size, s.stop + r))
        for s, r, size in zip(box, reach, pet_suv.shape, strict=True)
    )
    margins = [(s.start - w.start, w.stop - s.stop) for s, w in zip(box, wide, strict=True)]
    return intensity_peak(pet_suv[wide], np.pad(where, margins), spacing)


# --- 3. One vector for each patient --------------------------------------------------------------


@dataclass(frozen=True)
class LesionFeatures:
    """A named vector: ``values`` is float32 ``[n]``, one for each name."""

    names: tuple[str, ...]
    values: np.ndarray

    def to_dict(self) -> dict[str, float]:
        """Name to value, in order."""
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def select(self, names: Sequence[str]) -> LesionFeatures:
        """These features, in this order.

        Raises:
            ValueError: one of them is not there.
        """
        place = {name: i for i, name in enumerate(self.names)}
        if missing := [name for name in names if name not in place]:
            raise ValueError(
                f"{len(missing)} of {len(names)} lesion features that the survival model was "
                f"trained on are not there, e.g. {missing[0]}: the bundle's parts do not fit"
            )
        return LesionFeatures(tuple(names), self.values[[place[name] for name in names]])


def lesion_features(
    mask: np.ndarray, ct_hu: np.ndarray, pet_suv: np.ndarray, spacing_zyx: Spacing
) -> LesionFeatures:
    """The patient's lesions as one vector, always of the same names (:func:`feature_names`).

    Names start with what they describe: ``total``, ``primary`` (all GTVp voxels) or ``nodes`` (all
    GTVn voxels; ``nodes_largest`` is the node of largest volume); the unit ends the name.
    ``*_pet_*`` and ``*_ct_*`` are IBSI's intensity statistics, histogram and volume-merged
    co-occurrence features. The module's docstring says what stands where there is no lesion.

    Positions: ``*_caudal_mm`` is how far below the primary's centroid nodes lie (negative above),
    ``nodes_bilateral`` is 1 where node centroids lie on both sides of the body's midline, and
    ``nodes_contralateral_volume_ml`` is the nodal volume on the side away from the primary (or, for
    a midline or unknown primary, on the side with less of it).

    Args:
        mask, ct_hu, pet_suv: as for :func:`lesion_table`; axes along x, y, z of the patient.
        spacing_zyx: voxel size in mm, the same on all axes to 1 %, for co-occurrence compares
            neighbours in all directions alike.

    Raises:
        CaseError, ValueError: as :func:`lesion_table`; ValueError for an anisotropic spacing.
    """
    spacing = _check(mask, ct_hu, pet_suv, spacing_zyx)
    if spacing.max() > 1.01 * spacing.min():
        raise ValueError(
            f"spacing is {tuple(spacing.tolist())} mm, expected the same on all axes: resample "
            "CT, PET and mask to isotropic voxels first"
        )
    lesions = lesion_table(mask, ct_hu, pet_suv, spacing_zyx)
    primary = [one for one in lesions if one.label == GTVP]
    nodes = [one for one in lesions if one.label == GTVN]
    features: dict[str, float] = {
        "primary_present": float(bool(primary)),
        "nodes_present": float(bool(nodes)),
        "nodes_count": float(len(nodes)),
    }
    for name, group in (("total", lesions), ("primary", primary), ("nodes", nodes)):
        features |= {f"{name}_{key}": value for key, value in _burden(group).items()}
    features |= _shapes(mask, spacing, nodes)
    features |= _spread(primary, nodes, _midline_mm(mask, ct_hu, spacing))
    for name, label in (("primary", GTVP), ("nodes", GTVN)):
        region = mask == label
        box = bounding_box(region)
        for modality, texture in (
            ("pet", _texture(pet_suv[box], region[box], PET_BIN_SUV, PET_RANGE_SUV)),
            ("ct", _texture(ct_hu[box], region[box], CT_BIN_HU, CT_RANGE_HU)),
        ):
            features |= {
                f"{name}_{modality}_{key}": value
                for key, value in texture.items()
                if not (modality == "ct" and key in NOT_FOR_CT)
            }
    return LesionFeatures(tuple(features), np.array(list(features.values()), dtype=np.float32))


@cache
def feature_names() -> tuple[str, ...]:
    """The names of :func:`lesion_features`, in order."""
    nothing = np.zeros((1, 1, 1))
    return lesion_features(nothing.astype(np.uint8), nothing, nothing, (1, 1, 1)).names


def _burden(lesions: Sequence[Lesion]) -> dict[str, float]:
    """How much tumour there is and how much it takes up."""
    volume = sum(one.volume_ml for one in lesions)
    tlg = sum(one.tlg for one in lesions)
    necrosis = sum(one.necrosis_ml for one in lesions)
    return {
        "volume_ml": volume,
        "mtv41_ml": sum(one.mtv41_ml for one in lesions),
        "mtv4_ml": sum(one.mtv4_ml for one in lesions),
        "tlg": tlg,
        "surface_mm2": sum(one.surface_mm2 for one in lesions),
        "diameter_sum_mm": sum(one.diameter_mm for one in lesions),
        "diameter_max_mm": max((one.diameter_mm for one in lesions), default=0.0),
        "suv_max": max((one.suv_max for one in lesions), default=math.nan),
        "suv_mean": tlg / volume if lesions else math.nan,
        "suv_peak": max((one.suv_peak for one in lesions), default=math.nan),
        "necrosis_ml": necrosis,
        "necrosis_fraction": necrosis / volume if lesions else math.nan,
    }


def _shapes(mask: np.ndarray, spacing: np.ndarray, nodes: Sequence[Lesion]) -> dict[str, float]:
    primary = mask == GTVP
    shape = morphology(primary, spacing) if primary.any() else None
    largest = nodes[0] if nodes else None  # the table is sorted by volume
    return {
        "primary_sphericity": shape.sphericity if shape else math.nan,
        "primary_surface_to_volume_per_mm": (
            shape.surface_mm2 / shape.mesh_volume_mm3 if shape else math.nan
        ),
        "primary_elongation": shape.elongation if shape else math.nan,
        "primary_flatness": shape.flatness if shape else math.nan,
        "nodes_largest_volume_ml": largest.volume_ml if largest else 0.0,
        "nodes_largest_sphericity": largest.sphericity if largest else math.nan,
    }


def _spread(
    primary: Sequence[Lesion], nodes: Sequence[Lesion], midline_mm: float
) -> dict[str, float]:
    """Where the lesions lie to each other; x grows to the patient's left, z to the head (LPS)."""
    centroids = np.array([one.centroid_mm for one in (*primary, *nodes)])
    volumes = np.array([one.volume_ml for one in nodes])
    lateral = np.array([one.centroid_mm[0] for one in nodes]) - midline_mm
    left, right = volumes[lateral > MIDLINE_MM].sum(), volumes[lateral < -MIDLINE_MM].sum()
    values = {
        "total_dissemination_mm": float(pdist(centroids).max()) if len(centroids) > 1 else 0.0,
        "nodes_bilateral": float(left > 0 and right > 0),
        "nodes_contralateral_volume_ml": float(min(left, right)),
        "primary_lateral_offset_mm": math.nan,
        "nodes_lowest_caudal_mm": math.nan,
        "nodes_mean_caudal_mm": math.nan,
        "nodes_farthest_from_primary_mm": math.nan,
    }
    if primary:
        weights = [one.volume_ml for one in primary]
        centre = np.average([one.centroid_mm for one in primary], axis=0, weights=weights)
        offset = centre[0] - midline_mm
        values["primary_lateral_offset_mm"] = abs(offset)
        if abs(offset) > MIDLINE_MM:
            values["nodes_contralateral_volume_ml"] = float(right if offset > 0 else left)
    if primary and nodes:
        at = np.array([one.centroid_mm for one in nodes])
        caudal = centre[2] - at[:, 2]
        values["nodes_lowest_caudal_mm"] = float(caudal.max())
        values["nodes_mean_caudal_mm"] = float(np.average(caudal, weights=volumes))
        values["nodes_farthest_from_primary_mm"] = float(cdist(at, centre[None]).max())
    return values


def _midline_mm(mask: np.ndarray, ct_hu: np.ndarray, spacing: np.ndarray) -> float:
    """x of the body's middle, mm from the first voxel: median over the slices with lesions.

    Halfway between the outermost voxels above -300 HU of each slice; the array's middle where
    there are none.
    """
    body = np.any(ct_hu[bounding_box(mask > 0)[0]] > BODY_HU, axis=1)  # [z, x]
    body = body[np.any(body, axis=1)]
    last = ct_hu.shape[2] - 1
    if not len(body):
        return last / 2 * float(spacing[2])
    middles = (body.argmax(axis=1) + last - body[:, ::-1].argmax(axis=1)) / 2
    return float(np.median(middles) * spacing[2])


def _texture(
    image: np.ndarray, region: np.ndarray, width: float, limits: tuple[float, float]
) -> dict[str, float]:
    """First-order, histogram and merged co-occurrence features of one image in one region."""
    levels = np.where(region, discretise(image, width, limits), 0)
    return {
        **intensity_statistics(image[region]),
        **histogram_features(levels[region]),
        **{f"glcm_{k}": v for k, v in glcm_features(glcm(levels).sum(axis=0)).items()},
    }


def pool_encoder_features(feature_maps: Sequence[torch.Tensor], mask: np.ndarray) -> LesionFeatures:
    """Mean and maximum inside the lesions of each channel of each encoder stage.

    The mask is brought to each stage's grid by max-pooling, so that no lesion is lost on a coarse
    grid. The stage's stride on an axis is taken as the smallest power of two that covers the mask,
    as a network has it that pads its input at the end.

    Args:
        feature_maps: ``[c, z, y, x]`` of each stage, on any device, of any float type.
        mask: label map ``[z, y, x]`` of the network's input; lesions are where it is above 0.

    Returns:
        The stages' means and maxima side by side, named ``encoder<stage>_mean_<channel>`` and
        ``encoder<stage>_max_<channel>``, then ``encoder_lesion_present``: 0 where there is no
        lesion, and then every other value is the channel's mean over the whole map.

    Raises:
        ValueError: no maps, or a map or mask of other axes.
    """
    if not feature_maps or mask.ndim != 3 or any(m.ndim != 4 for m in feature_maps):
        raise ValueError(
            f"{len(feature_maps)} feature maps of shapes {[tuple(m.shape) for m in feature_maps]}, "
            f"mask {mask.shape}: expected at least one map [c, z, y, x] and a mask [z, y, x]"
        )
    lesion = np.ascontiguousarray(mask > 0)
    names: list[str] = []
    values: list[np.ndarray] = []
    for stage, features in enumerate(feature_maps):
        pooled = _pool_stage(features.detach().float(), torch.from_numpy(lesion))
        for kind, vector in zip(("mean", "max"), pooled, strict=True):
            names += [f"encoder{stage}_{kind}_{channel}" for channel in range(len(vector))]
            values.append(vector.cpu().numpy())
    names.append("encoder_lesion_present")
    values.append(np.array([lesion.any()], dtype=np.float32))
    return LesionFeatures(tuple(names), np.concatenate(values))


def _pool_stage(features: torch.Tensor, lesion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and maximum ``[c]`` of a stage's ``[c, z, y, x]`` in the lesion, or the overall mean."""
    size = features.shape[1:]
    strides = [
        2 ** math.ceil(math.log2(max(1, full / small)))
        for full, small in zip(lesion.shape, size, strict=True)
    ]
    padding = [
        edge
        for full, small, stride in zip(lesion.shape, size, strides, strict=True)
        for edge in (small * stride - full, 0)
    ][::-1]
    padded = functional.pad(lesion[None, None].float(), padding)
    inside = functional.max_pool3d(padded, strides)[0, 0].to(features.device) > 0
    chosen = features[:, inside]  # [c, voxels]
    if not chosen.shape[1]:
        overall = features.mean(dim=(1, 2, 3))
        return overall, overall
    return chosen.mean(dim=1), chosen.amax(dim=1)


# --- Checks and small helpers --------------------------------------------------------------------


def _check(
    mask: np.ndarray, ct_hu: np.ndarray, pet_suv: np.ndarray, spacing_zyx: Spacing
) -> np.ndarray:
    spacing = np.asarray(spacing_zyx, dtype=float)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing is {spacing_zyx}, expected three positive numbers (mm)")
    if mask.ndim != 3 or not mask.size or mask.dtype.kind not in "biu":
        raise CaseError(
            f"mask is {mask.dtype} of shape {mask.shape}, expected whole numbers [z, y, x]"
        )
    if mask.min() < 0 or mask.max() > GTVN:
        raise CaseError(f"mask holds values from {mask.min()} to {mask.max()}, expected 0, 1, 2")
    for name, image in (("CT", ct_hu), ("PET", pet_suv)):
        if image.shape != mask.shape:
            raise CaseError(f"{name} has shape {image.shape}, expected the mask's {mask.shape}")
        if not np.isfinite(image).all():
            bad = int(image.size - np.isfinite(image).sum())
            raise CaseError(f"{name} has {bad} voxels that are NaN or infinite, expected none")
    return spacing


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
