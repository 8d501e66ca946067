"""A cohort as one HTML file: a picture, verdict and figures a patient; it opens with no network.

As :mod:`hmvnet.writing.page` it is a template with a script and the data put in.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hmvnet.exits import RefusedError
from hmvnet.files import write_text
from hmvnet.writing.cohort import (
    cohort_lock,
    cohort_rows,
    failures_files,
    read_failures,
    refuse_foreign_tables,
)
from hmvnet.writing.folder import LESIONS, PAGE, PICTURE, REPORT, THUMBNAIL
from hmvnet.writing.page import filled

INDEX = "index.html"
GENERATOR = b'content="HM-VNet cohort"'
MOST_THUMBNAIL_BYTES = 1 << 15  # of a file in a thumbnail's place
LINKS = {"page": PAGE, "picture": PICTURE, "report": REPORT, "lesions": LESIONS}
# Key in a row, heading, unit, digits; None: a text.
COLUMNS: tuple[tuple[str, str, str, int | None], ...] = (
    ("patient", "patient", "", None),
    ("verdict", "verdict", "", None),
    ("GTVp_lesions", "GTVp", "lesions", 0),
    ("GTVp_ml", "GTVp", "mL", 1),
    ("GTVn_lesions", "GTVn", "lesions", 0),
    ("GTVn_ml", "GTVn", "mL", 1),
    ("suv_max", "SUVmax", "", 1),
    ("tlg", "TLG", "SUV mL", 0),
    ("risk", "risk", "higher: earlier", 2),
    ("share_below", "rank", "share below", 2),
)


def write_index(output: Path) -> Path:
    """``index.html``: a row for each patient's folder under ``output``, and for each failure.

    Raises:
        RefusedError: another's file of this name is there.
    """
    path = output / INDEX
    with cohort_lock(output):
        _refuse_foreign_page(path)
        write_text(filled(Path(__file__), _data(output)), path)
    return path


def refuse_foreign(output: Path) -> None:
    """Before any work: another's file in the place of a table or of the index is refused.

    Raises:
        RefusedError: there is one.
    """
    refuse_foreign_tables(output)
    _refuse_foreign_page(output / INDEX)


def _refuse_foreign_page(path: Path) -> None:
    if path.exists() and GENERATOR not in path.read_bytes()[:4096]:
        raise RefusedError(f"{path} is there, and not what this command writes")


def _data(output: Path) -> dict[str, Any]:
    rows = [_with_files(output / row["patient"], row) for row in cohort_rows(output)]
    there = {row["patient"] for row in rows}
    bare: dict[str, Any] = {key: None for key, *_ in COLUMNS} | {"thumbnail": None, "links": []}
    for name, why in _failures(output).items():
        if name not in there:
            rows.append(bare | {"patient": name, "verdict": "none", "said": why})
    counts = Counter(row["verdict"] for row in rows)
    words = [f"{counts[key]} {word}" for key, word in _VERDICTS.items() if counts[key]]
    return {
        "columns": [
            {"key": key, "name": name, "unit": unit, "kind": "text" if digits is None else "number"}
            | ({} if digits is None else {"digits": digits})
            for key, name, unit, digits in COLUMNS
        ],
        "counts": f"{len(rows)} patients: {', '.join(words) or 'none'}",
        "rows": rows,
    }


_VERDICTS = {"ok": "ok", "review": "to review", "none": "without a result"}


def _with_files(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a patient: figures, picture, and addresses relative to the page."""
    name = os.fsencode(folder.name)  # whatever the locale made of it
    kept = {key: row[key] for key, *_ in COLUMNS} | {"patient": name.decode("utf-8", "replace")}
    links = [
        (label, f"{quote(name, safe='')}/{file}")
        for label, file in LINKS.items()
        if (folder / file).is_file()
    ]
    verdict = {"verdict": row["verdict"] or "review", "said": row["codes"].replace(" ", ", ")}
    return kept | verdict | {"thumbnail": _thumbnail(folder / THUMBNAIL), "links": links}


def _thumbnail(path: Path) -> str | None:
    try:
        if path.stat().st_size <= MOST_THUMBNAIL_BYTES:
            return b64encode(path.read_bytes()).decode()
    except OSError:  # none was asked for
        pass
    return None


def _failures(output: Path) -> dict[str, str]:
    return {
        name: why for path in failures_files(output) for name, why in read_failures(path).items()
    }
