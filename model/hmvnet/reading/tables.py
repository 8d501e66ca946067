"""Tables of health records and outcomes, CSV or Excel, to records.

A cell is cleaned as a value of a JSON record is, by ``hmvnet.reading.records.parse_record``.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from hmvnet.case import ClinicalRecord, Outcome, Stage, plain_name
from hmvnet.reading.frames import OLD_EXCEL, is_workbook, listed, read_frame
from hmvnet.reading.names import LeftOut, entries
from hmvnet.reading.outcomes import Row, TableNames, check_outcomes, gap, split
from hmvnet.reading.records import count_values, parse_record
from hmvnet.reading.stages import N_COLUMN, T_COLUMN, check_stages, stage_of
from hmvnet.reading.workbook import NoReaderError

# Names of the column of patients, as ``plain_name`` has them; the first that is there is it.
ID_NAMES = (
    *("patientid", "patient", "patientname", "pid", "subjectid", "subject"),
    *("participantid", "caseid", "case", "id"),
)
# Not read where they merely lie in a folder, and said.
OTHER_TABLES = {
    ".tsv": "a table, but not CSV",
    ".ods": "a table, but not CSV",
    OLD_EXCEL: "a table of Excel before 2007: save it as .xlsx or CSV",
}
# What drew a phantom's outcome. No health record: a model that saw it would know the answer.
TRUTH_TABLE = "truth.csv"
SUV_TABLE = "suv_conversion_tags.csv"  # HECKTOR 2026's, of PETs that are in Bq/mL


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


def read_outcome_table(paths: Sequence[Path], names: TableNames | None = None) -> OutcomeTable:
    """Tables joined by patient, with the outcome taken out of them.

    Args:
        paths: files with one row per patient; all patients of the first are kept. Numbers as names
            may differ in leading zeros where that is unambiguous, with a note.
        names: of the columns, and how outcomes are written; None: HECKTOR's.

    Patients without a known event, or with a time that is missing or negative, are left out, and
    noted. With dates a known event needs them.

    Raises:
        ValueError: a file or column is missing, a patient has two rows that differ, tables have no
            patient in common, nobody has an outcome, or event, time or dates cannot be used; names
            it.
    """
    given = names or TableNames()
    tables = [
        _table(
            read_frame(path, [given.patient], texts=given.texts, sheet=given.sheet),
            path,
            given.patient,
            given,
        )
        for path in paths
    ]
    columns: list[str] = []
    notes: list[str] = []
    for number, (path, table) in enumerate(zip(paths, tables, strict=True)):
        check_outcomes(table.numbered(), str(path), given, least=-math.inf)  # negative ones: noted
        if number:
            table, by_zeros = _renamed(table, tables[0].rows)
            tables[number] = table
            if by_zeros:
                notes.append(
                    f"{path.name}: {count_values(len(by_zeros))} of {given.patient!r} matched "
                    "without their leading zeros"
                )
            if len(table.rows) < len(tables[0].rows):
                notes.append(
                    f"{path.name}: holds {len(table.rows)} of the {len(tables[0].rows)} patients"
                )
        if table.repeated:
            count = count_values(len(table.repeated))
            notes.append(f"{path.name}: {count} of {given.patient!r} in rows that are the same")
        if common := sorted(set(columns) & set(table.columns)):
            raise ValueError(f"{path}: columns {common} are in an earlier table too")
        columns += table.columns
    if absent := [c for c in given.outcome if c not in columns]:
        raise ValueError(f"{', '.join(p.name for p in paths)}: no column {absent}")
    ids, records, outcomes = [], [], []
    for name in tables[0].rows:
        joined: dict[str, float | str | None] = dict.fromkeys(columns)
        for table in tables:
            joined |= table.rows.get(name, {})
        _check_gap(name, joined, tables, given)
        record, outcome = split(joined, given)
        if outcome:
            ids.append(name)
            records.append(record)
            outcomes.append(outcome)
    if not ids:
        raise ValueError(
            f"{paths[0]}: {len(tables[0].rows)} patients, none of whom has a known outcome"
        )
    left_out = len(tables[0].rows) - len(ids)
    notes += [f"{count_values(left_out)} without an outcome, left out"] if left_out else []
    return OutcomeTable(
        tuple(ids),
        tuple(c for c in columns if c not in given.outcome),
        tuple(records),
        tuple(outcomes),
        (*notes, *(note for table in tables for note in table.notes)),
    )


class Known(NamedTuple):
    """What tables say about a patient, and what was repaired to find it."""

    record: ClinicalRecord = ClinicalRecord()
    outcome: Outcome | None = None
    notes: tuple[str, ...] = ()
    stage: Stage = Stage()


def read_tables(
    root: Path,
    patients: Collection[str] | None = None,
    names: TableNames | None = None,
    left_out: list[LeftOut] | None = None,
) -> dict[str, Known]:
    """What the tables under ``root`` say about each patient, by name.

    A table is a CSV file or an Excel workbook with a column PatientID, or one of its other usual
    names. Where several tables give a column, the one of the higher task number wins.

    Args:
        patients: those that have images. A number as a name may then differ from the table's in
            leading zeros where that is unambiguous, with a note. None: all that the tables name.
        names: of the columns; None: HECKTOR's.
        left_out: tables that are not read are added to it.

    Raises:
        ValueError: a table is unreadable, holds an outcome and nobody's name, none of ``patients``
            or two rows of one that differ, the event has another code than are known, a time is no
            number of days, a date is none or missing beside an event or before the start, a T-stage
            or N-stage is none, or there are tables and none has a column that ``names`` gives
            another name than HECKTOR's; names it.
    """
    return _read_all(root, patients, left_out, names or TableNames(), outcomes=True)


def read_suv_factors(root: Path, patients: Collection[str]) -> dict[str, float]:
    """What PETs in Bq/mL are multiplied by to be SUV, by patient: HECKTOR 2026's table.

    Raises:
        ValueError: it is unreadable, or a factor is no number above 0.
    """
    path = root / SUV_TABLE
    if not path.is_file():
        return {}
    frame = read_frame(path, ID_NAMES)
    label = next((c for n in ID_NAMES for c in frame.columns if plain_name(c) == n), None)
    factors_of = [c for c in frame.columns if "factor" in plain_name(c)]
    if label is None or len(factors_of) != 1:
        raise ValueError(f"{path}: found {listed(frame.columns)}, expected a pid and one factor")
    (factor,) = factors_of
    given = pd.to_numeric(frame[factor], errors="coerce")
    if not ((given > 0) & (given < float("inf"))).all():
        raise ValueError(f"{path}: column {factor!r} holds what is no number above 0")
    factors: dict[str, float] = {}
    for row, name, value in zip(frame.index, frame[label], given.tolist(), strict=True):
        if factors.setdefault(name, value) != value:
            raise ValueError(f"{path}: row {row} has another factor than a row of the same {label}")
    return {name: factors[other] for name, other in match_names(patients, factors).items()}


def read_records(
    root: Path,
    patients: Collection[str] | None = None,
    left_out: list[LeftOut] | None = None,
    sheet: str = "",
) -> dict[str, Known]:
    """The health records of ``read_tables``, whatever the tables hold as outcomes.

    Args:
        root: a folder, or one table.
        sheet: of Excel workbooks, as ``TableNames`` has it.

    Raises:
        ValueError: as ``read_tables``, but for what concerns outcomes.
    """
    return _read_all(root, patients, left_out, TableNames(sheet=sheet), outcomes=False)


def _read_all(
    root: Path,
    patients: Collection[str] | None,
    left_out: list[LeftOut] | None,
    names: TableNames,
    *,
    outcomes: bool,
) -> dict[str, Known]:
    tables: list[_Table] = []
    notes: dict[str, list[str]] = {}
    usual = TableNames()
    missing = {names.patient, *names.outcome} - {usual.patient, *usual.outcome}
    for table in _tables_under(root, names, [] if left_out is None else left_out):
        missing -= {table.patient, *table.columns}
        if outcomes:
            rows = table.numbered()
            check_outcomes(rows, str(table.path), names)
            check_stages(rows, str(table.path))
        if patients is not None:
            table, by_zeros = _renamed(table, patients)
            for name, other in by_zeros.items():
                note = f"{table.path.name}: the row of '{other}' is used"
                notes.setdefault(name, []).append(note)
        for name in table.repeated:
            notes.setdefault(name, []).append(f"{table.path.name}: rows that are the same")
        tables.append(table)
    if missing and tables:
        raise ValueError(f"{root}: no table with a column {sorted(missing)}, as settings name them")
    known = {}
    for name, row in _merged(tables, names.outcome if outcomes else ()).items():
        told = tuple(notes.get(name, ()))
        if outcomes:
            _check_gap(name, row, tables, names)
            known[name] = Known(*split(row, names), told, stage_of(row))
        else:
            known[name] = Known(split(row, names)[0], notes=told)
    return known


def _check_gap(name: str, row: Row, tables: Sequence[_Table], names: TableNames) -> None:
    """Refuse a row with an event and without a date, or with one before the start."""
    if found := gap(row, names):
        column, why = found
        table = next((t for t in reversed(tables) if column in t.columns), tables[0])
        at = table.numbers.get(name)
        where = f"row {at}" if at else f"no row of the patient in row {tables[0].numbers.get(name)}"
        raise ValueError(f"{table.path}: {where}, column {column!r}: {why}")


def _renamed(table: _Table, patients: Collection[str]) -> tuple[_Table, dict[str, str]]:
    """The rows of these patients, under their names, and the table's name of those that differ."""
    pairs = match_names(patients, table.rows)
    if patients and not pairs:
        raise ValueError(
            f"{table.path}: names none of the patients; found names of the form "
            f"{_form(next(iter(table.rows), ''))!r}, expected {_form(next(iter(patients)))!r}"
        )
    ours = replace(
        table,
        rows={name: table.rows[other] for name, other in pairs.items()},
        numbers={name: table.numbers[other] for name, other in pairs.items()},
        repeated=tuple(name for name, other in pairs.items() if other in table.repeated),
    )
    return ours, {n: other for n, other in pairs.items() if n != other}


