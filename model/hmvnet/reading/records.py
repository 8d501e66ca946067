"""Health records: what a hospital wrote to clean values, and the columns that a model may use.

A record is cleaned once, value by value, when it is read: ``clean_scalar`` makes a number, a
text or None (missing) of what stands in a JSON file or in a table's cell. What a clean value means
is the business of a ``ClinicalSchema``: each ``Column`` knows its plausible range, other
units, codes and their other spellings. Notes say what was repaired; they never hold a patient's
value.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hmvnet.case import CaseError, ClinicalRecord, plain_name
from hmvnet.exits import RefusedError, shown
from hmvnet.files import read_bounded
from hmvnet.reading.text import decode

# In lower case. The second line is what pandas takes for missing when it reads a CSV file, so that
# a cell and a JSON value mean the same.
MISSING_WORDS = frozenset(
    {"", "nan", "na", "n/a", "none", "null", "unknown", "missing", "-", "?"}
    | {"<na>", "#n/a", "#na", "#n/a n/a", "-nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"}
)
YES_NO = {"yes": "1", "true": "1", "no": "0", "false": "0"}
# A unit may follow a number, as in DICOM's "063Y"; the plausible range decides what it was.
NUMBER = re.compile(r"([-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?)\s*[A-Za-z%/]*")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")  # or a decimal comma and three digits
MAX_JSON_BYTES = 1 << 20
MAX_DIGITS = 300  # of a whole number: no double holds more, and Python's int stops at 4300
# A string without an end is one too: else each of its quotes would be tried to the end of the file.
_STRING_OR_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*"?)|,(?=\s*[}\]])', re.DOTALL)
_NOT_FINITE = "not a finite number, treated as missing"
_UNKNOWN_CODE = "with an unknown code, treated as missing"
_JSON_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a text",
    bool: "true/false",
    type(None): "null",
}


def read_health_record(path: Path) -> tuple[ClinicalRecord, tuple[str, ...]]:
    """An ``ehr.json``, tolerant of trailing commas, NaN and other encodings (with a note).

    Raises:
        CaseError: the file is missing, not text, or not a JSON object.
    """
    raw, repaired = read_json(path)
    record, notes = parse_record(raw, path.name)
    return record, (*repaired, *notes)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> tuple[object, tuple[str, ...]]:
    """JSON of a bounded file; trailing commas, encodings other than UTF-8 and names that an object
    has twice are noted.

    Raises:
        CaseError: missing, no file, too large, not text or not JSON.
    """
    try:
        text, encoding = decode(read_bounded(path, max_bytes))
    except RefusedError as error:
        raise CaseError(str(error)) from error
    except ValueError as error:
        raise CaseError(f"{path.name}: {error}") from error
    notes = [] if encoding == "utf-8" else [f"{path.name}: read as {encoding}, expected UTF-8"]
    try:
        value, twice = _parsed(text)
    except (json.JSONDecodeError, RecursionError) as error:
        try:
            value, twice = _parsed(_drop_trailing_commas(text))
        except (json.JSONDecodeError, RecursionError):
            where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nesting"
            raise CaseError(f"{path.name}: not valid JSON ({where})") from error
        notes.append(f"{path.name}: trailing comma dropped")
    notes += [f"{path.name}: '{name}' more than once, the last is used" for name in twice]
    return value, tuple(notes)


def parse_record(raw: object, source: str) -> tuple[ClinicalRecord, tuple[str, ...]]:
    """A clean record and the notes about what was repaired.

    Args:
        raw: column names to scalars: parsed JSON, or a row of a table.
        source: the name of the file, for messages.

    Raises:
        CaseError: ``raw`` is not an object.
    """
    if not isinstance(raw, Mapping):
        raise CaseError(f"{source}: expected a JSON object, found {_json_kind(raw)}")
    values: dict[str, float | str | None] = {}
    notes: list[str] = []
    for key, value in raw.items():
        name = str(key).strip()
        if name in values:
            notes.append(f"{source}: field '{shown(name)}' more than once, the last is used")
        values[name], note = clean_scalar(value)
        if note:
            notes.append(f"{source}: field '{shown(name)}': {note}")
    return ClinicalRecord(values), tuple(notes)


def clean_scalar(value: object) -> tuple[float | str | None, str | None]:
    """A finite number, a text without outer spaces or None (missing), and what was repaired.

    A text that is a number becomes one, unless it may be a code that the number would change, such
    as "01" or "1e3".
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return float(value), "true/false read as 1/0"
    if isinstance(value, (int, float)):
        number = _as_float(value)
        return (number, None) if math.isfinite(number) else (None, _NOT_FINITE)
    if isinstance(value, str):
        return _clean_text(value.strip())
    if is_missing(value):
        return None, None
    return None, f"{_json_kind(value)} where a single value was expected, treated as missing"


