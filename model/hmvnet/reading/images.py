"""Reading and writing image files: the trust boundary.

A MetaImage header is read and bounded before any pixel is, and its pixels are inflated here rather
than by ITK, which returns wrong voxels for a damaged compressed file without raising, assumes 1 mm
where the spacing is missing, and follows ``ElementDataFile`` to any file on the disk. NIfTI is read
the same way (``hmvnet.reading.nifti``), TIFF by tifffile; all headers pass the same checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tifffile
from isal import isal_zlib

from hmvnet.case import IDENTITY, CaseError, Grid
from hmvnet.exits import is_out_of_memory, shown
from hmvnet.files import name_for_libraries, replacing
from hmvnet.reading.headers import MAX_AXIS, check_stored, checked_grid, remarked
from hmvnet.reading.nifti import read_nifti, read_nifti_header

FILE_NOTES = "ITK_FileNotes"  # a header's remarks, as ITK writes them
SUFFIXES = (".mha", ".nii.gz", ".nii", ".tiff", ".tif")

MAX_HEADER_BYTES = 16_384
# Of a TIFF: none, and deflate by its two numbers.
NO_COMPRESSION, DEFLATE = 1, (8, 32946)

_ELEMENT_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


_ORIGIN = ("Offset", "Position", "Origin")
_AXES = ("TransformMatrix", "Rotation", "Orientation")
_FLAGS = {"t": True, "1": True, "f": False, "0": False}  # by the first letter, as MetaIO has it
_TIFF_UNITS_MM = {
    "mm": 1.0,
    "cm": 10.0,
    **dict.fromkeys(("micron", "um", "\u00b5m", r"\u00B5m"), 1e-3),
}


def has_image_suffix(path: Path) -> bool:
    """Whether the file name ends like an image this module reads."""
    return path.name.lower().endswith(SUFFIXES)


def read_image(path: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    """A 3D scalar image, with notes: what was repaired, and SYNTHETIC where its header says so.

    Args:
        path: a .mha, .nii, .nii.gz, .tif or .tiff file.

    Raises:
        CaseError: the file is missing, empty, truncated, damaged, not 3D, not scalar, has no
            spacing, an oblique shear, or points to another file.
    """
    name = path.name
    _check_file(path)
    lower = name.lower()
    try:
        if lower.endswith(".mha"):
            return _read_metaimage(path)
        if lower.endswith((".nii", ".nii.gz")):
            return read_nifti(path)
        if lower.endswith((".tif", ".tiff")):
            return _read_tiff(path)
    except OSError as error:
        raise CaseError(f"{name}: image file is not readable") from error
    raise CaseError(f"{name}: unknown image type, expected one of {', '.join(SUFFIXES)}")


def checked_image(image: sitk.Image, name: str) -> tuple[sitk.Image, tuple[str, ...]]:
    """An image that did not come from a file, as ``read_image`` would give it.

    Raises:
        CaseError: not 3D, not scalar, or a size, spacing or direction that makes no sense.
    """
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise CaseError(
            f"{name}: image has {image.GetDimension()} dimensions and "
            f"{image.GetNumberOfComponentsPerPixel()} values a voxel, expected 3 and 1"
        )
    grid, notes = checked_grid(
        image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), name
    )
    return (grid.image(sitk.GetArrayFromImage(image)) if notes else image), notes


def image_of(array: np.ndarray, grid: Grid, name: str) -> tuple[sitk.Image, tuple[str, ...]]:
    """An array ``[z, y, x]`` of whole or real numbers with its grid, as an image.

    Raises:
        CaseError: another shape or type, or a grid that makes no sense.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "iuf" or array.shape != grid.shape:
        raise CaseError(
            f"{name}: array of {array.dtype} and shape {array.shape}, expected numbers of the "
            f"grid's shape {grid.shape}"
        )
    grid, notes = checked_grid(grid.size, grid.spacing, grid.origin, grid.direction, name)
    wide = np.float32 if array.dtype == np.float16 else array.dtype.newbyteorder("=")
    return grid.image(np.ascontiguousarray(array, wide)), notes