def _form(name: str) -> str:
    """What a name looks like, and not whose it is: A for a letter, 0 for a digit."""
    return re.sub(r"[^\W\d_]", "A", re.sub(r"\d", "0", name))


def match_names(wanted: Collection[str], found: Collection[str]) -> dict[str, str]:
    """For each wanted name the one found: the same, or the same number, as "1" for "001".

    A number is only taken for another where no third name is that number too.
    """
    spelt = {_composed(name): name for name in found}  # a Mac writes umlauts as two characters
    mine = {_composed(name): name for name in wanted}
    pairs = _pairs(mine, spelt)
    return {mine[name]: spelt[other] for name, other in pairs.items()}


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _pairs(wanted: Collection[str], found: Collection[str]) -> dict[str, str]:
    ours, known = set(wanted), set(found)
    spellings: dict[str, set[str]] = {}
    for name in ours | known:
        if number := re.fullmatch(r"0*(\d+?)(\.0)?", name):
            spellings.setdefault(number[1], set()).add(name)
    pairs = {name: name for name in ours & known}
    for names in spellings.values():
        mine, theirs = names & ours, names & known
        if len(names) == 2 and len(mine) == len(theirs) == 1:
            pairs[mine.pop()] = theirs.pop()
    return {name: pairs[name] for name in wanted if name in pairs}


