"""NIfTI-1 and NIfTI-2 files (nifti.nimh.nih.gov): the header first, then the pixels it declares.

ITK adds an intercept where the slope is 0, takes 1 mm for a spacing of 0, fills what a truncated
file lacks with zeros, and chooses between the two orientations without a word; so the header is
read here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import SimpleITK as sitk
from isal import igzip, isal_zlib

from hmvnet.case import IDENTITY, CaseError, Grid
from hmvnet.reading.headers import (
    ORTHONORMAL_REFUSE,
    check_stored,
    checked_grid,
    orthonormal_error,
    remarked,
)

MAX_OFFSET = 1 << 24  # header extensions lie before the pixels; and of what is behind them
AGREE_VOXELS = 0.1  # how far apart the two orientations may put a corner
MAX_SCALE = 1e18  # with it a whole number of any type is still a float32
MAX_CODE = 5  # of an orientation
SCANNER = 1  # the code of scanner coordinates: what PET and CT have in common
_DAMAGED: tuple[type[Exception], ...] = (EOFError, isal_zlib.error, igzip.BadGzipFile)  # type: ignore
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metres, millimetres, microns
_UNIT_NAMES = {1: "metres", 3: "microns"}
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}


def _layout(size: int, **fields: tuple[str, int]) -> np.dtype:
    """The fields that are read, each with its type and its offset in bytes."""
    return np.dtype(
        {
            "names": list(fields),
            "formats": [kind for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": size,
        }
    )


_NIFTI1 = _layout(
    348,
    sizeof_hdr=("<i4", 0),
    dim=("8<i2", 40),
    datatype=("<i2", 70),
    pixdim=("8<f4", 76),
    vox_offset=("<f4", 108),
    scl_slope=("<f4", 112),
    scl_inter=("<f4", 116),
    xyzt_units=("u1", 123),
    descrip=("S80", 148),
    qform_code=("<i2", 252),
    sform_code=("<i2", 254),
    quatern=("3<f4", 256),
    qoffset=("3<f4", 268),
    srow=("(3,4)<f4", 280),
    magic=("S4", 344),
)
_NIFTI2 = _layout(
    540,
    sizeof_hdr=("<i4", 0),
    magic=("S8", 4),
    datatype=("<i2", 12),
    dim=("8<i8", 16),
    pixdim=("8<f8", 104),
    vox_offset=("<i8", 168),
    scl_slope=("<f8", 176),
    scl_inter=("<f8", 184),
    descrip=("S80", 240),
    qform_code=("<i4", 344),
    sform_code=("<i4", 348),
    quatern=("3<f8", 352),
    qoffset=("3<f8", 376),
    srow=("(3,4)<f8", 400),
    xyzt_units=("<i4", 500),
)
_MAGIC = {348: b"n+1", 540: b"n+2\0\r\n\x1a\n"}


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says, checked.

    Attributes:
        grid: of the image, in LPS mm.
        dtype: of the stored values, with their byte order.
        start: offset of the first of them, in bytes.
        slope, intercept: of the values; 1 and 0 where the header has no scaling.
        notes: what was repaired or assumed.
    """

    grid: Grid
    dtype: np.dtype
    start: int
    slope: float
    intercept: float
    notes: tuple[str, ...]


