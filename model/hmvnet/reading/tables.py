"""CSV tables of health records and outcomes to records.

A table may come from any spreadsheet: UTF-8, UTF-16 or Latin-1; commas, semicolons, tabs or bars;
decimal commas where no comma separates; blanks around names, blank rows. A cell is cleaned as a
value of a JSON record is, by ``hmvnet.reading.records.parse_record``.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from hmvnet.case import DAYS_PER_YEAR, ClinicalRecord, Outcome, Stage
from hmvnet.files import read_bounded
from hmvnet.reading.names import LeftOut, entries
from hmvnet.reading.records import (
    NUMBER,
    YES_NO,
    Column,
    count_values,
    parse_record,
    plain_code,
    plain_name,
)
from hmvnet.reading.stages import N_COLUMN, T_COLUMN, check_stages, stage_of
from hmvnet.reading.text import decode
from hmvnet.table_files import text_of_cell

ID_COLUMN, EVENT_COLUMN, TIME_COLUMN = "PatientID", "Relapse", "RFS"
# Names of the column of patients, as ``plain_name`` has them; the first that is there is it.
ID_NAMES = (
    *("patientid", "patient", "patientname", "pid", "subjectid", "subject"),
    *("participantid", "caseid", "case", "id"),
)
OTHER_TABLES = (".tsv", ".xls", ".xlsx", ".ods")  # not read, and said
MOST_BYTES = 1 << 27  # of a table
SEPARATORS = ",;\t|"
# What drew a phantom's outcome. No health record: a model that saw it would know the answer.
TRUTH_TABLE = "truth.csv"
SUV_TABLE = "suv_conversion_tags.csv"  # HECKTOR 2026's, of PETs that are in Bq/mL
DAYS_OF_UNIT = {"days": 1.0, "weeks": 7.0, "months": DAYS_PER_YEAR / 12, "years": DAYS_PER_YEAR}
_EVENT = Column(
    "event",
    "categorical",
    codes=("0", "1"),
    aliases=(("dead", "1"), ("deceased", "1"), ("alive", "0"), ("living", "0")),
)

Row = Mapping[str, float | str | None]


@dataclass(frozen=True)
class TableNames:
    """What the columns of tables beside images are called, and how events are coded in them.

    Attributes:
        patient, time, event, follow_up: as ``read_outcome_table`` has them. A patient's column of
            another name than PatientID goes before the usual ones.
        event_codes, time_unit: as ``read_outcome_table`` has them.

    Raises:
        ValueError: two codes are one when read, as "1" and "yes" are; an unknown unit.
    """

    patient: str = ID_COLUMN
    time: str = TIME_COLUMN
    event: str = EVENT_COLUMN
    follow_up: str = ""
    event_codes: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = "days"

    def __post_init__(self) -> None:
        if self.time_unit not in DAYS_OF_UNIT:
            units = ", ".join(DAYS_OF_UNIT)
            raise ValueError(f"time unit '{self.time_unit}': expected one of {units}")
        if len(self.codes) < len(self.event_codes):
            raise ValueError(f"event codes {list(self.event_codes)}: two of them mean the same")

    @property
    def codes(self) -> dict[str, str]:
        """The event's codes as cells have them: 1 for "01" and, by ``clean_scalar``, for "true"."""
        codes = {code.lower(): said for code, said in self.event_codes.items()}
        return {YES_NO.get(code, plain_code(code)): said for code, said in codes.items()}

    @property
    def outcome(self) -> tuple[str, ...]:
        """The columns that an outcome is made of."""
        return tuple(name for name in (self.time, self.event, self.follow_up) if name)


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
    follow_up: str = "",
    event_codes: Mapping[str, str] | None = None,
    time_unit: str = "days",
) -> OutcomeTable:
    """CSV files joined by patient, with the outcome taken out of them.

    Args:
        paths: files with one row per patient; all rows of the first are kept. Numbers as names may
            differ in leading zeros where that is unambiguous, with a note.
        patient, time, event: names of the columns with the patient's id, the time to the event
            and whether there was one (0/1, yes/no, true/false, dead/alive).
        follow_up: the column with the time of the last follow-up, where ``time`` is only given for
            patients with an event.
        event_codes: what the event's codes stand for, "0" or "1", where they are others; then no
            code but these is known.
        time_unit: in which times are: days, weeks, months (of 30.4 days) or years.

    Patients without a known event, or with a time that is missing or negative, are left out, and
    noted.

    Raises:
        ValueError: a file or column is missing, a patient occurs twice, tables have no patient in
            common, or event or time cannot be used; names it.
    """
    given = TableNames(patient, time, event, follow_up, event_codes or {}, time_unit)
    tables = [_table(read_csv(path, [patient]), path, patient) for path in paths]
    columns: list[str] = []
    notes: list[str] = []
    for number, (path, table) in enumerate(zip(paths, tables, strict=True)):
        _check_outcomes(table, path, given, least=-math.inf)  # negative times are noted
        if number:
            table, by_zeros = _renamed(table, path, tables[0].rows)
            tables[number] = table
            if by_zeros:
                notes.append(
                    f"{path.name}: {count_values(len(by_zeros))} of {patient!r} matched without "
                    "their leading zeros"
                )
            if len(table.rows) < len(tables[0].rows):
                notes.append(
                    f"{path.name}: holds {len(table.rows)} of the {len(tables[0].rows)} patients"
                )
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
        record, outcome = _split(joined, given)
        if outcome:
            ids.append(name)
            records.append(record)
            outcomes.append(outcome)
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

    A table is one with a column PatientID, or one of its other usual names. Where several tables
    give a column, the one of the higher task number wins.

    Args:
        patients: those that have images. A number as a name may then differ from the table's in
            leading zeros where that is unambiguous, with a note. None: all that the tables name.
        names: of the columns; None: HECKTOR's.
        left_out: tables that are not read are added to it.

    Raises:
        ValueError: a table is unreadable, holds an outcome and nobody's name, none of ``patients``
            or one of them twice, the event has another code than are known, a time is no number of
            days, a T-stage or N-stage is none, or there are tables and none has a column that
            ``names`` gives another name than HECKTOR's; names it.
    """
    return _read_all(root, patients, left_out, names or TableNames(), outcomes=True)


def read_suv_factors(root: Path, patients: Collection[str]) -> dict[str, float]:
    """What PETs in Bq/mL are multiplied by to be SUV, by patient: HECKTOR 2026's table.

    Raises:
        ValueError: it is unreadable, names none of ``patients``, or a factor is no number above 0.
    """
    path = root / SUV_TABLE
    if not path.is_file():
        return {}
    frame = read_csv(path, ID_NAMES)
    label = next((c for n in ID_NAMES for c in frame.columns if plain_name(c) == n), None)
    factor = next((c for c in frame.columns if "factor" in plain_name(c)), None)
    if label is None or factor is None:
        raise ValueError(f"{path}: found {_listed(frame.columns)}, expected a pid and a factor")
    given = pd.to_numeric(frame[factor], errors="coerce")
    if not ((given > 0) & (given < float("inf"))).all():
        raise ValueError(f"{path}: column {factor!r} holds what is no number above 0")
    factors = dict(zip(frame[label], given.tolist(), strict=True))
    return {name: factors[other] for name, other in match_names(patients, factors).items()}


def read_records(
    root: Path,
    patients: Collection[str] | None = None,
    left_out: list[LeftOut] | None = None,
) -> dict[str, Known]:
    """The health records of ``read_tables``, whatever the tables hold as outcomes.

    Args:
        root: a folder, or one table.

    Raises:
        ValueError: as ``read_tables``, but for what concerns outcomes.
    """
    return _read_all(root, patients, left_out, TableNames(), outcomes=False)


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
    for path, table in _tables_under(root, names, [] if left_out is None else left_out):
        missing -= {table.patient, *table.columns}
        if outcomes:
            _check_outcomes(table, path, names)
            check_stages(table.rows.values(), str(path))
        if patients is not None:
            table, by_zeros = _renamed(table, path, patients)
            for name, other in by_zeros.items():
                notes.setdefault(name, []).append(f"{path.name}: the row of '{other}' is used")
        tables.append(table)
    if missing and tables:
        raise ValueError(f"{root}: no table with a column {sorted(missing)}, as settings name them")
    known = {}
    for name, row in _merged(tables).items():
        record, outcome = _split(row, names)
        told = tuple(notes.get(name, ()))
        known[name] = (
            Known(record, outcome, told, stage_of(row)) if outcomes else Known(record, notes=told)
        )
    return known


def _renamed(table: _Table, path: Path, patients: Collection[str]) -> tuple[_Table, dict[str, str]]:
    """The rows of these patients, under their names, and the table's name of those that differ."""
    pairs = match_names(patients, table.rows)
    if patients and not pairs:
        raise ValueError(
            f"{path}: names none of the {len(patients)} patients; found names of the form "
            f"{_form(next(iter(table.rows), ''))!r}, expected {_form(next(iter(patients)))!r}"
        )
    rows = {name: table.rows[other] for name, other in pairs.items()}
    return replace(table, rows=rows), {n: other for n, other in pairs.items() if n != other}


