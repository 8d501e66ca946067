"""A data folder as nnU-Net's raw data: ``imagesTr``, ``labelsTr`` and ``dataset.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from hmvnet.case import CLASSES, Case, CaseError, Grid
from hmvnet.exits import RefusedError
from hmvnet.files import make_folder, write_text
from hmvnet.imaging.resample import resample_pet_ct
from hmvnet.reading.images import write_image

ENDING = ".nii.gz"
CHANNELS = ("CT", "PET")


def write_images(case: Case, folder: Path) -> list[Path]:
    """A case's CT (HU) and PET (SUV), both on the CT's grid, as nnU-Net's channels 0 and 1.

    Returns:
        The two files.
    """
    grid = Grid.of(case.ct)
    pet = grid.image(np.ascontiguousarray(resample_pet_ct(case, grid)[1]))
    paths = [folder / f"{case.patient_id}_{channel:04d}{ENDING}" for channel in (0, 1)]
    for path, image in zip(paths, (case.ct, pet)):
        write_image(image, path)
    return paths


class DatasetWriter:
    """Writes cases one by one, and the description at the end.

    Both images of a case lie on the CT's grid, as nnU-Net asks for: the PET is resampled linearly,
    as prediction does it.

    Raises:
        RefusedError: the folder's name is none that nnU-Net takes, or something is in it.
    """

    def __init__(self, folder: Path) -> None:
        if not re.fullmatch(r"Dataset\d{3}_\w+", folder.name):
            raise RefusedError(f"{folder}: expected a name as Dataset501_Name, three digits")
        if folder.exists() and any(folder.iterdir()):
            raise RefusedError(f"{folder} is there already, and not empty")
        make_folder(folder)
        self.folder = folder
        self.written = 0

    def write(self, case: Case) -> None:
        """One case's CT (HU), PET (SUV) and labels.

        Raises:
            CaseError: it has no truth.
        """
        if case.truth is None:
            raise CaseError(f"patient {case.patient_id}: no label")
        write_images(case, self.folder / "imagesTr")
        write_image(case.truth, self.folder / "labelsTr" / f"{case.patient_id}{ENDING}")
        self.written += 1

    def close(self) -> None:
        """Write ``dataset.json``.

        Raises:
            RefusedError: no case was written.
        """
        if not self.written:
            raise RefusedError(f"{self.folder}: no patient could be written")
        content = {
            "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
            "labels": {name: value for value, name in enumerate(CLASSES)},
            "numTraining": self.written,
            "file_ending": ENDING,
        }
        write_text(json.dumps(content, indent=2) + "\n", self.folder / "dataset.json")
