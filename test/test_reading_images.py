"""One test for each way a file can be bad, named after it."""

import errno
import gzip

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from conftest import files_of_at_most

from hmvnet.case import SYNTHETIC, CaseError, Grid
from hmvnet.reading.images import FILE_NOTES, read_geometry, read_image, write_image

OBLIQUE = tuple(sitk.Euler3DTransform((0, 0, 0), 0.2, -0.3, 0.5).GetMatrix())
GRID = Grid((12, 14, 16), (1.0, 2.0, 3.0), (5.0, -6.0, 7.0), OBLIQUE)


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 1000, GRID.shape).astype(np.int16)


@pytest.fixture
def mha(tmp_path, array):
    path = tmp_path / "image.mha"
    write_image(GRID.image(array), path)
    return path


def edit_header(path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize("suffix", [".mha", ".nii", ".nii.gz"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_reads_what_simpleitk_wrote(tmp_path, array, suffix, compressed, dtype):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(GRID.image(array.astype(dtype)), str(path), compressed)
    image, notes = read_image(path)
    assert not notes
    assert Grid.of(image).same_as(GRID)
    assert read_geometry(path).same_as(GRID)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array.astype(dtype))


def test_written_mask_is_compressed_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "deep" / "mask.mha"
    write_image(GRID.image(np.zeros(GRID.shape, np.uint8)), path)
    assert b"CompressedData = True" in path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["mask.mha"]


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
@pytest.mark.parametrize("remarks", [SYNTHETIC, "acquired in 2019", ""])
def test_a_header_that_says_synthetic_is_a_note(tmp_path, array, suffix, remarks):
    image = sitk.GetImageFromArray(array.astype(np.float32))
    if remarks:
        image.SetMetaData(FILE_NOTES, remarks)
    write_image(image, tmp_path / f"a{suffix}")
    read, notes = read_image(tmp_path / f"a{suffix}")
    assert notes == ((f"a{suffix}: {SYNTHETIC}",) if remarks == SYNTHETIC else ())
    assert not read.GetMetaDataKeys()


def test_big_endian(tmp_path, mha, array):
    raw = tmp_path / "raw.mha"
    sitk.WriteImage(GRID.image(array), str(raw), False)
    head, _ = raw.read_bytes().split(b"ElementDataFile = LOCAL\n")
    head = head.replace(b"ByteOrderMSB = False", b"ByteOrderMSB = True")
    swapped = array.astype(">i2").tobytes()
    raw.write_bytes(head + b"ElementDataFile = LOCAL\n" + swapped)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(raw)[0]), array)


def test_missing_file(tmp_path):
    with pytest.raises(CaseError, match=r"gone\.mha: image file not found"):
        read_image(tmp_path / "gone.mha")


def test_empty_file(tmp_path):
    (tmp_path / "a.mha").touch()
    with pytest.raises(CaseError, match="empty"):
        read_image(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", [".mha", ".nii", ".nii.gz", ".tif"])
def test_unreadable_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"this is not an image\n" * 50)
    with pytest.raises(CaseError, match=rf"a\{suffix}: "):
        read_image(path)


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_truncated_compressed_mha(mha, cut):
    mha.write_bytes(mha.read_bytes()[:-cut])
    with pytest.raises(CaseError, match="truncated"):
        read_image(mha)


def test_truncated_raw_mha(tmp_path, array):
    path = tmp_path / "a.mha"
    sitk.WriteImage(GRID.image(array), str(path), False)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CaseError, match="truncated"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_nifti(tmp_path, array, suffix):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(GRID.image(array), str(path))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CaseError, match="truncated"):
        read_image(path)


def test_damaged_compressed_data(mha):
    data = bytearray(mha.read_bytes())
    data[-200] ^= 0xFF
    mha.write_bytes(bytes(data))
    with pytest.raises(CaseError, match="compressed pixel data"):
        read_image(mha)


def test_compressed_data_that_inflates_to_more_than_declared(mha):
    edit_header(mha, b"DimSize = 12 14 16", b"DimSize = 12 14 15")
    with pytest.raises(CaseError, match="inflates to more"):
        read_image(mha)


def test_compressed_data_that_inflates_to_less_than_declared(mha):
    edit_header(mha, b"DimSize = 12 14 16", b"DimSize = 12 14 17")
    with pytest.raises(CaseError, match="truncated"):
        read_image(mha)


