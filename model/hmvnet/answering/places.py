"""What an input folder holds, as far as names and headers show it; nothing here ever fails."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from hmvnet.case import CaseError, Grid
from hmvnet.exits import RefusedError
from hmvnet.files import lies_inside, name_for_libraries
from hmvnet.reading.challenge import Sockets, read_sockets, socket_files
from hmvnet.reading.headers import checked_grid
from hmvnet.reading.images import has_image_suffix, read_geometry

UNREADABLE = (RefusedError, OSError, RuntimeError, ValueError)  # ITK's errors are RuntimeErrors
SMALLEST = Grid((2, 2, 2), (1.0, 1.0, 1.0))  # of a mask where there is no image


def places(input_dir: Path) -> Sockets:
    """Where the inputs lie; the usual places where ``inputs.json`` cannot be used."""
    try:
        return read_sockets(input_dir.resolve())[0]
    except (CaseError, OSError):
        return Sockets()


def image_files(input_dir: Path, place: Path, usual: Path) -> list[Path]:
    """The image files of a socket, then those where it would usually lie."""
    found: list[Path] = []
    for folder in dict.fromkeys((input_dir / place, input_dir / usual)):
        try:
            files = socket_files(folder)
        except OSError:
            continue
        found += [p for p in files if has_image_suffix(p) and p not in found]
    return [p for p in found if lies_inside(input_dir, p.relative_to(input_dir))]


def grid_of_answer(input_dir: Path) -> tuple[Grid, str]:
    """The grid on which a mask can be given, and whose it is.

    The CT's, else the PET's, else the smallest that there is.
    """
    sockets, usual = places(input_dir), Sockets()
    for name, paths in (
        ("CT", image_files(input_dir, sockets.ct, usual.ct)),
        ("PET", image_files(input_dir, sockets.pet, usual.pet)),
    ):
        for path in paths:
            if (grid := _grid_of(path)) is not None:
                return grid, name
    return SMALLEST, "no image"


def _grid_of(path: Path) -> Grid | None:
    try:
        return read_geometry(path)
    except UNREADABLE:
        pass
    try:  # what is refused above may still have a size and a place
        reader = sitk.ImageFileReader()
        reader.SetFileName(name_for_libraries(path))
        reader.ReadImageInformation()
        if reader.GetDimension() != 3:
            return None
        geometry = (reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
        return checked_grid(reader.GetSize(), *geometry, path.name)[0]
    except UNREADABLE:
        return None
