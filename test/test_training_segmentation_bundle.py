from threading import Barrier

import pytest
import torch
from conftest import COARSE, short_training, tiny_label, write_patient

from hmvnet.bundle import Manifest, SegmentationPart, fingerprint, load_bundle, write_bundle
from hmvnet.case import CaseError
from hmvnet.config import DataSettings, PostprocessingSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.reading.folder import find_patients
from hmvnet.training import segmentation, segmentation_bundle
from hmvnet.training.cache import Cache
from hmvnet.training.engine import make_fabric
from hmvnet.training.segmentation_bundle import (
    all_folds,
    check_label_grids,
    chosen_folds,
    prepare_together,
    seen_marks,
    train_segmentation_bundle,
    volumes_seen,
)


def two_folders(root, own: str, more: str, **data) -> DataSettings:
    """Patients of these names in ``data.root`` and in ``data.extra_root``."""
    for folder, names in (("own", own), ("more", more)):
        for name in names.split():
            write_patient(root / folder, name, "plain")
    return DataSettings(root=str(root / "own"), extra_root=str(root / "more"), **data)


def test_extra_patients_are_trained_on_and_remembered(tmp_path):
    data = two_folders(tmp_path, "A-0 A-1 A-2 A-3", "B-0 B-1", region="centre", folds=2)
    options = short_training(steps=1, validate_every=1).model_copy(update={"data": data})
    fold = chosen_folds(all_folds(options), options, [1])[0]
    assert [p.patient_id for p in fold.extra] == ["B-0", "B-1"]
    bundle = load_bundle(train_segmentation_bundle(options, tmp_path / "run", [1]))
    assert bundle.manifest.trained_on["patients"] == len(fold.train) + 2
    everyone = [f"A-{i}" for i in range(4)] + ["B-0", "B-1"]
    trained = {p.patient_id for p in fold.seen}
    assert set(bundle.seen_among(everyone)) == trained
    # What a bundle has seen that does not say so is not known of what is trained from it either.
    part = bundle.manifest.segmentation.model_copy(update={"seen": []})
    manifest = bundle.manifest.model_copy(update={"segmentation": part})
    tensors = {name: bundle.tensors(name) for name in part.all_files}
    silent = write_bundle(tmp_path / "silent", manifest, tensors)
    for weights, known in ((bundle.folder, True), (silent, False)):
        training = options.training.model_copy(update={"initial_weights": str(weights)})
        marks = seen_marks(options.model_copy(update={"training": training}), fold)
        assert bool(marks) is known
    assert not load_bundle(silent).says_whom_it_saw and bundle.says_whom_it_saw
    assert not trained & {p.patient_id for p in fold.validation}
    found = bundle.manifest.volumes_ml  # of balls of 20 and 12 mm, on a grid of 4 mm
    assert found["GTVp"] == pytest.approx([33.5, 33.5], rel=0.05)
    assert found["GTVn"] == pytest.approx([7.2, 7.2], rel=0.15)


def test_volumes_are_those_of_all_trainings(cases, tmp_path):
    """A bundle that goes on from another knows what that one was trained on."""
    manifest = Manifest(
        name="first",
        preprocessing=COARSE,
        postprocessing=PostprocessingSettings(),
        segmentation=SegmentationPart(network="hmvnet", patch_size=(32, 32, 32), files=["a"]),
        volumes_ml={"GTVp": (2.0, 30.0)},
    )
    first = write_bundle(tmp_path / "first", manifest, {})
    alone = volumes_seen(cases)
    assert alone["GTVp"][0] > 30 and sorted(alone) == ["GTVn", "GTVp"]
    both = volumes_seen(cases, str(first))
    assert both == alone | {"GTVp": (2.0, alone["GTVp"][1])} and volumes_seen([]) == {}


@pytest.fixture
def three_folds(tmp_path) -> Settings:
    """Settings of three folds of one step."""
    for i in range(3):
        write_patient(tmp_path / "data", f"A-{i}", "plain")
    data = DataSettings(root=str(tmp_path / "data"), region="centre", folds=3)
    return short_training(steps=1, validate_every=1).model_copy(update={"data": data})


def test_a_fold_trained_again_keeps_the_others_in_the_bundle(three_folds, tmp_path, capfd):
    run = tmp_path / "run"
    whole = load_bundle(train_segmentation_bundle(three_folds, run, None)).manifest
    assert capfd.readouterr().err.count("earlier call") == 0
    again = load_bundle(train_segmentation_bundle(three_folds, run, [1])).manifest
    assert again.files == whole.files and again.segmentation == whole.segmentation
    assert again.metrics == whole.metrics and again.trained_on == whole.trained_on
    assert "of an earlier call, also in the bundle: fold0, fold2" in capfd.readouterr().err


def test_folds_of_several_calls_come_together(three_folds, tmp_path):
    run = tmp_path / "run"
    for fold in (2, 0):
        bundle = load_bundle(train_segmentation_bundle(three_folds, run, [fold]))
    part = bundle.manifest.segmentation
    assert part.files == ["fold0.safetensors", "fold2.safetensors"]
    for number, seen in zip((0, 2), part.seen):
        (fold,) = chosen_folds(all_folds(three_folds), three_folds, [number])
        assert set(seen) == {fingerprint(p.patient_id) for p in fold.seen}


