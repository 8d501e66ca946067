import numpy as np
import pytest
from conftest import COARSE, tiny_label, write_patient

from hmvnet.case import Grid
from hmvnet.reading.folder import find_patients
from hmvnet.training.cache import Cache


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
