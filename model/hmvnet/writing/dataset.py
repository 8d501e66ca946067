"""Cases as a data folder that training and evaluation read: ``<id>/<id>__CT.nii.gz`` and so on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import SimpleITK as sitk

from hmvnet.case import Case
from hmvnet.files import replacing
from hmvnet.reading.images import write_image
from hmvnet.table_files import write_table

TABLE = "records.csv"


def write_case(case: Case, root: Path) -> Path:
    """A case's CT (HU), PET (SUV) and, where it is known, truth; its folder whole or not at all."""
    name = case.patient_id
    with replacing(root / name) as folder:
        folder.mkdir()
        write_image(case.ct, folder / f"{name}__CT.nii.gz")
        write_image(sitk.Cast(case.pet, sitk.sitkFloat32), folder / f"{name}__PT.nii.gz")
        if case.truth is not None:
            write_image(case.truth, folder / f"{name}.nii.gz")
    return root / name


def write_records(cases: dict[str, dict[str, float | str | None]], root: Path) -> None:
    """The health records as a table, a row a patient; nothing where nobody has one."""
    if any(cases.values()):
        rows = [{"PatientID": name, **record} for name, record in cases.items()]
        write_table(pd.DataFrame(rows), root / TABLE)
