"""One scan from Python, whatever it is given as."""

import json
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CT_GRID, EHR, tiny_ct, tiny_pet

import hmvnet
from hmvnet.writing import folder as writing


def test_paths_images_and_arrays_are_the_same_scan(tiny_bundle, tmp_path):
    ct, pet = tiny_ct(), tiny_pet()
    sitk.WriteImage(ct, str(tmp_path / "ct.nii.gz"))
    sitk.WriteImage(pet, str(tmp_path / "pet.mha"))
    (tmp_path / "ehr.json").write_text(json.dumps(EHR))
    array = (sitk.GetArrayFromImage(ct), hmvnet.Grid.of(ct))
    given = [
        (tmp_path / "ct.nii.gz", str(tmp_path / "pet.mha"), tmp_path / "ehr.json"),
        (ct, pet, EHR),
        (array, pet, hmvnet.ClinicalRecord(EHR)),
    ]
    found = [hmvnet.predict(*one, weights=tiny_bundle, device="cpu") for one in given]
    masks = [sitk.GetArrayFromImage(one.mask) for one in found]
    assert all((mask == masks[0]).all() for mask in masks)
    assert found[1].risk.value == pytest.approx(found[0].risk.value)
    assert found[2].risk.value == pytest.approx(found[0].risk.value, abs=1e-6)
    assert hmvnet.Grid.of(found[0].mask).same_as(CT_GRID, 1e-3)


def test_a_result_is_saved_whole_even_where_its_picture_fails(tiny_bundle, tmp_path, monkeypatch):
    result = hmvnet.predict(tiny_ct(), tiny_pet(), weights=tiny_bundle, device="cpu")
    assert sum("no health record" in note for note in result.notes) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        folder = result.save(tmp_path / "out")
    names = ["lesions.csv", "mask.nii.gz", "picture.png", "report.json", "thumbnail.png"]
    assert sorted(p.name for p in folder.iterdir()) == names
    monkeypatch.setattr(writing, "write_picture", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"picture\.png not written"):
        result.save(tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == [n for n in names if n != "picture.png"]
    folder = result.save(tmp_path / "out", picture=False, page=True)
    assert (folder / "page.html").is_file()


def test_saving_never_replaces_what_is_not_a_result(tiny_bundle, tmp_path, monkeypatch):
    result = hmvnet.predict(tiny_ct(), tiny_pet(), weights=tiny_bundle, device="cpu")
    (tmp_path / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, ".", "thesis.txt"):
        with pytest.raises(hmvnet.RefusedError, match="not what this command writes"):
            result.save(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_cannot_be_used_is_refused(tiny_bundle):
    with pytest.raises(hmvnet.RefusedError, match="not found"):
        hmvnet.predict("nowhere.mha", tiny_pet(), weights=tiny_bundle)
    with pytest.raises(hmvnet.RefusedError, match="expected auto"):
        hmvnet.predict(tiny_ct(), tiny_pet(), weights=tiny_bundle, device="tpu")
    with pytest.raises(hmvnet.RefusedError, match="expected numbers of the grid's shape"):
        hmvnet.predict((np.zeros((2, 2, 2)), CT_GRID), tiny_pet(), weights=tiny_bundle)
    with pytest.raises(hmvnet.RefusedError, match="unknown setting"):
        hmvnet.predict(tiny_ct(), tiny_pet(), weights=tiny_bundle, settings="inference.flip=true")
    with pytest.raises(hmvnet.RefusedError, match=r"prediction reads data\.region"):
        hmvnet.predict(tiny_ct(), tiny_pet(), weights=tiny_bundle, settings="training.steps=3")
    with pytest.raises(hmvnet.RefusedError, match="CT: image has 2 dimensions"):
        hmvnet.predict(tiny_ct()[:, :, 3], tiny_pet(), weights=tiny_bundle)
    broken = hmvnet.Grid((48, 48, 40), (4.0, 0.0, 5.0))
    with pytest.raises(hmvnet.RefusedError, match="CT: voxel spacing"):
        hmvnet.predict((np.zeros(broken.shape), broken), tiny_pet(), weights=tiny_bundle)


def test_the_face_names_what_it_has():
    for name in hmvnet.__all__:
        assert getattr(hmvnet, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hmvnet.nonsense
