"""A trained bundle: curves from out-of-fold risks, and a model for patients without a record."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import FAST_PROGNOSIS, described_patients, with_crops

from hmvnet.bundle import load_bundle
from hmvnet.case import ClinicalRecord, harrell_c
from hmvnet.config import DataSettings, Settings
from hmvnet.prognosis.risk import Prognosis
from hmvnet.training import survival_bundle as training
from hmvnet.training.descriptions import outcomes_of


@pytest.fixture(scope="module")
def trained(tiny_bundle, tmp_path_factory):
    """A bundle fitted to 45 patients, and these."""
    run, patients = tmp_path_factory.mktemp("run"), described_patients(45)
    prognosis = FAST_PROGNOSIS.model_copy(update={"members": 1})
    settings = Settings(data=DataSettings(root=str(run), folds=3), prognosis=prognosis)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_described", lambda *_: patients)
        folder = training.train_survival_bundle(settings, tiny_bundle, run / "survival")
    return load_bundle(folder), patients


def risks(prognosis: Prognosis, patients, record: ClinicalRecord | None = None):
    return [prognosis(p.description, p.record if record is None else record) for p in patients]


def test_its_expected_days_order_as_its_risks_do(trained) -> None:
    bundle, patients = trained
    found = risks(Prognosis(bundle), patients)
    value, days = (
        np.array([getattr(r, name) for r in found]) for name in ("value", "expected_days")
    )
    outcomes = outcomes_of(patients)
    assert harrell_c(outcomes, -days) == harrell_c(outcomes, value)
    assert len(np.unique(days)) == len(np.unique(value)) == 45
    longest = outcomes.days.max()
    assert (days > 0).all() and (days < longest).all()
    assert all(r.curve.at(0) == 1 and 0 <= r.curve.at(longest) < r.curve.at(500) for r in found)


def test_its_quantiles_are_those_of_risks_out_of_fold(trained) -> None:
    part = trained[0].manifest.prognosis
    assert len(part.risk_quantiles) == 21 and part.curve["centre"] == pytest.approx(
        part.risk_quantiles[10], abs=0.8
    )


def test_an_interval_holds_its_risk_and_has_a_width(trained) -> None:
    bundle, patients = trained
    for risk in risks(Prognosis(bundle), patients[:8]):
        low, high = risk.interval
        assert low <= risk.value <= high and high - low > 0.05


def test_without_a_record_the_risk_is_of_images_and_lesions_alone(trained) -> None:
    """One note; no reason that is not there; on the scale of the others."""
    bundle, patients = trained
    prognosis = Prognosis(bundle)
    nothing = risks(prognosis, patients, ClinicalRecord())
    assert {r.notes for r in nothing} == {
        ("no health record: the risk is of images and lesions alone",)
    }
    names = {c.name for r in nothing for c in r.contributions}
    assert names <= set(bundle.manifest.prognosis.lesion_features) and names
    assert all(set(r.branches) == {"image", "lesions"} for r in nothing)
    values = [np.array([r.value for r in some]) for some in (nothing, risks(prognosis, patients))]
    assert np.corrcoef(*values)[0, 1] > 0.5
    assert len({r.expected_days for r in nothing}) == len(patients)
    other = bundle.manifest.prognosis.without_record
    alone = [
        m.risk(m.inputs(patients[0].description, ClinicalRecord())[0])
        for m in prognosis.without_record
    ]
    assert nothing[0].value == pytest.approx(other.shift + other.scale * np.mean(alone))


def test_a_bundle_without_such_a_model_does_not_name_what_is_missing(tiny_bundle) -> None:
    prognosis = Prognosis(load_bundle(tiny_bundle))
    (risk,) = risks(prognosis, described_patients(1), ClinicalRecord())
    assert len(risk.notes) == 1 and "no health record" in risk.notes[0]
    encoded = set(prognosis.members[0].encoder.feature_names_)
    assert not encoded & {c.name for c in risk.contributions} and "table" not in risk.branches


def test_a_record_of_unusable_values_says_which(tiny_bundle) -> None:
    prognosis = Prognosis(load_bundle(tiny_bundle))
    (risk,) = risks(prognosis, described_patients(1), ClinicalRecord({"Age": 900.0}))
    assert len(risk.notes) > 1 and any("Age" in note for note in risk.notes)


def test_training_keeps_the_files_of_other_parts_alone(trained) -> None:
    bundle, _ = trained
    kept = {f for f in bundle.manifest.files if not f.startswith(("prognosis", "without-record"))}
    assert kept == set(bundle.manifest.segmentation.files)
    task2 = bundle.manifest.metrics["task2"]
    assert 0 <= task2["c_index_without_record"] <= 1 and task2["patients"] == 45


def test_a_bundle_that_looks_at_crops_says_which(tiny_bundle, tmp_path, monkeypatch) -> None:
    """The description it asks for has them, and a description without is refused."""
    patients = with_crops(described_patients(45), 1.0)
    monkeypatch.setattr(training, "load_described", lambda *_: patients)
    fast = {"members": 1, "images": "lesions", "inner_folds": 0, "bags": 2}
    options = FAST_PROGNOSIS.model_copy(update=fast)
    settings = Settings(data=DataSettings(root=str(tmp_path), folds=2), prognosis=options)
    folder = training.train_survival_bundle(settings, tiny_bundle, tmp_path / "run")
    prognosis = Prognosis(load_bundle(folder))
    assert prognosis.wants_crops
    assert prognosis.part.crop_features == list(patients[0].description.crops.names)
    (risk,) = risks(prognosis, patients[:1])
    assert np.isfinite(risk.value) and "image" not in risk.branches
    assert "image of the lesions" in [c.name for c in risk.contributions]
    (other,) = risks(prognosis, patients[:1], ClinicalRecord())
    assert np.isfinite(other.value)
    with pytest.raises(ValueError, match="crop_primary_mean0_0"):
        risks(prognosis, described_patients(1))
    assert not Prognosis(load_bundle(tiny_bundle)).wants_crops
