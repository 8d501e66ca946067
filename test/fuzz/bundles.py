"""Weight bundles: a manifest and safetensors files."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz.samples import Draw, File, Found, Kind, Link, Pipe, Right, Sample, changed_bytes
from hmvnet.bundle import load_bundle

WEIGHTS = "fold0.safetensors"


@dataclass
class Weights(Sample):
    """The manifest but its hashes, and each weight file's header and numbers."""

    manifest: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    numbers: bytes = b""
    blanks: int = 0
    weights: bytes | None = None  # in the place of the parts
    hashed: bool = True  # whether the manifest has the file's own hash

    def data(self) -> bytes:
        if self.weights is not None:
            return self.weights
        header = json.dumps(self.header).encode() + b" " * self.blanks
        return struct.pack("<Q", len(header)) + header + self.numbers

    def encode(self) -> dict[str, File]:
        if self.hashed:
            known = hashlib.sha256(self.data()).hexdigest()
            self.manifest["files"] = self.manifest.get("files", {}) | {WEIGHTS: known}
            self.hashed = False
        return {
            "manifest.json": json.dumps(self.manifest).encode(),
            WEIGHTS: self.data(),
            **self.files,
        }


def _clean(draw: Draw) -> Weights:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    header, numbers, values = {}, b"", {}
    for index in range(draw(st.integers(1, 3))):
        dtype, kind = draw(st.sampled_from([("F32", "f4"), ("F64", "f8"), ("F16", "f2")]))
        shape = draw(st.lists(st.integers(1, 4), max_size=3))
        array = rng.normal(size=shape).astype(kind)
        ends = [len(numbers), len(numbers) + array.nbytes]
        header[f"t{index}"] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
        numbers += array.tobytes()
        values[f"t{index}"] = array.astype("f4") if kind == "f2" else array
    manifest = {
        "format": 1,
        "name": "tiny",
        "classes": ["background", "GTVp", "GTVn"],
        "preprocessing": {},
        "postprocessing": {},
        "segmentation": {"network": "hmvnet", "patch_size": [32, 32, 32], "files": [WEIGHTS]},
    }
    named = ("manifest.json", WEIGHTS)
    return Weights(values, named=named, manifest=manifest, header=header, numbers=numbers)


def _read(folder: Path, sample: Weights) -> Found:
    bundle = load_bundle(folder)
    found: dict[str, Any] = {}
    for name in bundle.manifest.segmentation.files:
        found |= {key: value.numpy() for key, value in bundle.tensors(name).items()}
    return Found(found)


BUNDLE = Kind("bundle", _clean, _read)


@BUNDLE.mutation(Right.SAME)
def manifest_written_otherwise(draw: Draw, weights: Weights) -> None:
    weights.manifest = dict(draw(st.permutations(list(weights.manifest.items()))))
    weights.encode()
    text = json.dumps(weights.manifest, indent=draw(st.sampled_from([None, 0, 3])))
    weights.files["manifest.json"] = text.replace("\n", "\r\n").encode() + b"\n \n"


@BUNDLE.mutation(Right.SAME)
def more_in_the_manifest(draw: Draw, weights: Weights) -> None:
    weights.manifest |= {
        "trained_on": {"patients": 17, "Zürich": [None, {"a": 1.5}]},
        "metrics": {"dice": 0.5},
        "files": {"never asked for.onnx": "0" * 64},
        "prognosis": draw(st.sampled_from([None, RISK])),
    }
    weights.manifest["segmentation"] |= {"options": {"channels": 8}, "seen": [["0123"]]}


@BUNDLE.mutation(Right.SAME)
def more_files(draw: Draw, weights: Weights) -> None:
    weights.files |= {"readme.txt": b"x", "other.safetensors": b"", "sub/manifest.json": b"{}"}


@BUNDLE.mutation(Right.SAME)
def header_of_weights_written_otherwise(draw: Draw, weights: Weights) -> None:
    weights.header = dict(draw(st.permutations(list(weights.header.items()))))
    weights.header["__metadata__"] = {"format": "pt", "who": "Zürich"}
    weights.blanks = draw(st.integers(0, 40))


@BUNDLE.mutation(Right.SAME)
def nothing_in_a_tensor(draw: Draw, weights: Weights) -> None:
    end = len(weights.numbers)
    weights.header["empty"] = {"dtype": "F32", "shape": [0, 3], "data_offsets": [end, end]}
    weights.values["empty"] = np.zeros((0, 3), "f4")


