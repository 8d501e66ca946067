"""A data folder as nnU-Net's raw data: ``imagesTr``, ``labelsTr`` and ``dataset.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from hmvnet.case import CLASSES, Case, CaseError, Grid
from hmvnet.exits import RefusedError, shown
from hmvnet.files import make_folder, write_text
from hmvnet.imaging.resample import resample_pet_ct
from hmvnet.reading.images import holds_image, write_image

ENDING = ".nii.gz"
CHANNELS = ("CT", "PET")


def write_images(case: Case, folder: Path) -> list[Path]:
    """A case's CT (HU) and PET (SUV), both on the CT's grid, as nnU-Net's channels 0 and 1.

    Returns:
        The two files.
    """
    images = _images(case, folder)
    for path, image in images.items():
        write_image(image, path)
    return list(images)


def _images(case: Case, folder: Path) -> dict[Path, sitk.Image]:
    grid = Grid.of(case.ct)
    pet = grid.image(np.ascontiguousarray(resample_pet_ct(case, grid)[1]))
    paths = [folder / f"{case.patient_id}_{channel:04d}{ENDING}" for channel in (0, 1)]
    return dict(zip(paths, (case.ct, pet), strict=True))


class DatasetWriter:
    """Writes cases one by one, and the description at the end.

    Both images of a case lie on the CT's grid, as nnU-Net asks for: the PET is resampled linearly,
    as prediction does it.

    Raises:
        RefusedError: the folder's name is none that nnU-Net takes, or something is in it and
            ``go_on`` is not asked for.
    """

    def __init__(self, folder: Path, go_on: bool = False) -> None:
        if not re.fullmatch(r"Dataset\d{3}_\w+", folder.name):
            raise RefusedError(f"{folder}: expected a name as Dataset501_Name, three digits")
        if not go_on and folder.exists() and any(folder.iterdir()):
            raise RefusedError(
                f"{folder} is there already, and not empty; --continue goes on with what is missing"
            )
        self.folder = folder
        self.cases: set[str] = set()
        if (path := folder / "dataset.json").exists() and self._said(path) != self._content():
            raise RefusedError(f"{path}: of another data set than this command writes")
        make_folder(folder)

    def write(self, case: Case) -> bool:
        """One case's CT (HU), PET (SUV) and labels.

        Returns:
            Whether it was written, and not there already.

        Raises:
            CaseError: it has no truth, or other images lie under its name.
        """
        if case.truth is None:
            raise CaseError(f"patient {case.patient_id}: no label")
        images = _images(case, self.folder / "imagesTr")
        label = self.folder / "labelsTr" / f"{case.patient_id}{ENDING}"  # the last to be written
        images[label] = case.truth
        if is_new := not label.exists():
            for path, image in images.items():
                write_image(image, path)
        elif not all(holds_image(path, image) for path, image in images.items()):
            raise CaseError(f"patient {case.patient_id}: {label} is there, and of other images")
        self.cases.add(case.patient_id)
        return is_new

    @staticmethod
    def _content() -> dict[str, Any]:
        return {
            "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
            "labels": {name: value for value, name in enumerate(CLASSES)},
            "file_ending": ENDING,
        }

    @staticmethod
    def _said(path: Path) -> dict[str, Any]:
        """What a description says but for the number of patients; nothing of a damaged one."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            return {key: value for key, value in said.items() if key != "numTraining"}
        except (OSError, ValueError, AttributeError):
            return {}

    def close(self) -> None:
        """Write ``dataset.json``.

        Raises:
            RefusedError: no case was written, or others lie there, as of an earlier call.
        """
        if not self.cases:
            raise RefusedError(f"{self.folder}: no patient could be written")
        found = {p.name.removesuffix(ENDING) for p in (self.folder / "labelsTr").glob("*")}
        if others := sorted(found - self.cases):
            raise RefusedError(
                f"{self.folder / 'labelsTr'}: {len(others)} patients that were not written now "
                f"({', '.join(map(shown, others[:5]))}); remove them, and go on with --continue"
            )
        content = self._content() | {"numTraining": len(self.cases)}
        write_text(json.dumps(content, indent=2) + "\n", self.folder / "dataset.json")
