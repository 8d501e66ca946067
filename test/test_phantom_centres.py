"""Phantoms whose centres differ in images, records and baseline hazard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from hmvnet.case import ClinicalRecord, Outcomes
from hmvnet.phantom import (
    CENTERS,
    LESION_TERMS,
    TABLE_TERMS,
    PatientPlan,
    PhantomSettings,
    WeibullCox,
    cohort,
    draw_cohort,
    draw_patient,
    make_phantom,
    render,
    write_cohort,
)
from hmvnet.phantom.centres import EFFECTS, rules
from hmvnet.reading.records import HECKTOR
from hmvnet.reading.tables import read_outcome_table
from hmvnet.survival.cox import RidgeCox, breslow

APART = PhantomSettings(centre_effects=True)
NAMED = (*LESION_TERMS, *TABLE_TERMS)


@pytest.fixture(scope="module")
def plans() -> list[PatientPlan]:
    return list(draw_cohort(1600, 17, APART))


def of_centre(plans: list[PatientPlan], name: str) -> list[PatientPlan]:
    return [plan for plan in plans if plan.scan.center == name]


def observed_to_expected(plans: list[PatientPlan]) -> dict[str, float]:
    """Events of each centre over those that a Cox model of all others, blind to centres, expects.

    The model has the true covariates, so that nothing but the centre is unknown to it.
    """
    x = np.array([[plan.covariates[name] for name in NAMED] for plan in plans])
    outcomes = Outcomes(
        np.array([p.rfs_days for p in plans], float), np.array([bool(p.relapse) for p in plans])
    )
    centre = np.array([plan.scan.center for plan in plans])
    ratios = {}
    for name in CENTERS:
        known, new = centre != name, centre == name
        model = RidgeCox((1.0,)).fit(x[known], outcomes[known], np.random.default_rng(0))
        days, hazard = breslow(outcomes[known], model.predict_risk(x[known]))
        step = np.searchsorted(days, outcomes.days[new], side="right")
        expected = np.append(0.0, hazard)[step] * np.exp(model.predict_risk(x[new]))
        ratios[name] = float(outcomes.event[new].sum() / expected.sum())
    return ratios


BOTH = ("hidden_pattern", "centre_effects")


def test_every_centre_has_its_effects() -> None:
    assert set(EFFECTS) == set(CENTERS)
    table = rules()
    assert all(f"| {name} |" in table for name in CENTERS)
    assert "missing as 0" in table and "0 as F" in table and "Age in months" in table


def test_off_a_centre_is_a_make_of_scanner_alone() -> None:
    plan = draw_patient(3)
    assert plan.scan.style == CENTERS[plan.scan.center]
    assert "centre_log_hazard" not in plan.covariates


def test_effects_leave_the_patient_as_it_was() -> None:
    for seed in range(1, 9):
        usual, apart = draw_patient(seed), draw_patient(seed, APART)
        assert apart.lesions == usual.lesions
        assert apart.scan.position == usual.scan.position
        rest = {k: v for k, v in apart.covariates.items() if k != "centre_log_hazard"}
        assert rest == usual.covariates
        shift = EFFECTS[apart.scan.center].log_hazard
        assert apart.linear_predictor - usual.linear_predictor == pytest.approx(shift)


def test_images_of_a_centre_are_scaled_and_coarser_or_finer() -> None:
    sums = {}
    for settings in (PhantomSettings(center="MDA"), replace(APART, center="MDA")):
        made = make_phantom(4, settings)
        sums[settings.centre_effects] = sitk.GetArrayFromImage(made.pet).sum(dtype=float)
    assert sums[True] / sums[False] == pytest.approx(EFFECTS["MDA"].suv, rel=0.05)
    for name, coarser in (("CHUM", 1.2), ("USZ", 0.85)):
        usual, apart = (
            draw_patient(4, s).scan
            for s in (PhantomSettings(center=name), replace(APART, center=name))
        )
        for frame, other in ((usual.ct, apart.ct), (usual.pet, apart.pet)):
            assert np.divide(other.spacing, frame.spacing) == pytest.approx([coarser] * 3)
            field, same = (np.multiply(f.size, f.spacing) for f in (frame, other))
            assert same == pytest.approx(field, rel=0.05)


def test_records_of_a_centre_are_its_own(plans: list[PatientPlan]) -> None:
    def records(name: str) -> pd.DataFrame:
        return pd.DataFrame([dict(plan.record) for plan in of_centre(plans, name)])

    assert records("HMR")["HPV Status"].isna().all()
    assert records("HGJ")["HPV Status"].notna().any()
    assert records("CHUM")["Tobacco Consumption"].notna().all()  # unknown is written as no
    assert (
        records("CHUM")["Tobacco Consumption"].mean()
        < records("CHUV")["Tobacco Consumption"].mean()
    )
    assert set(records("CHUP")["Gender"].dropna()) == {"F", "M"}
    assert records("CHUS")["Age"].min() > 12 * 27
    cleaned, notes = HECKTOR.clean(
        [ClinicalRecord(dict(p.record)) for p in of_centre(plans, "CHUS")]
    )
    assert max(age for age in cleaned["Age"] if age is not None) < 100
    assert any("in months" in note for note in notes)


def test_a_model_blind_to_centres_sees_the_shift(plans: list[PatientPlan]) -> None:
    """Left out, a centre has more or fewer events than expected, as its hazard says."""
    shift = np.array([EFFECTS[name].log_hazard for name in CENTERS])
    seen = np.log(list(observed_to_expected(plans).values()))
    assert np.corrcoef(seen, shift)[0, 1] > 0.9
    assert np.abs(seen).max() > 0.3
    usual = np.log(list(observed_to_expected(list(draw_cohort(1600, 17))).values()))
    assert np.abs(usual).max() < 0.3 and np.abs(np.corrcoef(usual, shift)[0, 1]) < 0.7


def test_tables_hold_the_centres_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "_write_all", lambda *_: iter(()))
    for task in ("Task 1", "Task 2"):
        (tmp_path / task).mkdir()
    write_cohort(tmp_path, 40, 17, APART)
    path = tmp_path / "Task 2" / "HECKTOR_2025_Training_Task_2.csv"
    assert {"0", "1", "M"} <= set(pd.read_csv(path, dtype=str)["Gender"].dropna())
    read = read_outcome_table([path])
    assert len(read.ids) == 40
    assert list(pd.read_csv(tmp_path / "truth.csv")["centre_log_hazard"]) == [
        EFFECTS[p.scan.center].log_hazard for p in draw_cohort(40, 17, APART)
    ]
    note = (tmp_path / "SYNTHETIC.md").read_text()
    assert "## Centre effects" in note and "| centre_log_hazard | +1.00 |" in note


def test_both_settings_together() -> None:
    plan = draw_patient(2, replace(APART, hidden_pattern=True))
    model = plan.settings.outcome_model
    assert len(model.terms) == len(WeibullCox().terms) + 2
    assert plan.linear_predictor == pytest.approx(model.linear_predictor(plan.covariates))
    ct = plan.scan.ct
    small = replace(
        ct, size=tuple(n // 4 for n in ct.size), spacing=tuple(4 * s for s in ct.spacing)
    )
    made = render(replace(plan, scan=replace(plan.scan, ct=small)))
    assert set(made.truth["covariates"]) >= {"uptake_pole", "centre_log_hazard"}


def test_both_options_at_once_leave_each_alone_as_it_is() -> None:
    """The terms of one once stayed in the other's."""
    before = {name: dict(PhantomSettings(**{name: True}).outcome_model.terms) for name in BOTH}
    together = PhantomSettings(**dict.fromkeys(BOTH, True)).outcome_model.terms
    assert {"uptake_pole", "centre_log_hazard"} <= set(together)
    for name in BOTH:
        assert dict(PhantomSettings(**{name: True}).outcome_model.terms) == before[name]
    assert set(before["hidden_pattern"]) == set(together) - {"centre_log_hazard"}
