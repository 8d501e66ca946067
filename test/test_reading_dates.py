from __future__ import annotations

from datetime import date

import pytest

from hmvnet.reading.dates import check_form, parse_date

DAY = date(2020, 4, 23)


@pytest.mark.parametrize(
    "text",
    ["2020-04-23", "2020/4/23", "2020.04.23", "2020-04-23 14:05:00", "2020-04-23T00:00:00Z"]
    + ["23/04/2020", "4/23/2020", "23.4.2020", "23-04-2020 08:00", 20200423.0, "20200423"],
)
def test_what_means_one_day_only(text) -> None:
    assert parse_date(text) == DAY


def test_the_same_number_twice_is_one_day() -> None:
    assert parse_date("3/3/2020") == parse_date("03.03.2020") == date(2020, 3, 3)


@pytest.mark.parametrize("text", ["03/04/2020", "3.4.2020", "12-11-2020"])
def test_day_and_month_that_may_be_either(text) -> None:
    with pytest.raises(ValueError, match=r"may be either; clinical.date_format says which"):
        parse_date(text)
    day, month = (int(part) for part in text.replace(".", "/").replace("-", "/").split("/")[:2])
    sign = text.strip("0123456789")[0]
    assert parse_date(text, f"%d{sign}%m{sign}%Y") == date(2020, month, day)
    assert parse_date(text, f"%m{sign}%d{sign}%Y") == date(2020, day, month)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2021-02-29", "never was"),
        ("31/04/2020", "never was"),
        ("2020-13-01", "never was"),
        ("13/13/2020", "never was"),
        ("0020-04-23", "before March 1900"),
        ("2999-12-31", "after 2099"),
        ("04/23/20", "no date as in YYYY-MM-DD"),
        ("April 2020", "no date as in YYYY-MM-DD"),
        ("2020-04/23", "no date as in YYYY-MM-DD"),
        (43944.0, "a number .* clinical.date_format=excel"),
        (-5.0, "no date"),
    ],
)
def test_what_is_no_date(text, said) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_date(text)
    assert str(text) not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("23-Apr-2020", "%d-%b-%Y"),
        ("04/23/20", "%m/%d/%y"),
        (23042020.0, "%d%m%Y"),
        (43944.0, "excel"),
        (43944.75, "excel"),
        ("2020-04-23", "%d.%m.%Y"),  # a date cell among texts
        ("2020-04-23", "excel"),
    ],
)
def test_by_a_form(text, form) -> None:
    assert parse_date(text, form) == DAY


def test_a_number_has_its_leading_zero_back() -> None:
    """Else strptime would read 3042020 as 30/4."""
    assert parse_date(3042020.0, "%d%m%Y") == date(2020, 4, 3)
    with pytest.raises(ValueError):
        parse_date(42020.0, "%d%m%Y")


def test_excels_days_are_counted_from_its_day_zero() -> None:
    """Day 1 is 1900-01-01 there, and day 60 a 29th of February that 1900 had not."""
    assert parse_date(61.0, "excel") == date(1900, 3, 1)
    assert parse_date(36526.0, "excel") == date(2000, 1, 1)
    with pytest.raises(ValueError, match="before March 1900"):
        parse_date(60.0, "excel")


@pytest.mark.parametrize("form", ["", "excel", "%d/%m/%Y", "%Y%m%d", "%d-%b-%y", "%d.%m.%Y %H:%M"])
def test_forms_that_say_a_day(form) -> None:
    check_form(form)


@pytest.mark.parametrize("form", ["%d/%m", "%Y", "dd/mm/yyyy", "%q", "%d/%Y %H"])
def test_forms_that_do_not(form) -> None:
    with pytest.raises(ValueError, match="expected day, month and year, as in %d/%m/%Y"):
        check_form(form)


def test_a_form_that_reads_iso_dates_as_others_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be told from ISO dates"):
        check_form("%Y-%d-%m")


@pytest.mark.parametrize("text", ["12/31/2019", "31.12.2019", "3-4-2020"])
def test_a_date_against_the_form_is_not_read_in_another_order(text) -> None:
    """03/04/2020 beside 12/31/2019 was the 3rd of April by %d/%m/%Y: the form is wrong."""
    with pytest.raises(ValueError, match=r"no date by clinical\.date_format=%d/%m/%Y"):
        parse_date(text, "%d/%m/%Y")
