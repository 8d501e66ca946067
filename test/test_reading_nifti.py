"""NIfTI files against nibabel, which reads the standard's header on its own."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from hmvnet.case import CaseError
from hmvnet.reading.images import read_geometry, read_image

SHAPE = (4, 5, 6)
RNG = np.random.default_rng(0)
PLAIN = np.array([[2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
FLIPPED = PLAIN * [[-1], [1], [1], [1]]


def turned(degrees: float = 20.0) -> np.ndarray:
    """An oblique scan."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    return np.block([[turn @ PLAIN[:3, :3], PLAIN[:3, 3:]], [PLAIN[3:]]])


def save(path: Path, *, dtype="i2", sform=(PLAIN, 1), qform=None, kind=nib.Nifti1Image, **fields):
    """Write values with nibabel; ``fields`` overwrite the header's."""
    low = 0 if np.dtype(dtype).kind == "u" else -90
    image = kind(RNG.integers(low, 90, SHAPE).astype(dtype), None)
    image.header.set_zooms((2, 3, 4))
    image.set_sform(*(sform or (None, 0)))
    image.set_qform(*(qform or (None, 0)))
    slope = fields.pop("scl_slope", None), fields.pop("scl_inter", None)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    if slope != (None, None):  # nibabel scales what it writes, so the header is changed after
        at = ("<2f", 112) if kind is nib.Nifti1Image else ("<2d", 176)
        data = bytearray(path.read_bytes())
        struct.pack_into(at[0], data, at[1], *slope)
        path.write_bytes(data)
    return path


def check(path: Path) -> tuple[str, ...]:
    """Held against nibabel, voxels and places; the notes."""
    image, notes = read_image(path)
    reference = nib.load(path)
    values = np.asarray(reference.dataobj)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image).T, values, rtol=1e-6)
    for index in [(0, 0, 0), (3, 0, 0), (0, 4, 5), (3, 4, 5)]:
        x, y, z = (reference.affine @ [*index, 1])[:3]
        found = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(found, (-x, -y, z), rtol=1e-5, atol=1e-4)
    assert read_geometry(path).size == image.GetSize()
    return notes


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2", ">f4"])
def test_every_type(tmp_path, kind, dtype):
    assert check(save(tmp_path / "a.nii", dtype=dtype, kind=kind)) == ()


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_other_byte_order(tmp_path, kind):
    header = kind.header_class(endianness=">")
    header.set_data_dtype(">i2")
    values = RNG.integers(-90, 90, SHAPE).astype(">i2")
    kind(values, turned(), header).to_filename(tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").header.endianness == ">"
    assert check(tmp_path / "a.nii") == ()


@pytest.mark.parametrize("affine", [PLAIN, FLIPPED, turned(), turned(175)])
@pytest.mark.parametrize("form", ["sform", "qform", "both"])
def test_every_orientation(tmp_path, affine, form):
    forms = {"sform": None, "qform": None} | {
        name: (affine, 1) for name in ("sform", "qform") if form in (name, "both")
    }
    assert check(save(tmp_path / "a.nii.gz", **forms)) == ()


@pytest.mark.parametrize("affine", [PLAIN, FLIPPED, turned()])
def test_as_itk_reads_it(tmp_path, affine):
    path = save(tmp_path / "a.nii.gz", sform=(affine, 1), qform=(affine, 1))
    image, other = read_image(path)[0], sitk.ReadImage(str(path))
    assert (sitk.GetArrayFromImage(image) == sitk.GetArrayFromImage(other)).all()
    assert image.GetSpacing() == other.GetSpacing() and image.GetOrigin() == other.GetOrigin()
    np.testing.assert_allclose(image.GetDirection(), other.GetDirection(), atol=1e-6)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("slope", "intercept"), [(2.5, -1024.0), (1.0, -1024.0), (0.0, -1024.0), (np.nan, 7.0), (1, 0)]
)
def test_scaling(tmp_path, kind, slope, intercept):
    path = save(tmp_path / "a.nii", kind=kind, scl_slope=slope, scl_inter=intercept)
    assert check(path) == ()
    stored = slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1, 0)
    assert (read_image(path)[0].GetPixelID() == sitk.sitkInt16) == stored


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1000.0), ("micron", 0.001)])
def test_units(tmp_path, unit, scale):
    path = tmp_path / "a.nii"
    small = np.diag([1 / scale] * 3 + [1.0]) @ PLAIN
    image = nib.Nifti1Image(np.zeros(SHAPE, "i2"), None)
    image.header.set_zooms(np.array([2, 3, 4]) / scale)
    image.set_sform(small, 1)
    image.header.set_xyzt_units(unit)
    image.to_filename(path)
    found, notes = read_image(path)
    assert found.GetSpacing() == pytest.approx((2, 3, 4))
    assert found.GetOrigin() == pytest.approx((-10, -20, 30))
    assert len(notes) == 1 and "read as mm" in notes[0]


