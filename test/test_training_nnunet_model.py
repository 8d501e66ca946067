"""Folders of nnU-Net models: what is read, and what is refused by its name."""

import decimal
import json
import pickle
import shutil
import zipfile

import pytest
import torch
from make_nnunet import NORMS, write_model

from hmvnet.exits import RefusedError
from hmvnet.training.nnunet_model import read_checkpoint, read_model


def test_all_folds_are_read_and_the_folder_above_will_do(tmp_path):
    write_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=("0", "1", "2"))
    model = read_model(tmp_path)
    assert list(model.checkpoints) == ["0", "1", "2"]
    assert (model.ct, model.pet, model.heads, model.others) == (0, 1, (0, 1, 2), ())
    assert list(read_model(tmp_path, ["1"]).checkpoints) == ["1"]
    assert model.first.trainer_name == "nnUNetTrainer"
    assert model.configuration_name == "3d_fullres"


def test_a_configuration_has_what_it_inherits(tmp_path):
    plain = {"3d_fullres": {"spacing": [1, 1, 1]}}
    write_model(tmp_path / "m")
    plans = json.loads((tmp_path / "m" / "plans.json").read_text())
    base = plans["configurations"]["3d_fullres"]
    plain = {"base": base, "3d_fullres": {"inherits_from": "base", "patch_size": [32, 16, 16]}}
    (tmp_path / "m" / "plans.json").write_text(json.dumps(plans | {"configurations": plain}))
    found = read_model(tmp_path / "m").configuration
    assert found.patch_size == (32, 16, 16) and found.spacing == (8, 8, 8)
    plain["base"] = base | {"inherits_from": "3d_fullres"}
    (tmp_path / "m" / "plans.json").write_text(json.dumps(plans | {"configurations": plain}))
    with pytest.raises(RefusedError, match="inherits from itself"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("labels", "heads", "others"),
    [
        ({"background": 0, "GTVn": 1, "GTVp": 2}, (0, 2, 1), ()),
        ({"background": 0, "GTVp": [1], "GTVn": 2, "ignore": 3}, (0, 1, 2), ()),
        ({"background": 0, "GTVp": 1, "GTVn": 2, "brain": 3}, (0, 1, 2, 0), ("brain",)),
    ],
)
def test_labels_are_told_by_their_names(tmp_path, labels, heads, others):
    write_model(tmp_path, dataset={"labels": labels})
    model = read_model(tmp_path)
    assert model.heads == heads and model.others == others


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"background": 0, "tumour": 1}, "expected 0, 1, 2"),
        ({"background": 0, "liver": 1, "spleen": 2}, "one GTVp and one GTVn"),
        ({"background": 0, "GTVp": 1, "GTVn": 3}, "expected 0, 1, 2"),
        ({"background": 0, "GTV": [1, 2], "GTVn": 2}, r"'GTV' is a region of the values \[1, 2\]"),
        ({"background": 0, "GTVp": True, "GTVn": 2}, "'GTVp': value True"),
        ({}, "no labels"),
    ],
)
def test_other_labels_are_refused(tmp_path, labels, said):
    write_model(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"labels": labels}))
    with pytest.raises(RefusedError, match=said):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        ({"0": "CT", "1": "PET", "2": "MR"}, r"channels \['ct', 'pet', 'mr'\], expected"),
        ({"0": "T1", "1": "T2"}, r"channels \['t1', 't2'\], expected"),
        ({"0": "CT", "1": "MRI"}, r"channels \['ct', 'mri'\], expected channel_names of"),
        ({}, r"channels \[\], expected channel_names of a CT and a PET"),
        ({"0": "zscore", "1": "noNorm"}, "expected one named CT"),
    ],
)
def test_other_channels_are_refused(tmp_path, channels, said):
    write_model(tmp_path, dataset={"channel_names": channels})
    with pytest.raises(ValueError, match=said):
        read_model(tmp_path)


@pytest.mark.parametrize("named", ["noNorm", "zscore", "rescale_to_0_1", "PT", "SUV"])
def test_the_other_channel_may_be_named_by_its_normalisation(tmp_path, named):
    write_model(tmp_path, dataset={"channel_names": {"0": named, "1": "CT"}})
    assert (read_model(tmp_path).ct, read_model(tmp_path).pet) == (1, 0)


@pytest.mark.parametrize("value", [{"a": 1}, [1, "2"], "1", None, 1.5])
def test_a_label_of_no_number_is_refused_by_its_name(tmp_path, value):
    labels = {"background": 0, "GTVp": value, "GTVn": 2}
    write_model(tmp_path, dataset={"labels": labels})
    with pytest.raises(RefusedError, match=r"dataset\.json: label 'GTVp': value"):
        read_model(tmp_path)


