"""What the segmentation encoder saw in the primary and in the largest node, part by part.

    features = crop_features(segmentation.encoder_maps, labels, spacing)

The encoder is frozen: it was trained to segment, and its maps are made by the pass that segments.
Of each stage's map a crop around the lesion is averaged over parts of it (``PARTS``): pooling over
a pyramid of regions (Lazebnik, Schmid, Ponce, "Beyond bags of features", CVPR 2006), here over a
lesion, its surroundings and its halves. Left and right have no part of their own, as a mirrored
patient has the same risk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from hmvnet.case import GTVN, GTVP
from hmvnet.imaging.components import Box, bounding_box, lesions_of, widened
from hmvnet.lesions.features import LesionFeatures
from hmvnet.networks.output import stride_of

LESIONS = ("primary", "node")
# Mean and deviation in the lesion; mean in the shell around it; mean of its upper half less that
# of its lower one, and of the front half less the back one.
PARTS = ("mean", "spread", "shell", "upper", "front")
SHELL_MM = 6.0
FINEST = 2  # maps, at a quarter and an eighth of the resolution; the others' voxels span a lesion


def crop_features(
    feature_maps: Sequence[np.ndarray | Tensor], mask: np.ndarray, spacing_zyx: Sequence[float]
) -> LesionFeatures:
    """``crop_<lesion>_<part><stage>_<channel>`` for each of ``LESIONS``, ``PARTS`` and fine stages.

    The primary is all GTVp voxels, the node the largest piece of GTVn. Of a lesion that is not
    there all values are NaN. Without maps there are no features.

    Args:
        feature_maps: ``[c, z, y, x]`` of each stage over the mask's grid, the finest first, as for
            ``pool_encoder_features``.
        mask: label map ``[z, y, x]``, axes along x, y, z of the patient (LPS).
        spacing_zyx: voxel size in mm.
    """
    maps = [torch.as_tensor(m).float() for m in feature_maps[:FINEST]]
    names: list[str] = []
    values: list[np.ndarray] = []
    pieces = {"primary": mask == GTVP, "node": _largest(mask == GTVN)}
    for lesion in LESIONS:
        region = pieces[lesion]
        weights = _parts(region, mask > 0, spacing_zyx) if region.any() else None
        for stage, features in enumerate(maps):
            pooled = _pooled(features, mask.shape, weights)
            for part, vector in pooled.items():
                names += [f"crop_{lesion}_{part}{stage}_{i}" for i in range(len(vector))]
                values.append(vector)
    return LesionFeatures(
        tuple(names), np.concatenate(values) if values else np.zeros(0, np.float32)
    )


def groups_of(names: Sequence[str]) -> np.ndarray:
    """Which features are of one part of one lesion as one stage sees it, ``[n]``, from 0."""
    return np.unique([name.rpartition("_")[0] for name in names], return_inverse=True)[1]


def _largest(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of a region."""
    found = np.zeros_like(region)
    if largest := max(lesions_of(region), key=lambda one: one[1].sum(), default=None):
        box, piece = largest
        found[box][piece] = True
    return found


def _parts(
    region: np.ndarray, lesions: np.ndarray, spacing: Sequence[float]
) -> tuple[Box, dict[str, np.ndarray]]:
    """A box around a lesion, and in it the parts as boolean ``[z, y, x]``."""
    margin = [math.ceil(SHELL_MM / mm) + 1 for mm in spacing]
    box = widened(bounding_box(region), margin, region.shape)
    inside = region[box]
    away = distance_transform_edt(~inside, sampling=spacing)
    height, depth, _ = np.ogrid[tuple(slice(n) for n in inside.shape)]
    centre = np.argwhere(inside).mean(axis=0)
    upper, back = height > centre[0], depth > centre[1]
    return box, {
        "mean": inside,
        "shell": (away > 0) & (away <= SHELL_MM) & ~lesions[box],
        "upper": inside & upper,
        "lower": inside & ~upper,
        "front": inside & ~back,
        "back": inside & back,
    }


def _pooled(
    features: Tensor, shape: Sequence[int], weights: tuple[Box, dict[str, np.ndarray]] | None
) -> dict[str, np.ndarray]:
    """The parts of one stage's map, ``[c]`` each."""
    if weights is None:
        return dict.fromkeys(PARTS, np.full(len(features), np.nan, np.float32))
    strides = [stride_of(full, small) for full, small in zip(shape, features.shape[1:])]
    box, parts = weights
    # To whole voxels of the map.
    first = [s.start // n for s, n in zip(box, strides)]
    last = [-(-s.stop // n) for s, n in zip(box, strides)]
    z, y, x = (slice(a, b) for a, b in zip(first, last))
    crop = features[:, z, y, x].flatten(1)  # [c, voxels]
    pad = [
        edge
        for s, n, a, b in zip(box, strides, first, last)
        for edge in (b * n - s.stop, s.start - a * n)
    ][::-1]

    def mean(part: str) -> tuple[Tensor, Tensor]:
        share = F.avg_pool3d(F.pad(torch.from_numpy(parts[part])[None, None].float(), pad), strides)
        weight = share.flatten()
        return weight / weight.sum().clamp(min=1e-6), crop @ weight / weight.sum().clamp(min=1e-6)

    weight, middle = mean("mean")
    found = {
        "mean": middle,
        "spread": ((crop - middle[:, None]) ** 2 @ weight).clamp(min=0).sqrt(),
        "shell": mean("shell")[1],
        "upper": mean("upper")[1] - mean("lower")[1],
        "front": mean("front")[1] - mean("back")[1],
    }
    return {name: found[name].numpy().astype(np.float32) for name in PARTS}
