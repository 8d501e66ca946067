from dataclasses import replace

import numpy as np
import pytest
from conftest import described_patients

from hmvnet.case import ClinicalRecord
from hmvnet.reading.records import ClinicalSchema
from hmvnet.training.descriptions import LeakError
from hmvnet.training.leaks import refuse_hidden_outcome

SCHEMA = ClinicalSchema.from_dict(
    {"Age": {"kind": "numeric"}, "x": {"kind": "numeric"}, "k": {"kind": "categorical"}}
)


def cohort(**values):
    """Sixty patients with further columns, each a function of the patient."""
    return [
        replace(
            p, record=ClinicalRecord({**p.record.values, **{k: f(p) for k, f in values.items()}})
        )
        for p in described_patients(60)
    ]


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("x", lambda p: p.outcome.days),
        ("x", lambda p: -np.log(p.outcome.days)),
        ("x", lambda p: float(p.outcome.event)),
        ("x", lambda p: p.outcome.days if p.outcome.event else None),
        ("k", lambda p: "recurred" if p.outcome.event else "well"),
    ],
)
def test_a_column_that_tells_the_outcome_is_refused_by_name(name, of) -> None:
    with pytest.raises(LeakError, match=f"clinical column {name}: it tells the outcomes of 60"):
        refuse_hidden_outcome(cohort(**{name: of}), SCHEMA)


def test_what_is_known_beforehand_is_not(tmp_path) -> None:
    rng = np.random.default_rng(0)
    refuse_hidden_outcome(cohort(), SCHEMA)
    noisy = cohort(
        x=lambda p: p.outcome.days * np.exp(0.3 * rng.normal()), k=lambda p: p.patient_id
    )
    refuse_hidden_outcome(noisy, SCHEMA)
    refuse_hidden_outcome(cohort(x=lambda p: p.outcome.days)[:15], SCHEMA)


@pytest.mark.parametrize("event", [True, False])
def test_where_all_fared_alike_nothing_tells_it(event) -> None:
    patients = described_patients(60)
    rng = np.random.default_rng(0)
    changed = [
        replace(
            one,
            outcome=replace(one.outcome, event=event),
            record=ClinicalRecord({"x": float(i) if rng.random() < 0.7 else None}),
        )
        for i, one in enumerate(patients)
    ]
    refuse_hidden_outcome(changed, SCHEMA)