def read_geometry(path: Path) -> Grid:
    """The grid of an image file; of .mha and NIfTI only the header is read.

    Raises:
        CaseError: as ``read_image``, as far as the header shows it.
    """
    _check_file(path)
    lower = path.name.lower()
    try:
        if lower.endswith(".mha"):
            with path.open("rb") as file:
                header = _metaimage_header(file.read(MAX_HEADER_BYTES), path.name)
            return _metaimage_geometry(header.fields, path.name)[0]
        if lower.endswith((".nii", ".nii.gz")):
            return read_nifti_header(path).grid
    except OSError as error:
        raise CaseError(f"{path.name}: image file is not readable") from error
    return Grid.of(read_image(path)[0])


def write_image(image: sitk.Image, path: Path, level: int = -1) -> None:
    """Write an image compressed, whole or not at all.

    Args:
        level: of compression, 1 (fast) to 9 (small); -1: ITK's own.

    Raises:
        OSError: it cannot be written, or is not whole when it is read again: of NIfTI that a full
            disk cut ITK says nothing.
    """
    with replacing(path) as temporary:
        name = name_for_libraries(temporary)
        try:
            sitk.WriteImage(image, name, True, level)
            written = sitk.GetArrayFromImage(read_image(temporary)[0])
            whole = np.array_equal(written, sitk.GetArrayViewFromImage(image))
        except (RuntimeError, CaseError) as error:
            if is_out_of_memory(error):
                raise
            whole = False
        if not whole:  # without a number: ``replacing`` asks the disk for its own
            raise OSError(f"{path}: the image could not be written whole")


def holds_image(path: Path, image: sitk.Image) -> bool:
    """Whether a file holds this very image: voxels, and the places they lie in."""
    try:
        found = read_image(path)[0]
    except CaseError:
        return False
    return Grid.of(found).same_as(Grid.of(image)) and np.array_equal(
        sitk.GetArrayViewFromImage(found), sitk.GetArrayViewFromImage(image)
    )


def _check_file(path: Path) -> None:
    """Looked at before it is opened: a pipe would not end, nor would a device."""
    if not path.is_file():
        found = "is a folder, a pipe or a device" if path.exists() else "not found"
        raise CaseError(f"{path.name}: image file {found}")
    if path.stat().st_size == 0:
        raise CaseError(f"{path.name}: image file is empty (0 bytes)")


