"""grand-challenge sockets: the folder /input to a Case, a Prediction to the folder /output.

The 2025 interface has fixed paths; the 2026 one also writes ``inputs.json``, whose entries carry
``socket`` or (older) ``interface`` with a slug and a relative path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from hmvnet.case import Case, CaseError, ClinicalRecord
from hmvnet.images import SUFFIXES, has_image_suffix, read_image, write_image
from hmvnet.reading.records import read_health_record, read_json

MASK_PATH = Path("images/tumor-lymph-node-segmentation/output.mha")
RISK_PATH = Path("rfs.json")


@dataclass(frozen=True)
class Sockets:
    """Where each input lies, relative to the input folder."""

    ct: Path = Path("images/ct")
    pet: Path = Path("images/pet")
    record: Path = Path("ehr.json")
    ct_planning: Path = Path("images/ct-planning")
    dose: Path = Path("images/rt-dose")


_SLUGS = {
    "ct": {"ct-image", "ct", "computed-tomography-image"},
    "pet": {"pet-image", "pet", "pt-image"},
    "record": {"electronic-health-record", "ehr"},
    "ct_planning": {"ct-planning-image", "ct-planning", "planning-ct"},
    "dose": {"rt-dose-image", "rt-dose", "radiation-dose-map"},
}


def read_case(input_dir: Path, *, needs_record: bool = True) -> Case:
    """The one case in a grand-challenge input folder.

    Args:
        input_dir: the folder, or a symlink to it.
        needs_record: whether a damaged ``ehr.json`` is an error (Task 2) or a warning (Task 1). A
            missing one is a warning for both: the survival model takes missing fields.

    Raises:
        CaseError: what is wrong with the input, in one line without patient data.
    """
    try:
        root = input_dir.resolve(strict=True)
    except OSError as error:
        raise CaseError(f"input folder {input_dir} does not exist") from error
    if not root.is_dir():
        raise CaseError(f"input {input_dir} is not a folder")
    sockets, warnings = _read_sockets(root)
    names = ("ct", "pet", "ct_planning", "dose")
    images: dict[str, Any] = {}  # required ones are there, or _read_socket_image has raised
    with ThreadPoolExecutor(max_workers=2) as pool:  # inflating frees the GIL
        reads = [
            pool.submit(_read_socket_image, root, getattr(sockets, n), required=n in ("ct", "pet"))
            for n in names
        ]
        for name, read in zip(names, reads, strict=True):
            images[name], notes = read.result()
            warnings += notes
    record, notes = _read_record(root / sockets.record, needs_record)
    return Case.of(
        "case",
        images["ct"],
        images["pet"],
        record=record,
        ct_planning=images["ct_planning"],
        dose=images["dose"],
        warnings=(*warnings, *notes),
    )


class OutputFolder:
    """Writes the outputs of one case: all of them or none.

    Outputs of an earlier run are removed on entry, so that a failure cannot leave a stale mask to
    be taken for a result.
    """

    def __init__(self, output_dir: Path) -> None:
        self.root = output_dir
        self._written: list[Path] = []

    def __enter__(self) -> OutputFolder:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for stale in (MASK_PATH, RISK_PATH):
                (self.root / stale).unlink(missing_ok=True)
        except OSError as error:
            raise CaseError(f"output folder {self.root} cannot be written") from error
        return self

    def write_mask(self, mask: sitk.Image) -> Path:
        """The uint8 label mask on the CT grid."""
        return self._write(MASK_PATH, lambda path: write_image(mask, path))

    def write_json(self, value: float, relative: Path = RISK_PATH) -> Path:
        """One finite number: risk (or expected days, for the 2026 interface)."""
        text = json.dumps(float(value), allow_nan=False)
        return self._write(relative, lambda path: write_text(text, path))

    def _write(self, relative: Path, write) -> Path:
        path = self.root / relative
        self._written.append(path)
        write(path)
        return path

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            for path in self._written:
                path.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text to a temporary name in the same folder, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_sockets(root: Path) -> tuple[Sockets, tuple[str, ...]]:
    listing = root / "inputs.json"
    if not listing.exists():
        return Sockets(), ()
    try:
        raw, warnings = read_json(listing)
    except CaseError as error:
        return Sockets(), (f"{error}; standard paths used",)
    found: dict[str, Path] = {}
    for entry in raw if isinstance(raw, list) else []:
        socket = _socket_of(entry)
        name = next((n for n, slugs in _SLUGS.items() if socket.get("slug") in slugs), None)
        relative = socket.get("relative_path")
        if name is None or not isinstance(relative, str):
            continue
        if not (root / relative).resolve().is_relative_to(root):
            raise CaseError(
                f"inputs.json: relative_path of '{socket['slug']}' leaves the input folder"
            )
        found[name] = Path(relative)
    return Sockets(**found), warnings


def _socket_of(entry: object) -> Mapping[str, object]:
    if isinstance(entry, Mapping):
        for key in ("socket", "interface"):
            if isinstance(entry.get(key), Mapping):
                return entry[key]
    return {}


def _read_socket_image(
    root: Path, relative: Path, *, required: bool
) -> tuple[sitk.Image | None, tuple[str, ...]]:
    folder = root / relative
    files = [folder] if folder.is_file() else []
    if folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.is_file() and has_image_suffix(p))
    if not files:
        if not required:
            return None, ()
        raise CaseError(f"no image in {relative}: expected one file ({', '.join(SUFFIXES)})")
    if len(files) > 1:
        raise CaseError(f"{len(files)} images in {relative}, expected one")
    if not files[0].resolve().is_relative_to(root):
        raise CaseError(f"{relative}: the image is a link that leaves the input folder")
    try:
        image, warnings = read_image(files[0])
    except CaseError as error:
        if required:
            raise CaseError(f"{relative}: {error}") from error
        return None, (f"{relative}: {error}; not used",)
    return image, tuple(f"{relative}: {w}" for w in warnings)


def _read_record(path: Path, needed: bool) -> tuple[ClinicalRecord, tuple[str, ...]]:
    if not path.exists():
        return ClinicalRecord(), (f"{path.name}: not found, every field treated as missing",)
    try:
        return read_health_record(path)
    except CaseError as error:
        if needed:
            raise
        return ClinicalRecord(), (f"{error}; not needed for this task",)
