"""From a folder of staged patients to features, cross-fitted stages and a bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tensors_of, write_patient

from hmvnet.ajcc import N_STAGES, T_STAGES
from hmvnet.bundle import fingerprint, load_bundle, write_bundle
from hmvnet.case import Stage
from hmvnet.config import DataSettings, Settings
from hmvnet.lesions.features import LesionFeatures
from hmvnet.reading.folder import find_patients
from hmvnet.staging.features import feature_names, t_names
from hmvnet.staging.stager import Stager
from hmvnet.training import staging
from hmvnet.training.descriptions import LeakError
from hmvnet.training.staging import (
    StageData,
    StagedPatient,
    StagingDescriber,
    cross_fit,
    load_staged,
)
from hmvnet.training.staging_bundle import train_staging_bundle, write_staged

CPU = torch.device("cpu")


def staged_patients(count: int = 90, seed: int = 0) -> list[StagedPatient]:
    """T by the primary's size but T4 by lost bone, N by the number of nodes; two without stage."""
    rng = np.random.default_rng(seed)
    names = feature_names()
    place = {name: i for i, name in enumerate(names)}
    patients = []
    for i in range(count):
        t, n = int(rng.integers(4)), int(rng.integers(4))
        values = np.zeros(len(names), np.float32)
        values[::8] = rng.normal(size=len(values[::8]))
        values[place["t_log_diameter"]] = (0, 2, 4, 2)[t] + rng.normal(0, 0.3)
        values[place["invasion_near_lost_log_ml"]] = (0, 0, 0, 3)[t] + rng.normal(0, 0.3)
        values[place["n_log_count"]] = 2 * n + rng.normal(0, 0.3)
        for stage in (*T_STAGES[:3], *N_STAGES):
            values[place[f"{stage[0].lower()}_rule_{stage}"]] = stage in ("T2", f"N{n}")
        given = Stage(None if i == 0 else T_STAGES[t], None if i == 1 else N_STAGES[n])
        features = LesionFeatures(names, values)
        patients.append(StagedPatient(f"P{i:03d}", "ABC"[i % 3], given, features))
    return patients


@pytest.fixture
def folder(tmp_path):
    """Two patients in a folder with their stages, and one without."""
    for name in ("A-1", "B-2", "C-3"):
        write_patient(tmp_path / "data", name, "plain")
    text = "PatientID,T-stage,N-stage,Age\nA-1,T2,N2b,60\nB-2,T0,N1,\nC-3,Tx,,50\n"
    (tmp_path / "data" / "HECKTOR_2026_Training.csv").write_text(text)
    return tmp_path


def test_patients_are_described_once_and_by_networks_that_did_not_see_them(
    tiny_bundle, folder, monkeypatch
) -> None:
    settings = Settings(data=DataSettings(root=str(folder / "data")))
    bundle = load_bundle(tiny_bundle)
    found = load_staged(bundle, settings, folder / "run", "predicted")
    assert [(p.patient_id, p.stage) for p in found] == [
        ("A-1", Stage("T2", "N2")),
        ("B-2", Stage(None, "N1")),
    ]
    assert found[0].features.names == feature_names()
    assert found[0].features.to_dict()["record_age"] == 60

    def never(*_, **__):
        raise AssertionError("made a second time")

    monkeypatch.setattr(staging, "staging_features", never)
    again = load_staged(bundle, settings, folder / "run", "predicted")
    assert np.array_equal(again[0].features.values, found[0].features.values, equal_nan=True)
    with pytest.raises(AssertionError, match="a second time"):
        load_staged(bundle, settings, folder / "run", "true")  # other masks, other features


def test_label_maps_outlive_features(tiny_bundle, folder, monkeypatch) -> None:
    bundle = load_bundle(tiny_bundle)
    (patient, *_) = find_patients(folder / "data")
    describer = StagingDescriber(bundle, CPU, folder / "cache", "predicted")
    first = describer(patient).features
    for path in describer.features.iterdir():
        path.unlink()
    monkeypatch.setattr(describer, "segmenter", lambda *_: pytest.fail("segmented again"))
    again = describer(patient).features
    assert np.array_equal(again.values, first.values, equal_nan=True)


