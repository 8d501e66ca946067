"""A data folder as nnU-Net's raw data."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CT_GRID, tiny_ct, tiny_label, tiny_pet, write_patient

from hmvnet.case import CaseError, Grid
from hmvnet.cli import main
from hmvnet.exits import RefusedError
from hmvnet.imaging.resample import resample_pet_ct
from hmvnet.reading.checks import checked_case
from hmvnet.reading.folder import find_patients
from hmvnet.writing.nnunet import DatasetWriter


def test_ct_pet_and_labels_lie_on_one_grid_and_are_read_again(tmp_path):
    case = checked_case("A-1", tiny_ct(), tiny_pet(), truth=tiny_label())
    folder = tmp_path / "Dataset501_Test"
    writer = DatasetWriter(folder)
    writer.write(case)
    writer.close()
    said = json.loads((folder / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "CT", "1": "PET"} and said["numTraining"] == 1
    assert said["labels"] == {"background": 0, "GTVp": 1, "GTVn": 2}
    images = {
        name: sitk.ReadImage(str(folder / f"{name}.nii.gz"))
        for name in ("imagesTr/A-1_0000", "imagesTr/A-1_0001", "labelsTr/A-1")
    }
    assert all(Grid.of(image).same_as(CT_GRID) for image in images.values())
    pet = sitk.GetArrayFromImage(images["imagesTr/A-1_0001"])
    np.testing.assert_allclose(pet, resample_pet_ct(case, CT_GRID)[1])
    (patient,) = find_patients(folder)
    again = patient.read()
    for name in ("ct", "truth"):
        ours, theirs = (sitk.GetArrayFromImage(getattr(c, name)) for c in (case, again))
        np.testing.assert_array_equal(ours, theirs)


def test_names_and_places_that_nnunet_does_not_take(tmp_path):
    with pytest.raises(RefusedError, match="Dataset501_Name"):
        DatasetWriter(tmp_path / "mine")
    (tmp_path / "Dataset501_Mine").mkdir()
    (tmp_path / "Dataset501_Mine" / "x").touch()
    with pytest.raises(RefusedError, match="not empty"):
        DatasetWriter(tmp_path / "Dataset501_Mine")
    writer = DatasetWriter(tmp_path / "Dataset502_Mine")
    with pytest.raises(CaseError, match="no label"):
        writer.write(checked_case("A-1", tiny_ct(), tiny_pet()))
    with pytest.raises(RefusedError, match="no patient could be written"):
        writer.close()


def test_the_command(tmp_path, capsys):
    for name in ("A-1", "A-2"):
        write_patient(tmp_path / "data", name, "2025")
    out = tmp_path / "Dataset501_Test"
    with pytest.raises(SystemExit) as ended:
        main(["export", "nnunet-dataset", str(tmp_path / "data"), str(out)])
    assert ended.value.code == 0
    assert "2 patients: 2 written, 0 refused" in capsys.readouterr().out
    assert len(find_patients(out)) == 2


def test_an_export_that_was_stopped_goes_on_with_what_is_missing(tmp_path):
    cases = [checked_case(name, tiny_ct(), tiny_pet(), truth=tiny_label()) for name in ("A", "B")]
    folder = tmp_path / "Dataset501_Test"
    DatasetWriter(folder).write(cases[0])
    (folder / "imagesTr" / "B_0000.nii.gz").write_bytes(b"cut")
    with pytest.raises(RefusedError, match="not empty; --continue goes on"):
        DatasetWriter(folder)
    writer = DatasetWriter(folder, go_on=True)
    assert [writer.write(case) for case in cases] == [False, True]
    writer.close()
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 2
    other = checked_case("A", tiny_ct(), tiny_pet() * 2, truth=tiny_label())
    with pytest.raises(CaseError, match=r"A\.nii\.gz is there, and of other images"):
        DatasetWriter(folder, go_on=True).write(other)


def test_what_lies_there_of_others_is_not_counted_as_this_data_set(tmp_path):
    """nnU-Net refuses a number that is not that of the files, or trains on patients of before."""
    cases = [checked_case(name, tiny_ct(), tiny_pet(), truth=tiny_label()) for name in ("A", "B")]
    folder = tmp_path / "Dataset501_Test"
    writer = DatasetWriter(folder)
    for case in cases:
        writer.write(case)
    writer.close()
    again = DatasetWriter(folder, go_on=True)
    again.write(cases[0])
    with pytest.raises(RefusedError, match=r"1 patients that were not written now \(B\)"):
        again.close()
    said = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(said | {"channel_names": {"0": "MR"}}))
    with pytest.raises(RefusedError, match="of another data set"):
        DatasetWriter(folder, go_on=True)