def _tables_under(root: Path, names: TableNames, left_out: list[LeftOut]) -> Iterator[_Table]:
    """The tables of patients under a data folder, those of a lower task number first."""
    paths = [root] if root.is_file() else entries(root, left_out)
    tasks = [path for path in paths if path.is_dir() and path.name.startswith("Task")]
    paths += [path for folder in tasks for path in entries(folder, left_out)]
    for path in sorted(paths, key=lambda path: path.name):
        if path != root and (why := OTHER_TABLES.get(path.suffix.lower())):
            left_out.append(LeftOut(path, why))
        is_table = path == root or path.suffix.lower() == ".csv" or is_workbook(path)
        if not is_table or path.name in (TRUTH_TABLE, SUV_TABLE):
            continue
        ids = (plain_name(names.patient), *ID_NAMES)
        try:
            frame = read_frame(path, ids, texts=names.texts, sheet=names.sheet)
        except NoReaderError as error:
            if path == root:
                raise
            left_out.append(LeftOut(path, str(error).removeprefix(f"{path}: ")))
            continue
        label = next((c for n in ids for c in frame.columns if plain_name(c) == n), None)
        usual = {
            plain_name(name): name for name in (T_COLUMN, N_COLUMN, names.patient, *names.outcome)
        }
        if label is not None:
            label = usual.setdefault(plain_name(label), label)
        frame.columns = pd.Index([usual.get(plain_name(name), name) for name in frame.columns])
        if twice := sorted(set(frame.columns[frame.columns.duplicated()])):
            raise ValueError(f"{path}: columns {twice} more than once")
        for name in {*names.outcome} & {*frame.columns}:
            if frame[name].isin([float("inf"), float("-inf")]).any():
                raise ValueError(
                    f"{path}: column {name!r} holds what is infinite, expected numbers"
                )
        if label is not None:
            yield _table(frame, path, label, names)
        elif {*names.outcome} & {*frame.columns}:
            raise ValueError(
                f"{path}: outcomes without a column of patients, found {listed(frame.columns)}, "
                f"expected {names.patient!r}"
            )
        else:
            left_out.append(LeftOut(path, f"a table without a column {names.patient}"))


