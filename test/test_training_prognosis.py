from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAST_PROGNOSIS, described_patients, nothing_found
from rich.console import Console
from test_reading_folder import write_patient

from hmvnet.bundle import all_tensors, fingerprint, load_bundle, write_bundle
from hmvnet.case import harrell_c
from hmvnet.config import ESTABLISHED_FEATURES, DataSettings, PrognosisSettings, Settings
from hmvnet.experiments import evaluate_survival as evaluation
from hmvnet.experiments.evaluate_survival import evaluate_survival
from hmvnet.lesions.features import LesionFeatures
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.prognosis.fusion import (
    FusionConfig,
    FusionNetwork,
    LesionStandardiser,
    PatientInputs,
)
from hmvnet.prognosis.risk import Prognosis, PrognosisMember, Weighted, describe
from hmvnet.reading.folder import find_patients
from hmvnet.training import prognosis as training
from hmvnet.training.descriptions import LeakError, LesionDescriber, outcomes_of
from hmvnet.training.engine import make_fabric
from hmvnet.training.prognosis import fit_member, fit_members, inputs_of, predict


def inputs(count: int = 4) -> PatientInputs:
    return PatientInputs(
        torch.rand(count, 4, 16, 16, 16), torch.rand(count, 5), torch.rand(count, 7)
    )


@pytest.mark.parametrize(
    "branches", [("image", "table", "lesions"), ("image", "table"), ("lesions",), ("table",)]
)
def test_branches_and_ablations(branches):
    network = FusionNetwork(FusionConfig(5, 7, branches, image_width=2))
    assert network.embed(inputs()).shape == (4, 256)
    network(inputs()).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    outputs = network.eval().branch_outputs(inputs())
    widths = {"image": 512, "table": 32, "lesions": 2048}
    assert {k: v.shape[1] for k, v in outputs.items()} == {b: widths[b] for b in branches}


@pytest.mark.parametrize("branches", [(), ("image", "genes")])
def test_unknown_branches(branches):
    with pytest.raises(ValueError, match="branches"):
        FusionConfig(5, 7, branches)


def test_standardiser_is_fitted_on_seen_values_and_fills_the_rest():
    values = torch.tensor([[0.0, 5.0, 3.0], [100.0, torch.nan, 3.0], [1e8, 7.0, 3.0]])
    standardise = LesionStandardiser(3).fit(values)
    z = standardise(values)
    assert torch.isfinite(z).all() and z[:, 0].mean().abs() < 1e-5
    assert z[1, 1] == 0 and (z[:, 2] == 0).all()
    assert torch.isfinite(standardise(torch.full((1, 3), torch.nan))).all()


def fit(tmp_path, patients, **changes) -> PrognosisMember:
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("table", "lesions")} | changes)
    return fit_member(make_fabric(tmp_path), patients, settings, tmp_path)


def test_higher_risk_is_earlier_recurrence(tmp_path):
    """End to end: the first lesion feature shortens the simulated time to recurrence."""
    member = fit(tmp_path, described_patients(60), steps=60, batch_size=32)
    unseen = described_patients(60, seed=1)
    concordance = harrell_c(outcomes_of(unseen), predict([member], unseen))
    assert concordance > 0.55


def test_member_survives_its_tensors(tmp_path):
    patients = described_patients()
    member = fit(tmp_path, patients)
    again = PrognosisMember.from_tensors(
        member.encoder, member.settings(), {k: v.clone() for k, v in member.tensors().items()}
    )
    np.testing.assert_allclose(predict([member], patients), predict([again], patients), atol=1e-5)


def test_no_lesion_and_no_record_give_a_finite_risk(tmp_path):
    member = fit(tmp_path, described_patients())
    risk = predict([member], described_patients(3, lesions=False))
    assert np.isfinite(risk).all()


def test_branch_effects_are_those_of_the_branches_in_use(tmp_path):
    patients = described_patients()
    member = fit(tmp_path, patients)
    effects = member.branch_effects(inputs_of(patients[:1], member.encoder))
    assert set(effects) == {"table", "lesions"} and np.isfinite(list(effects.values())).all()


def test_contributions_sum_to_the_named_part_of_the_risk(tmp_path):
    """With no weight on the network, a patient's risk is the sum of what the variables add."""
    patients = described_patients()
    member = fit(tmp_path, patients, direct_weight=0.4, linear_weight=0.6)
    names = patients[0].description.features.names
    for patient, risk in zip(patients[:5], predict([member], patients)):
        parts = member.contributions(inputs_of([patient], member.encoder), names)
        assert sum(part.value for part in parts) == pytest.approx(risk, abs=1e-6)
        assert {part.name for part in parts} <= {*names, *member.encoder.feature_names_}
        assert not any(part.name.startswith("encoder") for part in parts)


def test_networks_alone(tmp_path):
    member = fit(tmp_path, described_patients(), direct_weight=0.0, linear_weight=0.0)
    assert not member.named and member.head.weight == 1
    assert not member.contributions(inputs_of(described_patients(1), member.encoder), ())


@pytest.mark.parametrize("kept", ["direct", "linear"])
def test_each_model_on_named_variables_has_its_share(tmp_path, kept):
    shares = {f"{name}_weight": 0.5 if name == kept else 0.0 for name in ("direct", "linear")}
    patients = described_patients()
    member = fit(tmp_path, patients, **shares)
    inputs = inputs_of(patients, member.encoder)
    assert set(member.named) == {kept} and member.named[kept].weight == member.head.weight == 0.5
    named = member.named[kept].model.predict_risk(member.variables.values(inputs))
    alone = replace(member, named={}, head=Weighted(1.0, member.head.model))
    np.testing.assert_allclose(member.risk(inputs), 0.5 * alone.risk(inputs) + 0.5 * named)