def is_missing(value: object) -> bool:
    """Whether a value says nothing: None, NaN, pandas' NA and NaT, or a word for missing."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING_WORDS
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA does not know whether it is equal to itself
        return True


def _clean_text(text: str) -> tuple[float | str | None, str | None]:
    if is_missing(text):
        return None, f"text {'' if text else '(empty) '}read as missing"
    try:
        number = float(text)
    except ValueError:
        return text, None
    if not math.isfinite(number):
        return None, _NOT_FINITE
    if _code_of(number) != text.removesuffix(".0"):
        return text, None
    return number, "text where a number was expected, converted"


def _parsed(text: str) -> tuple[object, list[str]]:
    """What JSON says, and the names that one of its objects has more than once."""
    twice: dict[str, None] = {}

    def joined(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(name for name, _ in pairs)
        twice.update((shown(name), None) for name, n in counts.items() if n > 1)
        return dict(pairs)

    return json.loads(text, object_pairs_hook=joined, parse_int=_whole), list(twice)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _drop_trailing_commas(text: str) -> str:
    return _STRING_OR_TRAILING_COMMA.sub(lambda m: m.group(1) or "", text)


def _json_kind(raw: object) -> str:
    return _JSON_KINDS.get(type(raw), "a number")


def _as_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _code_of(number: float) -> str:
    """The text by which a number is known as a code: "1" for 1.0."""
    return str(int(number)) if number.is_integer() else str(number)


def plain_code(text: str) -> str:
    """A number's usual text, "1" for "01" and "1e0"; any other text as it is."""
    try:
        return _code_of(float(text))
    except ValueError:
        return text


@dataclass(frozen=True)
class Column:
    """One column of a health record.

    Attributes:
        name: as in the record.
        kind: numeric (also for ordered scores) or categorical.
        low, high: the plausible range of a number, inclusive.
        unit: for messages.
        other_units: names of units that also occur, each with its factor to ``unit``; tried, in
            order, on a number outside the plausible range.
        codes: the allowed categories; empty allows any.
        aliases: other spellings of a category, in lower case, and the code each stands for.
        other_names: names the column has in other records.
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

    @property
    def plain_names(self) -> tuple[str, ...]:
        """Its own and its other names, as ``plain_name`` has them."""
        return tuple(plain_name(name) for name in (self.name, *self.other_names))

    @classmethod
    def from_dict(cls, name: str, raw: Mapping[str, Any]) -> Column:
        """A column from plain values, as ``to_dict`` gives them or a settings file holds them.

        Numbers may be text; ``codes`` and ``other_names`` may be one comma-separated text.

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
        spellings = {code.lower() for code in column.codes} | {key for key, _ in column.aliases}
        if nothing := sorted(spellings & MISSING_WORDS):
            raise ValueError(
                f"column {name!r}: {nothing} is read as missing wherever it stands, and can be no "
                "code; expected another word, in the tables too"
            )
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

    def interpret(self, value: float | str | None) -> tuple[float | str | None, str | None]:
        """What a clean value means here: a number or a code or None (missing), and a repair."""
        if value is None or is_missing(value):
            return None, None
        return self._number(value) if self.kind == "numeric" else self._code(value)

    def _number(self, value: float | str) -> tuple[float | None, str | None]:
        if not isinstance(value, str):
            return self._fitting(float(value))
        read = [self._fitting(number) for number in _numbers_in(value)]
        if not read:
            return None, "not a number, treated as missing"
        if len(fits := [one for one in read if one[0] is not None]) > 1:
            return None, "with a comma that may part thousands, treated as missing"
        number, repair = (fits or read)[0]
        return number, repair or "as text, read as a number"

    def _fitting(self, number: float) -> tuple[float | None, str | None]:
        """The number in the column's unit, and what was repaired; None: it is not plausible."""
        if not math.isfinite(number):
            return None, _NOT_FINITE
        if self.low <= number <= self.high:
            return number, None
        for unit, factor in self.other_units:
            if self.low <= number * factor <= self.high:
                return number * factor, f"in {unit}, converted to {self.unit}"
        span = f"{self.low:g} to {self.high:g} {self.unit}".rstrip()
        return None, f"outside {span}, treated as missing"

    def _code(self, value: float | str) -> tuple[str | None, str | None]:
        if not isinstance(value, str):
            code = self._match(_code_of(float(value)))
            return code, None if code is not None else _UNKNOWN_CODE
        text = value.strip()
        if re.fullmatch(r"[-+]?\d+\.0*", text):
            text = str(int(float(text)))
        code = self._match(text)
        if code is None:
            return None, _UNKNOWN_CODE
        return code, "as text, read as a code" if value != code or code.isdigit() else None

    def _match(self, text: str) -> str | None:
        if not self.codes:
            return text
        known = {code.lower(): code for code in self.codes} | dict(self.aliases)
        spelling = text.lower()
        if spelling not in known and set(self.codes) >= {"0", "1"}:
            spelling = YES_NO.get(spelling, spelling)
        return known.get(spelling) or known.get(plain_code(spelling))


