import io
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FAST_PROGNOSIS, described_patients, tensors_of, write_patient
from rich.console import Console

from hmvnet.bundle import fingerprint, load_bundle, write_bundle
from hmvnet.case import ClinicalRecord, harrell_c
from hmvnet.config import DataSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments import evaluate_survival as evaluation
from hmvnet.experiments.evaluate_survival import evaluate_survival, recalibrate_survival
from hmvnet.lesions.features import LesionFeatures
from hmvnet.prognosis.risk import Prognosis
from hmvnet.survival.calibration import fit_curve
from hmvnet.training.descriptions import outcomes_of
from hmvnet.training.engine import make_fabric
from hmvnet.training.prognosis import fit_members, predict, predict_as_given


def fitted_to(bundle_folder, folder, seen):
    bundle = load_bundle(bundle_folder)
    prognosis = bundle.manifest.prognosis.model_copy(update={"seen": seen})
    manifest = bundle.manifest.model_copy(update={"prognosis": prognosis})
    return write_bundle(folder, manifest, tensors_of(bundle))


def test_evaluation_refuses_patients_the_survival_model_was_fitted_to(tiny_bundle, tmp_path):
    for name in ("A-1", "A-2"):
        write_patient(tmp_path / "data", name, "plain")
    folder = fitted_to(tiny_bundle, tmp_path / "fitted", [fingerprint("A-2")])
    settings = Settings(data=DataSettings(root=str(tmp_path / "data")))
    score = partial(evaluate_survival, run=tmp_path / "run", limit=0, console=Console(quiet=True))
    with pytest.raises(ValueError, match="1 patients, A-2"):
        score(settings, folder)
    with pytest.raises(ValueError, match="does not say whom"):
        score(settings, tiny_bundle)
    with pytest.raises(ValueError, match="no data folder"):
        score(Settings(), folder)
    assert not (tmp_path / "run").exists()


def test_evaluation_gives_the_model_what_it_was_fitted_on(tiny_bundle, tmp_path, monkeypatch):
    """Its own features by name, its own image spacing, whatever the settings say."""
    (tmp_path / "data").mkdir()
    write_patient(tmp_path / "data", "A-1", "plain")
    folder = fitted_to(tiny_bundle, tmp_path / "fitted", [fingerprint("B-1")])
    patients = described_patients(12)
    more = [
        replace(
            p,
            description=replace(
                p.description,
                features=LesionFeatures(
                    ("new", *reversed(p.description.features.names)),
                    np.concatenate([[9.0], p.description.features.values[::-1]]),
                ),
            ),
        )
        for p in patients
    ]
    seen = []

    def described(bundle, data, image_spacing_mm, *_):
        seen.append(image_spacing_mm)
        return more

    monkeypatch.setattr(evaluation, "load_described", described)
    settings = Settings(data=DataSettings(root=str(tmp_path / "data")))
    (tmp_path / "run").mkdir()
    found = evaluate_survival(settings, folder, tmp_path / "run", 0, Console(quiet=True))
    members = Prognosis(load_bundle(folder)).members
    expected = harrell_c(outcomes_of(patients), predict(members, patients))
    assert found == expected and seen == [8.0] != [settings.prognosis.image_spacing_mm]


def test_who_has_no_record_is_scored_by_the_model_that_predicts_for_them(tmp_path):
    """As the pipeline does it, on the same scale."""
    patients = described_patients(40)
    bare = [replace(p, record=ClinicalRecord()) if i % 2 else p for i, p in enumerate(patients)]
    fast = FAST_PROGNOSIS.model_copy(update={"branches": ("table", "lesions"), "members": 1})
    alone = fast.model_copy(update={"branches": ("lesions",)})
    prognosis = object.__new__(Prognosis)
    prognosis.members = fit_members(make_fabric(tmp_path / "a"), patients, fast, tmp_path / "a")
    prognosis.without_record = fit_members(
        make_fabric(tmp_path / "b"), patients, alone, tmp_path / "b"
    )
    prognosis.curve = None
    prognosis.part = SimpleNamespace(
        lesion_features=list(patients[0].description.features.names),
        crop_features=[],
        without_record=SimpleNamespace(shift=0.3, scale=0.5),
        risk_quantiles=[0.0, 1.0],
        expected_days=[],
    )
    given = [prognosis(p.description, p.record).value for p in bare]
    np.testing.assert_allclose(predict_as_given(prognosis, bare), given, rtol=1e-5, atol=1e-6)
    assert np.abs(predict(prognosis.members, bare) - given).max() > 0.01


def test_a_bundle_is_recalibrated_where_it_is_used(tiny_bundle, tmp_path, monkeypatch):
    """The curve changes, and nothing else of it."""
    (tmp_path / "data").mkdir()
    write_patient(tmp_path / "data", "A-1", "plain")
    patients = described_patients(40)
    monkeypatch.setattr(evaluation, "load_described", lambda *_: patients)
    settings = Settings(data=DataSettings(root=str(tmp_path / "data")))
    given = fitted_to(tiny_bundle, tmp_path / "fitted", [fingerprint("B-1")])
    run, quiet = tmp_path / "run", Console(quiet=True)
    run.mkdir()
    with pytest.raises(ValueError, match="has no survival curve"):
        recalibrate_survival(settings, given, run, quiet)
    bundle = load_bundle(given)
    risk = predict(Prognosis(bundle).members, patients)
    curve = fit_curve(risk - 1, outcomes_of(patients)).state()
    prognosis = bundle.manifest.prognosis.model_copy(update={"curve": curve})
    manifest = bundle.manifest.model_copy(update={"prognosis": prognosis})
    curved = write_bundle(tmp_path / "curved", manifest, tensors_of(bundle))
    found = load_bundle(recalibrate_survival(settings, curved, run, quiet)).manifest
    assert found.prognosis.curve["groups"] == [] and found.prognosis.curve != curve
    same = found.prognosis.model_copy(update={"curve": curve})
    assert same == prognosis and set(found.files) == set(bundle.manifest.files)
    assert found.metrics["task2"]["recalibrated_on"]["patients"] == 40
    recalibrate_survival(settings, curved, run, quiet)  # its own earlier one is made anew
    other = {k: dict(v) for k, v in tensors_of(bundle).items()}
    other["fold0.safetensors"] = {k: v + 1 for k, v in other["fold0.safetensors"].items()}
    write_bundle(tmp_path / "mine" / "bundle", manifest, other)
    with pytest.raises(RefusedError, match=r"holds networks, or models .* that 'tiny' lacks"):
        recalibrate_survival(settings, curved, tmp_path / "mine", quiet)
    file = io.StringIO()
    evaluate_survival(settings, run / "bundle", run, 0, Console(file=file, width=200))
    assert "relapses over those expected 1.00" in file.getvalue()
