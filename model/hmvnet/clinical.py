"""Health records: a schema of columns, repair of what hospitals write, and numeric encoding.

A `ClinicalSchema` says what columns there are and which values are plausible. `clean_value` turns
a raw value into a number, a code or None (missing). A `ClinicalEncoder` is fitted on the training
patients only and turns cleaned values into a vector:

- numeric: training median where missing, then standardised by training mean and deviation, and a
  0/1 column "missing" if a training value was;
- categorical: one 0/1 column per category seen in training, "missing" being one of them if it was
  seen (of two categories, one column). A category not seen in training counts as missing. If
  nothing was missing in training, a missing value is encoded as the training proportions, which
  moves no risk.

So every output column varies in training; no weight of a later model is left untrained. Notes say
what was repaired, in counts; they never hold a patient's value.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from hmvnet.case import ClinicalRecord

MISSING = "missing"
MISSING_TEXTS = frozenset(
    {"", "nan", "na", "n/a", "none", "null", "unknown", "missing", "-", "?", "<na>"}
)
YES_NO = {"yes": "1", "true": "1", "no": "0", "false": "0"}
# A unit may follow a number, as in DICOM's "063Y"; the plausible range decides what it was.
NUMBER = re.compile(r"([-+]?\d+(?:[.,]\d*)?(?:[eE][-+]?\d+)?)\s*[A-Za-z%/]*")


@dataclass(frozen=True)
class Column:
    """One column of a health record.

    Attributes:
        name: as in the table.
        kind: numeric (also for ordered scores) or categorical.
        low, high: the plausible range of a number, inclusive.
        unit: for messages.
        other_units: names of units that also occur, each with its factor to `unit`; tried, in
            order, on a number outside the plausible range.
        codes: the allowed categories; empty allows any.
        aliases: other spellings of a category, in lower case, and the code each stands for.
        other_names: names the column has in other tables.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    other_units: tuple[tuple[str, float], ...] = ()
    codes: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    other_names: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, name: str, raw: Mapping[str, Any]) -> Column:
        """A column from plain values, as `to_dict` gives them or a settings file holds them.

        Numbers may be text; `codes` and `other_names` may be one comma-separated text.

        Raises:
            ValueError: names the column and the entry that is unknown or malformed.
        """
        known = {field.name for field in fields(cls)} - {"name"}
        if unknown := sorted(set(raw) - known):
            raise ValueError(
                f"column {name!r}: unknown {unknown}, expected some of {sorted(known)}"
            )
        kind = raw.get("kind")
        if kind not in ("numeric", "categorical"):
            raise ValueError(
                f"column {name!r}: kind must be numeric or categorical, found {kind!r}"
            )
        try:
            column = cls(
                name,
                kind,
                low=float(raw.get("low", -math.inf)),
                high=float(raw.get("high", math.inf)),
                unit=str(raw.get("unit", "")),
                other_units=tuple(
                    (u, float(f)) for u, f in dict(raw.get("other_units", {})).items()
                ),
                codes=_texts(raw.get("codes", ())),
                aliases=tuple((k.lower(), str(v)) for k, v in dict(raw.get("aliases", {})).items()),
                other_names=_texts(raw.get("other_names", ())),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"column {name!r}: {error}") from error
        if column.low > column.high:
            raise ValueError(f"column {name!r}: low {column.low:g} is above high {column.high:g}")
        if stray := sorted({v for _, v in column.aliases} - set(column.codes)):
            raise ValueError(f"column {name!r}: aliases stand for {stray}, which are no codes")
        return column

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values, without those left at their default."""
        defaults = Column("", self.kind)
        plain = {
            key: value
            for key, value in asdict(self).items()
            if key == "kind" or (key != "name" and value != getattr(defaults, key))
        }
        for key in ("other_units", "aliases"):
            if key in plain:
                plain[key] = dict(plain[key])
        return plain


@dataclass(frozen=True)
class ClinicalSchema:
    """The columns of a health record that a model may use, in order."""

    columns: tuple[Column, ...]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Mapping[str, Any]]) -> ClinicalSchema:
        """Columns by name, e.g. `{"Age": {"kind": "numeric", "low": 18, "high": 110}}`.

        Raises:
            ValueError: no column, or a malformed one (named).
        """
        if not raw:
            raise ValueError("clinical schema without columns")
        return cls(tuple(Column.from_dict(name, column) for name, column in raw.items()))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {column.name: column.to_dict() for column in self.columns}

    def clean(self, table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """The schema's columns of `table`, cleaned, and notes on what was repaired.

        Numbers are floats (NaN = missing), categories are texts (None = missing). A column is
        found by its name or another of its names, whatever the case, spaces, - and _ in it.

        Raises:
            ValueError: two columns of the table have the same name.
        """
        if not table.columns.is_unique:
            twice = sorted(set(table.columns[table.columns.duplicated()]))
            raise ValueError(f"clinical table holds columns {twice} more than once")
        cleaned: dict[str, Any] = {}
        notes: list[str] = []
        by_name = {_plain_name(str(label)): label for label in reversed(table.columns)}
        for column in self.columns:
            label = _find_label(column, table, by_name)
            if label is None:
                notes.append(f"{column.name}: no such column, treated as missing")
                raw: Iterable[object] = [None] * len(table)
            else:
                if label != column.name:
                    notes.append(f"{column.name}: read from column '{label}'")
                raw = table[label]
            results = [clean_value(column, value) for value in raw]
            values = [value for value, _ in results]
            counts = Counter(repair for _, repair in results if repair)
            notes += [f"{column.name}: {_count(n)} {repair}" for repair, n in counts.items()]
            numeric = column.kind == "numeric"
            cleaned[column.name] = np.array(values, dtype=np.float64 if numeric else object)
        return pd.DataFrame(cleaned, index=table.index), tuple(notes)


def clean_value(column: Column, raw: object) -> tuple[float | str | None, str | None]:
    """A number, a code or None (missing), and what was repaired, if anything."""
    if raw is None or raw is pd.NaT or raw is pd.NA:
        return None, None
    if isinstance(raw, str) and raw.strip().lower() in MISSING_TEXTS:
        return None, None
    if isinstance(raw, (float, np.floating)) and math.isnan(raw):
        return None, None
    return _clean_number(column, raw) if column.kind == "numeric" else _clean_code(column, raw)


def _clean_number(column: Column, raw: object) -> tuple[float | None, str | None]:
    number = _number_in(raw) if isinstance(raw, str) else raw
    try:
        number = float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None, "not a number, treated as missing"
    if not math.isfinite(number):
        return None, "not a finite number, treated as missing"
    if column.low <= number <= column.high:
        return number, "as text, read as a number" if isinstance(raw, str) else None
    for unit, factor in column.other_units:
        if column.low <= number * factor <= column.high:
            return number * factor, f"in {unit}, converted to {column.unit}"
    span = f"{column.low:g} to {column.high:g} {column.unit}".rstrip()
    return None, f"outside {span}, treated as missing"


def _number_in(text: str) -> str | None:
    match = NUMBER.fullmatch(text.strip())
    return match[1].replace(",", ".") if match else None


def _clean_code(column: Column, raw: object) -> tuple[str | None, str | None]:
    if isinstance(raw, (bool, np.bool_)):
        raw = int(raw)
    if isinstance(raw, (int, float, np.number)):
        raw = float(raw)
        text = str(int(raw)) if raw.is_integer() else str(raw)
        numeric = True
    else:
        text, numeric = str(raw).strip(), False
        if re.fullmatch(r"[-+]?\d+\.0*", text):
            text = str(int(float(text)))
    code = _match_code(column, text)
    if code is None:
        return None, "with an unknown code, treated as missing"
    rewritten = not numeric and (str(raw) != code or code.isdigit())
    return code, "as text, read as a code" if rewritten else None


def _match_code(column: Column, text: str) -> str | None:
    if not column.codes:
        return text
    known = {code.lower(): code for code in column.codes} | dict(column.aliases)
    lower = text.lower()
    if lower not in known and set(column.codes) >= {"0", "1"}:
        lower = YES_NO.get(lower, lower)
    return known.get(lower)


@dataclass(frozen=True)
class NumericEncoding:
    """How one numeric column is encoded; see the module's description."""

    name: str
    median: float
    mean: float
    scale: float
    marks_missing: bool

    @classmethod
    def fit(cls, column: Column, values: pd.Series) -> NumericEncoding | None:
        observed = values.dropna().to_numpy(dtype=np.float64)
        if len(np.unique(observed)) < 2:
            return None
        missing = bool(values.isna().any())
        median, mean, scale = np.median(observed), observed.mean(), observed.std()
        return cls(column.name, float(median), float(mean), float(scale), missing)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name}={MISSING}") if self.marks_missing else (self.name,)

    def encode(self, values: pd.Series) -> tuple[np.ndarray, int]:
        """Encoded values `[n, features]`, and 0, the number of unseen categories."""
        missing = values.isna().to_numpy()
        number = np.where(missing, self.median, values.to_numpy(dtype=np.float64))
        encoded = [(number - self.mean) / self.scale]
        if self.marks_missing:
            encoded.append(missing.astype(np.float64))
        return np.stack(encoded, axis=1), 0


