import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import COARSE, CT_GRID, ball, tiny_ct, tiny_pet

from hmvnet.case import CaseError, Grid
from hmvnet.reading.folder import find_patients
from hmvnet.training.cache import Cache
from hmvnet.training.segmentation_bundle import check_label_grids


def tiny_label() -> sitk.Image:
    label = ball(CT_GRID, (20, 0, 0), 20).astype(np.uint8)
    label[ball(CT_GRID, (-30, 0, -40), 12)] = 2
    return CT_GRID.image(label)


def write_patient(root, name, layout="2025", label=...):
    ct, pet = tiny_ct(), tiny_pet()
    label = tiny_label() if label is ... else label
    paths = {
        "2025": (f"Task 1/{name}/{name}__CT", f"Task 1/{name}/{name}__PT", f"Task 1/{name}/{name}"),
        "plain": (f"{name}/{name}__CT", f"{name}/{name}__PT", f"{name}/{name}"),
        "2022": (f"imagesTr/{name}__CT", f"imagesTr/{name}__PT", f"labelsTr/{name}"),
        "nnunet": (f"imagesTr/{name}_0000", f"imagesTr/{name}_0001", f"labelsTr/{name}"),
    }[layout]
    for path, image in zip(paths, (ct, pet, label)):
        file = root / f"{path}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        if image is not None:
            sitk.WriteImage(image, str(file))


@pytest.mark.parametrize("layout", ["2025", "plain", "2022", "nnunet"])
def test_layouts(tmp_path, layout):
    for name in ("CHUM-002", "CHUM-001"):
        write_patient(tmp_path, name, layout)
    patients = find_patients(tmp_path)
    assert [p.patient_id for p in patients] == ["CHUM-001", "CHUM-002"]
    case = patients[0].read()
    assert case.truth is not None and case.truth.GetSize() == case.ct.GetSize()
    assert patients[0].centre == "CHUM"


def test_a_phantoms_true_risk_is_no_health_record(tmp_path):
    write_patient(tmp_path, "A-1", "plain")
    (tmp_path / "table.csv").write_text("PatientID,Age\nA-1,60\n")
    (tmp_path / "truth.csv").write_text("PatientID,linear_predictor,RFS,Relapse\nA-1,1.5,100,1\n")
    (patient,) = find_patients(tmp_path)
    assert dict(patient.record.values) == {"Age": 60} and patient.outcome is None


def test_tables_are_joined(tmp_path):
    write_patient(tmp_path, "MDA-001")
    (tmp_path / "Task 2").mkdir()
    rows = {"PatientID": ["MDA-001"], "CenterID": [7], "Age": [61], "Relapse": [1], "RFS": [812]}
    pd.DataFrame(rows).to_csv(tmp_path / "Task 2" / "HECKTOR_2025_Training_Task_2.csv", index=False)
    (patient,) = find_patients(tmp_path)
    assert patient.outcome.days == 812 and patient.outcome.event
    assert patient.record.values == {"CenterID": 7.0, "Age": 61.0} and patient.centre == "7"


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        find_patients(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no patients"):
        find_patients(tmp_path)
    write_patient(tmp_path, "A-1", label=None)
    with pytest.raises(ValueError, match="1 patients without a label: A-1"):
        find_patients(tmp_path)
    assert len(find_patients(tmp_path, need_labels=False)) == 1
    (tmp_path / "Task 1" / "A-1" / "A-1__PT.nii.gz").unlink()
    with pytest.raises(ValueError, match="patient A-1: PET image is missing"):
        find_patients(tmp_path)


def test_label_on_another_grid_is_found_before_work_starts(tmp_path):
    other = tiny_label()
    other.SetOrigin((0.0, 0.0, 0.0))
    write_patient(tmp_path, "A-1", label=other)
    with pytest.raises(ValueError, match="not on the grid of their CT: A-1"):
        check_label_grids(find_patients(tmp_path))


def test_label_with_other_values_is_refused(tmp_path):
    write_patient(tmp_path, "A-1", label=tiny_label() * 3)
    with pytest.raises(CaseError, match="label values"):
        find_patients(tmp_path)[0].read()


def test_cache_is_reused_and_a_stale_entry_is_noticed(tmp_path):
    write_patient(tmp_path / "data", "A-1")
    (patient,) = find_patients(tmp_path / "data")
    cache = Cache(tmp_path / "cache", COARSE, "centre")
    first = cache.get(patient)
    assert first.volume.shape == (2, *first.grid.shape) and set(first.voxels) == {1, 2}
    assert np.isin(np.unique(first.label[:]), (0, 1, 2)).all() and (first.label[:] == 2).any()
    stamp = (cache.folder / "A-1.json").stat().st_mtime_ns
    cache.get(patient)
    assert (cache.folder / "A-1.json").stat().st_mtime_ns == stamp
    write_patient(tmp_path / "data", "A-1", label=tiny_label() * 0)
    renewed = cache.get(patient)
    assert not renewed.label[:].any() and not len(renewed.voxels[1])
    other = Cache(tmp_path / "cache", COARSE.model_copy(update={"suv_window": (0, 10)}), "centre")
    assert other.folder != cache.folder


def test_prepared_grid_comes_back_whole(tmp_path):
    write_patient(tmp_path / "data", "A-1")
    (patient,) = find_patients(tmp_path / "data")
    prepared = Cache(tmp_path / "cache", COARSE, "centre").get(patient)
    assert isinstance(prepared.grid, Grid) and prepared.grid.spacing == (4.0, 4.0, 4.0)
    truth_ml = (np.asarray(prepared.label[:]) == 1).sum() * prepared.grid.voxel_ml
    assert truth_ml == pytest.approx(4 / 3 * np.pi * 20**3 / 1000, rel=0.1)