@BUNDLE.mutation(Right.SAME)
def links_inside(draw: Draw, weights: Weights) -> None:
    weights.files |= {"store/blob": weights.data(), WEIGHTS: Link("store/blob")}


@BUNDLE.mutation(Right.REFUSED)
def links_that_leave(draw: Draw, weights: Weights) -> None:
    name = draw(st.sampled_from([WEIGHTS, "manifest.json"]))
    weights.files |= {f"../other/{name}": weights.encode()[name], name: Link(f"../other/{name}")}


@BUNDLE.mutation(Right.REFUSED)
def no_file(draw: Draw, weights: Weights) -> None:
    name = draw(st.sampled_from([WEIGHTS, "manifest.json"]))
    weights.files[name] = draw(
        st.sampled_from([Pipe(), Link("/dev/zero"), Link("."), Link("nowhere"), b""])
    )


@BUNDLE.mutation(Right.REFUSED)
def a_bit_of_the_weights(draw: Draw, weights: Weights) -> None:
    data = bytearray(weights.data())
    weights.encode()
    data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    weights.files[WEIGHTS] = bytes(data)


@BUNDLE.mutation(Right.REFUSED)
def weights_cut_anywhere(draw: Draw, weights: Weights) -> None:
    """With and without the hash of what is left."""
    data = weights.data()
    if draw(st.booleans()):
        weights.encode()
    weights.weights = data[: draw(st.integers(0, len(data) - 1))]


@BUNDLE.mutation(Right.REFUSED)
def manifest_cut_anywhere(draw: Draw, weights: Weights) -> None:
    data = weights.encode()["manifest.json"]
    assert isinstance(data, bytes)
    weights.files["manifest.json"] = data[: draw(st.integers(0, len(data) - 1))]


@BUNDLE.mutation(Right.REFUSED)
def a_header_that_makes_no_sense(draw: Draw, weights: Weights) -> None:
    """Whoever wrote the file also wrote its hash."""
    tensor = weights.header["t0"]
    start, end = tensor["data_offsets"]
    change = draw(
        st.sampled_from(
            [
                *({"dtype": name} for name in ("F31", "", 7, None, "F4", "F8_E8M0", "I1")),
                *({"shape": s} for s in ([-1], [2**62, 2**62], "x", [1.5], None, [2**64])),
                *({"data_offsets": o} for o in ([end, start - 1], [0, 2**63], [0], "x", [-1, 9])),
                {"data_offsets": [start + 1, end + 1]},
                {"shape": [1] * 5000 + [999]},
                {"dtype": "F4", "shape": [2 * (end - start)]},
            ]
        )
    )
    tensor |= change


@BUNDLE.mutation(Right.REFUSED)
def a_header_of_another_length(draw: Draw, weights: Weights) -> None:
    length = draw(st.sampled_from([0, 1, 2**31, 2**40, 2**63, 2**64 - 1, 100_000_001]))
    weights.weights = struct.pack("<Q", length) + weights.data()[8:]
    weights.bounded = True


@BUNDLE.mutation(Right.REFUSED)
def a_header_that_is_none(draw: Draw, weights: Weights) -> None:
    header = draw(st.sampled_from([b"[]", b"{", b"\xff\xfe", b"[" * 90_000, b'{"t0": 1}', b"null"]))
    weights.weights = struct.pack("<Q", len(header)) + header + weights.numbers


@BUNDLE.mutation(Right.REFUSED)
def names_that_are_no_files(draw: Draw, weights: Weights) -> None:
    name = draw(
        st.sampled_from(
            [
                "../other/x",
                "/etc/passwd",
                "sub/x",
                "..",
                ".",
                "",
                "a\0b",
                "x" * 300,
                "\ud800",
                "C:\\x",
            ]
        )
    )
    data = weights.data()
    weights.files |= {"../other/x": data, "sub/x": data}
    known = hashlib.sha256(data).hexdigest()
    weights.manifest["files"] = {name: known}
    weights.manifest["segmentation"]["files"] = [name]
    weights.named = ("tiny", "manifest.json")


