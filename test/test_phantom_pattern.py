"""Phantoms whose outcome also hangs on a pattern that no named variable holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from hmvnet.lesions.features import lesion_features
from hmvnet.phantom import (
    LESION_TERMS,
    TABLE_TERMS,
    PatientPlan,
    PhantomSettings,
    best_c_index,
    cohort,
    draw_cohort,
    draw_patient,
    render,
    write_cohort,
)
from hmvnet.phantom.pattern import Ramp, draw_direction
from hmvnet.phantom.shapes import Blob

HIDDEN = PhantomSettings(hidden_pattern=True)
NAMED = (*LESION_TERMS, *TABLE_TERMS)


@pytest.fixture(scope="module")
def plans() -> list[PatientPlan]:
    return list(draw_cohort(2000, 31, HIDDEN))


def turned(plan: PatientPlan, z: float) -> PatientPlan:
    """The same patient, the primary's hot end up (1) or down (-1), the PET well aligned."""
    lesions = (replace(plan.lesions[0], hot_towards=(0.0, 0.0, z)), *plan.lesions[1:])
    still = replace(plan.scan, pet_shift=(0.0, 0.0, 0.0), pet_turn=(0.0, 0.0, 0.0))
    return replace(plan, lesions=lesions, scan=still)


def on_3_mm(plan: PatientPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, CT and PET of the primary's surroundings, ``[z, y, x]`` at 3 mm."""
    made = render(plan)
    centre = made.mask.TransformIndexToPhysicalPoint(
        [int(n) for n in np.argwhere(sitk.GetArrayFromImage(made.mask) == 1).mean(0)[::-1]]
    )
    grid = sitk.Image(60, 60, 60, sitk.sitkUInt8)
    grid.SetSpacing((3.0, 3.0, 3.0))
    grid.SetOrigin([c - 90.0 for c in centre])
    pairs = ((made.mask, sitk.sitkNearestNeighbor), (made.ct, sitk.sitkLinear))
    images = [
        sitk.Resample(image, grid, sitk.Transform(), how)
        for image, how in (*pairs, (made.pet, sitk.sitkLinear))
    ]
    mask, ct, pet = (sitk.GetArrayFromImage(image) for image in images)
    return mask, ct.astype(float), pet.astype(float)


def test_a_ramp_has_the_lesions_mean_and_grows_along_its_direction() -> None:
    waves = ((1.5, -0.7, 2.0, 0.4, 0.1), (0.3, 2.0, 1.0, 1.4, 0.08))
    blob = Blob((3.0, -5.0, 8.0), (9.0, 12.0, 15.0), waves)
    ramp = Ramp.through(blob, draw_direction(np.random.default_rng(1)), 8.0)
    points = blob.unit_points() * np.array(blob.radii, np.float32) + np.array(
        blob.center, np.float32
    )
    values = ramp(*points.T)
    assert values.mean() == pytest.approx(8.0, rel=1e-4)
    assert values.min() > 0
    along = (points - blob.center) / blob.radii @ np.array(ramp.direction)
    assert np.corrcoef(values, along)[0, 1] > 0.99


def test_the_pattern_changes_nothing_else_of_a_patient() -> None:
    for seed in range(1, 7):
        usual, hidden = draw_patient(seed), draw_patient(seed, HIDDEN)
        assert hidden.record == usual.record and hidden.scan == usual.scan
        assert [replace(x, hot_towards=None) for x in hidden.lesions] == list(usual.lesions)
        rest = {k: v for k, v in hidden.covariates.items() if k != "uptake_pole"}
        assert rest == usual.covariates


def test_the_pattern_is_independent_of_what_has_a_name(plans: list[PatientPlan]) -> None:
    pole = np.array([p.covariates["uptake_pole"] for p in plans])
    table = np.array([[p.covariates[name] for name in NAMED] for p in plans])
    correlations = [np.corrcoef(pole, column)[0, 1] for column in table.T]
    assert np.abs(correlations).max() < 4 / np.sqrt(len(plans))
    assert (pole[[all(x.label != 1 for x in p.lesions) for p in plans]] == 0).all()


def test_the_best_c_says_what_the_pattern_is_worth(plans: list[PatientPlan]) -> None:
    """About 0.026, over many patients: something, and not most of the outcome."""
    model = HIDDEN.outcome_model
    days, relapse = [p.rfs_days for p in plans], [p.relapse for p in plans]
    whole, named = (
        best_c_index([model.linear_predictor(p.covariates, n) for p in plans], days, relapse)
        for n in (None, NAMED)
    )
    assert 0.015 < whole - named < 0.04
    summary = cohort.summarise(Path("."), plans)
    assert (summary.best_c_index, summary.named_c_index) == pytest.approx((whole, named))
    assert f"{named:.3f}" in str(summary)


def test_measured_features_do_not_see_which_end_is_hot() -> None:
    """One patient with the hot end up, and down: every feature stays, the image does not."""
    patients = [p for p in draw_cohort(12, 3, HIDDEN) if p.lesions[0].label == 1][:5]
    up, down, seen = [], [], []
    for plan in patients:
        for z, values in ((1.0, up), (-1.0, down)):
            mask, ct, pet = on_3_mm(turned(plan, z))
            features = lesion_features(mask, ct, pet, (3.0, 3.0, 3.0)).to_dict()
            values.append([v for k, v in features.items() if k.startswith("primary_pet_")])
            height = np.argwhere(mask == 1)[:, 0]
            seen.append(z * np.corrcoef(height, pet[mask == 1])[0, 1])
    assert min(seen) > 0.5
    high, low = np.array(up), np.array(down)
    moved = np.abs(high - low).mean(0) / np.concatenate([high, low]).std(0)
    assert np.median(moved) < 0.1


def test_truth_holds_the_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "_write_all", lambda *_: iter(()))
    for task in ("Task 1", "Task 2"):
        (tmp_path / task).mkdir()
    write_cohort(tmp_path, 3, 4, HIDDEN)
    plans = list(draw_cohort(3, 4, HIDDEN))
    table = pd.read_csv(tmp_path / "truth.csv")
    assert list(table["uptake_pole"]) == pytest.approx([p.covariates["uptake_pole"] for p in plans])
    truth = json.loads((tmp_path / "truth.json").read_text())[plans[0].patient_id]
    assert truth["lesions"][0]["hot_towards"] == pytest.approx(plans[0].lesions[0].hot_towards)
    note = (tmp_path / "SYNTHETIC.md").read_text()
    assert "## Hidden pattern" in note and "| uptake_pole | +0.55 |" in note
