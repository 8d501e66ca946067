"""Whether PET and CT show one patient, in one place, the same way up, and uptake that is SUV.

Measured where two things must agree whatever the tracer did: the outline of the body, and the
median uptake in it, which is near 1 because SUV divides by the mean over the body. On 35 PET/CTs
of sarcomas the outlines overlap with a Dice of 0.81 to 0.97, and the median is 0.39 to 1.07 SUV;
what follows for PETs in other units is in docs/how-to/predict.md. Outlines that look alike, as two
heads in one place do, tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk

from hmvnet.case import Case, CaseError, Finding, Grid
from hmvnet.imaging.coarse import COARSE_MM, Coarse, lps_lattice, outline
from hmvnet.imaging.resample import resample

DICE_DOUBTFUL, DICE_REFUSED = 0.78, 0.5
TURNED_GAIN = 0.1  # in Dice, by turning the PET over
# Voxels of the coarse lattice that the PET is moved by to see whether the outlines agree better:
# in no known case by more than 0.033, in phantoms by about 0.04 and more where it is 12 mm off.
MOVES, MOVED_GAIN = (-5, -3, 3, 5), 0.034
DIRECTIONS = ("head to feet", "front to back", "left to right")
SUV_USUAL, SUV_POSSIBLE = (0.25, 1.3), (0.04, 10.0)  # median in the body
SUV_BEYOND = 1000.0  # of any voxel: no organ and no needle holds as much
OUTLINE_SHARE = 0.2  # of the median uptake: what PET shows of the body above air
# Of the body in the region, by the PET and by the CT; in 35 sarcomas 0.95 and 0.895 or more.
LEAST_COVERED, LEAST_COVERED_BY_CT = 0.9, 0.85
LEAST_ML = 200.0  # of body that both images show, to compare outlines


def check_agreement(case: Case, coarse: Coarse) -> tuple[Finding, ...]:
    """What makes it doubtful that PET and CT belong together, or that the PET is in SUV.

    Args:
        coarse: the case's.

    Raises:
        CaseError: they cannot: outlines that do not meet, a PET that lies the other way up or in
            another unit.
    """
    shown = coarse.shown
    body = coarse.body & shown
    if body.sum() * coarse.grid.voxel_ml < LEAST_ML:
        return (Finding("little-body", "PET and CT hardly show the same part of the body"),)
    found = []
    seen = _seen(coarse.pet, body)
    dice = _dice(seen, body, shown)
    if dice < DICE_DOUBTFUL:
        for axis, turned in _turned(case.pet, coarse.grid):
            if _dice(_seen(turned, body), body, shown) > dice + TURNED_GAIN:
                raise CaseError(
                    f"PET and CT: the body's outlines agree once the PET is turned over along "
                    f"{axis} (Dice {dice:.2f} before); expected both the same way up",
                    "pet-turned",
                )
        text = f"PET and CT: the body's outlines overlap with a Dice of {dice:.2f}"
        if dice < DICE_REFUSED:
            raise CaseError(f"{text}; expected one patient in one place", "outlines-apart")
        found.append(Finding("outlines-apart", f"{text}, less than in any known case"))
    if (moved := _better_moved(seen, coarse.body, shown)) is not None:
        found.append(Finding("pet-aside", f"PET and CT: the body's outlines agree better {moved}"))
    return (*found, *_doubts_of_unit(coarse, body))


def check_covered(case: Case, coarse: Coarse, region: Grid) -> tuple[Finding, ...]:
    """Whether PET and CT each show the body that the other shows in the region of networks.

    Beyond the PET uptake counts as 0; beyond the CT no mask can show a lesion.

    Args:
        coarse: the case's.
        region: its grid, along the lattice's axes.
    """
    return (*_pet_covers(coarse, region), *_ct_covers(case, coarse, region))


def _pet_covers(coarse: Coarse, region: Grid) -> Iterator[Finding]:
    low, high = (np.rint(i).astype(int) for i in coarse.grid.indices(np.stack(region.extent())))
    ends = zip(low[::-1], high[::-1], strict=True)
    box = tuple(slice(max(first, 0), max(last + 1, 0)) for first, last in ends)
    body, shown = coarse.body[box], coarse.shown[box].copy()
    filled = np.flatnonzero(coarse.pet.any(axis=(1, 2)))  # not padded with zeros at the ends
    at = np.arange(len(coarse.pet))[box[0]]
    shown[~np.isin(at, np.arange(filled[0], filled[-1] + 1) if filled.size else [])] = False
    share = float((body & shown).sum() / max(int(body.sum()), 1))
    if body.any() and share < LEAST_COVERED:
        yield _short("pet-short", "PET", share)


def _ct_covers(case: Case, coarse: Coarse, region: Grid) -> Iterator[Finding]:
    ct = Grid.of(case.ct)
    body = coarse.body & coarse.shown
    if ct.covers(region) or not body.any():
        return
    lattice = lps_lattice(*region.extent())
    seen = resample(case.pet, lattice, fill=0.0) > _least_uptake(coarse.pet, body)
    at = np.argwhere(outline(seen))
    share = float((ct.depth(lattice.points(at[:, ::-1])) >= 0).mean()) if len(at) else 1.0
    if share < LEAST_COVERED_BY_CT:
        yield _short("ct-short", "CT", share)


def _short(code: str, which: str, share: float) -> Finding:
    text = f"the {which} covers {share:.0%} of the body in the region that is looked at"
    return Finding(code, f"{text}: what is beyond it is not found")


def _seen(pet: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The body as a PET shows it."""
    return outline(pet > _least_uptake(pet, body))


