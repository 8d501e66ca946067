"""A case made of an input that is refused.

What is assumed for it is among the case's findings: its result is a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hmvnet.answering.places import UNREADABLE, grid_of_answer, image_files, places
from hmvnet.case import HU_OF_AIR, Case, ClinicalRecord, Finding, Grid
from hmvnet.imaging.agreement import SUV_POSSIBLE
from hmvnet.imaging.coarse import Coarse
from hmvnet.reading.challenge import Sockets, read_case, read_record
from hmvnet.reading.images import read_image

SALVAGED = "salvaged"  # the findings' code
WATER_HU = 0.0
BODY_SHARE = 0.02  # of a PET's 99th percentile: the body holds more, air less
USUAL_SUV = 0.65  # median in the body, the geometric middle of 0.39 to 1.07 in 35 scans of sarcomas


@dataclass(frozen=True)
class Salvaged:
    """What was found in an input folder.

    Attributes:
        case: None where no image can be read.
        record: the health record; empty where it cannot be read.
        grid: of the mask that is asked for, as far as a header shows it.
        refusal: why it is refused; empty where it is not, and the case is ``read_case``'s.
        is_without_ct: whether the case's CT is a stand-in.
    """

    case: Case | None
    record: ClinicalRecord
    grid: Grid
    refusal: str = ""
    is_without_ct: bool = False


def salvage(input_dir: Path) -> Salvaged:
    """The case in an input folder; as ``read_case`` gives it wherever that does not refuse it."""
    try:
        case = read_case(input_dir)
        return Salvaged(case, case.record, Grid.of(case.ct))
    except UNREADABLE as error:
        refusal = str(error)
    sockets, usual = places(input_dir), Sockets()
    try:
        record, notes = read_record(input_dir.resolve(), sockets.record, needed=True)
    except UNREADABLE:
        record, notes = ClinicalRecord(), (f"{sockets.record}: every field treated as missing",)
    grid, _ = grid_of_answer(input_dir)
    ct = _first_image(image_files(input_dir, sockets.ct, usual.ct))
    pet = _first_image(image_files(input_dir, sockets.pet, usual.pet))
    if ct is None and pet is None:
        return Salvaged(None, record, grid, refusal)
    case = _mended(ct, pet, (refusal, *notes))
    return Salvaged(replace(case, record=record), record, grid, refusal, ct is None)


def in_usual_suv(case: Case) -> Case:
    """The case with a PET that can be SUV: scaled, where needed, to the body's usual median."""
    coarse = Coarse.of(case)
    body = coarse.pet[coarse.body & (coarse.pet > 0)]
    median = float(np.median(body)) if len(body) else USUAL_SUV
    if SUV_POSSIBLE[0] <= median <= SUV_POSSIBLE[1]:
        return case
    factor = USUAL_SUV / median
    text = (
        f"PET image: the median in the body is {median:.3g}, the highest value "
        f"{coarse.pet.max():.3g}; multiplied by {factor:.3g}, which gives it a usual uptake"
    )
    return replace(
        case,
        pet=sitk.Cast(case.pet, sitk.sitkFloat32) * factor,
        notes=(*case.notes, text),
        findings=(*case.findings, Finding(SALVAGED, text)),
    )


def _first_image(paths: Sequence[Path]) -> sitk.Image | None:
    for path in paths:
        try:
            return read_image(path)[0]
        except UNREADABLE:
            continue
    return None


def _mended(ct: sitk.Image | None, pet: sitk.Image | None, notes: tuple[str, ...]) -> Case:
    """Finite voxels, a stand-in for an image that is missing, and one frame."""
    assumed = []
    if pet is not None:
        pet = _finite(pet, 0.0)
    if ct is not None:
        ct = _finite(ct, HU_OF_AIR)
    elif pet is None:
        raise ValueError("no image, expected one at least")
    else:
        ct = _outlined(pet)
        assumed.append("CT image: water where the PET shows a body")
    if pet is None:
        pet = Grid.of(ct).image(np.zeros(Grid.of(ct).shape, np.float32))
        assumed.append("PET image: no uptake")
    if Grid.of(ct).intersection(Grid.of(pet)) is None:
        pet = _centred(pet, Grid.of(ct))
        assumed.append("PET image: in the CT's middle")
    findings = tuple(Finding(SALVAGED, text) for text in (*notes[:1], *assumed))
    return Case("case", ct, pet, notes=(*notes, *assumed), findings=findings)


def _finite(image: sitk.Image, fill: float) -> sitk.Image:
    array = sitk.GetArrayFromImage(image)
    if np.isfinite(array).all():
        return image
    return Grid.of(image).image(np.where(np.isfinite(array), array, np.asarray(fill, array.dtype)))


def _outlined(pet: sitk.Image) -> sitk.Image:
    """A body of water where a PET shows one, in HU."""
    array = sitk.GetArrayFromImage(pet)
    shown = array > BODY_SHARE * np.percentile(array, 99)
    return Grid.of(pet).image(np.where(shown, WATER_HU, HU_OF_AIR).astype(np.float32))


def _centred(pet: sitk.Image, ct: Grid) -> sitk.Image:
    grid, moved = Grid.of(pet), sitk.Image(pet)
    move = ct.corners().mean(axis=0) - grid.corners().mean(axis=0)
    moved.SetOrigin((np.asarray(grid.origin) + move).tolist())
    return moved