def test_a_planted_leak_is_caught(tiny_bundle, folder) -> None:
    bundle = load_bundle(tiny_bundle)
    part = bundle.manifest.segmentation.model_copy(update={"seen": [[fingerprint("A-1")]]})
    leaky = bundle.manifest.model_copy(update={"segmentation": part})
    other = load_bundle(write_bundle(folder / "leaky", leaky, tensors_of(bundle)))
    settings = Settings(data=DataSettings(root=str(folder / "data")))
    with pytest.raises(LeakError, match="A-1"):
        load_staged(other, settings, folder / "run")


def test_a_folder_without_stages_is_refused(tiny_bundle, tmp_path) -> None:
    write_patient(tmp_path / "data", "A-1", "plain")
    settings = Settings(data=DataSettings(root=str(tmp_path / "data")))
    with pytest.raises(ValueError, match=r"has a stage \(T-stage, N-stage\)"):
        load_staged(load_bundle(tiny_bundle), settings, tmp_path / "run")


def test_stages_are_told_out_of_fold() -> None:
    patients = staged_patients()
    data = StageData.of(patients, "t")
    assert len(data.y) == 89 and 0 not in data.rows
    settings = DataSettings(folds=3)
    folds = data.folds(settings)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(89))
    probabilities, given = cross_fit(data, folds)
    assert (given == data.y).mean() > 0.8
    assert probabilities.sum(axis=1) == pytest.approx(1)
    blind = StageData.of(patients, "t", t_names(invasion=False))
    assert (cross_fit(blind, folds)[1] == data.y).mean() < (given == data.y).mean()
    loco = data.folds(DataSettings(fold_by="leave-one-centre-out"))
    assert len(loco) == 3 and all(len(set(data.centres[test])) == 1 for _, test in loco)


def test_who_has_neither_node_nor_mass_is_n0_as_in_a_bundle() -> None:
    """Whatever the model says: the accuracy is that of what ``Stager`` gives."""
    patients = staged_patients()
    place = {name: i for i, name in enumerate(feature_names())}
    for i, one in enumerate(patients):
        one.features.values[place["n_present"]] = i % 3 == 0
        one.features.values[place["n_mass_log_beside"]] = 3.0 * (i % 3 == 1)
    data = StageData.of(patients, "n")
    free = data.rows % 3 == 2
    _, given = cross_fit(data, data.folds(DataSettings(folds=3)))
    assert (given[free] == 0).all() and (data.y[free] != 0).any()
    assert (given[~free] == data.y[~free]).mean() > 0.8
    assert (StageData.of(patients, "t").settled == -1).all()


def test_a_bundle_of_all_three_parts(tiny_bundle, tmp_path, monkeypatch) -> None:
    bundle, patients = load_bundle(tiny_bundle), staged_patients()
    settings = Settings(data=DataSettings(root=str(tmp_path), folds=3))
    monkeypatch.setattr("hmvnet.training.staging_bundle.load_staged", lambda *_: patients)
    folder = train_staging_bundle(settings, tiny_bundle, tmp_path / "run")
    made = load_bundle(folder)
    part = made.manifest.staging
    assert part is not None and made.staged_among(["P000", "P999"]) == ["P000"]
    assert made.manifest.metrics["staging"]["t"]["balanced_accuracy_cross_fitted"] > 0.8
    assert made.manifest.metrics["staging"]["n"]["patients"] == 89
    assert made.manifest.prognosis == bundle.manifest.prognosis
    assert made.manifest.files.items() > bundle.manifest.files.items()  # by hash
    assert {*made.manifest.files} - {*bundle.manifest.files} == {"staging.safetensors"}
    assert Stager.of(made).models is not None
    again = write_staged(made, patients, settings, tmp_path / "again")
    assert load_bundle(again).manifest == made.manifest  # staging is replaced, not added
    with pytest.raises(ValueError, match="fewer than 2 have"):
        write_staged(made, patients[:4], settings, tmp_path / "few")


def test_who_has_no_stage_of_an_axis_is_not_in_its_data() -> None:
    features = LesionFeatures(("t_present",), np.ones(1, np.float32))
    (patient,) = [StagedPatient("A", "A", Stage("T1"), features)]
    data = StageData.of([patient], "t", ("t_present",))
    assert data.x.tolist() == [[1.0]] and data.y.tolist() == [0]
    assert StageData.of([patient], "n", ("t_present",)).x.shape == (0, 1)
