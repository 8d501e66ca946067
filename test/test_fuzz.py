"""A short run of the fuzzer, every change twice; ``make fuzz`` draws more of each."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_patient
from fuzz.judge import Fault
from fuzz.run import KINDS, Tally, draw, fuzz
from fuzz.samples import Found

from hmvnet.case import CaseError
from hmvnet.reading.folder import find_patients, read_dataset_json
from hmvnet.reading.tables import read_tables


# Changes that show a fault that is known: each has a test below that is to fail until it is mended.
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_drawn_ends_as_it_should(kind):
    tally = Tally()
    for mutation in kind.mutations:
        draw(kind, mutation, 2, 1, tally)
    assert not tally.faults, "\n".join(tally.examples())


def wrong_voxels(folder: Path, sample: Any) -> Found:
    return Found({"voxels": np.zeros((2, 2, 2)), "grid": sample.grid})


def crash(folder: Path, sample: Any) -> Found:
    raise KeyError("no such field")


def refuse(folder: Path, sample: Any) -> Found:
    raise CaseError("image.mha: nothing is right")


def refuse_at_length(folder: Path, sample: Any) -> Found:
    raise CaseError("image.mha: one line\nand another")


def refuse_namelessly(folder: Path, sample: Any) -> Found:
    raise CaseError("something is wrong")


def write(folder: Path, sample: Any) -> Found:
    (folder / "left behind").touch()
    return Found(sample.values)


def take_memory(folder: Path, sample: Any) -> Found:
    bytearray(1 << 28)
    raise CaseError("image.mha: too large")


@pytest.mark.parametrize(
    ("reader", "mutation", "fault"),
    [
        (wrong_voxels, "fields_in_any_order", Fault.SILENT),
        (wrong_voxels, "cut_anywhere", Fault.SILENT),
        (crash, "cut_anywhere", Fault.CRASH),
        (refuse, "fields_in_any_order", Fault.REFUSAL),
        (refuse, "cut_anywhere", None),
        (refuse_at_length, "cut_anywhere", Fault.WORDS),
        (refuse_namelessly, "cut_anywhere", Fault.WORDS),
        (write, "fields_in_any_order", Fault.CRASH),
        (take_memory, "more_declared_than_the_file_holds", Fault.CRASH),
    ],
)
def test_what_is_wrong_is_seen(reader, mutation, fault):
    kind = replace(KINDS[0], read=reader)
    (change,) = [m for m in kind.mutations if m.name == mutation]
    tally = Tally()
    draw(kind, change, 3, 1, tally)
    assert {key[2] for key in tally.faults} == ({fault} if fault else set())


def test_the_same_inputs_come_from_a_seed():
    drawn: list[list[str]] = []

    def remember(folder: Path, sample: Any) -> Found:
        drawn[-1].append(repr(sample.encode()))
        return Found(sample.values)

    kind = replace(KINDS[4], read=remember)
    for number in (1, 1, 2):
        drawn.append([])
        for mutation in kind.mutations[:5]:
            draw(kind, mutation, 4, number, Tally())
    assert len(drawn[0]) == 20 and drawn[0] == drawn[1] != drawn[2]


def test_half_of_all_inputs_are_to_be_read():
    assert fuzz(KINDS[4:5], 120, 1).valid == 0.5


@pytest.mark.parametrize("before", ["", '"",""\n'])
def test_a_table_with_its_header_in_quotes(tmp_path: Path, before: str) -> None:
    (tmp_path / "a.csv").write_text(before + '"PatientID","Age"\n"A-1","61"\n')
    assert dict(read_tables(tmp_path)["A-1"].record.values) == {"Age": 61.0}


def test_a_follow_up_of_inf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("PatientID,RFS,Relapse\nA-1,inf,0\nA-2,10.5,1\n")
    with pytest.raises(ValueError, match="RFS"):
        read_tables(tmp_path)


@pytest.mark.timeout(2)
def test_a_pipe_in_the_place_of_a_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a\.csv"):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"channel_names": {"-1": "CT", "1": "PET"}},
        {"channel_names": {"10000": "CT", "1": "PET"}},
        {"labels": {"GTVp": 1, "GTVn": 1}},
        {"labels": {"GTVp": 1, "GTVt": 2, "GTVn": 3}},
        {"labels": {"GTVp": 0, "GTVn": 1}},
        {"labels": {"GTVp": -1, "GTVn": 2}},
        {"labels": {"GTVp": 300, "GTVn": 2}},
        {"labels": {"GTVp": 1.5, "GTVn": 2}},
    ],
)
def test_a_dataset_json_of_numbers_that_cannot_be(tmp_path: Path, content: dict) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"dataset\.json"):
        read_dataset_json(tmp_path / "dataset.json")


def test_a_pipe_in_the_place_of_a_dataset_json(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(ValueError, match=r"dataset\.json"):
        read_dataset_json(tmp_path / "dataset.json")


def test_a_pet_without_its_ct_is_somebodys(tmp_path: Path) -> None:
    for name in ("A-1", "A-2"):
        write_patient(tmp_path, name, "2022")
    (tmp_path / "imagesTr" / "A-1__CT.nii.gz").unlink()
    with pytest.raises(ValueError, match="A-1"):
        find_patients(tmp_path)