def test_a_direction_nearly_orthonormal_is_repaired_as_in_a_metaimage(tmp_path):
    sheared = PLAIN.copy()
    sheared[0, 1] += 3e-3
    _, notes = read_image(save(tmp_path / "a.nii", sform=(sheared, 1)))
    assert len(notes) == 1 and "direction matrix made orthonormal (error 0.001)" in notes[0]
    sheared[0, 1] += 0.3
    with pytest.raises(CaseError, match="not orthonormal"):
        read_image(save(tmp_path / "b.nii", sform=(sheared, 1)))


@pytest.mark.parametrize(
    ("sform_code", "qform_code", "used"), [(1, 1, "sform"), (4, 1, "qform"), (2, 2, "sform")]
)
def test_orientations_in_conflict_are_said(tmp_path, sform_code, qform_code, used):
    moved = PLAIN + np.array([[0, 0, 0, 5.0]] * 3 + [[0] * 4])
    path = save(tmp_path / "a.nii", sform=(moved, sform_code), qform=(PLAIN, qform_code))
    image, notes = read_image(path)
    assert len(notes) == 1 and f"voxels apart, {used} is used" in notes[0]
    assert image.GetOrigin() == ((-10, -20, 30) if used == "qform" else (-15, -25, 35))


def test_a_tenth_of_a_voxel_is_no_conflict(tmp_path):
    moved = PLAIN + np.array([[0, 0, 0, 0.1]] * 3 + [[0] * 4])
    assert check(save(tmp_path / "a.nii", sform=(moved, 1), qform=(PLAIN, 1))) == ()