@dataclass(frozen=True)
class CategoricalEncoding:
    """How one categorical column is encoded; see the module's description."""

    name: str
    levels: tuple[str, ...]
    shares: tuple[float, ...]

    @classmethod
    def fit(cls, column: Column, values: pd.Series) -> CategoricalEncoding | None:
        counts = Counter(MISSING if value is None else value for value in values)
        rank = {code: i for i, code in enumerate(column.codes)}
        levels = sorted(counts, key=lambda v: (v == MISSING, rank.get(v, len(rank)), v))
        if len(levels) < 2:
            return None
        shares = tuple(counts[level] / len(values) for level in levels)
        return cls(column.name, tuple(levels), shares)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}={level}" for level in self.levels[self._first :])

    @property
    def _first(self) -> int:
        # The first of two columns says nothing that the second does not.
        return 1 if len(self.levels) == 2 else 0

    def encode(self, values: pd.Series) -> tuple[np.ndarray, int]:
        """Encoded values `[n, features]`, and how many categories were not seen in training."""
        rows = np.eye(len(self.levels))
        known = dict(zip(self.levels, rows, strict=True))
        absent = known.get(MISSING, np.array(self.shares))
        encoded = np.array([known.get(v, absent) if v is not None else absent for v in values])
        unseen = sum(value is not None and value not in known for value in values)
        return encoded.reshape(len(values), len(self.levels))[:, self._first :], unseen


