"""Folders of many patients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from hypothesis import strategies as st

from fuzz.samples import Draw, File, Found, Kind, Link, Pipe, Right, Sample
from fuzz.sockets import mha, scan
from hmvnet.reading.folder import find_patients

NAMES = ["A-001", "B-2", "Zoë_7", "ünï 3", "007", "x.y-4", "病人-5"]
LAYOUTS = {
    "2025": ("Task 1/{0}/{0}__CT.mha", "Task 1/{0}/{0}__PT.mha", "Task 1/{0}/{0}.mha"),
    "plain": ("{0}/{0}__CT.mha", "{0}/{0}__PT.mha", "{0}/{0}.mha"),
    "2022": ("imagesTr/{0}__CT.nii", "imagesTr/{0}__PT.nii", "labelsTr/{0}.nii"),
    "nnunet": ("imagesTr/{0}_0000.nii", "imagesTr/{0}_0001.nii", "labelsTr/{0}.nii"),
}


def _label(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (8, 9, 10)).astype("u1")


def nii(array: np.ndarray, spacing: float = 5.0) -> bytes:
    """A small NIfTI file."""
    image = nib.Nifti1Image(array.T, np.diag([-spacing, -spacing, spacing, 1.0]))
    return image.to_bytes()


@dataclass
class Patients(Sample):
    """Whose files are there, in which layout."""

    layout: str = "plain"
    names: list[str] = field(default_factory=list)
    root: str = ""

    def place(self, name: str, index: int) -> str:
        """Where a patient's CT, PET or label lies: 0, 1 or 2."""
        return self.root + LAYOUTS[self.layout][index].format(name)

    def encode(self) -> dict[str, File]:
        write = mha if self.layout in ("2025", "plain") else nii
        laid: dict[str, File] = {}
        for name in self.names:
            arrays = (scan("ct"), scan("pet"), _label(len(name)))
            laid |= {self.place(name, i): write(array) for i, array in enumerate(arrays)}
        laid |= self.files
        return {name: content for name, content in laid.items() if content != b"gone"}

    def any_place(self, draw: Draw) -> str:
        name = draw(st.sampled_from(self.names))
        self.named = (name,)
        return self.place(name, draw(st.integers(0, 2)))


def _clean(draw: Draw) -> Patients:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    values: dict[str, Any] = {
        name: {"ct": scan("ct"), "pet": scan("pet"), "truth": _label(len(name))} for name in names
    }
    return Patients(values, layout=draw(st.sampled_from(sorted(LAYOUTS))), names=names)


def _read(folder: Path, sample: Patients) -> Found:
    cases = [patient.read() for patient in find_patients(folder / sample.root)]
    assert [case.patient_id for case in cases] == sorted(case.patient_id for case in cases)
    arrays = {
        case.patient_id: {
            "ct": sitk.GetArrayFromImage(case.ct),
            "pet": sitk.GetArrayFromImage(case.pet),
            "truth": sitk.GetArrayFromImage(case.truth) if case.truth else None,
        }
        for case in cases
    }
    return Found(arrays, tuple(note for case in cases for note in case.notes))


FOLDER = Kind("folder", _clean, _read, refusals=(ValueError,))


@FOLDER.mutation(Right.SAME)
def deep_inside(draw: Draw, patients: Patients) -> None:
    patients.root = draw(
        st.sampled_from(["a/b/c/d/e/f/", "Ü ñ/", "imagesTs data/", "x" * 200 + "/"])
    )


@FOLDER.mutation(Right.SAME)
def a_macs_companions(draw: Draw, patients: Patients) -> None:
    for name in list(patients.encode()):
        folder, _, file = name.rpartition("/")
        patients.files[f"{folder}/._{file}"] = b"\0\5\x16\7\xff"
    patients.files |= {"._A": b"\0", ".DS_Store": b"\0", ".hidden/.hidden__CT.mha": b"\0"}


@FOLDER.mutation(Right.SAME)
def other_files(draw: Draw, patients: Patients) -> None:
    patients.files |= {"readme.txt": b"x", "empty/readme.txt": b"", "other/scan.mha": b"nonsense"}


@FOLDER.mutation(Right.SAME)
def links_to_files(draw: Draw, patients: Patients) -> None:
    place = patients.any_place(draw)
    patients.files |= {f"store/{place}": patients.encode()[place]}
    patients.files[place] = Link("../" * place.count("/") + f"store/{place}")


@FOLDER.mutation(Right.SAME)
def a_table_beside(draw: Draw, patients: Patients) -> None:
    rows = "".join(f"{name},61.5,0,100\n" for name in patients.names)
    patients.files |= {"table.csv": f"PatientID,Age,Relapse,RFS\n{rows}".encode()}


@FOLDER.mutation(Right.REFUSED)
def a_file_that_is_not_there(draw: Draw, patients: Patients) -> None:
    place = patients.any_place(draw)
    patients.files[place] = draw(st.sampled_from([b"gone", Link("nowhere"), Pipe(), Link(".")]))
    patients.named = (*patients.named, "holds no patients")


@FOLDER.mutation(Right.REFUSED)
def a_damaged_file(draw: Draw, patients: Patients) -> None:
    place = patients.any_place(draw)
    data = patients.encode()[place]
    assert isinstance(data, bytes)
    patients.files[place] = data[: draw(st.integers(0, len(data) - 1))]


@FOLDER.mutation(Right.REFUSED)
def labels_of_other_values(draw: Draw, patients: Patients) -> None:
    name = draw(st.sampled_from(patients.names))
    label = _label(1) + draw(st.integers(3, 200))
    write = mha if patients.layout in ("2025", "plain") else nii
    patients.files[patients.place(name, 2)] = write(label.astype("u1"))
    patients.named = (name,)


@FOLDER.mutation(Right.REFUSED)
def labels_on_another_grid(draw: Draw, patients: Patients) -> None:
    name = draw(st.sampled_from(patients.names))
    smaller = _label(1)[:, :, : draw(st.integers(2, 9))]
    write = mha if patients.layout in ("2025", "plain") else nii
    patients.files[patients.place(name, 2)] = write(np.ascontiguousarray(smaller))
    patients.named = (name,)


@FOLDER.mutation(Right.REFUSED)
def a_ct_in_the_pets_place(draw: Draw, patients: Patients) -> None:
    """Of a body somewhere else."""
    name = draw(st.sampled_from(patients.names))
    moved = mha(scan("pet")).replace(b"Offset = 0", b"Offset = 900")
    patients.layout = draw(st.sampled_from(["plain", "2025"]))
    patients.files[patients.place(name, 1)] = moved
    patients.named = (name,)


@FOLDER.mutation(Right.REFUSED)
def nobody(draw: Draw, patients: Patients) -> None:
    patients.files |= {"readme.txt": b"x", "a/b.mha": b"x"}
    patients.names, patients.named = [], ("holds no patients",)