def _form(name: str) -> str:
    """What a name looks like, and not whose it is: A for a letter, 0 for a digit."""
    return re.sub(r"[^\W\d_]", "A", re.sub(r"\d", "0", name))


def match_names(wanted: Collection[str], found: Collection[str]) -> dict[str, str]:
    """For each wanted name the one found: the same, or the same number, as "1" for "001".

    A number is only taken for another where no third name is that number too.
    """
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


def _tables_under(
    root: Path, names: TableNames, left_out: list[LeftOut]
) -> Iterator[tuple[Path, _Table]]:
    """The tables of patients under a data folder, those of a lower task number first."""
    paths = [root] if root.is_file() else entries(root, left_out)
    tasks = [path for path in paths if path.is_dir() and path.name.startswith("Task")]
    paths += [path for folder in tasks for path in entries(folder, left_out)]
    for path in sorted(paths, key=lambda path: path.name):
        if path != root and path.suffix.lower() in OTHER_TABLES:
            left_out.append(LeftOut(path, "a table, but not CSV"))
        is_table = path == root or path.suffix.lower() == ".csv"
        if not is_table or path.name in (TRUTH_TABLE, SUV_TABLE):
            continue
        ids = (plain_name(names.patient), *ID_NAMES)
        frame = read_csv(path, ids)
        label = next((c for n in ids for c in frame.columns if plain_name(c) == n), None)
        usual = {
            plain_name(name): name for name in (T_COLUMN, N_COLUMN, names.patient, *names.outcome)
        }
        if label is not None:
            label = usual.setdefault(plain_name(label), label)
        frame.columns = [usual.get(plain_name(name), name) for name in frame.columns]
        if twice := sorted(set(frame.columns[frame.columns.duplicated()])):
            raise ValueError(f"{path}: columns {twice} more than once")
        for name in {*names.outcome} & {*frame.columns}:
            if frame[name].isin([float("inf"), float("-inf")]).any():
                raise ValueError(
                    f"{path}: column {name!r} holds what is infinite, expected numbers"
                )
        if label is not None:
            yield path, _table(frame, path, label)
        elif {*names.outcome} & {*frame.columns}:
            raise ValueError(
                f"{path}: outcomes without a column of patients, found {_listed(frame.columns)}, "
                f"expected {names.patient!r}"
            )
        else:
            left_out.append(LeftOut(path, f"a table without a column {names.patient}"))


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
    """A file's columns but the patient's, its clean rows by name, and what was repaired."""

    patient: str
    columns: tuple[str, ...]
    rows: Mapping[str, Row]
    notes: tuple[str, ...]


