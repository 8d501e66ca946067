"""grand-challenge sockets: the folder /input to a Case.

The 2025 interface has fixed paths; the 2026 one also writes ``inputs.json``, whose entries carry
``socket`` or (older) ``interface`` with a slug and a relative path.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from hmvnet.case import Case, CaseError, ClinicalRecord, plain_name
from hmvnet.files import lies_inside, visible
from hmvnet.reading.checks import checked_case
from hmvnet.reading.images import SUFFIXES, has_image_suffix, read_image
from hmvnet.reading.records import read_health_record, read_json


@dataclass(frozen=True)
class Sockets:
    """Where each input lies, relative to the input folder."""

    ct: Path = Path("images/ct")
    pet: Path = Path("images/pet")
    record: Path = Path("ehr.json")


YEARS = ("2025", "2026")
# What only the 2025 platform gives, and only the 2026 one.
OF_2025 = ("images/ct-planning", "images/rt-dose")
FIELD_OF_2025, FIELD_OF_2026 = "M-stage", "HPV Status"

_SLUGS = {
    "ct": {"ct-image", "ct", "computed-tomography-image"},
    "pet": {"pet-image", "pet", "pt-image"},
    "record": {"electronic-health-record", "ehr"},
}


def is_challenge_folder(folder: Path) -> bool:
    """Whether a folder looks like a grand-challenge input, rather than a data set."""
    return any((folder / name).exists() for name in ("inputs.json", "images/ct", "images/pet"))


def recognised_year(input_dir: Path) -> tuple[str, str]:
    """Which year's platform made an input folder, and what shows it; never fails.

    The health record of 2025 has an M-stage and no HPV status, that of 2026 the reverse; planning
    CT and dose are of 2025. Where none of that is there, ``inputs.json`` speaks for 2026.
    """
    for place in OF_2025:
        if (input_dir / place).exists():
            return "2025", f"{place} is there"
    try:
        sockets, _ = read_sockets(input_dir.resolve())
        record, _ = read_record(input_dir.resolve(), sockets.record, needed=True)
        fields = {plain_name(name) for name in record.values}
    except (CaseError, OSError):
        fields = set()
    for year, name in zip(YEARS, (FIELD_OF_2025, FIELD_OF_2026), strict=True):
        if plain_name(name) in fields:
            return year, f"ehr.json has '{name}'"
    if (input_dir / "inputs.json").exists():
        return "2026", "inputs.json is there"
    return "2025", "nothing speaks for 2026"


def read_case(input_dir: Path, *, needs_record: bool = True) -> Case:
    """The one case in a grand-challenge input folder.

    Args:
        input_dir: the folder, or a symlink to it.
        needs_record: whether a damaged ``ehr.json`` is an error (Task 2) or a note (Task 1). A
            missing one is a note for both: the survival model takes missing fields.

    Raises:
        CaseError: what is wrong with the input, in one line without patient data.
    """
    try:
        root = input_dir.resolve(strict=True)
    except OSError as error:
        raise CaseError(f"input folder {input_dir} does not exist") from error
    if not root.is_dir():
        raise CaseError(f"input {input_dir} is not a folder")
    sockets, socket_notes = read_sockets(root)
    with ThreadPoolExecutor(max_workers=2) as pool:  # inflating frees the GIL
        reads = [pool.submit(_read_socket_image, root, s) for s in (sockets.ct, sockets.pet)]
        (ct, ct_notes), (pet, pet_notes) = (read.result() for read in reads)
    record, record_notes = read_record(root, sockets.record, needs_record)
    notes = (*socket_notes, *ct_notes, *pet_notes, *record_notes)
    return checked_case("case", ct, pet, record=record, notes=notes)


def read_sockets(root: Path) -> tuple[Sockets, tuple[str, ...]]:
    """Where ``inputs.json`` says that the inputs lie, and notes on it.

    Args:
        root: the input folder, links resolved.

    Raises:
        CaseError: a place outside the folder, or two places of one input.
    """
    listing = root / "inputs.json"
    if not listing.exists():
        return Sockets(), ()
    _check_inside(root, listing.name, f"{listing.name}: the file")
    try:
        raw, notes = read_json(listing)
    except CaseError as error:
        return Sockets(), (f"{error}; standard paths used",)
    if not isinstance(raw, list):
        return Sockets(), (*notes, "inputs.json: not a list of sockets; standard paths used")
    found: dict[str, Path] = {}
    for entry in raw:
        socket = _socket_of(entry)
        slug, relative = socket.get("slug"), socket.get("relative_path")
        if not isinstance(slug, str) or not isinstance(relative, str):
            continue
        name = next((n for n, slugs in _SLUGS.items() if slug in slugs), None)
        if name is None:
            continue
        _check_inside(root, relative, f"inputs.json: relative_path of '{slug}'")
        if found.setdefault(name, Path(relative)) != Path(relative):
            raise CaseError(f"inputs.json: two places of '{slug}', expected one")
    return Sockets(**found), notes


def _check_inside(root: Path, relative: Path | str, what: str) -> None:
    if not lies_inside(root, relative):
        raise CaseError(f"{what} leaves the input folder, or is no path; expected one inside it")


def _socket_of(entry: object) -> Mapping[str, object]:
    if isinstance(entry, Mapping):
        for key in ("socket", "interface"):
            if isinstance(entry.get(key), Mapping):
                return entry[key]
    return {}


def socket_files(place: Path) -> list[Path]:
    """The file that a socket names itself, or the images in its folder, by name."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        return []
    return [p for p in visible(place.iterdir()) if p.is_file() and has_image_suffix(p)]


def _read_socket_image(root: Path, relative: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    files = socket_files(root / relative)
    if not files:
        raise CaseError(f"no image in {relative}: expected one file ({', '.join(SUFFIXES)})")
    if len(files) > 1:
        raise CaseError(f"{len(files)} images in {relative}, expected one")
    _check_inside(root, files[0].relative_to(root), f"{relative}: the image")
    try:
        image, notes = read_image(files[0])
    except CaseError as error:
        raise CaseError(f"{relative}: {error}", error.code) from error
    return image, tuple(f"{relative}: {note}" for note in notes)


def read_record(root: Path, relative: Path, needed: bool) -> tuple[ClinicalRecord, tuple[str, ...]]:
    """The health record, and notes on it; one that is not there is empty.

    Raises:
        CaseError: it is damaged, and needed; or a link leaves the folder.
    """
    path = root / relative
    if not path.exists():
        return ClinicalRecord(), (f"{path.name}: not found",)
    _check_inside(root, relative, f"{relative}: the health record")
    try:
        return read_health_record(path)
    except CaseError as error:
        if needed:
            raise
        return ClinicalRecord(), (f"{error}; not needed for this task",)
