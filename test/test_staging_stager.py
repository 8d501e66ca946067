"""The pipeline's one call, with and without a bundle's models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import predicted, tensors_of

from hmvnet.ajcc import N_STAGES, T_STAGES
from hmvnet.bundle import StagingPart, WeightsError, load_bundle, write_bundle
from hmvnet.case import ClinicalRecord
from hmvnet.staging.estimate import StageEstimate
from hmvnet.staging.features import n_names, t_names
from hmvnet.staging.model import StageModel
from hmvnet.staging.stager import MODELLED, Stager, _explained

TWO = ((1, (30, 30, 60), 8), (2, (60, 30, 62), 7))
NOBODY = ClinicalRecord()


def model(stages: tuple[str, ...], names: tuple[str, ...], said: str) -> StageModel:
    """One that gives a stage to anybody, the likelier the larger its lesion."""
    p, k = len(names), len(stages)
    coefficients = np.zeros((k, p))
    coefficients[stages.index(said), names.index(f"{said[0].lower()}_log_diameter")] = 0.1
    intercepts = np.where(np.array(stages) == said, 2.0, 0.0)
    return StageModel(
        stages, names, np.zeros(p), np.ones(p), coefficients, intercepts, np.full(k, 1 / k)
    )


MODELS = {"t": model(T_STAGES, t_names(), "T4"), "n": model(N_STAGES, n_names(), "N3")}


@pytest.fixture
def staging_bundle(tiny_bundle, tmp_path):
    def write(**changed):
        bundle = load_bundle(tiny_bundle)
        tensors = {
            f"{axis}.{key}": torch.from_numpy(array)
            for axis, one in MODELS.items()
            for key, array in one.arrays().items()
        }
        part = StagingPart(
            t_features=list(t_names()), n_features=list(n_names()), file="staging.safetensors"
        ).model_copy(update=changed)
        manifest = bundle.manifest.model_copy(update={"staging": part})
        files = tensors_of(bundle) | {"staging.safetensors": tensors}
        return load_bundle(write_bundle(tmp_path / "staging", manifest, files))

    return write


def test_without_models_the_rule_stages(tiny_bundle) -> None:
    found = Stager.of(load_bundle(tiny_bundle))(predicted(*TWO).segmentation, NOBODY)
    assert (found.by, str(found)) == ("rule", "T1 N1")


def test_models_come_out_of_a_bundle(staging_bundle) -> None:
    bundle = staging_bundle()
    found = Stager.of(bundle)(predicted(*TWO).segmentation, NOBODY)
    assert (found.by, str(found)) == ("model", "T4 N3")
    assert found.t.probabilities["T4"] > 0.5 and sum(found.n.probabilities.values()) == 1
    assert "greatest dimension 17 mm" in found.t.reasons
    assert "by size, number and side alone: T1 N1" in found.notes
    assert len(bundle.all_tensors()) == len(tensors_of(bundle))
    assert "staging.safetensors" not in bundle.all_tensors(without=["staging.safetensors"])


def test_a_rules_reasons_come_first_where_it_says_the_same_only() -> None:
    """The first two are shown: a rule's "greatest dimension 17 mm" is none for a model's T4."""
    model = StageEstimate("T4", {"T4": 1.0}, ("bone is lost",))
    assert _explained(model, "T4", ("45 mm",)).reasons == ("45 mm", "bone is lost")
    assert _explained(model, "T1", ("17 mm",)).reasons == ("bone is lost", "17 mm")


def test_who_has_no_node_is_n0_and_who_has_no_primary_is_told() -> None:
    stager = Stager(MODELS["t"], MODELS["n"])
    assert stager(predicted(TWO[0]).segmentation, NOBODY).n.stage == "N0"
    found = stager(predicted(TWO[1]).segmentation, NOBODY)
    assert found.n.stage == "N3" and MODELLED in found.notes


def test_a_mass_beside_the_pharynx_that_is_called_a_primary_may_be_nodes() -> None:
    """Who has one and no node is not N0 by necessity: the model says."""
    stager = Stager(MODELS["t"], MODELS["n"])
    mass = (1, (40, 30, 78), 7)
    assert stager(predicted(mass, (1, (40, 30, 45), 7)).segmentation, NOBODY).n.stage == "N3"


def test_known_lesions_are_not_measured_again() -> None:
    one = predicted(*TWO)
    assert Stager()(one.segmentation, NOBODY, one.lesions) == Stager()(one.segmentation, NOBODY)
    assert Stager()(one.segmentation, NOBODY, one.lesions[:1]).n.stage == "N0"


def test_a_part_of_other_features_is_refused(staging_bundle) -> None:
    with pytest.raises(WeightsError, match=r"staging.safetensors: staging model: mean"):
        Stager.of(staging_bundle(t_features=["t_present"]))
    renamed = ["t_weight", *t_names()[1:]]
    stager = Stager.of(staging_bundle(t_features=renamed))
    with pytest.raises(ValueError, match="t_weight"):
        stager(predicted(*TWO).segmentation, NOBODY)


def test_a_large_lesion_changes_probabilities() -> None:
    stager = Stager(MODELS["t"], MODELS["n"])
    small, large = (
        stager(predicted((1, (40, 30, 45), r)).segmentation, NOBODY).t.probabilities["T4"]
        for r in (5, 14)
    )
    assert large > small
    assert replace(MODELS["t"], shares=np.array([0.1, 0.1, 0.1, 0.7])).decide(
        np.array([[0.2, 0.2, 0.1, 0.5]])
    ) in (0, 1)