def _least_uptake(pet: np.ndarray, body: np.ndarray) -> float:
    """Above it a PET shows the body, and not air."""
    return max(OUTLINE_SHARE * float(np.median(pet[body])), 1e-6)


def _dice(seen: np.ndarray, body: np.ndarray, shown: np.ndarray) -> float:
    """Dice of the body as PET and as CT show it, where both do."""
    seen, body = seen & shown, body & shown
    return float(2 * (seen & body).sum() / max(int(seen.sum() + body.sum()), 1))


def _better_moved(seen: np.ndarray, body: np.ndarray, shown: np.ndarray) -> str | None:
    """Where the PET would have to lie for the outlines to agree better; None: where it does."""
    gain, move = MOVED_GAIN, None
    for axis, direction in enumerate(DIRECTIONS):
        for voxels in MOVES:
            # Without what the move brings round from the other end.
            kept = slice(max(voxels, 0), seen.shape[axis] + min(voxels, 0))
            part = tuple(kept if i == axis else slice(None) for i in range(3))
            both = (shown & np.roll(shown, voxels, axis))[part]
            here = _dice(seen[part], body[part], both)
            moved = _dice(np.roll(seen, voxels, axis)[part], body[part], both)
            if moved - here > gain:
                gain = moved - here
                move = (
                    f"with the PET moved {abs(voxels) * COARSE_MM:.0f} mm, {direction} or back "
                    f"(Dice {here:.2f} to {moved:.2f})"
                )
    return move


def _turned(pet: sitk.Image, grid: Grid) -> Iterator[tuple[str, np.ndarray]]:
    """The PET turned over along each of its own axes but the first, in its own place, on ``grid``.

    Left and right look alike.
    """
    array = sitk.GetArrayViewFromImage(pet)
    for axis, name in enumerate(("its slices", "its rows")):
        turned = Grid.of(pet).image(np.ascontiguousarray(np.flip(array, axis)))
        yield name, resample(turned, grid, fill=0.0)


def _doubts_of_unit(coarse: Coarse, body: np.ndarray) -> list[Finding]:
    """Whether the uptake can be SUV (body weight)."""
    median, highest = float(np.median(coarse.pet[body])), float(coarse.pet.max())
    text = f"PET image: the median in the body is {median:.3g}, the highest value {highest:.3g}"
    if not SUV_POSSIBLE[0] <= median <= SUV_POSSIBLE[1]:
        raise CaseError(
            f"{text}; SUV (g/mL, body weight) is expected, whose median is "
            f"{SUV_USUAL[0]:g} to {SUV_USUAL[1]:g}; is it Bq/mL?",
            "pet-not-suv",
        )
    if not SUV_USUAL[0] <= median <= SUV_USUAL[1] or highest > SUV_BEYOND:
        return [Finding("pet-unit", f"{text}: unusual for SUV (g/mL, body weight)")]
    return []
