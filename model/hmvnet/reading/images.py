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

import numpy as np
import SimpleITK as sitk
import tifffile
from isal import isal_zlib

from hmvnet.case import IDENTITY, CaseError, Grid
from hmvnet.files import replacing
from hmvnet.reading.headers import checked_grid, remarked
from hmvnet.reading.nifti import read_nifti, read_nifti_header

FILE_NOTES = "ITK_FileNotes"  # a header's remarks, as ITK writes them
SUFFIXES = (".mha", ".nii.gz", ".nii", ".tiff", ".tif")

MAX_HEADER_BYTES = 16_384

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
    if not path.is_file():
        raise CaseError(f"{name}: image file not found")
    if path.stat().st_size == 0:
        raise CaseError(f"{name}: image file is empty (0 bytes)")
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
        level: of the compression; -1: ITK's.

    Raises:
        OSError: the disk does not hold all of it.
    """
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), True, level)
        try:  # ITK does not say when there was no room for the rest of a .nii.gz
            read_image(temporary)
        except CaseError as error:
            raise OSError(f"{path}: could not be written whole") from error


def _read_metaimage(path: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    name = path.name
    with path.open("rb") as file:
        header = _metaimage_header(file.read(MAX_HEADER_BYTES), name)
        file.seek(header.pixels_at)
        grid, dtype, notes = _metaimage_geometry(header.fields, name)
        expected = math.prod(grid.size) * dtype.itemsize
        payload = file.read()
    if header.fields.get("CompressedData", "False").lower() == "true":
        data = _inflate(payload, expected, name)
    else:
        data = payload
    if len(data) != expected:
        raise CaseError(
            f"{name}: truncated or padded pixel data, {len(data)} bytes found, {expected} expected "
            f"for size {grid.size}"
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
        line, offset = head[offset:end], end + 1
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            raise CaseError(f"{name}: not a MetaImage header (a line without '=')")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    if fields["ElementDataFile"] != "LOCAL":
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
    if fields.get("BinaryData", "True").lower() != "true":
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
    big_endian = any(
        fields.get(key, "False").lower() == "true"
        for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    )
    size = tuple(int(v) for v in _numbers(fields, ("DimSize",), 3, name))
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), 3, name)
    origin = _numbers(fields, ("Offset", "Position", "Origin"), 3, name, (0.0, 0.0, 0.0))
    # MetaIO stores the axes one after the other: its rows are the columns of the direction.
    axes = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), 9, name, IDENTITY)
    direction = tuple(np.reshape(axes, (3, 3)).T.ravel().tolist())
    grid, notes = checked_grid(size, spacing, origin, direction, name)
    return grid, np.dtype((">" if big_endian else "<") + kind), notes


def _numbers(
    fields: Mapping[str, str],
    keys: tuple[str, ...],
    count: int,
    name: str,
    default: tuple[float, ...] | None = None,
) -> tuple[float, ...]:
    text = next((fields[key] for key in keys if key in fields), None)
    if text is None:
        if default is not None:
            return default
        raise CaseError(f"{name}: header without {keys[0]}, expected {count} numbers")
    try:
        values = tuple(float(v) for v in text.split())
    except ValueError:
        values = ()
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise CaseError(f"{name}: header field {keys[0]} does not hold {count} finite numbers")
    return values


def _inflate(payload: bytes, expected: int, name: str) -> bytes:
    """zlib-compressed pixels, never more than ``expected`` bytes of them."""
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
    return data


def _read_tiff(path: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    """A multi-page TIFF; the spacing is ImageJ's (unit mm) or OME's physical size."""
    name = path.name
    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            shape = series.shape
            if len(shape) != 3 or series.dtype is None or series.dtype.kind not in "iuf":
                raise CaseError(f"{name}: TIFF of shape {shape}, expected a 3D stack of numbers")
            spacing = _tiff_spacing(tiff)
            if spacing is None:
                raise CaseError(
                    f"{name}: TIFF without voxel spacing, expected ImageJ tags with unit mm "
                    "(or send .mha)"
                )
            grid, notes = checked_grid(shape[::-1], spacing, (0.0, 0.0, 0.0), IDENTITY, name)
            array = series.asarray()
    except CaseError:
        raise
    except Exception as error:  # tifffile raises many kinds for damaged files
        raise CaseError(f"{name}: truncated or damaged TIFF image") from error
    note = f"{name}: TIFF holds no position or orientation; origin 0 and axes L, P, S assumed"
    return grid.image(np.ascontiguousarray(array)), (*notes, note)


def _tiff_spacing(tiff: tifffile.TiffFile) -> tuple[float, float, float] | None:
    meta = tiff.imagej_metadata or {}
    tags = tiff.pages.first.tags
    unit_mm = {"mm": 1.0, "cm": 10.0, "micron": 1e-3, "um": 1e-3}.get(str(meta.get("unit")))
    if unit_mm is None or "spacing" not in meta or "XResolution" not in tags:
        return None
    per_pixel = []
    for key in ("XResolution", "YResolution"):
        numerator, denominator = tags[key].value
        per_pixel.append(unit_mm * denominator / numerator)
    return per_pixel[0], per_pixel[1], unit_mm * float(meta["spacing"])
