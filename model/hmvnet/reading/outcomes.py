"""Follow-up out of a table's row: times, or dates that they lie between, and codes of the event."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from hmvnet.case import DAYS_PER_YEAR, ClinicalRecord, Outcome
from hmvnet.exits import shown
from hmvnet.reading.dates import check_form, parse_date
from hmvnet.reading.records import MISSING_WORDS, YES_NO, Column, count_values, plain_code

ID_COLUMN, EVENT_COLUMN, TIME_COLUMN = "PatientID", "Relapse", "RFS"
DAYS_OF_UNIT = {"days": 1.0, "weeks": 7.0, "months": DAYS_PER_YEAR / 12, "years": DAYS_PER_YEAR}
MOST_CODES = 5  # that are shown; more are no codes
_EVENT = Column(
    "event",
    "categorical",
    codes=("0", "1"),
    aliases=(("dead", "1"), ("deceased", "1"), ("alive", "0"), ("living", "0")),
)

Row = Mapping[str, float | str | None]


@dataclass(frozen=True)
class TableNames:
    """What the columns of tables are called, and how times and events are written in them.

    Attributes:
        patient: the column with the patient's name; of another name than PatientID it goes before
            the usual ones.
        time: the column with the time to the event, or to the last follow-up where there was none.
        event: the column that says whether there was one (0/1, yes/no, true/false, dead/alive).
        follow_up: the column with the time of the last follow-up, where ``time`` is only given for
            patients with an event.
        event_codes: what the event's codes stand for, "0" or "1", where they are others; then no
            code but these is known. Case and outer blanks do not count.
        time_unit: in which times are: days, weeks, months (of 30.4 days) or years.
        start_date: the column with the day from which follow-up counts; ``time`` and ``follow_up``
            then hold days of the calendar too, and follow-up is their difference.
        date_format: of those days, as ``parse_date`` has it.
        sheet: of Excel workbooks; empty: the only one that holds something.

    Raises:
        ValueError: two codes are one when read, as "1" and "yes" are; a code stands for something
            else; an unknown unit; a date format that is none or goes with no dates.
    """

    patient: str = ID_COLUMN
    time: str = TIME_COLUMN
    event: str = EVENT_COLUMN
    follow_up: str = ""
    event_codes: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = "days"
    start_date: str = ""
    date_format: str = ""
    sheet: str = ""

    def __post_init__(self) -> None:
        if self.time_unit not in DAYS_OF_UNIT:
            units = ", ".join(DAYS_OF_UNIT)
            raise ValueError(f"time unit '{self.time_unit}': expected one of {units}")
        if len(self.codes) < len(self.event_codes):
            raise ValueError(f"event codes {list(self.event_codes)}: two of them mean the same")
        if stray := {*self.event_codes.values()} - {"0", "1"}:
            raise ValueError(f"event codes stand for {sorted(stray)}, expected 0 or 1")
        if self.start_date and self.time_unit != "days":
            raise ValueError(f"time unit '{self.time_unit}' with a start date, expected days")
        if self.date_format and not self.start_date:
            raise ValueError("a date format, and no column of the start date")
        check_form(self.date_format)

    @property
    def codes(self) -> dict[str, str]:
        """The event's codes as cells have them: 1 for "01" and, by ``clean_scalar``, for "true"."""
        return {_code(code): said for code, said in self.event_codes.items()}

    @property
    def words(self) -> frozenset[str]:
        """Codes of the event that say elsewhere that nothing is known, as "none" does."""
        return frozenset(self.codes) & MISSING_WORDS

    @property
    def outcome(self) -> tuple[str, ...]:
        """The columns that an outcome is made of."""
        named = (self.start_date, self.time, self.event, self.follow_up)
        return tuple(name for name in named if name)

    @property
    def times(self) -> tuple[str, ...]:
        """Those of them that hold times, or dates."""
        return tuple(dict.fromkeys(name for name in self.outcome if name != self.event))

    @property
    def dates(self) -> tuple[str, ...]:
        """Those of them that hold dates."""
        return self.times if self.start_date else ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns whose cells are to be read as they are written."""
        return (*self.dates, *((self.event,) if self.words else ()))


def check_outcomes(
    rows: Mapping[int, Row], where: str, names: TableNames, least: float = 0
) -> None:
    """Refuse what would be read as another outcome, or quietly cost its patient.

    Codes such as 1 = censored, 2 = event; a time or date that is there and cannot be used.

    Args:
        rows: of one table, by their numbers.
        where: the table's file.
        least: of a time.

    Raises:
        ValueError: names file and column, for dates the row too.
    """
    events = [row[names.event] for row in rows.values() if row.get(names.event) is not None]
    codes = names.codes
    if other := [code for code in events if _event(code, codes) is None]:
        known = ", ".join(names.event_codes) or "0/1, yes/no, true/false and dead/alive"
        raise ValueError(
            f"{where}: column {names.event!r} holds {count_values(len(other))} other than {known}"
            f"{_found(other)}; clinical.event_codes says what codes stand for"
        )
    for column in names.times:
        given = {n: row[column] for n, row in rows.items() if row.get(column) is not None}
        if names.start_date:
            for number, value in given.items():
                _checked_date(value, names, f"{where}: row {number}, column {column!r}")
        elif other := [value for value in given.values() if _days(value, least) is None]:
            raise ValueError(
                f"{where}: column {column!r} holds {count_values(len(other))} other than a number "
                f"of {names.time_unit}"
            )


def _found(codes: Sequence[float | str | None]) -> str:
    """Codes for a message: words and single digits; what looks like a patient's value is not."""
    texts = Counter(plain_code(str(code)).strip().lower() for code in codes)
    if len(texts) > MOST_CODES or not all(re.fullmatch(r"-?\d|\D{1,24}", text) for text in texts):
        return ""
    return f", found {', '.join(f'{shown(text)!r} ({n})' for text, n in texts.items())}"


