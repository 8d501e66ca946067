"""One scan from Python: ``from hmvnet import predict``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hmvnet.bundle import Manifest
from hmvnet.case import ClinicalRecord, Grid
from hmvnet.pipeline import Pipeline, Prediction, load_pipeline
from hmvnet.reading.checks import checked_case
from hmvnet.reading.images import checked_image, image_of, read_image
from hmvnet.reading.records import parse_record, read_health_record
from hmvnet.writing.folder import write_folder

Image = str | Path | sitk.Image | tuple[np.ndarray, Grid]
Record = str | Path | Mapping[str, object] | ClinicalRecord


@dataclass(frozen=True, kw_only=True)
class Result(Prediction):
    """A prediction that can be saved.

    Attributes:
        manifest: of the bundle that made it.
        device: that it was made on.
    """

    manifest: Manifest = field(repr=False)
    device: str

    def save(self, folder: str | Path, *, picture: bool = True, page: bool = False) -> Path:
        """Write mask, report, lesion table and pictures to a folder, in an earlier result's place.

        Warns where the picture or the page could not be written; all else is whole then.

        Args:
            picture: whether to draw slices and projections; the thumbnail is always made.
            page: whether to write a page to look at, with the images in it.

        Raises:
            RefusedError: the folder holds something that is not of an earlier result.
        """
        folder = Path(folder)
        for problem in write_folder(
            self, self.manifest, folder, device=self.device, picture=picture, page=page
        ):
            warnings.warn(problem, stacklevel=2)
        return folder


def predict(
    ct: Image,
    pet: Image,
    record: Record | None = None,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    settings: str | Sequence[str] = (),
    patient_id: str = "patient",
) -> Result:
    """Segment one scan, measure its lesions and, where the bundle can, predict the RFS risk.

    >>> result = predict("ct.nii.gz", "pet.nii.gz", {"Age": 62})  # doctest: +SKIP
    >>> result.save("out")  # doctest: +SKIP

    The bundle stays loaded between calls of the same ``weights``, ``device`` and ``settings``.

    Args:
        ct, pet: CT in HU and PET in SUV (body weight), each a file, a SimpleITK image, or an array
            ``[z, y, x]`` with its ``hmvnet.Grid``.
        record: the health record by HECKTOR's column names, or an ``ehr.json``; None: none.
        weights: a bundle's folder, or ``<URL>#sha256=<hash>``; None: the shipped one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.
        settings: in the place of the bundle's, as ``"data.region=centre"``.

    Raises:
        RefusedError: the images, the record, the bundle or a setting cannot be used.
    """
    (ct_image, ct_notes), (pet_image, pet_notes) = _image(ct, "CT"), _image(pet, "PET")
    health, notes = _record(record)
    notes = (*ct_notes, *pet_notes, *notes)
    case = checked_case(patient_id, ct_image, pet_image, record=health, notes=notes)
    given = (settings,) if isinstance(settings, str) else tuple(settings)
    pipeline = _pipeline(str(weights or ""), device, given)
    prediction = pipeline(case)
    return Result(**vars(prediction), manifest=pipeline.manifest, device=str(pipeline.device))


@lru_cache(maxsize=1)
def _pipeline(weights: str, device: str, overrides: tuple[str, ...]) -> Pipeline:
    return load_pipeline(weights or None, device, overrides)


def _image(given: Image, name: str) -> tuple[sitk.Image, tuple[str, ...]]:
    if isinstance(given, sitk.Image):
        return checked_image(given, name)
    if isinstance(given, tuple):
        return image_of(*given, name)
    return read_image(Path(given))


def _record(given: Record | None) -> tuple[ClinicalRecord, tuple[str, ...]]:
    if given is None:
        return ClinicalRecord(), ()
    if isinstance(given, ClinicalRecord):
        return given, ()
    if isinstance(given, Mapping):
        return parse_record(given, "record")
    return read_health_record(Path(given))
