from shutil import copytree

import numpy as np
import pytest
from conftest import CT_GRID, ball, tensors_of, write_patient
from rich.console import Console

from hmvnet.bundle import fingerprint, load_bundle, write_bundle
from hmvnet.config import PostprocessingSettings, PreprocessingSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments import tune as room
from hmvnet.experiments.tune import Kept, Search, cross_fitted_chances, fit_presence, tune


def test_postprocessing_is_tuned_on_unseen_patients_only(tiny_bundle, tmp_path):

    write_patient(tmp_path / "data", "A-1", "plain")
    wanted = Settings(data={"root": str(tmp_path / "data")})
    quiet = Console(quiet=True)
    tuned = load_bundle(tune(wanted, tiny_bundle, tmp_path / "run", 0, quiet))
    # The survival model was fitted to lesions of the old postprocessing: it does not come along.
    assert list(tuned.manifest.files) == ["fold0.safetensors"] and not tuned.manifest.prognosis
    part = tuned.manifest.segmentation.model_copy(update={"seen": [[fingerprint("A-1")]]})
    known = tuned.manifest.model_copy(update={"segmentation": part})
    folder = write_bundle(tmp_path / "known", known, tensors_of(tuned))
    with pytest.raises(ValueError, match="trained on this patient"):
        tune(wanted, folder, tmp_path / "run2", 0, quiet)


def test_tuning_waits_for_every_network_and_loses_none(tiny_bundle, tmp_path, monkeypatch):
    write_patient(tmp_path / "data", "A-1", "plain")
    slow = {"time_budget_s": 1e-6}
    wanted = Settings(data={"root": str(tmp_path / "data")}, inference=slow)
    asked, segmenter = [], room.Segmenter

    def noted(bundle, device, inference):
        asked.append(inference.time_budget_s)
        return segmenter(bundle, device, inference)

    monkeypatch.setattr(room, "Segmenter", noted)
    quiet, run = Console(quiet=True), tmp_path / "run"
    for _ in range(2):  # its own earlier one is made anew
        tuned = load_bundle(tune(wanted, tiny_bundle, run, 0, quiet))
    assert asked == [1e9, 1e9] and tuned.manifest.metrics["tuned_on"]["patients"] == 1
    tensors = {
        "fold0.safetensors": {k: v + 1 for k, v in tuned.tensors("fold0.safetensors").items()}
    }
    plain = tuned.manifest.model_copy(update={"name": "mine", "metrics": {}})
    write_bundle(run / "bundle", plain, tensors)
    with pytest.raises(RefusedError, match=r"holds networks, or models .* that 'tiny' lacks"):
        tune(wanted, tiny_bundle, run, 0, quiet)
    assert load_bundle(run / "bundle").manifest.name == "mine"


def test_a_tuned_bundle_does_not_take_the_place_of_its_source(tiny_bundle, tmp_path):
    source = copytree(tiny_bundle, tmp_path / "bundle")
    with pytest.raises(RefusedError, match="another --run"):
        tune(Settings(), source, tmp_path, 0, Console(quiet=True))
    assert load_bundle(source).manifest.prognosis


def test_tuning_finds_the_threshold_that_fits():
    """A lesion of probability 0.35 is found once the threshold is below that."""

    lesion = ball(CT_GRID, (0, 0, 0), 25)
    probabilities = np.zeros((3, *CT_GRID.shape), np.float16)
    probabilities[1] = np.where(lesion, 0.35, 0.0)
    ct = np.full(CT_GRID.shape, 0.5, np.float32)
    scaled = np.stack([ct, np.where(lesion, 0.0, -1.0)]).astype(np.float32)
    kept = [Kept("A", CT_GRID, CT_GRID, probabilities, scaled, lesion.astype(np.uint8))]
    search = Search(kept, "head-neck", PreprocessingSettings(), "2025", Console(quiet=True))
    found = search(PostprocessingSettings())
    assert found.threshold_gtvp < 0.35


def faint_or_bright(n: int = 24) -> list[Kept]:
    """Half the patients have a bright node, half none but a faint one that the network finds."""
    made = []
    for i in range(n):
        true = i % 2 == 0
        lesion = ball(CT_GRID, (0, 0, 0), 18 + i % 5)
        probabilities = np.zeros((3, *CT_GRID.shape), np.float16)
        probabilities[2] = np.where(lesion, 0.9 if true else 0.6, 0.0)
        suv = np.where(lesion, (8.0 if true else 3.2) + 0.1 * i, 0.5)
        scaled = np.stack([np.full(CT_GRID.shape, 0.5), suv / 10 - 1]).astype(np.float32)
        truth = (2 * lesion * true).astype(np.uint8)
        made.append(Kept(f"P{i}", CT_GRID, CT_GRID, probabilities, scaled, truth))
    return made


def test_a_class_that_is_not_there_is_taken_away():
    """A false node costs a whole patient of 2026's score; its chance is learnt, and a threshold."""
    start = PostprocessingSettings(airway_mm=0.0, one_primary=False, confident=1.0)
    kept = faint_or_bright()
    search = Search(kept, "head-neck", PreprocessingSettings(), "2026", Console(quiet=True))
    only_presence = search._presence(start, search._masks(start), 2, "gtvn")
    found, masks = only_presence
    assert any(found.presence_gtvn) and found.least_presence_gtvn > 0
    assert [bool((m == 2).any()) for m in masks] == [i % 2 == 0 for i in range(len(kept))]
    again = search._masks(found)
    for one, other in zip(masks, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_chances_are_of_models_that_did_not_see_the_patient():
    """One whose lesion lies beyond all others' is not in the model that judges it."""
    rng = np.random.default_rng(0)
    there = np.arange(40) % 2 == 0
    lesions = [rng.normal(1.5 * t, 1.0, (2, 3)) for t in there]
    chances = cross_fitted_chances(lesions, there)
    assert chances[there].mean() > chances[~there].mean() + 0.2
    lesions[1] = np.full((1, 3), 9.0)  # there is none, whatever its lesion looks like
    assert cross_fitted_chances(lesions, there)[1] > 0.9
    assert len(fit_presence(lesions, there)) == 4


def test_too_few_patients_without_leave_the_decision_out():
    kept = faint_or_bright(24)[::2]  # all have a node
    search = Search(kept, "head-neck", PreprocessingSettings(), "2026", Console(quiet=True))
    start = PostprocessingSettings(airway_mm=0.0)
    found, _ = search._presence(start, search._masks(start), 2, "gtvn")
    assert not any(found.presence_gtvn) and found.least_presence_gtvn == 0


def test_a_decision_that_is_there_stays_where_no_other_is_better():
    """It had taken the faint nodes away; what is left of them says nothing of it."""
    start = PostprocessingSettings(airway_mm=0.0, one_primary=False, confident=1.0)
    search = Search(
        faint_or_bright(), "head-neck", PreprocessingSettings(), "2026", Console(quiet=True)
    )
    decided, masks = search._presence(start, search._masks(start), 2, "gtvn")
    again, others = search._presence(decided, search._masks(decided), 2, "gtvn")
    assert again == decided and search._figure(others) == search._figure(masks)
    # Of too few patients none can be fitted.
    few = Search(
        faint_or_bright(8), "head-neck", PreprocessingSettings(), "2026", Console(quiet=True)
    )
    kept, _ = few._presence(decided, few._masks(decided), 2, "gtvn")
    assert kept == decided