def read_csv(path: Path, patient: Sequence[str]) -> pd.DataFrame:
    """A table with its cells as pandas reads them; texts have no outer blanks.

    Args:
        patient: names that the column of patients may have; its cells stay texts.
    """
    try:
        text, _ = decode(read_bounded(path, MOST_BYTES))
        rows, separator = _rows(text, patient)
        header, *body = rows
        for number, row in enumerate(body, 2):
            if len(row) > len(header):
                raise ValueError(f"row {number} has {len(row)} cells, the header {len(header)}")
        keep = [i for i, name in enumerate(header) if name]
        names = [header[i] for i in keep]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{_listed(twice)} more than once")
        body = [[row[i] if i < len(row) else "" for i in keep] for row in body]
        buffer = io.StringIO()
        csv.writer(buffer).writerows([names, *body])
        buffer.seek(0)
        decimal = "," if separator != "," and _has_decimal_commas(body) else "."
        frame = pd.read_csv(buffer, decimal=decimal, skip_blank_lines=False)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not readable as a CSV table: {error}") from error
    known = {plain_name(name) for name in patient}
    for index, name in enumerate(names):
        if plain_name(name) in known:  # as written: "001" and "NA" may be names
            frame[name] = pd.Series([row[index] for row in body], index=frame.index, dtype=object)
    return frame