def _checked_date(value: float | str | None, names: TableNames, where: str) -> date | None:
    try:
        return None if value is None else parse_date(value, names.date_format)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def gap(row: Row, names: TableNames) -> tuple[str, str] | None:
    """The column of dates that keeps a row with a known event from having a follow-up, and why."""
    event = _event(row.get(names.event), names.codes)
    if not names.start_date or event is None:
        return None
    start, end = names.start_date, _end(names, event)
    for column in (start, end):
        if row.get(column) is None:
            return column, f"no date, and {names.event!r} is given"
    return (end, f"a date before that of {start!r}") if _between(row, names, event) < 0 else None


def split(row: Row, names: TableNames) -> tuple[ClinicalRecord, Outcome | None]:
    """A patient's row, checked, as the record and, where it is known, the outcome in days."""
    record = ClinicalRecord({k: v for k, v in row.items() if k not in names.outcome})
    event = _event(row.get(names.event), names.codes)
    if event is None:
        return record, None
    if names.start_date:
        return record, Outcome(float(_between(row, names, event)), event == "1")
    days = _days(row.get(_end(names, event)))
    if days is None:
        return record, None
    return record, Outcome(days * DAYS_OF_UNIT[names.time_unit], event == "1")


def _end(names: TableNames, event: str) -> str:
    """The column that says when follow-up ended."""
    return names.time if event == "1" else names.follow_up or names.time


def _between(row: Row, names: TableNames, event: str) -> int:
    """Days from the start to the end of follow-up."""
    values = (row[names.start_date], row[_end(names, event)])
    start, end = (parse_date(v, names.date_format) for v in values if v is not None)
    return (end - start).days


def _event(value: float | str | None, codes: Mapping[str, str]) -> str | None:
    """Whether there was one, "0" or "1"; None: the value does not say."""
    if not codes:
        return _EVENT.interpret(value)[0]  # type: ignore[return-value]
    return None if value is None else codes.get(_code(str(value)))


def _code(text: str) -> str:
    """A code as ``TableNames.codes`` has it."""
    plain = text.strip().lower()
    return YES_NO.get(plain, plain_code(plain))


def _days(value: float | str | None, least: float = 0) -> float | None:
    try:
        days = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return days if least <= days < math.inf else None
