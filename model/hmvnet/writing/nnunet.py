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
        grid, name = Grid.of(case.ct), case.patient_id
        pet = np.ascontiguousarray(resample_pet_ct(case, grid)[1])
        images = {
            f"imagesTr/{name}_0000": case.ct,
            f"imagesTr/{name}_0001": grid.image(pet),
            f"labelsTr/{name}": case.truth,
        }
        for path, image in images.items():
            write_image(image, self.folder / f"{path}{ENDING}")
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