def test_shares_beyond_the_whole_are_refused():
    with pytest.raises(ValueError, match=r"sum to 1\.2"):
        PrognosisSettings(direct_weight=0.7, linear_weight=0.5)


def test_without_task_1_the_image_branch_sees_no_mask(tmp_path):
    """The ablation must not know the predicted lesions by way of the image's mask channels."""
    network = FusionNetwork(FusionConfig(5, 7, ("image", "table"), image_width=2)).eval()
    seen = inputs()
    other = PatientInputs(seen.image.clone(), seen.table, torch.rand_like(seen.lesions))
    other.image[:, 2:] = 0
    torch.testing.assert_close(network(seen), network(other))


def test_members_of_different_seeds_differ_and_are_averaged(tmp_path):
    patients = described_patients()
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("table", "lesions")})
    members = fit_members(make_fabric(tmp_path), patients, settings, tmp_path)
    risks = [predict([member], patients) for member in members]
    assert len(members) == 2 and not np.allclose(*risks)
    np.testing.assert_allclose(predict(members, patients), np.mean(risks, axis=0))


@pytest.mark.parametrize("count", [5, 0])
def test_too_few_patients(tmp_path, count):
    with pytest.raises(ValueError, match="expected at least 10"):
        fit(tmp_path, described_patients()[:count])


def test_a_planted_leak_is_caught(tiny_bundle, tmp_path):
    """A patient whose own segmentation network saw it must not be described by that network."""
    write_patient(tmp_path / "data", "A-1", "plain")
    (patient,) = find_patients(tmp_path / "data")
    bundle = load_bundle(tiny_bundle)
    part = bundle.manifest.segmentation.model_copy(update={"seen": [[fingerprint("A-1")]]})
    leaky = bundle.manifest.model_copy(update={"segmentation": part})
    folder = write_bundle(tmp_path / "leaky", leaky, all_tensors(bundle))
    describer = LesionDescriber(load_bundle(folder), torch.device("cpu"), 8.0, tmp_path)
    with pytest.raises(LeakError, match="A-1"):
        describer.unseen_members("A-1")
    assert describer.unseen_members("A-2") == [0]
    with pytest.raises(ValueError, match="no outcome"):
        describer(patient)


def test_fit_inside_a_fold_never_sees_the_others(tmp_path, monkeypatch):
    """Every fit gets training patients only, and every patient is predicted exactly once."""
    patients = described_patients(30)
    fitted, predicted = [], []

    def record_fit(some, *_):
        fitted.append({p.patient_id for p in some})
        return None

    def record_predict(member, some):
        predicted.append({p.patient_id for p in some})
        return np.random.default_rng(0).random(len(some))

    monkeypatch.setattr(training, "fit", record_fit)
    monkeypatch.setattr(training, "predict", record_predict)
    settings = Settings(data=DataSettings(folds=3))
    risks, _ = training.cross_validate(
        patients, settings.data, settings.prognosis, settings.clinical.record_schema, tmp_path
    )
    assert np.isfinite(risks).all() and len(fitted) == 3
    assert all(not seen & new for seen, new in zip(fitted, predicted))
    assert sorted(i for part in predicted for i in part) == [p.patient_id for p in patients]


def test_bundle_refuses_features_it_was_not_trained_on(tiny_bundle):
    prognosis = Prognosis(load_bundle(tiny_bundle))
    description = describe(nothing_found((20, 20, 20)), 8.0)
    with pytest.raises(ValueError, match="parts do not fit"):
        prognosis(description, described_patients(1)[0].record)


def test_the_direct_part_sees_established_features_only(tmp_path):
    patients = described_patients()
    member = fit(tmp_path, patients)
    names = patients[0].description.features.names
    assert [names[i] for i in member.variables.lesion_columns] == list(ESTABLISHED_FEATURES)
    every = fit(tmp_path / "all", patients, direct_features=())
    assert len(every.variables.lesion_columns) == sum(not n.startswith("encoder") for n in names)


def test_an_unknown_direct_feature_is_named(tmp_path):
    with pytest.raises(ValueError, match="no lesion feature \\['primary_colour'\\]"):
        fit(tmp_path, described_patients(), direct_features=("primary_colour",))


def fitted_to(bundle_folder, folder, seen):
    bundle = load_bundle(bundle_folder)
    prognosis = bundle.manifest.prognosis.model_copy(update={"seen": seen})
    manifest = bundle.manifest.model_copy(update={"prognosis": prognosis})
    return write_bundle(folder, manifest, all_tensors(bundle))


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


def test_a_file_without_the_model_it_weighs_is_refused(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    part = bundle.manifest.prognosis
    state = bundle.tensors(part.files[0])
    options = {k: v for k, v in part.settings.items() if k != "image_spacing_mm"}
    encoder = ClinicalEncoder.from_state(part.clinical[0])
    assert set(PrognosisMember.from_tensors(encoder, options, state).named) == {"direct", "linear"}
    lacking = {k: v for k, v in state.items() if not k.startswith("linear.")}
    with pytest.raises(ValueError, match=r"linear_weight is 0\.5, and its file lacks"):
        PrognosisMember.from_tensors(encoder, options, lacking)


def test_one_relapse_is_enough_to_fit(tmp_path):
    """No inner fold can judge the ridge then; the strongest is taken."""
    patients = described_patients()
    quiet = [
        replace(p, outcome=replace(p.outcome, event=i == 5, days=100.0 + i))
        for i, p in enumerate(patients)
    ]
    assert np.isfinite(predict([fit(tmp_path, quiet)], quiet)).all()
