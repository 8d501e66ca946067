"""A challenge's input folder: ``inputs.json`` and what it names."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from hypothesis import strategies as st

from fuzz.samples import Draw, File, Found, Kind, Link, Pipe, Right, Sample, changed_bytes
from hmvnet.reading.challenge import read_case

RECORD = {"Age": 61.2345678, "Gender": 1.0}
PLACES = {"ct": "images/ct", "pet": "images/pet", "record": "ehr.json"}
SLUGS = {"ct": "ct-image", "pet": "pet-image", "record": "electronic-health-record"}
OTHER_SLUGS = {
    "ct": ["ct", "computed-tomography-image"],
    "pet": ["pet", "pt-image"],
    "record": ["ehr"],
}


@lru_cache
def scan(kind: str, seed: int = 0) -> np.ndarray:
    """Voxels of a CT or a PET that can be one examination."""
    rng = np.random.default_rng(seed)
    shape = (8, 9, 10)
    if kind == "pet":
        return rng.gamma(2, 1, shape).astype("f4")
    hounsfield = np.where(np.arange(10) < 4, -1000, 40) + rng.normal(0, 30, shape)
    return hounsfield.clip(-1050).astype("i2")


def mha(array: np.ndarray, spacing: str = "5 5 5") -> bytes:
    """A small MetaImage."""
    size = " ".join(map(str, array.shape[::-1]))
    kind = {"i2": "MET_SHORT", "f4": "MET_FLOAT", "u1": "MET_UCHAR"}[array.dtype.str[1:]]
    head = f"NDims = 3\nDimSize = {size}\nElementSpacing = {spacing}\nElementType = {kind}\n"
    head += "Offset = 0 0 0\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    head += "CompressedData = True\nElementDataFile = LOCAL\n"
    return head.encode() + zlib.compress(array.tobytes())


@dataclass
class Folder(Sample):
    """Where each input lies, and the entries of ``inputs.json``; None: there is none."""

    places: dict[str, str] = field(default_factory=lambda: dict(PLACES))
    entries: Any = None

    def standard(self, key: str = "socket") -> None:
        """Entries as the platform writes them."""
        self.entries = [
            {key: {"slug": SLUGS[name], "relative_path": place}, "file": None}
            for name, place in self.places.items()
        ]

    def encode(self) -> dict[str, File]:
        laid: dict[str, File] = {
            f"{self.places['ct']}/a.mha": mha(self.values["ct"]),
            f"{self.places['pet']}/b.mha": mha(self.values["pet"]),
            self.places["record"]: json.dumps(RECORD).encode(),
        }
        if self.entries is not None:
            laid["inputs.json"] = json.dumps(self.entries).encode()
        laid |= self.files
        return {name: content for name, content in laid.items() if content != b"gone"}


def _clean(draw: Draw) -> Folder:
    number = draw(st.integers(0, 99))
    values = {"ct": scan("ct", number), "pet": scan("pet", number), "record": RECORD}
    folder = Folder(values, named=("inputs.json",), secrets=(str(RECORD["Age"]),))
    folder.standard()
    return folder


def _read(folder: Path, sample: Folder) -> Found:
    case = read_case(folder)
    arrays = {name: sitk.GetArrayFromImage(getattr(case, name)) for name in ("ct", "pet")}
    return Found(arrays | {"record": dict(case.record.values)}, case.notes)


INPUTS = Kind("inputs.json", _clean, _read)


@INPUTS.mutation(Right.SAME)
def the_older_key(draw: Draw, folder: Folder) -> None:
    folder.standard("interface")


@INPUTS.mutation(Right.SAME)
def no_list_at_all(draw: Draw, folder: Folder) -> None:
    folder.entries = None


@INPUTS.mutation(Right.SAME)
def other_slugs(draw: Draw, folder: Folder) -> None:
    for entry, name in zip(folder.entries, folder.places):
        entry["socket"]["slug"] = draw(st.sampled_from(OTHER_SLUGS[name]))


@INPUTS.mutation(Right.SAME)
def other_places(draw: Draw, folder: Folder) -> None:
    names = ["images/a", "deep/er/and/deeper", "images/Ü ñ", "images/x.mha", "b c", "images/./d"]
    places = draw(st.permutations(names))
    folder.places = {"ct": places[0], "pet": places[1], "record": f"{places[2]}/r.json"}
    folder.standard()


@INPUTS.mutation(Right.SAME)
def entries_in_any_order(draw: Draw, folder: Folder) -> None:
    folder.entries = draw(st.permutations(folder.entries))


@INPUTS.mutation(Right.SAME)
def unknown_entries(draw: Draw, folder: Folder) -> None:
    """What other phases and other software write: not ours, and no reason to stop."""
    strange: list[Any] = [
        {"socket": {"slug": "rt-dose", "relative_path": "images/rt-dose"}},
        {"socket": {"slug": ["ct-image"], "relative_path": "x"}},
        {"socket": {"slug": {"a": 1}}},
        {"socket": None},
        {"socket": "ct-image"},
        {},
        None,
        17,
        "text",
        ["ct-image"],
        {"socket": {"slug": "other", "relative_path": "../../outside"}},
    ]
    more = draw(st.lists(st.sampled_from(strange), min_size=1, max_size=4))
    folder.entries = draw(st.permutations([*folder.entries, *more]))


@INPUTS.mutation(Right.SAME)
def only_some_entries(draw: Draw, folder: Folder) -> None:
    folder.entries = draw(st.lists(st.sampled_from(folder.entries), unique_by=str, max_size=2))


@INPUTS.mutation(Right.SAME)
def an_entry_twice(draw: Draw, folder: Folder) -> None:
    folder.entries = [*folder.entries, draw(st.sampled_from(folder.entries))]


@INPUTS.mutation(Right.SAME)
def the_image_itself_is_named(draw: Draw, folder: Folder) -> None:
    folder.entries[0]["socket"]["relative_path"] = "images/ct/a.mha"


@INPUTS.mutation(Right.SAME)
def links_inside(draw: Draw, folder: Folder) -> None:
    name = draw(st.sampled_from(["images/ct", "images/pet"]))
    folder.places[name.removeprefix("images/")] = "elsewhere"
    folder.files[name] = Link("../elsewhere")


@INPUTS.mutation(Right.SAME)
def other_files_beside(draw: Draw, folder: Folder) -> None:
    folder.files |= {
        "images/ct/._a.mha": b"\0\5\x16\7",
        "images/ct/readme.txt": b"x",
        "images/pet/.DS_Store": b"\0",
        "images/rt-dose/c.mha": b"nonsense",
        "images/pet/sub/d.mha": b"nonsense",
    }


@INPUTS.mutation(Right.REPAIRED)
def a_damaged_list(draw: Draw, folder: Folder) -> None:
    """The standard places are used, and that is said."""
    text = json.dumps(folder.entries)
    damaged = [b"", b"[{", text[:-1].encode(), b"\0\xff\7", b"[" * 100_000, b"[" + b"1" * 5000]
    damaged += [text.encode() + b" " * (1 << 20), text.encode("utf-16")]
    folder.files["inputs.json"] = draw(st.sampled_from(damaged))


@INPUTS.mutation(Right.REPAIRED)
def no_list_of_entries(draw: Draw, folder: Folder) -> None:
    folder.entries = draw(
        st.sampled_from([{}, {"inputs": folder.entries}, 17, "text", {"socket": 1}])
    )


@INPUTS.mutation(Right.REPAIRED)
def no_record(draw: Draw, folder: Folder) -> None:
    folder.files["ehr.json"] = b"gone"
    folder.values["record"] = {}


@INPUTS.mutation(Right.REFUSED)
def a_path_that_leaves(draw: Draw, folder: Folder) -> None:
    entry = draw(st.sampled_from(folder.entries))["socket"]
    entry["relative_path"] = draw(
        st.sampled_from(["../outside", "/etc", "images/../../outside", "..", "/dev/zero"])
    )
    folder.files |= {"../outside/a.mha": mha(scan("ct"))}


@INPUTS.mutation(Right.REFUSED)
def a_path_that_is_none(draw: Draw, folder: Folder) -> None:
    entry = draw(st.sampled_from(folder.entries))["socket"]
    entry["relative_path"] = draw(
        st.sampled_from(["images/\0ct", "x" * 5000, "a/" * 3000, "\ud800", "loop/x"])
    )
    folder.files["loop"] = Link("loop")


@INPUTS.mutation(Right.REFUSED)
def two_places_of_one_input(draw: Draw, folder: Folder) -> None:
    entry = draw(st.sampled_from(folder.entries))["socket"]
    folder.entries.append({"socket": entry | {"relative_path": "images/another"}})
    folder.files["images/another/c.mha"] = mha(scan("pet"))


@INPUTS.mutation(Right.REFUSED)
def a_place_without_an_image(draw: Draw, folder: Folder) -> None:
    folder.entries[0]["socket"]["relative_path"] = draw(
        st.sampled_from(["images/none", "ehr.json", "images", "", "inputs.json"])
    )
    folder.named = ("no image in", "ehr.json", "inputs.json")


@INPUTS.mutation(Right.REFUSED)
def links_that_leave(draw: Draw, folder: Folder) -> None:
    name = draw(st.sampled_from(["images/ct/a.mha", "ehr.json", "inputs.json", "images/pet"]))
    folder.named = (name.removesuffix("/a.mha"), "inputs.json")
    target = {"images/ct/a.mha": "../../../out/a.mha", "images/pet": "../../out"}
    folder.files |= {
        "../out/a.mha": mha(scan("ct")),
        "../out/ehr.json": json.dumps(RECORD).encode(),
        "../out/inputs.json": json.dumps(folder.entries).encode(),
    }
    if name == "images/pet":
        folder.places["pet"] = "elsewhere"
    folder.files[name] = Link(target.get(name, f"../out/{name}"))


@INPUTS.mutation(Right.REFUSED)
def no_file(draw: Draw, folder: Folder) -> None:
    name = draw(st.sampled_from(["images/ct/a.mha", "images/pet/b.mha", "ehr.json"]))
    folder.files[name] = draw(st.sampled_from([Pipe(), Link("/dev/zero")]))
    folder.named = (name.rpartition("/")[0] or name, "inputs.json")


@INPUTS.mutation(Right.REFUSED)
def two_images(draw: Draw, folder: Folder) -> None:
    folder.files["images/ct/other.tif"] = b"x"
    folder.named = ("2 images in images/ct",)


@INPUTS.mutation(Right.EITHER)
def any_bytes(draw: Draw, folder: Folder) -> None:
    folder.files |= folder.encode()
    folder.files["inputs.json"] = changed_bytes(draw, json.dumps(folder.entries).encode())
    folder.named, folder.bounded = ("inputs.json", "no image in"), True
