"""One row for each lesion: label map + CT + PET -> volumes, SUVs, shape, necrosis.

A lesion is a 26-connected component of one label. Nothing is resampled.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter

from hmvnet.case import GTVN, GTVP, CaseError
from hmvnet.imaging.components import Box, bounding_box, lesions_of, widened, within
from hmvnet.lesions.ibsi import PEAK_RADIUS_MM, Spacing, intensity_peak, morphology

# Necrosis shows as low attenuation inside a lesion; fat and air in reach of the mask do not count.
NECROSIS_HU, NECROSIS_DEPTH_MM, NECROSIS_SIGMA_MM = (-30.0, 30.0), 3.0, 1.0


@dataclass(frozen=True)
class Lesion:
    """One lesion: a 26-connected component of one label.

    ``centroid_mm`` is (x, y, z), from the centre of the array's first voxel along the array's axes:
    on a grid with identity direction, add the grid's origin for LPS. Volume, MTV and TLG count
    voxels; surface, sphericity and diameter are those of the mesh (``Morphology``).
    ``mtv41_ml`` is the volume at or above 41 % of the lesion's own SUV max, ``tlg`` the SUV mean
    times the whole volume (SUV x mL). ``necrosis_ml``: see ``necrosis_volume``.
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
    return numbered_lesions(mask, ct_hu, pet_suv, spacing_zyx)[0]


def numbered_lesions(
    mask: np.ndarray, ct_hu: np.ndarray, pet_suv: np.ndarray, spacing_zyx: Spacing
) -> tuple[list[Lesion], np.ndarray]:
    """``lesion_table``, and where each lesion lies.

    Returns:
        The lesions, and uint16 ``[z, y, x]``: their numbers in that list, from 1, 0 outside.
    """
    spacing = check_input(mask, ct_hu, pet_suv, spacing_zyx)
    found = [
        (_lesion(label, where, box, ct_hu, pet_suv, spacing), where, box)
        for label in (GTVP, GTVN)
        for box, where in lesions_of(mask == label)
    ]
    found.sort(key=lambda one: (one[0].label, -one[0].volume_ml, one[0].centroid_mm))
    numbers = np.zeros(mask.shape, np.uint16)
    for number, (_, where, box) in enumerate(found, start=1):
        numbers[box][where] = number
    return [lesion for lesion, _, _ in found], numbers


def check_input(
    mask: np.ndarray, ct_hu: np.ndarray, pet_suv: np.ndarray, spacing_zyx: Spacing
) -> np.ndarray:
    """Refuses what cannot be measured; arguments and errors as for ``lesion_table``.

    Returns:
        The spacing in mm as an array ``[3]``.
    """
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
        suv_peak=suv_peak_in_box(pet_suv, where, box, spacing),
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


def suv_peak_in_box(pet_suv: np.ndarray, where: np.ndarray, box: Box, spacing: np.ndarray) -> float:
    """``intensity_peak`` of a component, with the PET around it but no full-size mask."""
    wide = widened(box, np.ceil(PEAK_RADIUS_MM / spacing).astype(int), pet_suv.shape)
    return intensity_peak(pet_suv[wide], within(where, box, wide), spacing)