def read_nifti(path: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    """A 3D scalar image and notes on what was repaired or assumed.

    Raises:
        CaseError: no NIfTI file of its own, truncated, damaged, not 3D, not scalar, or a header
            that makes no sense.
        OSError: the file cannot be read.
    """
    name = path.name
    try:
        with _open(path) as file:
            header = _header(file, name)
            expected = math.prod(header.grid.size) * header.dtype.itemsize
            compressed = isinstance(file, igzip.IGzipFile)
            stored = path.stat().st_size - (0 if compressed else header.start)
            check_stored(expected, stored, name, compressed=compressed)
            file.read(header.start - file.tell())
            data = file.read(expected)
            rest = len(file.read(MAX_OFFSET))  # with the end of what is compressed, its checksum
    except _DAMAGED as error:
        raise CaseError(f"{name}: truncated or damaged NIfTI image") from error
    if len(data) < expected:
        raise CaseError(
            f"{name}: truncated NIfTI image, {len(data)} bytes of pixels found, {expected} expected"
        )
    if rest == MAX_OFFSET:  # and no checksum was seen
        raise CaseError(
            f"{name}: {rest} bytes or more after the pixels, expected none after the {expected} "
            "that dim declares"
        )
    notes = header.notes
    if rest:
        notes = (*notes, f"{name}: {rest} bytes or more after the pixels, not read")
    array = np.frombuffer(data, header.dtype).reshape(header.grid.shape)
    array = array.astype(header.dtype.newbyteorder("="), copy=False)
    if (header.slope, header.intercept) != (1.0, 0.0):
        kind = np.float64 if array.dtype == np.float64 else np.float32
        array = (array * header.slope + header.intercept).astype(kind)
    return header.grid.image(array), notes


def read_nifti_header(path: Path) -> NiftiHeader:
    """The header of ``read_nifti`` alone; raises what it does."""
    try:
        with _open(path) as file:
            return _header(file, path.name)
    except _DAMAGED as error:
        raise CaseError(f"{path.name}: truncated or damaged NIfTI image") from error


def _open(path: Path) -> IO[bytes]:
    """Compressed or not: that is in the file, whatever it is called."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return igzip.open(path, "rb") if compressed else path.open("rb")


def _header(file: IO[bytes], name: str) -> NiftiHeader:
    raw, order = _fields(file, name)
    shape = _shape(raw["dim"], name)
    if int(raw["datatype"]) not in _TYPES:
        raise CaseError(
            f"{name}: NIfTI datatype {int(raw['datatype'])}, expected a scalar image of whole or "
            "real numbers"
        )
    start = float(raw["vox_offset"])
    if not (raw.dtype.itemsize <= start <= MAX_OFFSET and start.is_integer()):
        raise CaseError(
            f"{name}: vox_offset {start:g}, expected {raw.dtype.itemsize + 4} or, with header "
            "extensions, more"
        )
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # the standard's way to say: no scaling at all
        slope, intercept = 1.0, 0.0
    for field, value in (("scl_slope", slope), ("scl_inter", intercept)):
        if not abs(value) <= MAX_SCALE:
            raise CaseError(f"{name}: {field} {value:g}, expected at most {MAX_SCALE:g} from 0")
    grid, notes = _grid(raw, shape, name)
    remarks = raw["descrip"].item().decode("latin-1")
    return NiftiHeader(
        grid,
        np.dtype(order + _TYPES[int(raw["datatype"])]),
        int(start),
        slope,
        intercept,
        (*notes, *remarked(remarks, name)),
    )


def _fields(file: IO[bytes], name: str) -> tuple[np.void, str]:
    """The fields in this machine's byte order, and the file's own order."""
    head = file.read(4)
    order: Literal["<", ">"] = "<" if int.from_bytes(head, "little") in _MAGIC else ">"
    size = int.from_bytes(head, "little" if order == "<" else "big")
    if size not in _MAGIC:
        raise CaseError(f"{name}: not a readable NIfTI image (no header of 348 or 540 bytes)")
    layout = _NIFTI1 if size == 348 else _NIFTI2
    head += file.read(size - len(head))
    if len(head) < size:
        raise CaseError(f"{name}: truncated NIfTI image, {len(head)} bytes found in its header")
    raw = np.frombuffer(head, layout.newbyteorder(order))[0]
    if raw["magic"] != _MAGIC[size]:
        raise CaseError(
            f"{name}: NIfTI magic {bytes(raw['magic'])!r}, expected {_MAGIC[size]!r}: header and "
            "pixels in one file"
        )
    return raw, order


def _shape(dim: np.ndarray, name: str) -> tuple[int, int, int]:
    """The size in voxels: x, y, z."""
    count = int(dim[0])
    sizes = [int(n) for n in dim[1 : count + 1]] if 1 <= count <= 7 else []
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise CaseError(
            f"{name}: image has {len(sizes) or count} dimensions (dim {dim.tolist()}), expected 3"
        )
    return sizes[0], sizes[1], sizes[2]


def _grid(raw: np.void, shape: tuple[int, int, int], name: str) -> tuple[Grid, tuple[str, ...]]:
    spacing = np.abs(raw["pixdim"][1:4].astype(float))
    if not (spacing > 0).all():
        raise CaseError(
            f"{name}: header without voxel spacing (pixdim {raw['pixdim'][1:4].tolist()})"
        )
    unit = int(raw["xyzt_units"]) & 7
    if unit not in _UNITS_MM:
        raise CaseError(f"{name}: xyzt_units {unit}, expected metres, millimetres or microns")
    notes = [f"{name}: in {_UNIT_NAMES[unit]}, read as mm"] if unit in _UNIT_NAMES else []
    for field in ("sform_code", "qform_code"):
        if not 0 <= raw[field] <= MAX_CODE:
            notes.append(f"{name}: {field} {int(raw[field])}, expected 0 to {MAX_CODE}")
    sform = raw["srow"].astype(float) if raw["sform_code"] > 0 else None
    qform = _quaternion_affine(raw, spacing, name) if raw["qform_code"] > 0 else None
    affine = sform if sform is not None else qform
    if sform is not None and qform is not None:
        apart = _voxels_apart(sform, qform, shape)
        if not apart <= AGREE_VOXELS:
            by_scanner = raw["qform_code"] == SCANNER and raw["sform_code"] != SCANNER
            chosen = "qform" if by_scanner or _error(sform) > ORTHONORMAL_REFUSE else "sform"
            affine = qform if chosen == "qform" else sform
            notes.append(f"{name}: sform and qform are {apart:.3g} voxels apart, {chosen} is used")
    if affine is None:
        notes.append(f"{name}: neither sform nor qform; origin 0 and axes L, P, S assumed")
        grid, repaired = checked_grid(shape, _mm(spacing, unit), (0.0, 0.0, 0.0), IDENTITY, name)
        return grid, (*notes, *repaired)
    lengths = np.linalg.norm(affine[:, :3], axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        raise CaseError(f"{name}: the affine matrix holds an axis of no length, or no number")
    if np.abs(lengths / spacing - 1).max() > 1e-3:
        notes.append(
            f"{name}: voxel spacing {spacing.tolist()} in pixdim, {lengths.tolist()} in the sform, "
            "which is used"
        )
        spacing = lengths
    to_lps = np.array([-1.0, -1.0, 1.0])
    axes = to_lps[:, None] * affine[:, :3] / lengths
    origin = _mm(to_lps * affine[:, 3], unit)
    grid, repaired = checked_grid(
        shape, _mm(spacing, unit), origin, tuple(axes.ravel().tolist()), name
    )
    return grid, (*notes, *repaired)


def _mm(values: np.ndarray, unit: int) -> tuple[float, float, float]:
    x, y, z = (values * _UNITS_MM[unit]).tolist()
    return x, y, z


def _error(affine: np.ndarray) -> float:
    lengths = np.linalg.norm(affine[:, :3], axis=0)
    return orthonormal_error(affine[:, :3] / lengths) if (lengths > 0).all() else math.inf


def _quaternion_affine(raw: np.void, spacing: np.ndarray, name: str) -> np.ndarray:
    """The 3 x 4 matrix of the qform, to RAS: method 2 of the standard."""
    b, c, d = raw["quatern"].astype(float)
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > -1e-5:
        raise CaseError(f"{name}: the qform's quaternion {[b, c, d]} is longer than 1")
    a = math.sqrt(max(rest, 0.0))
    if rest < 1e-7:  # a half turn: what is left of the length is rounding
        b, c, d = np.array([b, c, d]) / math.sqrt(b * b + c * c + d * d)
        a = 0.0
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handed = -1.0 if raw["pixdim"][0] < 0 else 1.0
    scaled = rotation * (spacing * [1.0, 1.0, handed])
    return np.column_stack([scaled, raw["qoffset"].astype(float)])


def _voxels_apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> float:
    """The largest distance of a corner's two places, in voxels of the shorter edge."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    difference = (one[:, :3] - other[:, :3]) @ corners + (one[:, 3:] - other[:, 3:])
    edge = np.linalg.norm(other[:, :3], axis=0).min()
    return float(np.linalg.norm(difference, axis=0).max() / edge)
