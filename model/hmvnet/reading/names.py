"""What lies in a folder: names that count, and what is left out and why."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from hmvnet.files import visible

NAMED = 5  # names in a message; of others how many there are
_BACKUP = re.compile(
    r"~|~\$.*|#.*#|.*~|.*\.(bak|tmp|temp|part|partial|crdownload|orig|old|swp)"
    r"|thumbs\.db|desktop\.ini|__macosx",
    re.IGNORECASE,
)
# What file managers and browsers add, before an ending or at the end: "a copy.csv", "a (1).csv".
_COPY = re.compile(
    r"^copy (\(\d+\) )?of |(( -)? |_)copy( ?\(?\d+\)?)?(?=\.|$)| ?\(\d+\)(?=\.|$)", re.IGNORECASE
)


class LeftOut(NamedTuple):
    """A file or folder that is not read, and why."""

    path: Path
    why: str


def entries(folder: Path, left_out: list[LeftOut]) -> list[Path]:
    """What lies in a folder, sorted, without what is nobody's data.

    Names that start with a dot are passed over. Backups, temporary files, copies of what lies
    beside them and links to nothing are added to ``left_out``.
    """
    with os.scandir(folder) as listing:  # tells links without a look at every file
        links = {item.name: item.is_symlink() for item in listing}
    kept = []
    for path in visible(folder / name for name in links):
        original = _COPY.sub("", path.name, count=1)
        if _BACKUP.fullmatch(path.name):
            left_out.append(LeftOut(path, "a backup or temporary file"))
        elif original != path.name and original in links:
            left_out.append(LeftOut(path, "a copy of what lies beside it"))
        elif links[path.name] and not path.exists():
            left_out.append(LeftOut(path, "a link to nothing"))
        else:
            kept.append(path)
    return kept


def first(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
