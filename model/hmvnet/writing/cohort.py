"""Many patients' results as one table, and those without one as another."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from hmvnet.case import CLASSES
from hmvnet.exits import RefusedError
from hmvnet.table_files import read_texts, write_table
from hmvnet.writing.folder import REPORT

COHORT, FAILURES = "cohort.csv", "failures.csv"
_FAILURES = re.compile(r"failures(-\d+of\d+)?\.csv")  # of the whole and of its parts


def read_report(folder: Path) -> dict[str, Any]:
    """The report in a patient's folder; empty where there is none that is whole."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def write_cohort(output: Path) -> Path:
    """``cohort.csv``: a row for each patient's folder under ``output``, whoever made it.

    Of processes on one folder each writes it when it is done, one after the other, so that the last
    one has all patients.
    """
    with cohort_lock(output):
        write_table(pd.DataFrame(cohort_rows(output), columns=_COLUMNS), output / COHORT)
    return output / COHORT


@contextmanager
def cohort_lock(output: Path) -> Iterator[None]:
    """Of processes on one folder one is in the block at a time.

    Raises:
        RefusedError: the disk has no locks.
    """
    from filelock import FileLock  # torch brings it

    lock = FileLock(output / f".{COHORT}.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise RefusedError(
            f"{lock.lock_file}: {error.strerror or error}, expected a disk that has locks"
        ) from error
    try:
        yield
    finally:
        lock.release()


def cohort_rows(output: Path) -> list[dict[str, Any]]:
    """A row of ``cohort.csv`` for each patient's folder, in the order of their names."""
    return [_row(path.name, report) for path, report in reports(output)]


def failures_files(output: Path) -> list[Path]:
    """``failures.csv`` of the whole and of its parts, those that are there."""
    return sorted(path for path in output.glob("*.csv") if _FAILURES.fullmatch(path.name))


def is_cohort(output: Path) -> bool:
    """Whether a ``cohort.csv`` of ``write_cohort`` is there."""
    return _begins(output / COHORT, _COLUMNS[:2])


def refuse_foreign_tables(output: Path) -> None:
    """Before any work: what is in the place of a table and was not written here stays.

    Raises:
        RefusedError: there is such a file.
    """
    for path in failures_files(output):
        try:
            if not _begins(path, _FAILED) and path.exists():
                raise RefusedError(f"{path} is there, and not what this command writes")
            read_failures(path)
        except FileNotFoundError:  # another process is done with it
            continue
        except ValueError as error:
            raise RefusedError(f"{error}; expected it as this command wrote it, or none") from error
    if os.path.lexists(output / COHORT) and not is_cohort(output):
        raise RefusedError(f"{output / COHORT} is there, and not what this command writes")


def write_failures(why: Mapping[str, str], output: Path, part: str = "") -> Path | None:
    """``failures.csv``: patients without a result, and why; none where there are none.

    Args:
        part: of the cohort, for the file's name: ``-3of8``.
    """
    path = _failures_file(output, part)
    if not why:
        path.unlink(missing_ok=True)
        return None
    write_table(pd.DataFrame(list(why.items()), columns=_FAILED), path)
    return path


def _failures_file(output: Path, part: str) -> Path:
    return output / f"{Path(FAILURES).stem}{part}{Path(FAILURES).suffix}"


def record_failures(
    patients: Collection[str], why: Mapping[str, str], output: Path, part: str = ""
) -> None:
    """What a call for these patients says, in the place of what all the files have of them.

    What these say of others stays.
    """
    with cohort_lock(output):
        _leave_out(patients, output)
        path = _failures_file(output, part)
        others = read_failures(path) if path.exists() else {}
        write_failures({**others, **why}, output, part)


def read_failures(path: Path) -> dict[str, str]:
    """What ``write_failures`` wrote: why, by patient."""
    return {row.get("patient", ""): row.get("why", "") for row in read_texts(path)}


def _leave_out(patients: Collection[str], output: Path) -> None:
    """What the files say of these patients is gone; the lock is held."""
    for path in failures_files(output):
        rows = {name: why for name, why in read_failures(path).items() if name not in patients}
        write_failures(rows, output, path.stem.removeprefix(Path(FAILURES).stem))


def reports(output: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The patients' folders under ``output`` and their reports, by name."""
    for path in sorted(output.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        if (report := read_report(path)) and _is_whole(report):
            yield path, report


def _is_whole(report: Mapping[str, Any]) -> bool:
    """Whether it is a report as predictions have it; another program's may lie beside them."""
    lesions, needed = report.get("lesions"), {"class", "volume_ml", "suv_max", "tlg"}
    return (
        isinstance(lesions, list)
        and all(isinstance(one, dict) and needed <= one.keys() for one in lesions)
        and all(isinstance(report.get(key, {}), dict) for key in ("verdict", "risk"))
        and isinstance(report.get("bundle"), str)
    )


def _begins(path: Path, columns: Sequence[str]) -> bool:
    """Whether a file's first columns are these."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])[: len(columns)] == list(columns)
    except (OSError, ValueError, csv.Error):
        return False


_FAILED = ["patient", "why"]
_COLUMNS = [
    *("patient", "verdict", "codes", "GTVp_lesions", "GTVp_ml", "GTVn_lesions", "GTVn_ml"),
    *("suv_max", "tlg", "risk", "share_below", "bundle"),
]


def _row(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    lesions, risk = report.get("lesions", []), report.get("risk", {})
    verdict = report.get("verdict", {})
    row = {
        "patient": name,
        "verdict": verdict.get("status"),
        "codes": " ".join(verdict.get("codes", [])),
        "suv_max": max((lesion["suv_max"] for lesion in lesions), default=None),
        "tlg": sum(lesion["tlg"] for lesion in lesions),
        "risk": risk.get("value"),
        "share_below": risk.get("share_of_training_patients_below"),
        "bundle": report.get("bundle"),
    }
    for kind in CLASSES[1:]:
        volumes = [lesion["volume_ml"] for lesion in lesions if lesion["class"] == kind]
        row |= {f"{kind}_lesions": len(volumes), f"{kind}_ml": sum(volumes)}
    return row
