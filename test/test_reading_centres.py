"""Which hospital a patient is from, where a table says it of some alone."""

import pytest

from hmvnet.case import ClinicalRecord
from hmvnet.reading.centres import name_centres


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        ({"CHUM-001": None, "CHUM-2": None, "MDA3": None}, ["CHUM", "CHUM", "MDA"]),
        ({"001": None, "2": None}, ["all", "all"]),
        ({"CHUM-1": 1.0, "CHUM-2": None, "MDA-1": 5.0}, ["1", "1", "5"]),
        ({"CHUM-1": 1.0, "CHUM-2": None, "USZ-1": None}, ["1", "1", "USZ"]),
        ({"P-1": 1.0, "P-2": 2.0, "P-3": None}, ["1", "2", "unknown"]),
        ({"1": "A", "2": None, "3": "A"}, ["A", "A", "A"]),
    ],
)
def test_who_has_no_centre_goes_with_those_of_such_a_name(patients, expected):
    """They were centres of their own: 13 of the 8 that were there."""
    records = [ClinicalRecord({"CenterID": value}) for value in patients.values()]
    assert name_centres(list(patients), records) == expected