RISK: dict[str, Any] = {
    "settings": {},
    "clinical": [{}],
    "lesion_features": ["a"],
    "risk_quantiles": [-1.0, 0.0, 1.0],
    "expected_days": [[-1.0, 900.0], [1.0, 100.0]],
    "files": [WEIGHTS],
}
WRONG_RISK: list[tuple[str, Any]] = [
    *(("clinical", v) for v in ([], [{}, {}], None, [7])),
    *(("risk_quantiles", v) for v in ([], [1.0, 0.0], [float("nan")], ["x"], None)),
    *(("expected_days", v) for v in ([[1.0]], [[1.0, 2.0, 3.0]], [[1.0, 1.0], [0.0, 2.0]], 7)),
    *(("files", v) for v in ([], None, [7], WEIGHTS)),
]
WRONG: list[tuple[str, Any]] = [
    *(("format", v) for v in (0, 2, "1", None, [1], {"a": "x" * 5000}, 1.5)),
    *(("classes", v) for v in (["background", "GTVn", "GTVp"], [], None, "x", ["x" * 5000])),
    *(("region", v) for v in (None, 7, [], "knee")),
    *(("name", v) for v in (None, 7, {})),
    *(("preprocessing", v) for v in (None, [], {"spacing_mm": -1}, {"spacing_mm": "x"})),
    ("preprocessing", {"spacing_mm": float("nan")}),
    ("preprocessing", {"hu_window": [float("nan"), 1]}),
    ("preprocessing", {"size_mm": [float("inf"), 1, 1]}),
    ("preprocessing", {"unknown\nname": 1}),
    *(("postprocessing", v) for v in (None, {"threshold_gtvp": float("nan")}, {"a": 1})),
    *(("segmentation", v) for v in (None, {}, {"network": "hmvnet"})),
    ("segmentation", {"network": "hmvnet", "patch_size": [8, 8, 8], "files": []}),
    *(("prognosis", RISK | {key: v}) for key, v in WRONG_RISK),
    *(("files", v) for v in (None, [], {WEIGHTS: None}, {WEIGHTS: 7}, {WEIGHTS: "0" * 64})),
    *(("prognosis", v) for v in ({}, [], 7)),
    ("an unknown\nname", 1),
]


@BUNDLE.mutation(Right.REFUSED)
def a_manifest_that_makes_no_sense(draw: Draw, weights: Weights) -> None:
    name, value = draw(st.sampled_from(WRONG))
    weights.encode()
    weights.manifest[name] = value


@BUNDLE.mutation(Right.REFUSED)
def a_patch_that_makes_no_sense(draw: Draw, weights: Weights) -> None:
    sizes = [[32, 32], [0, 32, 32], [-1, 2, 3], ["x", 1, 1], None, [1.5, 1, 1], [float("inf")] * 3]
    weights.manifest["segmentation"]["patch_size"] = draw(st.sampled_from(sizes))


@BUNDLE.mutation(Right.REFUSED)
def something_left_out(draw: Draw, weights: Weights) -> None:
    weights.encode()
    del weights.manifest[
        draw(st.sampled_from(["format", "name", "preprocessing", "segmentation", "files"]))
    ]


@BUNDLE.mutation(Right.REFUSED)
def no_json(draw: Draw, weights: Weights) -> None:
    text = json.dumps(weights.manifest)
    weights.files["manifest.json"] = draw(
        st.sampled_from(
            [
                b"[" * 100_000,
                b'{"format": ' + b"9" * 5000 + b"}",
                b"\xff\xfe\x00",
                b"{'format': 1}",
                b"",
                b"null",
                f'{{"format": 2, {text[1:]}'.encode(),
            ]
        )
    )


@BUNDLE.mutation(Right.REFUSED)
def large(draw: Draw, weights: Weights) -> None:
    weights.encode()
    weights.files["manifest.json"] = json.dumps(weights.manifest).encode() + b" " * (1 << 26)
    weights.bounded = True


@BUNDLE.mutation(Right.EITHER)
def any_bytes(draw: Draw, weights: Weights) -> None:
    """Of the manifest, or of the weights with the hash made to fit."""
    weights.bounded = True
    if draw(st.booleans()):
        weights.weights = changed_bytes(draw, weights.data())
    else:
        manifest = weights.encode()["manifest.json"]
        assert isinstance(manifest, bytes)
        weights.files["manifest.json"] = changed_bytes(draw, manifest)
        weights.named = (*weights.named, "weights of")
    weights.values = {}
