"""Zips: unpacked into a folder that goes away, never out of it, never beyond measure."""

from __future__ import annotations

import lzma
import os
import tempfile
import zipfile
import zlib
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import IO

from hmvnet.case import CaseError

# What zipfile and its decompressors raise.
DAMAGED = (
    *(zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError),
    *(zlib.error, lzma.LZMAError),
)
MOST_BYTES, MOST_FILES, MOST_INFLATION = 64 << 30, 200_000, 200


def unzipped(path: Path) -> tuple[object, Path]:
    """A zip's content in a folder of its own, which goes when what is returned first does.

    Raises:
        CaseError: it is not readable, leads out of its folder, or inflates beyond measure.
    """
    folder = tempfile.TemporaryDirectory(prefix="hmvnet-")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if (
                size > MOST_BYTES
                or len(entries) > MOST_FILES
                or size > MOST_INFLATION * max(path.stat().st_size, 1 << 20)
            ):
                raise CaseError(
                    f"{path.name}: {len(entries)} files of {size} bytes in a zip of "
                    f"{path.stat().st_size}, expected at most {MOST_INFLATION} times as many"
                )
            for number, entry in enumerate(entries):
                inside = PurePosixPath(entry.filename.replace("\\", "/"))
                if not inside.parts:  # the folder itself
                    continue
                if inside.is_absolute() or ".." in inside.parts or ":" in inside.parts[0]:
                    raise CaseError(f"{path.name}: a file in the zip leads out of it")
                if entry.is_dir():
                    continue
                target = Path(folder.name, f"{number:06d}")  # names are not needed
                with archive.open(entry) as source, target.open("wb") as sink:
                    _copy(source, sink, entry.file_size)
                os.utime(target, (0, _moment(entry)))
    except DAMAGED as error:
        # What it says may name files, and they a patient.
        why = "encrypted" if "encrypted" in str(error) else f"damaged ({type(error).__name__})"
        raise CaseError(f"{path.name}: not readable as a zip: {why}") from None
    return folder, Path(folder.name)


def _moment(entry: zipfile.ZipInfo) -> float:
    """The time that the zip gives a file, for the same whenever it is unpacked."""
    try:
        return datetime(*entry.date_time, tzinfo=timezone.utc).timestamp()
    except ValueError:  # a month 0, as zips have it that know no time
        return 0.0


def _copy(source: IO[bytes], sink: IO[bytes], size: int) -> None:
    """``size`` bytes; a file that goes on beyond what the zip says of it is damaged."""
    left = size
    while chunk := source.read(1 << 20):
        left -= len(chunk)
        if left < 0:
            raise zipfile.BadZipFile("a file is longer than the zip says")
        sink.write(chunk)
