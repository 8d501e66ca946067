import pytest
from conftest import short_training, tiny_label, write_patient

from hmvnet.bundle import load_bundle
from hmvnet.config import DataSettings, Settings
from hmvnet.reading.folder import find_patients
from hmvnet.training.segmentation_bundle import (
    check_label_grids,
    plan_folds,
    train_segmentation_bundle,
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
    fold = plan_folds(options, [1])[0]
    assert [p.patient_id for p in fold.extra] == ["B-0", "B-1"]
    bundle = load_bundle(train_segmentation_bundle(options, tmp_path / "run", [1]))
    assert bundle.manifest.trained_on["patients"] == len(fold.train) + 2
    everyone = [f"A-{i}" for i in range(4)] + ["B-0", "B-1"]
    trained = {p.patient_id for p in fold.seen}
    assert set(bundle.seen_among(everyone)) == trained
    assert not trained & {p.patient_id for p in fold.validation}


def test_a_patient_in_both_folders_is_refused(tmp_path):
    data = two_folders(tmp_path, "A-0 A-1", "A-0 A-1", folds=2)
    with pytest.raises(ValueError, match=r"A-0 is both in data\.root and in data\.extra_root"):
        plan_folds(Settings(data=data), None)


def test_a_left_out_centre_is_not_trained_on_by_way_of_the_extra_folder(tmp_path):
    data = two_folders(tmp_path, "A-0 B-1", "B-2", fold_by="leave-one-centre-out")
    with pytest.raises(ValueError, match="left-out centre B"):
        plan_folds(Settings(data=data), None)


def test_label_on_another_grid_is_found_before_work_starts(tmp_path):
    other = tiny_label()
    other.SetOrigin((0.0, 0.0, 0.0))
    write_patient(tmp_path, "A-1", label=other)
    with pytest.raises(ValueError, match="not on the grid of their CT: A-1"):
        check_label_grids(find_patients(tmp_path))
