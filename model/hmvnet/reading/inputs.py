"""What ``hmvnet predict`` is given: a challenge's folder, a data folder, or a CT and a PET."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hmvnet.case import Case, ClinicalRecord
from hmvnet.exits import RefusedError
from hmvnet.reading.challenge import is_challenge_folder, read_case
from hmvnet.reading.checks import checked_case
from hmvnet.reading.folder import find_scans, image_stem
from hmvnet.reading.images import SUFFIXES, read_image
from hmvnet.reading.records import read_health_record

NO_RECORD: tuple[str, ...] = ("no health record: every field treated as missing",)
CT_ENDINGS = ("__CT", "_0000", "_CT", "_ct")


class Source(Protocol):
    """A patient that can be read."""

    @property
    def patient_id(self) -> str: ...

    def read(self) -> Case:
        """The patient's case. Raises: CaseError."""


@dataclass(frozen=True)
class ChallengeFolder:
    """A grand-challenge input folder: one patient, named after the folder (or its parent)."""

    folder: Path
    needs_record: bool = True

    @property
    def patient_id(self) -> str:
        folder = self.folder.resolve()
        named = folder.parent if folder.name == "input" and folder.parent.name else folder
        return named.name

    def read(self) -> Case:
        return read_case(self.folder, needs_record=self.needs_record)


@dataclass(frozen=True)
class Pair:
    """A CT and a PET file, and perhaps a health record."""

    ct: Path
    pet: Path
    record: Path | None = None

    @property
    def patient_id(self) -> str:
        name = image_stem(self.ct, SUFFIXES) or self.ct.stem
        for ending in CT_ENDINGS:
            name = name.removesuffix(ending)
        if name.lower() in ("", "ct"):  # the folder is what tells such files apart
            name = self.ct.resolve().parent.name
        return name or "patient"

    def read(self) -> Case:
        ct, ct_notes = read_image(self.ct)
        pet, pet_notes = read_image(self.pet)
        record, notes = ClinicalRecord(), NO_RECORD
        if self.record:
            record, notes = read_health_record(self.record)
        notes = (*ct_notes, *pet_notes, *notes)
        return checked_case(self.patient_id, ct, pet, record=record, notes=notes)


def find_sources(
    inputs: Sequence[Path], record: Path | None = None, *, needs_record: bool = True
) -> Sequence[Source]:
    """The patients in what was given.

    Args:
        inputs: a CT and a PET file, in this order; or one folder: a grand-challenge input folder
            (``images/ct``, ``images/pet``, ``ehr.json``), a HECKTOR folder, an nnU-Net folder
            (``imagesTs`` or ``imagesTr``).
        record: the health record of a CT and a PET.
        needs_record: whether a damaged health record is to be refused: where a risk is wanted.

    Raises:
        RefusedError: it is none of these; says what was found and what was expected.
    """
    given = [*inputs, *([record] if record else [])]
    if absent := [str(path) for path in given if not path.exists()]:
        raise RefusedError(f"{absent[0]}: no such file or folder")
    if len(inputs) == 2 and all(path.is_file() for path in inputs):
        if inputs[0].samefile(inputs[1]):
            raise RefusedError(f"{inputs[0]} is given as CT and as PET, expected two files")
        return [Pair(inputs[0], inputs[1], record)]
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise RefusedError(
            f"found {', '.join(map(str, inputs)) or 'no input'}; expected one folder, or a CT file "
            "and a PET file"
        )
    if record:
        raise RefusedError("--record goes with a CT and a PET file; a folder holds its own records")
    (folder,) = inputs
    if is_challenge_folder(folder):
        return [ChallengeFolder(folder, needs_record)]
    return find_scans(folder)