def test_a_subset_never_takes_the_place_of_more_networks(three_folds, tmp_path):
    """Nor do other settings; nor a call that does not find a checkpoint any more, or half of it."""
    run = tmp_path / "run"
    before = load_bundle(train_segmentation_bundle(three_folds, run, [0, 1])).manifest

    def refused(settings, fold):
        lost = r"holds .*fold1\.safetensors, which the new bundle would lack"
        with pytest.raises(RefusedError, match=lost):
            train_segmentation_bundle(settings, run, [fold])
        assert load_bundle(run / "bundle").manifest == before and not (run / "fold2").exists()

    training = three_folds.training.model_copy(update={"learning_rate": 0.1})
    refused(three_folds.model_copy(update={"training": training}), 2)
    checkpoint = run / "fold1" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    refused(three_folds, 0)
    checkpoint.unlink()
    refused(three_folds, 0)


def test_a_patient_in_both_folders_is_refused(tmp_path):
    data = two_folders(tmp_path, "A-0 A-1", "A-0 A-1", folds=2)
    with pytest.raises(ValueError, match=r"A-0 is both in data\.root and in data\.extra_root"):
        all_folds(Settings(data=data))


def test_a_left_out_centre_is_not_trained_on_by_way_of_the_extra_folder(tmp_path):
    data = two_folders(tmp_path, "A-0 B-1", "B-2", fold_by="leave-one-centre-out")
    settings = Settings(data=data)
    everything = all_folds(settings)
    with pytest.raises(ValueError, match="left-out centre B"):
        chosen_folds(everything, settings, None)
    assert [fold.number for fold in chosen_folds(everything, settings, [0])] == [0]


def test_label_on_another_grid_is_found_before_work_starts(tmp_path):
    other = tiny_label()
    other.SetOrigin((0.0, 0.0, 0.0))
    write_patient(tmp_path, "A-1", label=other)
    with pytest.raises(ValueError, match="not on the grid of their CT: A-1"):
        check_label_grids(find_patients(tmp_path))


def test_nothing_is_trained_where_nobody_has_a_tumour_in_the_region(tmp_path):
    for i in range(4):
        write_patient(tmp_path / "data", f"A-{i}", "plain", label=tiny_label() * 0)
    data = DataSettings(root=str(tmp_path / "data"), folds=2, region="centre")
    settings = short_training().model_copy(update={"data": data})
    with pytest.raises(ValueError, match="no patient has a voxel of GTVp or GTVn in the region"):
        train_segmentation_bundle(settings, tmp_path / "run", [0])
    assert not (tmp_path / "run" / "bundle").exists()


def test_figures_are_of_the_rules_that_the_bundle_has(three_folds, tmp_path, monkeypatch):
    """A finished training asked for with other rules is judged anew, and not trained anew."""
    judged = []

    def evaluate(network, cases, settings, device):
        judged.append(settings.postprocessing.threshold_gtvp)
        return judged[-1]

    names = ("gtvp_mean_dice", "gtvn_aggregated_dice", "gtvn_aggregated_f1")
    monkeypatch.setattr(segmentation, "evaluate", evaluate)
    monkeypatch.setattr(segmentation, "figures_of", lambda value: dict.fromkeys(names, value))
    run = tmp_path / "run"
    for threshold in (0.5, 0.5, 0.25, 0.25):
        rules = PostprocessingSettings(threshold_gtvp=threshold)
        settings = three_folds.model_copy(update={"postprocessing": rules})
        manifest = load_bundle(train_segmentation_bundle(settings, run, [0])).manifest
        assert manifest.metrics["validation"]["fold0"]["gtvp_mean_dice"] == threshold
        assert manifest.metrics["validation"]["fold0"]["step"] == 1
    assert judged == [0.5, 0.25]


@pytest.mark.parametrize("threads", [1, 3])
def test_patients_are_prepared_side_by_side_in_their_order(
    three_folds, tmp_path, threads, monkeypatch
):
    make, together = Cache._make, Barrier(threads, timeout=60)

    def met(cache, patient, source):
        together.wait()  # as many as there are threads are in work, else nobody leaves
        return make(cache, patient, source)

    before = torch.get_num_threads()
    fabric, fold = make_fabric(tmp_path, "32-true"), all_folds(three_folds)[0]
    patients = [*fold.seen, *fold.validation]
    torch.set_num_threads(threads)
    try:
        assert len(patients) == 3
        with monkeypatch.context() as patch:
            patch.setattr(Cache, "_make", met)
            found = prepare_together(fabric, three_folds, patients, tmp_path / "cache")
        assert torch.get_num_threads() == threads
        assert [case.patient_id for case in found] == [p.patient_id for p in patients]
        patients[1].pet.write_bytes(b"no image")
        with pytest.raises(CaseError, match=patients[1].patient_id):
            prepare_together(fabric, three_folds, patients, tmp_path / "cache")
    finally:
        torch.set_num_threads(before)


def test_no_more_are_prepared_at_a_time_than_memory_holds(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    for left, count in ((0.0, 1), (5 * 2**30, 2), (2.0**40, 8)):
        monkeypatch.setattr(segmentation_bundle, "available_memory", lambda left=left: left)
        assert segmentation_bundle._at_a_time() == count
