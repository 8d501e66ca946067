"""Preprocessed volumes, cached on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import SimpleITK as sitk

from hmvnet.case import GTVN, GTVP, CaseError, Grid
from hmvnet.config import PreprocessingSettings
from hmvnet.files import digest, replacing, write_text
from hmvnet.imaging.resample import labels_onto
from hmvnet.reading.folder import Patient
from hmvnet.segmentation.segmenter import prepare
from hmvnet.state import made_once

CACHE_VERSION = 4
# Voxels of each class remembered for patch sampling.
SAMPLED_VOXELS = 4000
MOST_OUTSIDE = 0.05  # of what is labelled, of which nothing is said
# Written once, read in each epoch: beside zstd a box takes half of the time, a file 15% more room.
PACKED = {"codec": blosc2.Codec.LZ4HC, "clevel": 5}
BLOCK = 16  # voxels inflated together, along each axis: with 32 a box takes a fifth more time


class Stored:
    """An array in a blosc2 file, read where it is sliced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # One thread: a pool of as many as there are cores waits for itself at every small block.
        self._array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})

    def __reduce__(self) -> tuple[type[Stored], tuple[Path]]:
        return Stored, (self.path,)  # another process opens the file itself

    @property
    def shape(self) -> tuple[int, ...]:
        """As numpy's."""
        return self._array.shape

    def __getitem__(self, where: Any) -> np.ndarray:
        """Values of a part.

        Raises:
            OSError: the file cannot be read any more.
        """
        try:
            return self._array[where]
        except RuntimeError as error:
            raise OSError(f"{self.path}: the cached volume cannot be read any more") from error


@dataclass(frozen=True)
class Prepared:
    """One patient's preprocessed volume, on disk until sliced.

    Attributes:
        volume: float16 ``[2, z, y, x]``, CT in [0, 1] and PET in [-1, 1].
        label: uint8 ``[z, y, x]``; all 0 where there is no truth.
        grid: the working grid.
        ct_grid: the CT's own.
        voxels: for GTVp and GTVn, up to 4000 of their voxels as ``[n, 3]`` (z, y, x).
        source: digest of the content of the files that it was made of.
        notes: what reading had to say, and what is doubtful.
    """

    patient_id: str
    volume: Stored
    label: Stored
    grid: Grid
    ct_grid: Grid
    voxels: Mapping[int, np.ndarray]
    source: str
    notes: tuple[str, ...] = ()


class Cache:
    """Preprocessed volumes on disk, one folder a set of preprocessing settings.

    An entry is keyed by the settings and the content of the patient's files, so that processes that
    share a cache cannot disagree on one; a half-written one is never seen, and one whose files are
    gone or are not what was written is made anew.
    """

    def __init__(self, folder: Path, settings: PreprocessingSettings, region: str) -> None:
        self.settings = settings
        self.region = region
        self.folder = Path(folder) / digest(CACHE_VERSION, region, settings.model_dump(mode="json"))
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, patient: Patient) -> Prepared:
        """The preprocessed patient, made now if it is not there or is stale."""
        source = files_hash(patient)
        # Arrays are read chunk by chunk from their file: nobody may replace it under a reader.
        return made_once(
            self._paths(patient, source)[-1],
            lambda: self._load(patient, source),
            lambda: self._make(patient, source),
        )

    def _paths(self, patient: Patient, source: str) -> tuple[Path, Path, Path]:
        endings = (".b2nd", ".label.b2nd", ".json")
        volume, label, meta = (
            self.folder / f"{patient.patient_id}-{source}{ending}" for ending in endings
        )
        return volume, label, meta

    def _load(self, patient: Patient, source: str) -> Prepared | None:
        volume, label, meta_path = self._paths(patient, source)
        try:
            meta = json.loads(meta_path.read_text(encoding="utf-8"))
            content = meta.pop("content")
            if content != digest(volume, label, meta):
                return None
        except (OSError, ValueError, AttributeError, KeyError):
            return None
        return self._open(patient, source, meta)

    def _open(self, patient: Patient, source: str, meta: Mapping[str, Any]) -> Prepared:
        volume, label, _ = self._paths(patient, source)
        return Prepared(
            patient.patient_id,
            Stored(volume),
            Stored(label),
            _grid(meta["grid"]),
            _grid(meta["ct_grid"]),
            {int(k): np.array(v, dtype=int).reshape(-1, 3) for k, v in meta["voxels"].items()},
            source,
            tuple(meta["notes"]),
        )

    def _make(self, patient: Patient, source: str) -> Prepared:
        case = patient.read()
        try:
            volume = prepare(case, self.settings, self.region)
        except CaseError as error:
            raise CaseError(f"patient {patient.patient_id}: {error}", error.code) from error
        notes = [*case.notes, *(finding.text for finding in volume.findings)]
        grid = volume.grid
        label = np.zeros(grid.shape, np.uint8)
        if case.truth is not None:
            truth = sitk.GetArrayFromImage(case.truth)
            label = labels_onto(truth, Grid.of(case.truth), grid)
            if (share := _outside(truth, Grid.of(case.truth), grid)) > MOST_OUTSIDE:
                notes.append(
                    f"{share:.0%} of what is labelled lies outside the region '{self.region}': it "
                    "is neither learnt nor, in training, scored"
                )
        rng = np.random.default_rng(0)
        voxels = {}
        for kind in (GTVP, GTVN):
            found = np.flatnonzero(label == kind)
            chosen = np.sort(rng.permutation(len(found))[:SAMPLED_VOXELS])
            voxels[kind] = np.stack(np.unravel_index(found[chosen], label.shape), axis=1).tolist()
        volume_path, label_path, meta_path = self._paths(patient, source)
        # The description comes last: without it the arrays count as not there.
        _store(volume.scaled.astype(np.float16), volume_path)
        _store(label, label_path)
        grids = {"grid": asdict(grid), "ct_grid": asdict(Grid.of(case.ct))}
        kept = {**grids, "voxels": voxels, "notes": notes}
        meta = json.loads(json.dumps(kept))  # as it comes back
        content = digest(volume_path, label_path, meta)
        write_text(json.dumps({"content": content, **meta}), meta_path)
        return self._open(patient, source, meta)


def _grid(stored: Mapping[str, Any]) -> Grid:
    return Grid(**{name: tuple(values) for name, values in stored.items()})


def _outside(truth: np.ndarray, source: Grid, grid: Grid) -> float:
    """The share of the labelled voxels that lie outside a grid."""
    labelled = within = 0
    for z, plane in enumerate(truth):  # points of all would take 60 times the memory of the labels
        y, x = np.nonzero(plane)
        at = source.points(np.stack([x, y, np.full(len(x), z)], axis=1))
        labelled += len(at)
        within += int((grid.depth(at) >= 0).sum())
    return 1 - within / labelled if labelled else 0.0


def _store(array: np.ndarray, path: Path) -> None:
    blocks = (*[1] * (array.ndim - 3), BLOCK, BLOCK, BLOCK)
    chunks = tuple(min(n, 4 * b) for n, b in zip(array.shape, blocks))
    blocks = tuple(min(c, b) for c, b in zip(chunks, blocks))
    with replacing(path) as file:
        blosc2.asarray(
            array, urlpath=str(file), mode="w", chunks=chunks, blocks=blocks, cparams=PACKED
        )


def files_hash(patient: Patient) -> str:
    """Digest of the content of a patient's files, and of what their values mean."""
    paths = [path for path in (patient.ct, patient.pet, patient.label) if path]
    return digest(*paths, patient.classes, patient.suv_factor)
