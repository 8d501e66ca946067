"""Patients that other processes read; light to import there, as a worker does."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from hmvnet.case import Case, CaseError
from hmvnet.reading.checks import checked_case


@dataclass(frozen=True)
class Stored:
    """A patient of two files, ``ct.nii.gz`` and ``pet.nii.gz``.

    Attributes:
        trouble: ``broken``: cannot be read; ``once``: the first process that reads it dies;
            ``always``: each does; ``slow``: says that it is at work, and does not end.
    """

    patient_id: str
    folder: Path
    trouble: str = ""

    def read(self) -> Case:
        mark = self.folder / f"{self.patient_id}.{os.getpid()}"
        before = list(self.folder.glob(f"{self.patient_id}.*"))
        mark.touch()
        if self.trouble == "broken":
            raise CaseError(f"patient {self.patient_id}: no image")
        if self.trouble == "always" or (self.trouble == "once" and not before):
            os.kill(os.getpid(), signal.SIGKILL)
        ct, pet = (sitk.ReadImage(str(self.folder / f"{name}.nii.gz")) for name in ("ct", "pet"))
        return checked_case(self.patient_id, ct, pet)
