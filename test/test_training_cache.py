import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
from conftest import COARSE, files_of_at_most, tiny_label, write_patient

from hmvnet.case import CaseError, Grid
from hmvnet.reading.folder import find_patients
from hmvnet.training.cache import Cache


def test_cache_is_reused_and_a_stale_entry_is_noticed(tmp_path):
    write_patient(tmp_path / "data", "A-1")
    (patient,) = find_patients(tmp_path / "data")
    cache = Cache(tmp_path / "cache", COARSE, "centre")
    first = cache.get(patient)
    assert first.volume.shape == (2, *first.grid.shape) and set(first.voxels) == {1, 2}
    assert np.isin(np.unique(first.label[:]), (0, 1, 2)).all() and (first.label[:] == 2).any()
    (described,) = cache.folder.glob("A-1-*.json")
    stamp = described.stat().st_mtime_ns
    cache.get(patient)
    assert described.stat().st_mtime_ns == stamp
    write_patient(tmp_path / "data", "A-1", label=tiny_label() * 0)
    renewed = cache.get(patient)
    assert not renewed.label[:].any() and not len(renewed.voxels[1])
    assert renewed.source != first.source
    assert (first.label[:] == 2).any()  # another process may still read the entry of before
    brighter = cache.get(replace(patient, suv_factor=2.0))
    assert (brighter.volume[1] > renewed.volume[1]).any()
    other = Cache(tmp_path / "cache", COARSE.model_copy(update={"suv_window": (0, 10)}), "centre")
    assert other.folder != cache.folder


def test_prepared_grid_comes_back_whole(tmp_path):
    write_patient(tmp_path / "data", "A-1")
    (patient,) = find_patients(tmp_path / "data")
    prepared = Cache(tmp_path / "cache", COARSE, "centre").get(patient)
    assert isinstance(prepared.grid, Grid) and prepared.grid.spacing == (4.0, 4.0, 4.0)
    truth_ml = (np.asarray(prepared.label[:]) == 1).sum() * prepared.grid.voxel_ml
    assert truth_ml == pytest.approx(4 / 3 * np.pi * 20**3 / 1000, rel=0.1)


@pytest.mark.parametrize("ending", [".b2nd", ".label.b2nd", ".json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "a bit"])
def test_a_damaged_entry_is_made_anew(tmp_path, ending, damage):
    write_patient(tmp_path / "data", "A-1")
    (patient,) = find_patients(tmp_path / "data")
    cache = Cache(tmp_path / "cache", COARSE, "centre")
    prepared = cache.get(patient)
    volume, label = prepared.volume[:], prepared.label[:]
    file = next(p for p in cache.folder.iterdir() if p.name == f"A-1-{prepared.source}{ending}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = {"gone": b"", "empty": b"", "cut": data[: len(data) // 2], "a bit": data}[damage]
    file.write_bytes(damaged)
    if damage == "gone":
        file.unlink()
    again = cache.get(patient)
    assert (again.volume[:] == volume).all() and (again.label[:] == label).all()


def test_a_volume_that_is_cut_under_its_reader_is_named(tmp_path):
    write_patient(tmp_path / "data", "A-1")
    (patient,) = find_patients(tmp_path / "data")
    prepared = Cache(tmp_path / "cache", COARSE, "centre").get(patient)
    os.truncate(prepared.volume.path, 1000)
    with pytest.raises(OSError, match=r"A-1-.*b2nd: the cached volume cannot be read any more"):
        prepared.volume[:]


def test_a_full_disk_names_the_entry_and_leaves_none(tmp_path):
    write_patient(tmp_path / "data", "A-1")
    (patient,) = find_patients(tmp_path / "data")
    cache = Cache(tmp_path / "cache", COARSE, "centre")
    with files_of_at_most(1000), pytest.raises(OSError, match=r"File too large: .*b2nd"):
        cache.get(patient)
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]
    assert cache.get(patient).volume[:].any()


def test_who_comes_together_makes_an_entry_once(tmp_path, monkeypatch):
    write_patient(tmp_path / "data", "A-1")
    (patient,) = find_patients(tmp_path / "data")
    make, made, together = Cache._make, [], Barrier(4)

    def counted(*args):
        made.append(args)
        return make(*args)

    def get(_):
        cache = Cache(tmp_path / "cache", COARSE, "centre")
        together.wait()
        return cache.get(patient).volume[:]

    monkeypatch.setattr(Cache, "_make", counted)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(get, range(4))
    assert len(made) == 1 and all((volume == first).all() for volume in others)


def test_what_reading_had_to_say_stays_with_the_entry(tmp_path):
    write_patient(tmp_path / "data", "A-1", "plain")
    (patient,) = find_patients(tmp_path / "data")
    patient = replace(patient, suv_factor=0.1)  # of a median that is no longer usual
    cache = Cache(tmp_path / "cache", COARSE, "centre")
    first, again = cache.get(patient), cache.get(patient)
    assert first.notes == again.notes and len(first.notes) == 2
    assert "multiplied by 0.1" in first.notes[0] and "unusual for SUV" in first.notes[1]


def test_a_patient_that_cannot_be_one_is_named(tmp_path):
    write_patient(tmp_path / "data", "A-1", "plain")
    (patient,) = find_patients(tmp_path / "data")
    with pytest.raises(CaseError, match="patient A-1: PET image: the median"):
        Cache(tmp_path / "cache", COARSE, "centre").get(replace(patient, suv_factor=1e4))


def test_what_lies_outside_the_region_is_said(tmp_path):
    write_patient(tmp_path / "data", "A-1")
    array = np.zeros(Grid.of(tiny_label()).shape, np.uint8)
    array[:2, :2, :2], array[20:22, 20:22, 20:22] = 1, 2  # a corner, and the middle
    write_patient(tmp_path / "data", "A-2", label=Grid.of(tiny_label()).image(array))
    small = COARSE.model_copy(update={"size_mm": (100.0, 100.0, 100.0)})
    cache = Cache(tmp_path / "cache", small, "centre")
    inside, half = (cache.get(patient) for patient in find_patients(tmp_path / "data"))
    assert not any("outside the region" in note for note in inside.notes)
    assert "50% of what is labelled lies outside the region 'centre'" in " ".join(half.notes)
    assert not (half.label[:] == 1).any() and (half.label[:] == 2).any()
