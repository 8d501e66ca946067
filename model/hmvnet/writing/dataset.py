"""Cases as a data folder that training and evaluation read: ``<id>/<id>__CT.nii.gz`` and so on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import SimpleITK as sitk

from hmvnet.case import Case, CaseError
from hmvnet.exits import RefusedError
from hmvnet.files import replacing
from hmvnet.reading.images import holds_image, write_image
from hmvnet.table_files import read_texts, write_table

TABLE, PATIENT = "records.csv", "PatientID"


class OtherImagesError(CaseError):
    """Under a patient's name lie other images than the patient's."""


class DataFolder:
    """A data folder that cases are written to one by one; what others it holds stays.

    Raises:
        RefusedError: a table of health records is there that names no patients.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        _rows(root / TABLE)

    def write(self, case: Case) -> bool:
        """A case's CT (HU), PET (SUV) and its truth if known; the folder whole or not at all.

        A health record becomes a row of the table; what the row has besides, outcomes that somebody
        entered say, stays.

        Returns:
            Whether it was written, and not there already.

        Raises:
            OtherImagesError: other images lie under the patient's name, or none and the table has
                a row of it: another patient's, perhaps, with outcomes that somebody entered.
        """
        name = case.patient_id
        images = {f"{name}__CT.nii.gz": case.ct}
        images[f"{name}__PT.nii.gz"] = sitk.Cast(case.pet, sitk.sitkFloat32)
        if case.truth is not None:
            images[f"{name}.nii.gz"] = case.truth
        there = self.root / name
        is_new = not there.exists()
        if not is_new:
            found = {path.name for path in there.iterdir()} if there.is_dir() else set()
            same = found == {*images} and all(holds_image(there / n, i) for n, i in images.items())
            if not same:
                raise OtherImagesError(f"patient {name}: {there} is there, and holds other images")
        if is_new and name in _rows(self.root / TABLE):
            raise OtherImagesError(
                f"patient {name}: {self.root / TABLE} has a row of this name, of which there "
                "are no images: another patient's, perhaps; remove the row, or give it as --record"
            )
        if is_new:
            with replacing(there) as folder:
                folder.mkdir()
                for file, image in images.items():
                    write_image(image, folder / file)
        if case.record.values:
            self._write_record(case)
        return is_new

    def _write_record(self, case: Case) -> None:
        from filelock import FileLock  # torch brings it

        with FileLock(self.root / f".{TABLE}.lock"):
            rows = _rows(self.root / TABLE)
            row = rows.get(case.patient_id, {PATIENT: case.patient_id})
            rows[case.patient_id] = {**row, **case.record.values}
            write_table(pd.DataFrame(list(rows.values())), self.root / TABLE)


def _rows(path: Path) -> dict[str, dict[str, object]]:
    """The rows of a table by patient, as they were before they were made harmless."""
    if not path.exists():
        return {}
    try:
        rows = read_texts(path)
    except (OSError, ValueError) as error:
        raise RefusedError(str(error)) from error
    if any(not row.get(PATIENT) for row in rows):
        raise RefusedError(f"{path}: expected a {PATIENT} in each row, as this command writes it")
    names = Counter(row[PATIENT] for row in rows)
    if twice := [name for name, count in names.items() if count > 1]:
        raise RefusedError(f"{path}: {len(twice)} patients have several rows, expected one each")
    return {row[PATIENT]: dict(row) for row in rows}
