"""Columns of the health records that know the outcome: a model of them predicts nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hmvnet.case import Outcomes, harrell_c
from hmvnet.exits import shown
from hmvnet.reading.folder import Patient
from hmvnet.reading.records import ClinicalSchema
from hmvnet.training.descriptions import Described, LeakError, outcomes_of

FEWEST = 20  # patients with a value, below whom a perfect order may be chance
PERFECT = 0.995  # concordance that no variable measured beforehand has


def refuse_hidden_outcome(patients: Sequence[Patient | Described], schema: ClinicalSchema) -> None:
    """Refuse a column that orders the outcomes perfectly, or says who had the event.

    Raises:
        LeakError: names the columns.
    """
    cleaned, _ = schema.clean([p.record for p in patients])
    outcomes = outcomes_of(patients)
    if not 0 < outcomes.event.sum() < len(outcomes):  # all alike: there is nothing to tell
        return
    hidden = []
    for column in schema.columns:
        values = cleaned[column.name]
        seen = np.array([value is not None for value in values])
        known = outcomes[seen]
        if _tells(seen, outcomes):  # days to a relapse, which the others lack
            hidden.append(column.name)
            continue
        if seen.sum() >= FEWEST and 0 < known.event.sum() < len(known):
            if column.kind == "numeric":
                numbers = np.array([v for v in values if v is not None], float)
                leaks = _orders(numbers, known) or _tells(numbers, known)
            else:
                leaks = _tells(np.array([str(v) for v in values if v is not None]), known)
            hidden += [column.name] if leaks else []
    if hidden:
        raise LeakError(
            f"clinical column {', '.join(shown(name) for name in hidden)}: it tells the outcomes "
            f"of {len(patients)} patients perfectly, so it was not known before them; leave it out "
            "of the clinical columns"
        )


def _orders(values: np.ndarray, outcomes: Outcomes) -> bool:
    concordance = harrell_c(outcomes, values)
    return bool(max(concordance, 1 - concordance) >= PERFECT)


def _tells(values: np.ndarray, outcomes: Outcomes) -> bool:
    """Whether few values, each of several patients, are each of events or of none alone."""
    levels, number, count = np.unique(values, return_inverse=True, return_counts=True)
    if not 2 <= len(levels) <= len(values) / 5 or count.min() < 2:
        return False
    share = np.bincount(number, outcomes.event) / count
    return len(values) >= FEWEST and bool(np.isin(share, (0.0, 1.0)).all())
