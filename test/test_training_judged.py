from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FAST_PROGNOSIS, described_patients

from hmvnet.case import ClinicalRecord, harrell_c
from hmvnet.reading.records import HECKTOR
from hmvnet.training import prognosis
from hmvnet.training.descriptions import outcomes_of
from hmvnet.training.judged import fit_judged, inner_risks


def test_shares_are_judged_on_patients_that_no_part_was_fitted_to(tmp_path, monkeypatch):
    """Risks out of the inner folds, of the weights that the members then have."""
    patients = [
        replace(p, record=ClinicalRecord({"Age": 20 + 90 * np.exp(-p.outcome.days / 1500)}))
        for p in described_patients(66)
    ]
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("table",)})
    fitted = []
    of = prognosis.Cohort.of
    monkeypatch.setattr(
        prognosis.Cohort, "of", lambda some, *rest: fitted.append(len(some)) or of(some, *rest)
    )
    members, seen = fit_judged(patients, settings, HECKTOR, tmp_path, quiet=True)
    assert sorted(fitted) == [44, 44, 44, 66]
    assert harrell_c(outcomes_of(patients), seen.whole) > 0.9
    weights = [m.head.weight + sum(p.weight for p in m.named.values()) for m in members]
    assert weights == pytest.approx([1.0, 1.0]) and members[0].head.weight != pytest.approx(0.225)
    as_given, none = fit_judged(
        patients, settings.model_copy(update={"inner_folds": 0}), HECKTOR, tmp_path / "0", True
    )
    assert none is None and as_given[0].head.weight == pytest.approx(0.225)
    few, none = fit_judged(patients[:40], settings, HECKTOR, tmp_path / "few", quiet=True)
    assert none is None and few[0].head.weight == pytest.approx(0.225)


def test_a_candidate_is_judged_on_patients_that_it_was_not_fitted_to(tmp_path):
    """One that knows whom it saw: of all others it says how many it was fitted to."""
    patients = described_patients(60)
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("table", "lesions")})

    def fit(x, outcomes, rng):
        seen = {row.tobytes() for row in x}

        def risk(new):
            return np.array([np.nan if row.tobytes() in seen else len(outcomes) for row in new])

        return SimpleNamespace(predict_risk=risk)

    inner = inner_risks(patients, settings, HECKTOR, tmp_path, True, {"own": fit})
    risks, fold = inner.risks, inner.fold
    assert list(risks) == ["icare", "direct", "linear", "forest", "own"]
    assert (np.bincount(fold) == 20).all() and (risks["own"] == 40).all()
    few = settings.model_copy(update={"inner_folds": 0})
    assert inner_risks(patients, few, HECKTOR, tmp_path, True) is None


def test_inner_folds_leave_whole_centres_out(tmp_path):
    """Three of 22 patients each; where one has most of them, it is spread over the folds."""
    patients = described_patients(66)
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("table",)})
    for large, whole in ((False, True), (True, False)):
        some = [replace(p, centre="A") if large and i > 5 else p for i, p in enumerate(patients)]
        fold = inner_risks(some, settings, HECKTOR, tmp_path / str(large), True).fold
        centre = np.array([p.centre for p in some])
        assert all(len(set(fold[centre == c])) == 1 for c in "ABC") == whole
