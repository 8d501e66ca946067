"""A table's cells to dates: those that can only mean one day, and others by a form."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta

EXCEL = "excel"  # the form of numbers that count days, as spreadsheets keep dates
_EPOCH = date(1899, 12, 30)  # day 0 of Excel's 1900 system, from day 61 on
_FIRST, _LAST = date(1900, 3, 1), date(2100, 1, 1)  # day 60 of that system is none
_TIME = r"(?:[T ]\d{1,2}:\d{2}\S*)?"  # of day, which does not count
_YEAR_FIRST = re.compile(rf"(\d{{4}})([-/.])(\d{{1,2}})\2(\d{{1,2}}){_TIME}")
_YEAR_LAST = re.compile(rf"(\d{{1,2}})([-/.])(\d{{1,2}})\2(\d{{4}}){_TIME}")
_DIGITS = re.compile(r"(\d{4})(\d{2})(\d{2})")  # ISO 8601's basic form


def parse_date(value: float | str, form: str = "") -> date:
    """The day that a clean cell means.

    Without a form: ISO 8601 (2020-04-23, 20200423, with a time of day or without), 2020/4/23,
    and day and month before the year where only one order is possible (23/04/2020, 4/23/2020,
    3.3.2020). With one: what ``strptime`` reads by it, or a count of days (``excel``), and dates
    that begin with the year: the date cells of a workbook come as ISO 8601.

    Raises:
        ValueError: it is no date, none there ever was or from before March 1900 or after 2099, or
            day and month can be either; says why, without the value.
    """
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    found = _by_form(text, form) if form else None
    if not found and form and form != EXCEL and _YEAR_LAST.fullmatch(text):
        raise ValueError(f"no date by clinical.date_format={form}, and none as in YYYY-MM-DD")
    found = found or _by_itself(text)
    if not _FIRST <= found < _LAST:
        raise ValueError("a date before March 1900 or after 2099")
    return found


def check_form(form: str) -> None:
    """Refuse a form that does not say day, month and year, or would read ISO dates as others.

    Raises:
        ValueError: says which.
    """
    if form in ("", EXCEL):
        return
    day = date(2003, 11, 5)
    try:
        says_all = datetime.strptime(day.strftime(form), form).date() == day
    except ValueError:
        says_all = False
    if not says_all:
        raise ValueError(
            f"date format '{form}': expected day, month and year, as in %d/%m/%Y, or {EXCEL}"
        )
    if _by_form(day.isoformat(), form) not in (None, day):
        raise ValueError(f"date format '{form}': cannot be told from ISO dates, YYYY-MM-DD")


def _by_form(text: str, form: str) -> date | None:
    if form == EXCEL:
        if not re.fullmatch(r"\d{1,5}(\.\d+)?", text):
            return None
        return _EPOCH + timedelta(days=int(float(text)))
    if (
        text.isdigit()
    ):  # a column of digits loses its zeros, and strptime would take 3042020 for 30/4
        text = text.zfill(len(date.max.strftime(form)))
    try:
        return datetime.strptime(text, form).date()
    except ValueError:
        return None


def _by_itself(text: str) -> date:
    if match := _YEAR_FIRST.fullmatch(text):
        return _day(match[1], match[3], match[4])
    if match := _DIGITS.fullmatch(text):
        return _day(match[1], match[2], match[3])
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(
            f"a number where a date is expected; clinical.date_format={EXCEL} takes it for a "
            "spreadsheet's count of days"
        )
    if not (match := _YEAR_LAST.fullmatch(text)):
        raise ValueError(
            "no date as in YYYY-MM-DD; clinical.date_format says other forms, as %d-%b-%Y"
        )
    first, second, year = match[1], match[3], match[4]
    if first != second and int(first) <= 12 and int(second) <= 12 and int(first) != int(second):
        raise ValueError(
            "day and month may be either; clinical.date_format says which, %d/%m/%Y or %m/%d/%Y"
        )
    day, month = (first, second) if int(second) <= 12 else (second, first)
    return _day(year, month, day)


def _day(year: str, month: str, day: str) -> date:
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        raise ValueError("a date that there never was") from None
