"""nnU-Net's ``dataset.json``: the channels and the classes by name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.samples import Draw, Found, Kind, Link, OneFile, Pipe, Right, changed_bytes
from hmvnet.reading.folder import read_dataset_json


@dataclass
class Dataset(OneFile):
    """What it holds."""

    raw: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> bytes:
        return json.dumps(self.raw).encode()


def _clean(draw: Draw) -> Dataset:
    exchanged = draw(st.booleans())
    channels = {"0": "PET", "1": "CT"} if exchanged else {"0": "CT", "1": "PET"}
    moved = draw(st.booleans())
    labels = {"background": 0, "GTVp": 2, "GTVn": 1} if moved else {"GTVp": 1, "GTVn": 2}
    return Dataset(
        {
            "ct": int(exchanged),
            "pet": int(not exchanged),
            "moved": ((1, 2), (2, 1)) if moved else (),
        },
        name="dataset.json",
        named=("dataset.json",),
        raw={"channel_names": channels, "labels": labels, "file_ending": ".nii.gz"},
    )


def _read(folder: Path, sample: Dataset) -> Found:
    ct, pet, moved = read_dataset_json(folder / sample.name)
    return Found({"ct": ct, "pet": pet, "moved": moved})


DATASET = Kind("dataset.json", _clean, _read, refusals=(ValueError,))


@DATASET.mutation(Right.SAME)
def written_otherwise(draw: Draw, dataset: Dataset) -> None:
    text = json.dumps(dataset.raw, indent=draw(st.sampled_from([None, 4])))
    dataset.content = draw(st.sampled_from(["{}", "\ufeff{}", "\r\n {}\n"])).format(text).encode()


@DATASET.mutation(Right.SAME)
def names_in_any_case(draw: Draw, dataset: Dataset) -> None:
    change = draw(st.sampled_from([str.lower, str.upper, " {} ".format]))
    for key in ("channel_names",):
        dataset.raw[key] = {k: change(v) for k, v in dataset.raw[key].items()}
    dataset.raw["labels"] = {change(k): v for k, v in dataset.raw["labels"].items()}


@DATASET.mutation(Right.SAME)
def the_first_version(draw: Draw, dataset: Dataset) -> None:
    dataset.raw["modality"] = dataset.raw.pop("channel_names")
    dataset.raw["labels"] = {str(v): k for k, v in dataset.raw["labels"].items()}


@DATASET.mutation(Right.SAME)
def entries_in_any_order(draw: Draw, dataset: Dataset) -> None:
    for key in ("channel_names", "labels"):
        dataset.raw[key] = dict(draw(st.permutations(list(dataset.raw[key].items()))))


@DATASET.mutation(Right.SAME)
def more_entries(draw: Draw, dataset: Dataset) -> None:
    dataset.raw |= {"numTraining": 5, "name": "Ü", "training": [{"image": "x"}], "tensor": None}


@DATASET.mutation(Right.SAME)
def nothing_said(draw: Draw, dataset: Dataset) -> None:
    dataset.raw = draw(st.sampled_from([{}, {"channel_names": {}, "labels": {}}]))
    dataset.values = {"ct": 0, "pet": 1, "moved": ()}


@DATASET.mutation(Right.SAME)
def other_words(draw: Draw, dataset: Dataset) -> None:
    words = {"PET": draw(st.sampled_from(["PT", "SUV", "noNorm", "PET-SUV"])), "CT": "CT"}
    dataset.raw["channel_names"] = {k: words[v] for k, v in dataset.raw["channel_names"].items()}


@DATASET.mutation(Right.REFUSED)
def cut_anywhere(draw: Draw, dataset: Dataset) -> None:
    dataset.content = dataset.data()[: draw(st.integers(0, len(dataset.data()) - 1))]


@DATASET.mutation(Right.REFUSED)
def other_channels(draw: Draw, dataset: Dataset) -> None:
    names: list[Any] = [
        {"0": "T1", "1": "T2"},
        {"0": "CT", "1": "CT"},
        {"0": "CT", "1": "PET", "2": "CT"},
        {"0": "CT", "00": "PET", "1": "PET"},
        {"0": "CT", "00": "PET"},
        {"0": "CT"},
        ["CT", "PET"],
        {"x": "CT", "y": "PET"},
        "CT",
        {"0": None, "1": []},
        {"-1": "CT", "1": "PET"},
        {"10000": "CT", "1": "PET"},
        None,
    ]
    dataset.raw["channel_names"] = draw(st.sampled_from(names))


@DATASET.mutation(Right.REFUSED)
def other_classes(draw: Draw, dataset: Dataset) -> None:
    names: list[Any] = [
        {"a": 1, "b": 2},
        {"GTVp": 1, "GTVn": 2, "other": 3},
        {"GTVp": [1, 2], "GTVn": 1},
        {"GTVp": 1, "GTVn": 1},
        {"GTVp": 1, "gtvt": 2, "GTVn": 3},
        {"GTVp": 0, "GTVn": 1},
        {"GTVp": 1.5, "GTVn": 2},
        {"GTVp": -1, "GTVn": 2},
        {"GTVp": 300, "GTVn": 2},
        {"GTVp": "one", "GTVn": 2},
        ["GTVp", "GTVn"],
        "GTVp",
        None,
    ]
    dataset.raw["labels"] = draw(st.sampled_from(names))


@DATASET.mutation(Right.REFUSED)
def nothing_of_the_kind(draw: Draw, dataset: Dataset) -> None:
    dataset.content = draw(
        st.sampled_from(
            [b"[]", b"7", b"null", b"", b"[" * 90_000, b"9" * 5000, b"\0\xff\7", Pipe()]
        )
        | st.just(Link("/dev/zero"))
    )


@DATASET.mutation(Right.EITHER)
def any_bytes(draw: Draw, dataset: Dataset) -> None:
    dataset.values, dataset.bounded = {}, True
    dataset.content = changed_bytes(draw, dataset.parts())
