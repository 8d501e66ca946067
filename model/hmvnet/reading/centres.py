"""Which hospital each patient of a cohort is from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from hmvnet.case import ClinicalRecord

ALL = "all"  # of names without letters, where no table tells either
UNKNOWN = "unknown"


def name_centres(ids: Sequence[str], records: Sequence[ClinicalRecord]) -> list[str]:
    """Each patient's hospital: the table's CenterID, else what the letters of the name tell.

    Who has no CenterID is of the centre of those whose names begin with the same letters, where
    they are all of one; of none that is known, where they are of several. Letters that nobody with
    a CenterID has are a centre of their own.
    """
    told: dict[str, set[str]] = defaultdict(set)
    for patient_id, record in zip(ids, records, strict=True):
        if record.centre is not None:
            told[_letters(patient_id)].add(record.centre)

    def centre(patient_id: str, record: ClinicalRecord) -> str:
        if record.centre is not None:
            return record.centre
        letters = _letters(patient_id)
        among = told.get(letters, {letters})
        return next(iter(among)) if len(among) == 1 else UNKNOWN

    return [centre(*one) for one in zip(ids, records, strict=True)]


def _letters(patient_id: str) -> str:
    return re.split(r"[-_ ]?\d", patient_id, maxsplit=1)[0] or ALL
