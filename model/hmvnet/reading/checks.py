"""Whether a CT holds HU, a PET can hold SUV, and both can be of one examination.

What people's converters do to a CT is known: the rescale intercept left out, signed values stored
as unsigned, a padding far below air. What can be undone without doubt is, aloud; what cannot be HU
is refused. All that is needed is where air, fat, soft tissue and bone lie in the histogram.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from hmvnet.case import HU_OF_AIR, Case, CaseError, ClinicalRecord, Finding, Grid, Outcome

MAX_NON_FINITE_FRACTION = 0.05

# A CT in HU, as shares of its voxels above PADDING_HU.
PADDING_HU = -1100.0  # air with its noise ends here
AIR_HU, FAT_HU, TISSUE_HU, LUNG_HU = (-1100, -800), (-150, -30), (-200, 200), (-800, -200)
DENSE_HU, BONE_HU = 1000, 300  # metal and the densest bone; any bone
LEAST_AIR, LEAST_FAT, LEAST_TISSUE, MOST_DENSE = 0.001, 0.005, 0.01, 0.2
MOST_HU = 32767  # of two bytes, which all scanners store; more was negative once
MOST_OFF_AIR = 80.0  # HU, of air's commonest value; 0 to 24 in 35 scans of sarcomas
MOST_STREAKS = 0.05  # below air, of metal; beyond, it is padding or the CT is no HU
SAMPLED_VOXELS = 500_000
# What DICOM's rescale intercept is known to be, CT's and that of shifted unsigned values; negative:
# subtracted twice.
INTERCEPTS = (1024, 1000, 8192, 32768, -1024, -1000)
WRAPPED = "wrapped"  # the other repair: signed 16-bit values stored as unsigned ones

MAX_NEGATIVE_FRACTION = 0.2  # of a PET; reconstructions have some in air


def checked_case(
    patient_id: str,
    ct: sitk.Image,
    pet: sitk.Image,
    *,
    record: ClinicalRecord | None = None,
    truth: sitk.Image | None = None,
    outcome: Outcome | None = None,
    notes: tuple[str, ...] = (),
    findings: tuple[Finding, ...] = (),
    suv_factor: float | None = None,
) -> Case:
    """A case of finite voxels, a CT in HU, a PET that overlaps it, truth on the CT grid.

    Args:
        findings: what makes the case doubtful already.
        suv_factor: what the PET's values are to be multiplied by to be SUV; None: they are.

    Raises:
        CaseError: the images cannot belong to one PET/CT examination, are not HU and SUV, hold too
            many non-finite voxels, or no signal at all.
    """
    found, doubts = list(notes), list(findings)
    ct = _finite(ct, "CT", HU_OF_AIR, found)
    pet = _finite(pet, "PET", 0.0, found)
    if suv_factor is not None:
        pet = sitk.Cast(pet, sitk.sitkFloat32) * suv_factor
        found.append(f"PET image: multiplied by {suv_factor:g}, as given, to be SUV")
    _check_overlap(Grid.of(ct), Grid.of(pet))
    ct = _hounsfield(ct, found, doubts)
    pet = _checked_uptake(pet, found)
    if truth is not None and not Grid.of(truth).same_as(Grid.of(ct), tolerance_mm=0.1):
        raise CaseError(
            f"{patient_id}: label grid (size {truth.GetSize()}, spacing "
            f"{_rounded(truth.GetSpacing())}) is not the CT's (size {ct.GetSize()}, spacing "
            f"{_rounded(ct.GetSpacing())})"
        )
    found.extend(finding.text for finding in doubts)
    record = record or ClinicalRecord()
    return Case(patient_id, ct, pet, record, truth, outcome, tuple(found), tuple(doubts))


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(v, 4) for v in values)


def _finite(image: sitk.Image, name: str, fill: float, notes: list[str]) -> sitk.Image:
    """The image with non-finite voxels replaced by ``fill``; integer images are passed through."""
    if image.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64):
        return image
    array = sitk.GetArrayViewFromImage(image)
    # The sum is finite only if every voxel is (an overflow only costs the exact count below).
    if np.isfinite(np.sum(array, dtype=np.float64)):
        return image
    bad = ~np.isfinite(array)
    fraction = bad.mean()
    if fraction > MAX_NON_FINITE_FRACTION:
        raise CaseError(
            f"{name} image: {fraction:.0%} of the voxels are NaN or infinite, expected at most "
            f"{MAX_NON_FINITE_FRACTION:.0%}",
            "not-finite",
        )
    notes.append(f"{name} image: {int(bad.sum())} NaN or infinite voxels replaced by {fill:g}")
    return Grid.of(image).image(np.where(bad, np.asarray(fill, array.dtype), array))


def _check_overlap(ct: Grid, pet: Grid) -> None:
    common = ct.intersection(pet)
    # 30 mm along each axis: less than that cannot hold a neck, whatever was scanned.
    needed = np.minimum(30.0, 0.5 * (ct.extent()[1] - ct.extent()[0]))
    if common is None or (common[1] - common[0] < needed).any():
        found = "none" if common is None else " x ".join(f"{v:.0f}" for v in common[1] - common[0])
        raise CaseError(
            f"PET and CT do not overlap enough in physical space (common box in mm: {found}); "
            "expected one examination in one frame of reference",
            "no-overlap",
        )


@dataclass(frozen=True)
class _Histogram:
    """Whole values of voxels, ascending, and how many have each."""

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> _Histogram:
        step = max(1, int(np.cbrt(array.size / SAMPLED_VOXELS)))
        return cls(*np.unique(np.rint(array[::step, ::step, ::step]), return_counts=True))

    def moved(self, values: np.ndarray) -> _Histogram:
        """The same voxels with other values."""
        return _Histogram(values, self.counts)

    @property
    def padding(self) -> float:
        """The share of all voxels below air."""
        return float(self.counts[self.values < PADDING_HU].sum() / self.counts.sum())

    @property
    def is_padded(self) -> bool:
        """Whether what lies below air is one value; streaks and a CT that is no HU have many."""
        below = self.counts[self.values < PADDING_HU]
        return self.padding >= LEAST_AIR and below.max() > 0.5 * below.sum()

    def share(self, low: float, high: float = np.inf) -> float:
        """The share of voxels from ``low`` to ``high``, of those that are no padding."""
        kept = self.counts[self.values >= PADDING_HU].sum()
        among = self.counts[(self.values >= low) & (self.values <= high)].sum()
        return float(among / kept) if kept else 0.0

    @property
    def is_hounsfield(self) -> bool:
        """Whether there is air, and soft tissue beside it."""
        tissue = self.share(*TISSUE_HU)
        return (
            (self.is_padded or self.padding <= MOST_STREAKS)
            and self.values[-1] <= MOST_HU
            and self.share(*AIR_HU) >= LEAST_AIR
            and self.off_air <= MOST_OFF_AIR
            and tissue >= max(LEAST_TISSUE, self.share(*LUNG_HU))
            and self.share(DENSE_HU) <= MOST_DENSE
        )

    @property
    def is_body_alone(self) -> bool:
        """Whether there is fat, soft tissue and bone as in HU, though no air."""
        return (
            (self.is_padded or self.padding <= MOST_STREAKS)
            and self.share(*FAT_HU) >= LEAST_FAT
            and self.share(*TISSUE_HU) >= 0.2
            and self.share(BONE_HU) > 0
            and self.share(DENSE_HU) <= MOST_DENSE
        )

    @property
    def off_air(self) -> float:
        """How far the commonest value of air is from -1000 HU."""
        air = (self.values >= AIR_HU[0]) & (self.values <= AIR_HU[1])
        return abs(float(self.values[air][self.counts[air].argmax()]) - HU_OF_AIR)


def _hounsfield(image: sitk.Image, notes: list[str], findings: list[Finding]) -> sitk.Image:
    """The CT in HU; what was done to it is undone where that is beyond doubt.

    Raises:
        CaseError: its values cannot be HU, nor become it in a known way.
    """
    array = sitk.GetArrayViewFromImage(image)
    low, high = array.min(), array.max()
    if high <= low:
        raise CaseError("CT image: every voxel has the same value", "constant-image")
    found = _Histogram.of(array)
    how = ""
    if not found.is_hounsfield and not found.is_body_alone:
        known = [c for c in _repairs(found) if c[1].is_hounsfield and c[1].share(BONE_HU) > 0]
        if not known:
            raise CaseError(
                f"CT image: {found.share(*AIR_HU):.1%} of the voxels are between {AIR_HU[0]} and "
                f"{AIR_HU[1]} HU, where air is, and values reach from {low:g} to {high:g}; "
                "expected HU (is the rescale slope applied, are CT and PET exchanged?)",
                "ct-not-hu",
            )
        how, found = min(known, key=lambda c: c[1].off_air)
        array = _unwrapped(array) if how == WRAPPED else array.astype(np.float32) - float(how)
        text = f"CT image: not in HU; {_repair_text(how)}"
        findings.append(Finding("ct-repaired", text))
    elif not found.is_hounsfield:
        findings.append(Finding("ct-without-air", "CT image: no air around or in the patient"))
    if found.is_padded:
        notes.append(
            f"CT image: {found.padding:.0%} of the voxels are below {PADDING_HU:g} HU: padding, "
            f"set to {HU_OF_AIR:g}"
        )
        array = np.where(array < PADDING_HU, np.asarray(HU_OF_AIR, array.dtype), array)
    elif not how:
        return image
    return Grid.of(image).image(np.ascontiguousarray(array))


def _repairs(found: _Histogram) -> Iterator[tuple[str, _Histogram]]:
    """What a CT may have been before it was stored, by how it came to what it is."""
    yield WRAPPED, found.moved(_unwrapped(found.values))
    for intercept in INTERCEPTS:
        yield str(intercept), found.moved(found.values - intercept)


def _unwrapped(values: np.ndarray) -> np.ndarray:
    """Signed 16-bit values that were stored as unsigned ones."""
    return np.where(values > 32767, values - np.float32(65536), values).astype(np.float32)


def _repair_text(how: str) -> str:
    if how == WRAPPED:
        return "unsigned values above 32767 taken for negative ones"
    return f"rescale intercept {-int(how):+d} taken to be missing and added"


def _checked_uptake(pet: sitk.Image, notes: list[str]) -> sitk.Image:
    """The PET, without negative values where there are such as noise or rounding do not make."""
    array = sitk.GetArrayViewFromImage(pet)
    low, high = float(array.min()), float(array.max())
    if high <= max(low, 0.0):
        raise CaseError(
            "PET image: no voxel holds a positive value that differs from the rest",
            "constant-image",
        )
    if low < -0.01 * high:
        step = max(1, int(np.cbrt(array.size / SAMPLED_VOXELS)))
        negative = float((array[::step, ::step, ::step] < -0.01 * high).mean())
        if negative > MAX_NEGATIVE_FRACTION:
            raise CaseError(
                f"PET image: {negative:.0%} of the voxels are negative, expected SUV (are CT and "
                "PET exchanged?)",
                "pet-not-suv",
            )
        notes.append("PET image: negative values, treated as 0 SUV")
        return sitk.Maximum(pet, 0.0)
    return pet