def _read_metaimage(path: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    name = path.name
    with path.open("rb") as file:
        header = _metaimage_header(file.read(MAX_HEADER_BYTES), name)
        file.seek(header.pixels_at)
        grid, dtype, notes = _metaimage_geometry(header.fields, name)
        expected = math.prod(grid.size) * dtype.itemsize
        stored = path.stat().st_size - header.pixels_at
        if _flag(header.fields, ("CompressedData",), name):
            check_stored(expected, stored, name, compressed=True)
            # No deflated file is twice as long as what is in it: what is beyond is not read.
            most = min(stored, 2 * expected + MAX_HEADER_BYTES)
            data, rest = _inflate(file.read(most), expected, name)
            if rest:
                notes = (*notes, f"{name}: {rest} bytes after the pixels, not read")
        elif stored == expected:
            data = file.read(expected)
        else:
            raise CaseError(
                f"{name}: truncated or padded pixel data, {stored} bytes found, {expected} "
                f"expected for size {grid.size}"
            )
    array = np.frombuffer(data, dtype).reshape(grid.shape)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return grid.image(array), (*notes, *remarked(header.fields.get(FILE_NOTES, ""), name))


class _Header:
    """The fields of a MetaImage header and the offset of its pixels."""

    def __init__(self, fields: Mapping[str, str], pixels_at: int) -> None:
        self.fields = fields
        self.pixels_at = pixels_at


def _metaimage_header(head: bytes, name: str) -> _Header:
    fields: dict[str, str] = {}
    offset = 0
    while True:
        end = head.find(b"\n", offset)
        if end < 0:
            raise CaseError(
                f"{name}: no MetaImage header that ends with ElementDataFile in the first "
                f"{MAX_HEADER_BYTES} bytes"
            )
        line, offset = head[offset:end].decode("latin-1").strip(), end + 1
        if not line:
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise CaseError(f"{name}: not a MetaImage header (a line without '=')")
        if fields.setdefault(key, value) != value:
            raise CaseError(f"{name}: header field {shown(key)} twice, with two values")
        if key == "ElementDataFile":
            break
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise CaseError(
            f"{name}: ElementDataFile points outside the file, expected ElementDataFile = LOCAL"
        )
    return _Header(fields, offset)


def _metaimage_geometry(
    fields: Mapping[str, str], name: str
) -> tuple[Grid, np.dtype, tuple[str, ...]]:
    dimensions = fields.get("NDims", "")
    if dimensions != "3":
        raise CaseError(f"{name}: image has {dimensions or 'no'} dimensions (NDims), expected 3")
    if not _flag(fields, ("BinaryData",), name, default=True):
        raise CaseError(f"{name}: pixel data is text (BinaryData = False), expected binary")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise CaseError(f"{name}: several values a voxel, expected a scalar image")
    if fields.get("HeaderSize", "0") != "0":
        raise CaseError(
            f"{name}: HeaderSize is not supported, expected pixel data after the header"
        )
    kind = _ELEMENT_TYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise CaseError(
            f"{name}: ElementType missing or unknown, expected MET_SHORT, MET_FLOAT, ..."
        )
    for key, neutral in (("Slope", 1.0), ("Offset", 0.0)):
        key = f"ElementToIntensityFunction{key}"
        if _numbers(fields, (key,), 1, name, (neutral,)) != (neutral,):
            raise CaseError(f"{name}: {key} is not supported, expected {neutral:g}")
    big_endian = _flag(fields, ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"), name)
    sizes = _numbers(fields, ("DimSize",), 3, name)
    if not all(n.is_integer() for n in sizes):
        raise CaseError(f"{name}: header field DimSize does not hold 3 whole numbers")
    size = tuple(int(n) for n in sizes)
    # Two things, of which many headers have but one: from voxel to voxel, and a voxel's own size.
    alone = "ElementSize" in fields and "ElementSpacing" not in fields
    spacing = _numbers(fields, ("ElementSize" if alone else "ElementSpacing",), 3, name)
    origin = _numbers(fields, _ORIGIN, 3, name, (0.0, 0.0, 0.0))
    # MetaIO stores the axes one after the other: its rows are the columns of the direction.
    axes = _numbers(fields, _AXES, 9, name, IDENTITY)
    direction = tuple(np.reshape(axes, (3, 3)).T.ravel().tolist())
    grid, notes = checked_grid(size, spacing, origin, direction, name)
    if absent := [keys[0] for keys in (_ORIGIN, _AXES) if not fields.keys() & set(keys)]:
        assumed = f"{name}: no {' and no '.join(absent)}; origin 0 or axes L, P, S assumed"
        notes = (*notes, assumed)
    return grid, np.dtype((">" if big_endian else "<") + kind), notes


def _flag(
    fields: Mapping[str, str], keys: tuple[str, ...], name: str, default: bool = False
) -> bool:
    """What a field says that has several names."""
    found = {_FLAGS.get(fields[key][:1].lower()) for key in keys if key in fields} or {default}
    value = found.pop()
    if value is None or found:
        raise CaseError(f"{name}: header field {keys[0]} says neither True nor False, or both")
    return value


def _numbers(
    fields: Mapping[str, str],
    keys: tuple[str, ...],
    count: int,
    name: str,
    default: tuple[float, ...] | None = None,
) -> tuple[float, ...]:
    """The numbers of a field that has several names."""
    found = {_finite(fields[key]) for key in keys if key in fields}
    if not found:
        if default is not None:
            return default
        raise CaseError(f"{name}: header without {keys[0]}, expected {count} numbers")
    values = found.pop()
    if len(values) != count:
        raise CaseError(f"{name}: header field {keys[0]} does not hold {count} finite numbers")
    if found:
        raise CaseError(f"{name}: header fields {', '.join(keys)} differ, expected one of them")
    return values


def _finite(text: str) -> tuple[float, ...]:
    """Numbers between blanks; none where one of them is not finite, or no number."""
    try:
        values = tuple(float(v) for v in text.split())
    except ValueError:
        return ()
    # Python alone takes 1_0 for 10.
    return values if "_" not in text and all(math.isfinite(v) for v in values) else ()


def _inflate(payload: bytes, expected: int, name: str) -> tuple[bytes, int]:
    """zlib-compressed pixels, never more than ``expected`` bytes, and how many bytes follow."""
    inflater = isal_zlib.decompressobj()
    try:
        data = inflater.decompress(payload, expected + 1)
        # At exactly the expected length zlib has not looked at the end mark and checksum yet.
        data += inflater.decompress(inflater.unconsumed_tail, 1) if len(data) == expected else b""
    except isal_zlib.error as error:  # type: ignore[misc]
        raise CaseError(f"{name}: compressed pixel data is damaged") from error
    if len(data) > expected:
        raise CaseError(
            f"{name}: compressed pixel data inflates to more than the declared {expected} bytes"
        )
    if len(data) < expected or not inflater.eof:
        raise CaseError(
            f"{name}: compressed pixel data is truncated: it inflates to {len(data)} bytes, "
            f"{expected} expected"
        )
    return data, len(inflater.unused_data)


def _read_tiff(path: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    """A stack of slices as ImageJ writes it, plain or deflated.

    Other layouts that tifffile knows have no spacing here, and some name other files.
    """
    name = path.name
    others: dict[str, Any] = dict.fromkeys(("is_shaped", "is_lsm", "is_mmstack", "is_ome"), False)
    try:
        with tifffile.TiffFile(path, **others) as tiff:
            spacing = _tiff_spacing(tiff)
            if spacing is None:
                raise CaseError(
                    f"{name}: TIFF without voxel spacing, expected ImageJ tags with unit mm "
                    "(or send .mha)"
                )
            pages = len(tiff.pages)
            if pages > MAX_AXIS:
                raise CaseError(f"{name}: TIFF of {pages} pages, expected at most {MAX_AXIS}")
            series = tiff.series[0]
            shape, axes, dtype = series.shape, series.axes, series.dtype
            if axes not in ("ZYX", "IYX") or dtype is None or dtype.kind not in "iuf":
                raise CaseError(
                    f"{name}: TIFF of {dtype}, shape {shape} and axes {axes}, expected numbers in "
                    "slices (ZYX)"
                )
            if series.kind != "imagej" or pages not in (1, shape[0]):
                raise CaseError(
                    f"{name}: truncated or damaged TIFF image, {pages} pages found, expected as "
                    "many as its description says"
                )
            grid, notes = checked_grid(shape[::-1], spacing, (0.0, 0.0, 0.0), IDENTITY, name)
            _check_pieces(tiff, dtype, name)
            image = grid.image(np.ascontiguousarray(series.asarray()))
    except CaseError:
        raise
    except Exception as error:  # tifffile raises many kinds for damaged files
        raise CaseError(f"{name}: truncated or damaged TIFF image") from error
    note = f"{name}: TIFF holds no position or orientation; origin 0 and axes L, P, S assumed"
    return image, (*notes, note)


def _check_pieces(tiff: tifffile.TiffFile, dtype: np.dtype, name: str) -> None:
    """Every strip or tile is in the file, and inflates to what it has to hold and to no more.

    tifffile makes zeros of a piece that is not there, and inflates whatever it finds.
    """
    first = tiff.pages.first
    plain = first.compression == NO_COMPRESSION
    if not plain and first.compression not in DEFLATE:
        raise CaseError(
            f"{name}: TIFF compression {int(first.compression)}, expected none or deflate"
        )
    if first.bitspersample != 8 * dtype.itemsize:
        raise CaseError(f"{name}: TIFF of {first.bitspersample} bits a voxel, expected whole bytes")
    rows, columns = first.chunks[-2:]
    height = first.shape[-2]
    for page in tiff.pages:
        needed = len(first.dataoffsets)
        if not len(page.dataoffsets) == len(page.databytecounts) == needed:
            raise CaseError(f"{name}: truncated or damaged TIFF image, a page of fewer pieces")
        for index, (at, stored) in enumerate(zip(page.dataoffsets, page.databytecounts)):
            there = rows if first.is_tiled else min(rows, height - index * rows)
            expected = there * columns * dtype.itemsize
            if at <= 0 or at + stored > tiff.filehandle.size or (plain and stored < expected):
                raise CaseError(
                    f"{name}: truncated TIFF image, {stored} bytes in place of {expected}"
                )
            if not plain:
                tiff.filehandle.seek(at)
                _inflate(tiff.filehandle.read(stored), expected, name)


def _tiff_spacing(tiff: tifffile.TiffFile) -> tuple[float, float, float] | None:
    meta = tiff.imagej_metadata or {}
    tags = tiff.pages.first.tags
    unit_mm = _TIFF_UNITS_MM.get(str(meta.get("unit")))
    if unit_mm is None or "spacing" not in meta or "XResolution" not in tags:
        return None
    per_pixel = []
    for key in ("XResolution", "YResolution"):
        numerator, denominator = tags[key].value
        per_pixel.append(unit_mm * denominator / numerator)
    return per_pixel[0], per_pixel[1], unit_mm * float(meta["spacing"])