def test_declared_size_too_large_is_refused_before_memory_is_taken(mha):
    edit_header(mha, b"DimSize = 12 14 16", b"DimSize = 16000 16000 16000")
    with pytest.raises(CaseError, match=r"2\^30"):
        read_image(mha)


@pytest.mark.parametrize("target", [b"other.raw", b"/etc/passwd", b"LIST", b"../x%03d.raw 1 2 1"])
def test_element_data_file_elsewhere(mha, target):
    edit_header(mha, b"ElementDataFile = LOCAL", b"ElementDataFile = " + target)
    with pytest.raises(CaseError, match="ElementDataFile"):
        read_image(mha)


def test_header_without_spacing(mha):
    edit_header(mha, b"ElementSpacing", b"ElementSpacinG")
    with pytest.raises(CaseError, match="without ElementSpacing"):
        read_image(mha)


@pytest.mark.parametrize("spacing", [b"0 2 3", b"-1 2 3", b"nan 2 3", b"1 2", b"1 2 x", b"1 2 1e9"])
def test_header_with_impossible_spacing(mha, spacing):
    edit_header(mha, b"ElementSpacing = 1 2 3", b"ElementSpacing = " + spacing)
    with pytest.raises(CaseError, match=r"spacing|ElementSpacing"):
        read_image(mha)


def test_nifti_without_spacing(tmp_path, array):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(GRID.image(array), str(path))
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[80:84] = np.float32(0).tobytes()  # pixdim[1]
    path.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(CaseError, match="spacing"):
        read_image(path)


def test_direction_that_is_not_orthonormal(mha):
    start = mha.read_bytes().index(b"TransformMatrix")
    line = mha.read_bytes()[start:].split(b"\n")[0]
    edit_header(mha, line, b"TransformMatrix = 1 0.5 0 0 1 0 0 0 1")
    with pytest.raises(CaseError, match="not orthonormal"):
        read_image(mha)


def test_direction_nearly_orthonormal_is_repaired_with_a_warning(mha):
    start = mha.read_bytes().index(b"TransformMatrix")
    line = mha.read_bytes()[start:].split(b"\n")[0]
    edit_header(mha, line, b"TransformMatrix = 1 0.001 0 0 1 0 0 0 1")
    image, notes = read_image(mha)
    axes = Grid.of(image).axes
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert "made orthonormal" in notes[0]


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
def test_two_dimensional_image(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.Image(8, 8, sitk.sitkInt16), str(path))
    with pytest.raises(CaseError, match="dimensions"):
        read_image(path)


def test_vector_image(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.Image((4, 4, 4), sitk.sitkVectorInt16, 3), str(path))
    with pytest.raises(CaseError, match="scalar"):
        read_image(path)


def test_line_without_end(tmp_path):
    path = tmp_path / "a.mha"
    path.write_bytes(b"ObjectType = " + b"x" * 100_000)
    with pytest.raises(CaseError, match="no MetaImage header"):
        read_image(path)


def test_tiff_stack_with_imagej_spacing(tmp_path, array):
    path = tmp_path / "a.tif"
    meta = {"spacing": 3.0, "unit": "mm", "axes": "ZYX"}
    tifffile.imwrite(path, array, imagej=True, resolution=(1 / 0.5, 1 / 2.0), metadata=meta)
    image, notes = read_image(path)
    np.testing.assert_allclose(image.GetSpacing(), (0.5, 2.0, 3.0))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    assert "orientation" in notes[0]


def test_tiff_without_spacing(tmp_path, array):
    tifffile.imwrite(tmp_path / "a.tiff", array)
    with pytest.raises(CaseError, match="spacing"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.9999])
def test_an_image_that_does_not_fit_is_an_error(tmp_path, name, share):
    """ITK writes as much of a NIfTI file as there is room for, and says nothing."""
    noise = np.random.default_rng(0).integers(0, 99, GRID.shape).astype(np.int16)
    path = tmp_path / name
    write_image(GRID.image(noise), path)
    before = path.read_bytes()
    with files_of_at_most(int(share * len(before))), pytest.raises(OSError) as raised:
        write_image(GRID.image(noise + 1), path)
    assert raised.value.errno == errno.EFBIG and raised.value.filename == str(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