def test_a_folder_without_plans_and_what_is_no_folder(tmp_path):
    with pytest.raises(RefusedError, match="no such folder"):
        read_model(tmp_path / "nowhere")
    with pytest.raises(RefusedError, match=r"no plans\.json"):
        read_model(tmp_path)
    write_model(tmp_path / "a")
    (tmp_path / "a" / "dataset.json").unlink()
    with pytest.raises(RefusedError, match=r"no dataset\.json"):
        read_model(tmp_path)
    write_model(tmp_path / "b")
    with pytest.raises(RefusedError, match=r"several models \(a, b\)"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", ["plans.pkl", "fold_0/model_final_checkpoint.model"])
def test_a_model_of_v1_is_refused_with_a_word_on_conversion(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(RefusedError, match=r"nnU-Net v1.*nnUNetv2_convert_old_nnUNet_dataset"):
        read_model(tmp_path)


def test_a_missing_fold_is_named(tmp_path):
    write_model(tmp_path, folds=("0", "1", "2"))
    shutil.rmtree(tmp_path / "fold_1")
    with pytest.raises(RefusedError, match="fold_1 is missing, found fold_0, fold_2"):
        read_model(tmp_path)
    assert list(read_model(tmp_path, ["0", "2"]).checkpoints) == ["0", "2"]
    with pytest.raises(RefusedError, match="fold_4 is missing"):
        read_model(tmp_path, ["4"])
    (tmp_path / "fold_2" / "checkpoint_final.pth").rename(tmp_path / "fold_2/checkpoint_best.pth")
    with pytest.raises(RefusedError, match=r"fold_2: no checkpoint_final\.pth.*--checkpoint best"):
        read_model(tmp_path, ["2"])
    assert list(read_model(tmp_path, ["2"], "best").checkpoints) == ["2"]


def test_one_model_trained_on_all_patients(tmp_path):
    write_model(tmp_path, folds=("all",))
    assert list(read_model(tmp_path).checkpoints) == ["all"]


def test_folds_of_different_trainings_are_refused(tmp_path):
    write_model(tmp_path, folds=("0", "1"))
    path = tmp_path / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save(content | {"trainer_name": "mine"}, path)
    with pytest.raises(RefusedError, match="fold_1 was trained as"):
        read_model(tmp_path)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_foreign_types_are_refused_by_name_and_never_made(tmp_path):
    path, victim = tmp_path / "fold_0" / "checkpoint_final.pth", tmp_path / "made"
    write_model(tmp_path, checkpoint={"init_args": {"x": Harmful(victim)}})
    with pytest.raises(RefusedError, match=r"fold_0/checkpoint_final\.pth: holds .*open"):
        read_checkpoint(path)
    write_model(tmp_path, checkpoint={"init_args": {"x": decimal.Decimal(1)}})
    with pytest.raises(RefusedError, match=r"holds decimal\.Decimal"):
        read_checkpoint(path)
    assert not victim.exists()


def test_numbers_of_an_earlier_numpy_are_known(tmp_path):
    """Those pickled before numpy 2 name the old place of what makes them."""
    write_model(tmp_path)
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    older = path.with_name("older.pth")
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(older, "w") as old:
        for name in new.namelist():
            data = new.read(name)
            assert not name.endswith("data.pkl") or b"numpy._core.multiarray" in data
            old.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    found, known = read_checkpoint(older), read_checkpoint(path)
    assert found.network_weights.keys() == known.network_weights.keys()


def test_damaged_and_other_files_are_refused(tmp_path):
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    write_model(tmp_path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"", pickle.dumps({"a": 1})):
        path.write_bytes(damaged)
        with pytest.raises(RefusedError, match="damaged, cut short or no checkpoint") as refused:
            read_checkpoint(path)
        assert "\n" not in str(refused.value)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(RefusedError, match="network_weights"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(RefusedError, match="checkpoint_final"):
        read_checkpoint(path)


def test_plans_that_say_nothing_are_refused_with_the_place(tmp_path):
    write_model(tmp_path, configuration={"spacing": [1.0, -1.0, 1.0]})
    with pytest.raises(RefusedError, match=r"plans\.json: spacing\.1"):
        read_model(tmp_path)
    write_model(tmp_path, plans={"configurations": {"2d": {}}})
    with pytest.raises(RefusedError, match="no configuration '3d_fullres', found 2d"):
        read_model(tmp_path)
    (tmp_path / "plans.json").write_text("[]")
    with pytest.raises(RefusedError, match="not an object"):
        read_model(tmp_path)


def test_intensities_of_older_plans(tmp_path):
    write_model(
        tmp_path,
        plans={
            "foreground_intensity_properties_per_channel": {},
            "foreground_intensity_properties_by_modality": NORMS,
        },
    )
    assert read_model(tmp_path).plans.intensities == NORMS