def _rows(text: str, patient: Sequence[str]) -> tuple[list[list[str]], str]:
    """The rows that hold something, the header first, and the separator that they have.

    It is the one that leaves the patients' column alone in its cell of the header, or else makes
    most columns.
    """
    separators = SEPARATORS
    if said := re.match(r"sep=(.)\r?\n", text):  # a spreadsheet's way to say it
        separators, text = said[1], text[said.end() :]
    if not re.search(r"\w", text):
        raise ValueError("it holds no rows")
    known = {plain_name(name) for name in patient}

    def worth(separator: str) -> tuple[bool, int]:
        try:
            header = next(_parsed(text, separator), [])
        except csv.Error:  # of quotes, where it separates nothing
            return False, 0
        return any(plain_name(cell) in known for cell in header), len(header)

    separator = max(separators, key=worth)
    return list(_parsed(text, separator)), separator


def _parsed(text: str, separator: str) -> Iterator[list[str]]:
    """Rows that hold something: cells without outer blanks, up to the last that is not empty."""
    lines = io.StringIO(text, newline="")
    for row in csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True):
        cells = [text_of_cell(cell.strip()) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield cells


def _has_decimal_commas(body: Iterable[Sequence[str]]) -> bool:
    """Whether commas in numbers are decimal: not if points are, or all could part thousands."""
    cells = [cell for row in body for cell in row]
    commas = [m for cell in cells if (m := re.fullmatch(r"[-+]?\d+,(\d+)", cell))]
    points = any(re.fullmatch(r"[-+]?\d+\.\d+", cell) for cell in cells)
    return not points and any(len(m[1]) != 3 for m in commas)


def _table(frame: pd.DataFrame, path: Path, patient: str) -> _Table:
    if patient not in frame.columns:
        raise ValueError(f"{path}: no column {patient!r}, found {_listed(frame.columns)}")
    if nameless := sum(not name for name in frame[patient]):
        raise ValueError(f"{path}: {nameless} rows without a name in column {patient!r}")
    rows, repaired = {}, Counter[str]()
    for raw in frame.to_dict("records"):
        name = raw.pop(patient)
        if name in rows:
            raise ValueError(f"{path}: a patient occurs more than once in column {patient!r}")
        cells = {label: None if pd.isna(cell) else cell for label, cell in raw.items()}
        record, notes = parse_record(cells, path.name)
        rows[name] = record.values
        repaired.update(notes)
    return _Table(
        patient,
        tuple(c for c in frame.columns if c != patient),
        rows,
        tuple(f"{note} ({count_values(n)})" for note, n in repaired.items()),
    )


def _listed(columns: Iterable[str]) -> str:
    """Names of columns; but not a patient's values where the first row is no header."""
    names = list(columns)
    if any(NUMBER.fullmatch(name) for name in names):
        return f"{len(names)} columns, numbers among their names (is the first row a header?)"
    return f"columns {names}"


def _check_outcomes(table: _Table, path: Path, names: TableNames, least: float = 0) -> None:
    """Refuse what would be read as another outcome, or quietly cost its patient.

    Codes such as 1 = censored, 2 = event; a time that is there and cannot be used.
    """
    rows = table.rows.values()
    events = [row[names.event] for row in rows if row.get(names.event) is not None]
    codes = names.codes
    if other := sum(_event(code, codes) is None for code in events):
        known = ", ".join(names.event_codes) or "0/1, yes/no, true/false and dead/alive"
        raise ValueError(
            f"{path}: column {names.event!r} holds {count_values(other)} other than {known}; "
            "clinical.event_codes says what codes stand for"
        )
    for time in {*names.outcome} - {names.event}:
        times = [row[time] for row in rows if row.get(time) is not None]
        if other := sum(_days(value, least) is None for value in times):
            raise ValueError(
                f"{path}: column {time!r} holds {count_values(other)} other than a number of "
                f"{names.time_unit}"
            )


def _split(row: Row, names: TableNames) -> tuple[ClinicalRecord, Outcome | None]:
    """A patient's row as the record and, where it is known, the outcome."""
    record = ClinicalRecord({k: v for k, v in row.items() if k not in names.outcome})
    event = _event(row.get(names.event), names.codes)
    days = _days(row.get(names.time if event == "1" else names.follow_up or names.time))
    if event is None or days is None:
        return record, None
    return record, Outcome(days * DAYS_OF_UNIT[names.time_unit], event == "1")


def _event(value: float | str | None, codes: Mapping[str, str]) -> str | None:
    """Whether there was one, "0" or "1"; None: the value does not say."""
    if not codes:
        return _EVENT.interpret(value)[0]  # type: ignore[return-value]
    code, _ = Column("event", "categorical", codes=tuple(codes)).interpret(value)
    return codes.get(code)  # type: ignore[arg-type]


def _days(value: float | str | None, least: float = 0) -> float | None:
    try:
        days = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return days if least <= days < math.inf else None
