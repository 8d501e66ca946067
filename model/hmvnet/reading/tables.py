"""CSV tables of health records and outcomes to records.

A cell is cleaned as a value of a JSON record is, by ``hmvnet.reading.records.parse_record``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hmvnet.case import ClinicalRecord, Outcome
from hmvnet.reading.records import Column, count_values, parse_record

ID_COLUMN, EVENT_COLUMN, TIME_COLUMN = "PatientID", "Relapse", "RFS"
# What drew a phantom's outcome. No health record: a model that saw it would know the answer.
TRUTH_TABLE = "truth.csv"
_EVENT = Column("event", "categorical", codes=("0", "1"))

Row = Mapping[str, float | str | None]


@dataclass(frozen=True)
class OutcomeTable:
    """``n`` patients with a known outcome.

    Attributes:
        ids: the patients' names.
        columns: what the records hold; the outcome's columns are not among them.
        records: clean, in the order of ``ids``.
        outcomes: their follow-up, in the table's unit of time.
        notes: what was left out or repaired, in counts.
    """

    ids: tuple[str, ...]
    columns: tuple[str, ...]
    records: tuple[ClinicalRecord, ...]
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]


def read_outcome_table(
    paths: Sequence[Path],
    *,
    patient: str,
    time: str,
    event: str,
    follow_up: str | None = None,
) -> OutcomeTable:
    """CSV files joined by patient, with the outcome taken out of them.

    Args:
        paths: files with one row per patient; all rows of the first are kept.
        patient, time, event: names of the columns with the patient's id, the time to the event
            and whether there was one (0/1, yes/no, true/false).
        follow_up: the column with the time of the last follow-up, where ``time`` is only given for
            patients with an event.

    Patients without a known event or time are left out, and noted.

    Raises:
        ValueError: a file or column is missing, a patient occurs twice, or the event has another
            code; names it.
    """
    tables = [_table(_read_csv(path, patient), path, patient) for path in paths]
    columns: list[str] = []
    for path, table in zip(paths, tables, strict=True):
        _check_events(table, path, event)
        if common := sorted(set(columns) & set(table.columns)):
            raise ValueError(f"{path}: columns {common} are in an earlier table too")
        columns += table.columns
    outcome_columns = [c for c in (time, event, follow_up) if c]
    if absent := [c for c in outcome_columns if c not in columns]:
        raise ValueError(f"{', '.join(p.name for p in paths)}: no column {absent}")
    ids, records, outcomes = [], [], []
    for name in tables[0].rows:
        joined: dict[str, float | str | None] = dict.fromkeys(columns)
        for table in tables:
            joined |= table.rows.get(name, {})
        record, outcome = _split(joined, time, event, follow_up)
        if outcome:
            ids.append(name)
            records.append(record)
            outcomes.append(outcome)
    left_out = len(tables[0].rows) - len(ids)
    notes = [f"{count_values(left_out)} without an outcome, left out"] if left_out else []
    return OutcomeTable(
        tuple(ids),
        tuple(c for c in columns if c not in outcome_columns),
        tuple(records),
        tuple(outcomes),
        (*notes, *(note for table in tables for note in table.notes)),
    )


def read_tables(root: Path) -> dict[str, tuple[ClinicalRecord, Outcome | None]]:
    """What the tables under ``root`` say about each patient (column PatientID), by name.

    Where several tables give a column, the one of the higher task number wins.

    Raises:
        ValueError: a table is unreadable, a patient occurs twice in it, the event has another code
            than 0/1, yes/no, true/false, or a time is no number of days; names it.
    """
    tables = list(_tables_under(root))
    for path, table in tables:
        _check_events(table, path, EVENT_COLUMN)
        _check_times(table, path, TIME_COLUMN)
    merged = _merged(table for _, table in tables)
    return {name: _split(row, TIME_COLUMN, EVENT_COLUMN) for name, row in merged.items()}


def read_records(root: Path) -> dict[str, ClinicalRecord]:
    """The health records of ``read_tables``, whatever the tables hold as outcomes.

    Raises:
        ValueError: a table is unreadable, or a patient occurs twice in it; names it.
    """
    merged = _merged(table for _, table in _tables_under(root))
    return {name: _split(row, TIME_COLUMN, EVENT_COLUMN)[0] for name, row in merged.items()}


def _tables_under(root: Path) -> Iterator[tuple[Path, _Table]]:
    """The tables of patients under a data folder, those of a lower task number first."""
    paths = {p for p in (*root.glob("*.csv"), *root.glob("Task*/*.csv")) if p.name != TRUTH_TABLE}
    for path in sorted(paths, key=lambda p: p.name):
        frame = _read_csv(path, ID_COLUMN)
        if ID_COLUMN in frame.columns:
            yield path, _table(frame, path, ID_COLUMN)


def _merged(tables: Iterable[_Table]) -> dict[str, dict[str, float | str | None]]:
    """One row a patient; what a later table knows goes before what an earlier one says."""
    merged: dict[str, dict[str, float | str | None]] = {}
    for table in tables:
        for name, row in table.rows.items():
            known = {k: v for k, v in row.items() if v is not None}
            merged[name] = dict.fromkeys(row) | merged.get(name, {}) | known
    return merged


@dataclass(frozen=True)
class _Table:
    """A file's columns but the patient's name, its clean rows by name, and what was repaired."""

    columns: tuple[str, ...]
    rows: Mapping[str, Row]
    notes: tuple[str, ...]


def _read_csv(path: Path, patient: str) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype={patient: str})
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as a CSV table: {error}") from error
    return frame.rename(columns=str.strip)


def _table(frame: pd.DataFrame, path: Path, patient: str) -> _Table:
    if patient not in frame.columns:
        raise ValueError(f"{path}: no column {patient!r}, found {list(frame.columns)}")
    if not frame.columns.is_unique:
        twice = sorted(set(frame.columns[frame.columns.duplicated()]))
        raise ValueError(f"{path}: columns {twice} more than once")
    rows, repaired = {}, Counter[str]()
    for raw in frame.to_dict("records"):
        name = str(raw.pop(patient)).strip()
        if name in rows:
            raise ValueError(f"{path}: a patient occurs more than once in column {patient!r}")
        cells = {label: None if pd.isna(cell) else cell for label, cell in raw.items()}
        record, notes = parse_record(cells, path.name)
        rows[name] = record.values
        repaired.update(notes)
    return _Table(
        tuple(c for c in frame.columns if c != patient),
        rows,
        tuple(f"{note} ({count_values(n)})" for note, n in repaired.items()),
    )


def _check_events(table: _Table, path: Path, event: str) -> None:
    """Codes such as 1 = censored, 2 = event would be read as another outcome."""
    codes = [row[event] for row in table.rows.values() if row.get(event) is not None]
    if other := sum(_EVENT.interpret(code)[0] is None for code in codes):
        raise ValueError(
            f"{path}: column {event!r} holds {count_values(other)} other than 0/1, yes/no and "
            "true/false"
        )


def _check_times(table: _Table, path: Path, time: str) -> None:
    """A time that is there and cannot be used would quietly cost its patient."""
    values = [row[time] for row in table.rows.values() if row.get(time) is not None]
    if other := sum(_days(value) is None for value in values):
        raise ValueError(
            f"{path}: column {time!r} holds {count_values(other)} other than a number of days"
        )


def _split(
    row: Row, time: str, event: str, follow_up: str | None = None
) -> tuple[ClinicalRecord, Outcome | None]:
    """A patient's row as the record and, where it is known, the outcome."""
    record = ClinicalRecord({k: v for k, v in row.items() if k not in (time, event, follow_up)})
    happened, _ = _EVENT.interpret(row.get(event))
    days = _days(row.get(time if happened == "1" or not follow_up else follow_up))
    if happened is None or days is None:
        return record, None
    return record, Outcome(days, happened == "1")


def _days(value: float | str | None) -> float | None:
    try:
        days = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return days if 0 <= days < math.inf else None
