from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FAST_PROGNOSIS, described_patients, with_crops

from hmvnet.case import harrell_c
from hmvnet.config import ESTABLISHED_FEATURES, DataSettings, PrognosisSettings, Settings
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.prognosis.member import NAMED_MODELS, PrognosisMember, Weighted
from hmvnet.training import prognosis as training
from hmvnet.training.descriptions import outcomes_of
from hmvnet.training.engine import make_fabric
from hmvnet.training.prognosis import fit_members, inputs_of, predict


def fit(tmp_path, patients, **changes) -> PrognosisMember:
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("table", "lesions")} | changes)
    return fit_members(
        make_fabric(tmp_path), patients, settings.model_copy(update={"members": 1}), tmp_path
    )[0]


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
    others = {name: 1.0 / len(member.named) for name in member.named}
    without = member.weighted({"icare": 0.0, **others})
    assert without.branch_effects(inputs_of(patients[:1], member.encoder)) == {}


def test_contributions_sum_to_the_named_part_of_the_risk(tmp_path):
    """With no weight on the network, a patient's risk is the sum of what the variables add."""
    patients = described_patients()
    member = fit(tmp_path, patients, direct_weight=0.3, linear_weight=0.5, forest_weight=0.2)
    names = patients[0].description.features.names
    for patient, risk in zip(patients[:5], predict([member], patients)):
        parts = member.contributions(inputs_of([patient], member.encoder), names)
        assert sum(part.value for part in parts) == pytest.approx(risk, abs=1e-6)
        assert {part.name for part in parts} <= {*names, *member.encoder.feature_names_}
        assert not any(part.name.startswith("encoder") for part in parts)


def test_networks_alone(tmp_path):
    none = dict(direct_weight=0.0, linear_weight=0.0, forest_weight=0.0)
    member = fit(tmp_path, described_patients(), **none)
    assert not member.named and member.head.weight == 1
    assert not member.contributions(inputs_of(described_patients(1), member.encoder), ())


@pytest.mark.parametrize("kept", NAMED_MODELS)
def test_each_model_on_named_variables_has_its_share(tmp_path, kept):
    shares = {f"{name}_weight": 0.5 if name == kept else 0.0 for name in NAMED_MODELS}
    patients = described_patients()
    member = fit(tmp_path, patients, **shares)
    inputs = inputs_of(patients, member.encoder)
    assert set(member.named) == {kept} and member.named[kept].weight == member.head.weight == 0.5
    named = member.named[kept].model.predict_risk(member.variables.values(inputs))
    alone = replace(member, named={}, head=Weighted(1.0, member.head.model))
    np.testing.assert_allclose(member.risk(inputs), 0.5 * alone.risk(inputs) + 0.5 * named)


def test_shares_beyond_the_whole_are_refused():
    with pytest.raises(ValueError, match=r"sum to 1\.3"):
        PrognosisSettings(direct_weight=0.7, linear_weight=0.5)


def test_members_of_different_seeds_differ_and_are_averaged(tmp_path):
    patients = described_patients()
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("table", "lesions")})
    members = fit_members(make_fabric(tmp_path), patients, settings, tmp_path)
    risks = [predict([member], patients) for member in members]
    assert len(members) == 2 and not np.allclose(*risks)
    np.testing.assert_allclose(predict(members, patients), np.mean(risks, axis=0))


def test_what_is_equal_for_all_members_is_fitted_once(tmp_path, monkeypatch):
    """A fit of many members costs their networks and heads, and one of everything else."""
    fits = []
    encoder, linear = ClinicalEncoder.fit, training.fit_linear_risk

    def counted(name, fit):
        return lambda *given, **options: fits.append(name) or fit(*given, **options)

    monkeypatch.setattr(ClinicalEncoder, "fit", counted("encoder", encoder))
    monkeypatch.setattr(training, "fit_linear_risk", counted("linear", linear))
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("table",), "members": 3})
    members = fit_members(make_fabric(tmp_path), described_patients(), settings, tmp_path)
    assert fits == ["encoder", "linear"] and len(members) == 3
    assert members[0].named["direct"].model is members[2].named["direct"].model


def test_a_network_is_not_taken_up_again_where_its_images_changed(tmp_path):
    patients = described_patients()
    settings = FAST_PROGNOSIS.model_copy(update={"branches": ("image", "lesions"), "members": 1})
    first, same = (
        fit_members(make_fabric(tmp_path), some, settings, tmp_path)[0].tensors()
        for some in (patients, patients)
    )
    for name, values in first.items():
        torch.testing.assert_close(same[name], values, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="other settings, other data or an earlier"):
        fit_members(make_fabric(tmp_path), [_brighter(p) for p in patients], settings, tmp_path)


def _brighter(patient):
    image = patient.description.image + 0.5
    return replace(patient, description=replace(patient.description, image=image))


@pytest.mark.parametrize("count", [5, 0])
def test_too_few_patients(tmp_path, count):
    with pytest.raises(ValueError, match="expected at least 10"):
        fit(tmp_path, described_patients()[:count])