@dataclass(frozen=True)
class ClinicalSchema:
    """The columns of a health record that a model may use, in order."""

    columns: tuple[Column, ...]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Mapping[str, Any]]) -> ClinicalSchema:
        """Columns by name, e.g. ``{"Age": {"kind": "numeric", "low": 18, "high": 110}}``.

        Raises:
            ValueError: no column, or a malformed one (named).
        """
        if not raw:
            raise ValueError("clinical schema without columns")
        return cls(tuple(Column.from_dict(name, column) for name, column in raw.items()))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The columns by name, JSON-able."""
        return {column.name: column.to_dict() for column in self.columns}

    def clean(
        self, records: Sequence[ClinicalRecord]
    ) -> tuple[dict[str, list[float | str | None]], tuple[str, ...]]:
        """What the records say in each of the schema's columns, and notes on what was repaired.

        Numbers are floats, categories are texts, None is missing. A column is found by its name or
        another of its names, as ``plain_name`` has them; where a record has several of them, the
        first that says something is used.

        Returns:
            ``n`` values by column name, and the notes, in counts.
        """
        labels = list(dict.fromkeys(label for record in records for label in record.values))
        cleaned: dict[str, list[float | str | None]] = {}
        notes: list[str] = []
        for column in self.columns:
            names = _labels_of(column, labels)
            if not names:
                notes.append(f"{column.name}: no such column, treated as missing")
            notes += [
                f"{column.name}: read from column '{shown(name)}'"
                for name in names
                if name != column.name
            ]
            said = [
                [v for name in names if not is_missing(v := record.values.get(name))]
                for record in records
            ]
            if differ := sum(any(value != some[0] for value in some) for some in said):
                notes.append(
                    f"{column.name}: {count_values(differ)} that differ between these columns, the "
                    "first is used"
                )
            results = [column.interpret(next(iter(some), None)) for some in said]
            cleaned[column.name] = [value for value, _ in results]
            counts = Counter(repair for _, repair in results if repair)
            notes += [f"{column.name}: {count_values(n)} {repair}" for repair, n in counts.items()]
        return cleaned, tuple(notes)


def count_values(n: int) -> str:
    """A number of values in words, for notes."""
    return f"{n} value" if n == 1 else f"{n} values"


def _numbers_in(text: str) -> list[float]:
    """What a text may say: no number, one, or two, where a comma may part thousands."""
    match = NUMBER.fullmatch(text.strip())
    if not match:
        return []
    usual = float(match[1].replace(",", "."))
    return [usual, usual * 1000] if _THOUSANDS.fullmatch(match[1]) else [usual]


def _labels_of(column: Column, labels: Sequence[str]) -> list[str]:
    """What a column is called among the labels: its own name first, then as it lists others."""
    rank = {name: i for i, name in reversed([*enumerate(column.plain_names)])}
    found = [label for label in labels if plain_name(label) in rank]
    return sorted(found, key=lambda label: (label != column.name, rank[plain_name(label)]))


def _texts(value: object) -> tuple[str, ...]:
    items: Iterable[object] = value.split(",") if isinstance(value, str) else value  # type: ignore
    return tuple(str(item).strip() for item in items)


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
# That of HECKTOR 2026: no M-stage, and a third kind of treatment.
HECKTOR_2026 = ClinicalSchema(
    tuple(
        replace(column, codes=("0", "1", "2")) if column.name == "Treatment" else column
        for column in HECKTOR.columns
        if column.name != "M-stage"
    )
)
SCHEMAS: Mapping[str, ClinicalSchema] = {"2025": HECKTOR, "2026": HECKTOR_2026}