def _merged(
    tables: Iterable[_Table], outcome: Iterable[str]
) -> dict[str, dict[str, float | str | None]]:
    """One row a patient; what a later table knows goes before what an earlier one says.

    Raises:
        ValueError: two tables differ in a column of the outcome, which would be put together of
            both.
    """
    merged: dict[str, dict[str, float | str | None]] = {}
    said: dict[tuple[str, str], Path] = {}
    for table in tables:
        for name, row in table.rows.items():
            before = merged.get(name, {})
            known = {k: v for k, v in row.items() if v is not None}
            for column in known.keys() & outcome:
                first = said.setdefault((name, column), table.path)
                if before.get(column) not in (None, known[column]):
                    raise ValueError(
                        f"{table.path}: row {table.numbers[name]}, column {column!r}: another "
                        f"value than in {first.name}; expected one outcome a patient"
                    )
            merged[name] = dict.fromkeys(row) | before | known
    return merged


@dataclass(frozen=True)
class _Table:
    """What a file says of each patient.

    Attributes:
        path: the file.
        patient: the column of the patients' names.
        columns: the others.
        rows: clean, by name.
        numbers: of the rows in the file, by name; of the first where there are several.
        repeated: patients who have several rows, all the same.
        notes: what was repaired.
    """

    path: Path
    patient: str
    columns: tuple[str, ...]
    rows: Mapping[str, Row]
    numbers: Mapping[str, int]
    repeated: tuple[str, ...]
    notes: tuple[str, ...]

    def numbered(self) -> dict[int, Row]:
        """The rows by their numbers in the file."""
        return {self.numbers[name]: row for name, row in self.rows.items()}


def _table(frame: pd.DataFrame, path: Path, patient: str, names: TableNames) -> _Table:
    if patient not in frame.columns:
        raise ValueError(f"{path}: no column {patient!r}, found {listed(frame.columns)}")
    if nameless := sum(not name for name in frame[patient]):
        raise ValueError(f"{path}: {nameless} rows without a name in column {patient!r}")
    rows: dict[str, Row] = {}
    numbers: dict[str, int] = {}
    repeated, repaired = dict[str, None](), Counter[str]()
    words = names.words
    for number, raw in zip(frame.index, frame.to_dict("records"), strict=True):
        name = raw.pop(patient)
        cells = {str(label): None if pd.isna(cell) else cell for label, cell in raw.items()}
        code = cells.get(names.event)
        coded = {names.event: code} if isinstance(code, str) and code.lower() in words else {}
        record, notes = parse_record({k: v for k, v in cells.items() if k not in coded}, path.name)
        row = {**record.values, **coded}
        if name in rows:
            differ = [label for label, cell in row.items() if rows[name].get(label) != cell]
            if differ:
                raise ValueError(
                    f"{path}: rows {numbers[name]} and {number} are of one patient and differ in "
                    f"{listed(differ)}; expected one row a patient"
                )
            repeated[name] = None
            continue
        rows[name], numbers[name] = row, int(number)
        repaired.update(notes)
    return _Table(
        path,
        patient,
        tuple(c for c in frame.columns if c != patient),
        rows,
        numbers,
        tuple(repeated),
        tuple(f"{note} ({count_values(n)})" for note, n in repaired.items()),
    )
