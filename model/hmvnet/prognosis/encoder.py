"""Health records to vectors: the numeric encoding that a survival model is fitted to.

A ``ClinicalEncoder`` is fitted on the training patients only:

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

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hmvnet.case import ClinicalRecord
from hmvnet.reading.records import ClinicalSchema, Column, count_values

MISSING = "missing"
# One column's values in all records, as a schema cleans them; None is missing.
Values = Sequence[float | str | None]


@dataclass(frozen=True)
class NumericEncoding:
    """How one numeric column is encoded; see the module's description."""

    name: str
    median: float
    mean: float
    scale: float
    marks_missing: bool

    @classmethod
    def fit(cls, column: Column, values: Values) -> NumericEncoding | None:
        """The encoding of a column's training values; None where they do not vary."""
        observed = np.array([v for v in values if v is not None], np.float64)
        if len(np.unique(observed)) < 2:
            return None
        missing = len(observed) < len(values)
        median, mean, scale = np.median(observed), observed.mean(), observed.std()
        return cls(column.name, float(median), float(mean), float(scale), missing)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name}={MISSING}") if self.marks_missing else (self.name,)

    def encode(self, values: Values) -> tuple[np.ndarray, int]:
        """Encoded values ``[n, features]``, and 0, the number of unseen categories."""
        missing = np.array([v is None for v in values], bool)
        number = np.array([self.median if v is None else v for v in values], np.float64)
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
    def fit(cls, column: Column, values: Values) -> CategoricalEncoding | None:
        """The encoding of a column's training values; None where they do not vary."""
        counts = Counter(MISSING if value is None else str(value) for value in values)
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

    def encode(self, values: Values) -> tuple[np.ndarray, int]:
        """Encoded values ``[n, features]``, and how many categories were not seen in training."""
        rows = np.eye(len(self.levels))
        known = dict(zip(self.levels, rows, strict=True))
        absent = known.get(MISSING, np.array(self.shares))
        encoded = np.array([known.get(str(v), absent) if v is not None else absent for v in values])
        unseen = sum(value is not None and value not in known for value in values)
        return encoded.reshape(len(values), len(self.levels))[:, self._first :], unseen


def notes_on(records: Sequence[ClinicalRecord], schema: ClinicalSchema) -> tuple[str, ...]:
    """What is to be known before a model is fitted to these records, in counts."""
    return ClinicalEncoder(schema).fit(records).notes_


class ClinicalEncoder:
    """Health records to vectors, fitted on the training patients only.

    After ``fit``: ``feature_names_`` ``[d]`` and ``notes_``, notes on what was repaired in the
    training records and which columns were left out because they do not vary.
    """

    def __init__(self, schema: ClinicalSchema) -> None:
        self.schema = schema

    def fit(self, records: Sequence[ClinicalRecord]) -> ClinicalEncoder:
        """Fit on the training patients' records.

        Raises:
            ValueError: no records.
        """
        if not records:
            raise ValueError("clinical records without training patients")
        cleaned, notes = self.schema.clean(records)
        self.encodings_: list[NumericEncoding | CategoricalEncoding] = []
        left_out = []
        for column in self.schema.columns:
            kind = NumericEncoding if column.kind == "numeric" else CategoricalEncoding
            encoding = kind.fit(column, cleaned[column.name])
            if encoding:
                self.encodings_.append(encoding)
            else:
                some = None in cleaned[column.name]
                same = "one value or none" if some else "the same"
                left_out.append(f"{column.name}: {same} in all training patients, left out")
        self.notes_ = (*notes, *left_out)
        return self

    @property
    def feature_names_(self) -> tuple[str, ...]:
        return tuple(name for encoding in self.encodings_ for name in encoding.feature_names)

    def transform(self, records: Sequence[ClinicalRecord]) -> np.ndarray:
        """The patients as float32 ``[n, d]``, never NaN."""
        return self.encode(records)[0]

    def encode(self, records: Sequence[ClinicalRecord]) -> tuple[np.ndarray, tuple[str, ...]]:
        """As ``transform``, with notes on what was repaired in these records."""
        cleaned, cleaning = self.schema.clean(records)
        notes, parts = list(cleaning), [np.zeros((len(records), 0))]
        for encoding in self.encodings_:
            part, unseen = encoding.encode(cleaned[encoding.name])
            parts.append(part)
            if unseen:
                notes.append(
                    f"{encoding.name}: {count_values(unseen)} with a category not seen in "
                    "training, treated as missing"
                )
        return np.concatenate(parts, axis=1).astype(np.float32), tuple(notes)

    def knows_nothing(self, record: ClinicalRecord) -> bool:
        """Whether a record has no value in any of the encoded columns."""
        cleaned, _ = self.schema.clean([record])
        return all(cleaned[encoding.name][0] is None for encoding in self.encodings_)

    def transform_record(self, record: ClinicalRecord) -> tuple[np.ndarray, tuple[str, ...]]:
        """One patient's record as float32 ``[d]``, with notes on what was repaired."""
        encoded, notes = self.encode([record])
        return encoded[0], notes

    def state(self) -> dict[str, Any]:
        """The fitted encoder as JSON-able values; see ``from_state``."""
        return {
            "schema": self.schema.to_dict(),
            "encodings": [asdict(encoding) for encoding in self.encodings_],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ClinicalEncoder:
        """The encoder whose ``state()`` this is, also after a round trip through JSON.

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
        encoder.notes_ = ()
        return encoder


def _encoding_of(entry: Mapping[str, Any]) -> NumericEncoding | CategoricalEncoding:
    if "levels" in entry:
        levels, shares = tuple(entry["levels"]), tuple(float(s) for s in entry["shares"])
        if len(levels) != len(shares):
            raise ValueError(f"{entry['name']}: {len(levels)} levels but {len(shares)} shares")
        return CategoricalEncoding(entry["name"], levels, shares)
    return NumericEncoding(**entry)
