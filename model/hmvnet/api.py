"""One scan from Python: ``from hmvnet import predict``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hmvnet.bundle import Manifest, find_bundle, load_bundle
from hmvnet.case import Case, ClinicalRecord, Grid
from hmvnet.pipeline import Pipeline, Prediction
from hmvnet.reading.images import read_image
from hmvnet.reading.records import parse_record, read_health_record
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.settings_file import load_settings
from hmvnet.writing.folder import write_folder

Image = str | Path | sitk.Image | tuple[np.ndarray, Grid]
Record = str | Path | Mapping[str, object] | ClinicalRecord


@dataclass(frozen=True)
class Result(Prediction):
    """A prediction that can be saved.

    Attributes:
        manifest: of the bundle that made it.
        device: that it was made on.
    """

    manifest: Manifest = field(repr=False)
    device: str

    def save(self, folder: str | Path, *, picture: bool = True) -> Path:
        """Write mask, report, lesion table and picture to a folder, in an earlier result's place.

        Warns where the picture could not be drawn; all else is whole then.

        Raises:
            RefusedError: the folder holds something that is not of an earlier result.
        """
        folder = Path(folder)
        for problem in write_folder(
            self, self.manifest, folder, device=self.device, picture=picture
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
    settings: Sequence[str] = (),
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
        ValueError: a setting is unknown or out of range.
    """
    (ct_image, ct_notes), (pet_image, pet_notes) = _image(ct), _image(pet)
    health, notes = _record(record)
    notes = (*ct_notes, *pet_notes, *notes)
    case = Case.of(patient_id, ct_image, pet_image, record=health, notes=notes)
    pipeline = _pipeline(str(weights or ""), device, tuple(settings))
    prediction = pipeline(case)
    return Result(**vars(prediction), manifest=pipeline.manifest, device=str(pipeline.device))


@lru_cache(maxsize=1)
def _pipeline(weights: str, device: str, overrides: tuple[str, ...]) -> Pipeline:
    settings = load_settings(None, overrides)
    bundle, notes = load_bundle(find_bundle(weights or None)).adjusted(settings)
    needs_risk = bundle.manifest.prognosis is not None
    return Pipeline(
        bundle, pick_device(device), settings.inference, needs_risk=needs_risk, notes=notes
    )


def _image(given: Image) -> tuple[sitk.Image, tuple[str, ...]]:
    if isinstance(given, sitk.Image):
        return given, ()
    if isinstance(given, tuple):
        array, grid = given
        return grid.image(np.asarray(array)), ()
    return read_image(Path(given))


def _record(given: Record | None) -> tuple[ClinicalRecord, tuple[str, ...]]:
    if given is None:
        return ClinicalRecord(), ("no health record: every field treated as missing",)
    if isinstance(given, ClinicalRecord):
        return given, ()
    if isinstance(given, Mapping):
        return parse_record(given, "record")
    return read_health_record(Path(given))
