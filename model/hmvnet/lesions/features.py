"""One vector of named numbers for each patient, always of the same names.

``lesion_features`` from label map, CT and PET; ``pool_encoder_features`` from what the
segmentation network saw in the lesions.

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.spatial.distance import cdist, pdist
from torch.nn import functional

from hmvnet.case import GTVN, GTVP
from hmvnet.imaging.components import bounding_box
from hmvnet.lesions.ibsi import (
    Spacing,
    discretise,
    glcm,
    glcm_features,
    histogram_features,
    intensity_statistics,
    morphology,
)
from hmvnet.lesions.midline import body_middle_mm
from hmvnet.lesions.table import Lesion, check_input, lesion_table
from hmvnet.networks.output import stride_of

PET_BIN_SUV, PET_RANGE_SUV = 0.5, (0.0, 100.0)
CT_BIN_HU, CT_RANGE_HU = 25.0, (-200.0, 300.0)
MIDLINE_MM = 10.0  # a centroid closer than this to the midline is on neither side
# Ratios to a mean that may be 0 HU.
NOT_FOR_CT = frozenset({"coefficient_of_variation", "quartile_dispersion"})


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
                f"{len(missing)} of {len(names)} lesion features that a model was "
                f"trained on are not there, e.g. {missing[0]}: the bundle's parts do not fit"
            )
        return LesionFeatures(tuple(names), self.values[[place[name] for name in names]])


def lesion_features(
    mask: np.ndarray, ct_hu: np.ndarray, pet_suv: np.ndarray, spacing_zyx: Spacing
) -> LesionFeatures:
    """The patient's lesions as one vector, always of the same names (``feature_names``).

    Names start with what they describe: ``total``, ``primary`` (all GTVp voxels) or ``nodes`` (all
    GTVn voxels; ``nodes_largest`` is the node of largest volume); the unit ends the name.
    ``*_pet_*`` and ``*_ct_*`` are IBSI's intensity statistics, histogram and volume-merged
    co-occurrence features. The module's docstring says what stands where there is no lesion.

    Positions: ``*_caudal_mm`` is how far below the primary's centroid nodes lie (negative above),
    ``nodes_bilateral`` is 1 where node centroids lie on both sides of the body's midline, and
    ``nodes_contralateral_volume_ml`` is the nodal volume on the side away from the primary (or, for
    a midline or unknown primary, on the side with less of it).

    Args:
        mask, ct_hu, pet_suv: as for ``lesion_table``; axes along x, y, z of the patient.
        spacing_zyx: voxel size in mm, the same on all axes to 1 %, for co-occurrence compares
            neighbours in all directions alike.

    Raises:
        CaseError, ValueError: as ``lesion_table``; ValueError for an anisotropic spacing.
    """
    spacing = check_input(mask, ct_hu, pet_suv, spacing_zyx)
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
    features |= _spread(primary, nodes, body_middle_mm(mask, ct_hu, spacing))
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
    """The names of ``lesion_features``, in order."""
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
    grid, its strides being those of ``hmvnet.networks.output.stride_of``.

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
    strides = [stride_of(full, small) for full, small in zip(lesion.shape, size, strict=True)]
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