class ClinicalEncoder:
    """Health records to vectors, fitted on the training patients only.

    After `fit`: `feature_names_` `[d]` and `report_`, notes on what was repaired in the training
    table and which columns were left out because they do not vary.
    """

    def __init__(self, schema: ClinicalSchema) -> None:
        self.schema = schema

    def fit(self, table: pd.DataFrame) -> ClinicalEncoder:
        """Fit on the training patients' `table`, one row each.

        Raises:
            ValueError: a table without rows.
        """
        if table.empty:
            raise ValueError("clinical table without training patients")
        cleaned, notes = self.schema.clean(table)
        self.encodings_: list[NumericEncoding | CategoricalEncoding] = []
        left_out = []
        for column in self.schema.columns:
            kind = NumericEncoding if column.kind == "numeric" else CategoricalEncoding
            encoding = kind.fit(column, cleaned[column.name])
            if encoding:
                self.encodings_.append(encoding)
            else:
                left_out.append(f"{column.name}: the same in all training patients, left out")
        self.report_ = (*notes, *left_out)
        return self

    @property
    def feature_names_(self) -> tuple[str, ...]:
        return tuple(name for encoding in self.encodings_ for name in encoding.feature_names)

    def transform(self, table: pd.DataFrame) -> np.ndarray:
        """The patients of `table` as float32 `[n, d]`, never NaN."""
        return self.encode(table)[0]

    def encode(self, table: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
        """As `transform`, with notes on what was repaired in this table."""
        cleaned, cleaning = self.schema.clean(table)
        notes, parts = list(cleaning), [np.zeros((len(table), 0))]
        for encoding in self.encodings_:
            part, unseen = encoding.encode(cleaned[encoding.name])
            parts.append(part)
            if unseen:
                notes.append(
                    f"{encoding.name}: {_count(unseen)} with a category not seen in training, "
                    "treated as missing"
                )
        return np.concatenate(parts, axis=1).astype(np.float32), tuple(notes)

    def transform_record(
        self, record: ClinicalRecord | Mapping[str, object]
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """One patient's record as float32 `[d]`, with notes on what was repaired."""
        values = record.values if isinstance(record, ClinicalRecord) else record
        encoded, notes = self.encode(pd.DataFrame([dict(values)], dtype=object, index=[0]))
        return encoded[0], notes

    def state(self) -> dict[str, Any]:
        """The fitted encoder as JSON-able values; see `from_state`."""
        return {
            "schema": self.schema.to_dict(),
            "encodings": [asdict(encoding) for encoding in self.encodings_],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ClinicalEncoder:
        """The encoder whose `state()` this is, also after a round trip through JSON.

        Raises:
            ValueError: an entry is missing or malformed.
        """
        try:
            encoder = cls(ClinicalSchema.from_dict(state["schema"]))
            encoder.encodings_ = [_encoding_of(entry) for entry in state["encodings"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"clinical encoder state is malformed: {error}") from error
        names = {column.name for column in encoder.schema.columns}
        if stray := [e.name for e in encoder.encodings_ if e.name not in names]:
            raise ValueError(f"clinical encoder state encodes {stray}, which its schema lacks")
        encoder.report_ = ()
        return encoder


def _encoding_of(entry: Mapping[str, Any]) -> NumericEncoding | CategoricalEncoding:
    if "levels" in entry:
        levels, shares = tuple(entry["levels"]), tuple(float(s) for s in entry["shares"])
        if len(levels) != len(shares):
            raise ValueError(f"{entry['name']}: {len(levels)} levels but {len(shares)} shares")
        return CategoricalEncoding(entry["name"], levels, shares)
    return NumericEncoding(**entry)


@dataclass(frozen=True)
class OutcomeTable:
    """Patients with a known outcome: raw `table` (one row each), `time` `[n]`, `event` `[n]`."""

    table: pd.DataFrame
    time: np.ndarray
    event: np.ndarray
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
        follow_up: the column with the time of the last follow-up, where `time` is only given for
            patients with an event.

    Patients without a known event or time are left out, and noted. The index holds the ids; the
    outcome's columns are not in the table.

    Raises:
        ValueError: a file or column is missing, or a patient occurs twice; names it.
    """
    tables = [_read_csv(path, patient) for path in paths]
    joined = tables[0]
    for path, table in zip(paths[1:], tables[1:], strict=True):
        if common := sorted(set(joined.columns) & set(table.columns)):
            raise ValueError(f"{path}: columns {common} are in an earlier table too")
        joined = joined.join(table, how="left")
    outcome = [c for c in (time, event, follow_up) if c]
    if absent := [c for c in outcome if c not in joined.columns]:
        raise ValueError(f"{', '.join(p.name for p in paths)}: no column {absent}")
    happened = [
        clean_value(Column(event, "categorical", codes=("0", "1")), v)[0] for v in joined[event]
    ]
    had_event = np.array([h == "1" for h in happened])
    times = pd.to_numeric(joined[time], errors="coerce").to_numpy(dtype=np.float64)
    if follow_up:
        last = pd.to_numeric(joined[follow_up], errors="coerce").to_numpy(dtype=np.float64)
        times = np.where(had_event, times, last)
    known = np.array([h is not None for h in happened]) & np.isfinite(times) & (times >= 0)
    notes = (
        (f"{_count(int((~known).sum()))} without an outcome, left out",) if not known.all() else ()
    )
    kept = joined.loc[known].drop(columns=outcome)
    return OutcomeTable(kept, times[known], had_event[known], notes)


def _read_csv(path: Path, patient: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={patient: str})
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as a CSV table: {error}") from error
    if patient not in table.columns:
        raise ValueError(f"{path}: no column {patient!r}, found {list(table.columns)}")
    if table[patient].duplicated().any():
        raise ValueError(f"{path}: a patient occurs more than once in column {patient!r}")
    return table.set_index(patient)


def _find_label(
    column: Column, table: pd.DataFrame, by_name: Mapping[str, object]
) -> object | None:
    if column.name in table.columns:
        return column.name
    for name in (column.name, *column.other_names):
        if _plain_name(name) in by_name:
            return by_name[_plain_name(name)]
    return None


def _plain_name(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _texts(value: object) -> tuple[str, ...]:
    items: Iterable[object] = value.split(",") if isinstance(value, str) else value  # type: ignore
    return tuple(str(item).strip() for item in items)


def _count(n: int) -> str:
    return f"{n} value" if n == 1 else f"{n} values"


# The table of HECKTOR 2025, and the names its columns had in 2022. The centre is no feature: it
# would teach a model where a patient was treated. Gender is coded 0/1 in one year and M/F in the
# other, without a published key, so neither is translated into the other.
HECKTOR = ClinicalSchema(
    (
        Column(
            "Age",
            "numeric",
            low=15,
            high=110,
            unit="years",
            other_units=(("months", 1 / 12), ("days", 1 / 365.25)),
        ),
        Column(
            "Gender",
            "categorical",
            codes=("0", "1", "F", "M"),
            aliases=(("female", "F"), ("male", "M")),
        ),
        Column("Tobacco Consumption", "categorical", codes=("0", "1"), other_names=("Tobacco",)),
        Column("Alcohol Consumption", "categorical", codes=("0", "1"), other_names=("Alcohol",)),
        Column("Performance Status", "numeric", low=0, high=4, unit="ECOG"),
        Column("Treatment", "categorical", codes=("0", "1"), other_names=("Chemotherapy",)),
        Column(
            "M-stage",
            "categorical",
            codes=("M0", "M1", "Mx"),
            aliases=(("0", "M0"), ("1", "M1"), ("x", "Mx")),
        ),
        Column(
            "HPV Status",
            "categorical",
            codes=("0", "1"),
            aliases=(("negative", "0"), ("positive", "1"), ("+", "1")),
            other_names=("HPV status (0=-, 1=+)",),
        ),
    )
)