def test_a_sheared_sform_leaves_the_qform(tmp_path):
    sheared = PLAIN.copy()
    sheared[0, 1] += 0.3
    image, notes = read_image(save(tmp_path / "a.nii", sform=(sheared, 1), qform=(PLAIN, 2)))
    assert "qform is used" in notes[0]
    assert image.GetDirection() == (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def test_no_orientation_is_said(tmp_path):
    image, notes = read_image(save(tmp_path / "a.nii", sform=None))
    assert len(notes) == 1 and "neither sform nor qform" in notes[0]
    assert image.GetSpacing() == (2, 3, 4) and image.GetOrigin() == (0, 0, 0)


def test_spacings_in_conflict_are_said(tmp_path):
    path = save(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    struct.pack_into("<3f", data, 80, 2, 3, 5)
    path.write_bytes(data)
    image, notes = read_image(path)
    assert image.GetSpacing() == (2, 3, 4) and "in pixdim" in notes[0]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_compression_is_seen_in_the_content(tmp_path, suffix):
    plain = save(tmp_path / "a.nii").read_bytes()
    path = tmp_path / f"b{suffix}"
    path.write_bytes(gzip.compress(plain) if suffix == ".nii" else plain)
    found, expected = (sitk.GetArrayFromImage(read_image(p)[0]) for p in (path, tmp_path / "a.nii"))
    assert (found == expected).all()


def test_dimensions_of_one_at_the_end_are_none(tmp_path):
    path = tmp_path / "a.nii"
    nib.Nifti1Image(np.ones((4, 5, 6, 1), "i2"), PLAIN).to_filename(path)
    assert nib.load(path).header["dim"][0] == 4
    assert read_image(path)[0].GetSize() == SHAPE


def test_bytes_after_the_pixels_are_said(tmp_path):
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes() + b"more")
    assert "4 bytes or more after the pixels" in check(path)[0]


@pytest.mark.parametrize(
    ("at", "form", "values", "message"),
    [
        (0, "<i", (347,), "no header of 348 or 540 bytes"),
        (344, "4s", (b"ni1\0",), "magic b'ni1'"),
        (344, "4s", (b"",), "magic"),  # ANALYZE
        (40, "<2h", (2, 4), "2 dimensions"),
        (40, "<5h", (4, 4, 5, 6, 2), "4 dimensions"),
        (40, "<h", (9,), "9 dimensions"),
        (42, "<h", (-4,), "image size"),
        (42, "<3h", (32767, 32767, 32767), "image size"),
        (70, "<h", (128,), "datatype 128"),
        (70, "<h", (32,), "datatype 32"),
        (80, "<f", (0,), "without voxel spacing"),
        (80, "<f", (float("nan"),), "without voxel spacing"),
        (108, "<f", (0,), "vox_offset 0"),
        (108, "<f", (1e9,), "vox_offset 1e"),
        (108, "<f", (float("nan"),), "vox_offset nan"),
        (112, "<2f", (1, float("inf")), "scl_inter inf"),
        (112, "<2f", (1e30, 0), "scl_slope 1e"),
        (112, "<2f", (1, -1e30), "scl_inter -1e"),
        (123, "B", (5,), "xyzt_units 5"),
        (280, "<4f", (0, 0, 0, 0), "no length"),
        (280, "<f", (float("nan"),), "no length, or no number"),
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, at, form, values, message):
    path = save(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, *values)
    path.write_bytes(data)
    with pytest.raises(CaseError, match=message):
        read_image(path)
    with pytest.raises(CaseError, match=message):
        read_geometry(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_size_that_the_file_cannot_hold_asks_for_no_memory(tmp_path, suffix):
    data = bytearray(save(tmp_path / "a.nii").read_bytes())
    struct.pack_into("<3h", data, 42, 1024, 1024, 1024)
    path = tmp_path / f"b{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
    tracemalloc.start()
    with pytest.raises(CaseError, match="truncated"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_a_plain_file_must_hold_every_byte_before_any_is_asked_for(tmp_path):
    path = save(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    struct.pack_into("<3h", data, 42, 1024, 1024, 1024)
    path.write_bytes(data + bytes(1 << 22))  # compressed, so much might hold it
    tracemalloc.start()
    with pytest.raises(CaseError, match=r"truncated image, 41\d+ bytes found"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("before", [True, False])
def test_what_inflates_to_more_than_is_declared_is_refused(tmp_path, before):
    """Beyond a bound nothing is read, so that the checksum of the pixels is not seen either."""
    path = save(tmp_path / "a.nii", **({"vox_offset": 1 << 27} if before else {}))
    bomb = gzip.compress(bytes(1 << 27), 1)
    path = path.rename(tmp_path / "a.nii.gz")
    path.write_bytes(gzip.compress(path.read_bytes()) + bomb)
    tracemalloc.start()
    with pytest.raises(CaseError, match=r"after the pixels, expected none|vox_offset"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 3, 100, 347, 350, 400])
@pytest.mark.parametrize("compressed", [False, True])
def test_cut_anywhere(tmp_path, size, compressed):
    path = save(tmp_path / "a.nii")
    data = path.read_bytes()[:size]
    path.write_bytes(gzip.compress(data) if compressed else data)
    with pytest.raises(CaseError, match=r"a.nii: (truncated|not a readable)"):
        read_image(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_stream_cut_or_changed(tmp_path, share):
    path = save(tmp_path / "a.nii.gz")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CaseError, match=r"truncated|not a readable|damaged"):
        read_image(path)
    data[-6] ^= 1  # the checksum
    path.write_bytes(data)
    with pytest.raises(CaseError, match="damaged"):
        read_image(path)


@pytest.mark.parametrize("at", [252, 254])
def test_a_code_that_the_standard_has_not_is_said(tmp_path, at):
    """A damaged header; nibabel takes such an orientation for none."""
    path = save(tmp_path / "a.nii", sform=(turned(), 1), qform=(turned(), 1))
    right = read_image(path)[0].GetDirection()
    data = bytearray(path.read_bytes())
    struct.pack_into("<h", data, at, 33)
    path.write_bytes(data)
    image, notes = read_image(path)
    assert len(notes) == 1 and "form_code 33, expected 0 to 5" in notes[0]
    assert image.GetDirection() == pytest.approx(right, abs=1e-6)