def test_fit_inside_a_fold_never_sees_the_others(tmp_path, monkeypatch):
    """Every fit gets training patients only, and every patient is predicted exactly once."""
    patients = described_patients(30)
    fitted, predicted = [], []

    def record_fit(fabric, some, *_):
        fitted.append({p.patient_id for p in some})
        return [SimpleNamespace(weights={"icare": 0.5, "linear": 0.5})]

    def record_predict(members, some):
        predicted.append({p.patient_id for p in some})
        risk = np.array([-p.outcome.days for p in some])
        return {"icare": risk, "linear": np.random.default_rng(0).random(len(some))}

    monkeypatch.setattr(training, "fit_members", record_fit)
    monkeypatch.setattr(training, "predict_parts", record_predict)
    settings = Settings(data=DataSettings(folds=3))
    found = training.cross_validate(
        patients, settings.data, settings.prognosis, settings.clinical.record_schema, tmp_path
    )
    assert len(fitted) == 3 and found.concordance > 0.9  # the part that knows has the weight
    new = [part for part in predicted if part not in fitted]  # and those fitted to, for the slope
    assert len(predicted) == 6 and all(not seen & some for seen, some in zip(fitted, new))
    assert sorted(i for part in new for i in part) == [p.patient_id for p in patients]
    outcomes = outcomes_of(patients)
    assert harrell_c(outcomes, found.risk) > 0.9
    spread = outcomes.days.std() * found.weights["icare"]
    assert spread > 2 * found.weights["linear"] * 0.29  # and by all folds, too


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


def test_one_relapse_is_enough_to_fit(tmp_path):
    """No inner fold can judge the ridge then; the strongest is taken."""
    patients = described_patients()
    quiet = [
        replace(p, outcome=replace(p.outcome, event=i == 5, days=100.0 + i))
        for i, p in enumerate(patients)
    ]
    assert np.isfinite(predict([fit(tmp_path, quiet)], quiet)).all()


def test_mtlr_may_be_a_part(tmp_path):
    patients = described_patients()
    member = fit(tmp_path, patients, mtlr_weight=0.15)
    shares = dict(icare=0.075, direct=0.225, linear=0.45, forest=0.1, mtlr=0.15)
    assert member.weights == pytest.approx(shares)
    again = PrognosisMember.from_tensors(member.encoder, member.settings(), member.tensors())
    np.testing.assert_allclose(predict([member], patients), predict([again], patients), atol=1e-5)
    inputs = inputs_of(patients, member.encoder)
    assert set(member.part_risks(inputs)) == {"icare", "direct", "linear", "forest", "mtlr"}
    assert member.draws(inputs).shape == (FAST_PROGNOSIS.bags, len(patients))
    with pytest.raises(ValueError, match=r"mtlr_weight 0\.5: .* sum to 1\.275"):
        PrognosisSettings(mtlr_weight=0.5)


def test_a_member_whose_named_part_was_left_out_survives_its_tensors(tmp_path):
    patients = described_patients()
    shares = {"icare": 0.3, "direct": 0.0, "linear": 0.7, "forest": 0.0}
    member = fit(tmp_path, patients).weighted(shares)
    assert set(member.named) == {"linear"} and member.head.weight == pytest.approx(0.3)
    again = PrognosisMember.from_tensors(member.encoder, member.settings(), member.tensors())
    np.testing.assert_allclose(predict([member], patients), predict([again], patients), atol=1e-5)
    parts = member.part_risks(inputs_of(patients, member.encoder))
    whole = 0.3 * parts["icare"] + 0.7 * parts["linear"]
    np.testing.assert_allclose(predict([member], patients), whole)


def test_crops_are_a_part_of_the_risk_where_they_are_wanted(tmp_path):
    patients = with_crops(described_patients(40), 1.0)
    images = {"branches": ("image", "table", "lesions"), "images": "lesions"}
    member = fit(tmp_path, patients, steps=2, **images)
    assert member.crops is not None and member.weights["crops"] == 0.5
    assert sum(member.weights.values()) == pytest.approx(1)
    assert member.network.config.branches == ("table", "lesions")
    again = PrognosisMember.from_tensors(member.encoder, member.settings(), member.tensors())
    np.testing.assert_allclose(predict([member], patients), predict([again], patients), atol=1e-5)
    one = inputs_of(patients[:1], member.encoder)
    reasons = member.contributions(one, patients[0].description.features.names)
    assert reasons[-1].name == "image of the lesions"
    parts = member.part_risks(one)
    beside = sum(member.weights[k] * parts[k][0] for k in parts if k != "icare")
    assert sum(c.value for c in reasons) == pytest.approx(beside, rel=1e-4)
    shares = {"icare": 0.2, "direct": 0.4, "linear": 0.4, "forest": 0.0, "crops": 0.0}
    without = member.weighted(shares)
    assert without.crops is None and "crops_weight" not in without.settings()
    others = ({"images": "none"}, {"images": "lesions", "branches": ("image", "table")})
    for i, other in enumerate(others):
        assert fit(tmp_path / str(i), patients, **images | {"steps": 2} | other).crops is None
