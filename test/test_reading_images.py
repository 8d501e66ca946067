"""One test for each way a file can be bad, named after it."""

import errno
import gzip
import os
import tracemalloc
import zlib

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


@pytest.mark.parametrize("word", ["1", "T", "true", "TRUE"])
def test_a_flag_is_read_by_its_first_letter(tmp_path, array, word):
    """As MetaIO does: voxels were once read in the other byte order, silently."""
    raw = tmp_path / "raw.mha"
    sitk.WriteImage(GRID.image(array), str(raw), False)
    head, _ = raw.read_bytes().split(b"ElementDataFile = LOCAL\n")
    head = head.replace(b"ByteOrderMSB = False", b"ByteOrderMSB = " + word.encode())
    raw.write_bytes(head + b"ElementDataFile = Local\n" + array.astype(">i2").tobytes())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(raw)[0]), array)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (b"CompressedData = perhaps", "CompressedData twice"),
        (b"ElementSpacing = 9 9 9", "ElementSpacing twice"),
        (b"Position = 1 2 3", "Offset, Position, Origin differ"),
        (b"ElementByteOrderMSB = True", "neither True nor False, or both"),
        (b"ElementByteOrderMSB = 2", "neither True nor False, or both"),
        (b"ElementToIntensityFunctionSlope = 2", "Slope is not supported, expected 1"),
        (b"ElementToIntensityFunctionOffset = -1024", "Offset is not supported, expected 0"),
    ],
)
def test_header_that_contradicts_itself_or_scales(mha, field, message):
    edit_header(mha, b"ElementDataFile", field + b"\nElementDataFile")
    with pytest.raises(CaseError, match=message):
        read_image(mha)


def test_blank_lines_and_neutral_fields_in_a_header(mha, array):
    more = b"\n \r\nElementToIntensityFunctionSlope = 1\nPosition = 5 -6 7\n\nElementDataFile"
    edit_header(mha, b"ElementDataFile", more)
    image, notes = read_image(mha)
    assert Grid.of(image).same_as(GRID) and not notes


@pytest.mark.parametrize("name", [b"Offset", b"TransformMatrix"])
def test_header_without_place_or_axes_is_said(mha, name):
    """As of a NIfTI or a TIFF: they are 0 and L, P, S only because nothing else is known."""
    edit_header(mha, name, name + b"X")
    image, notes = read_image(mha)
    assert notes == (f"image.mha: no {name.decode()}; origin 0 or axes L, P, S assumed",)
    assert (image.GetOrigin() == (0, 0, 0)) == (name == b"Offset")


@pytest.mark.parametrize("size", [b"12.5 14 16", b"1_2 14 16", b"12 14"])
def test_a_size_that_is_no_whole_number(mha, size):
    edit_header(mha, b"DimSize = 12 14 16", b"DimSize = " + size)
    with pytest.raises(CaseError, match="DimSize does not hold 3"):
        read_image(mha)


@pytest.mark.parametrize("origin", [b"1e300 0 0", b"0 1e17 0"])
def test_an_origin_that_is_nowhere(mha, origin):
    edit_header(mha, b"Offset = 5 -6 7", b"Offset = " + origin)
    with pytest.raises(CaseError, match="origin"):
        read_image(mha)


def test_bytes_after_a_compressed_stream_are_said(mha, array):
    mha.write_bytes(mha.read_bytes() + b"more")
    image, notes = read_image(mha)
    assert notes == ("image.mha: 4 bytes after the pixels, not read",)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)


def peak_memory(path) -> int:
    """Bytes asked for at most while an image is refused."""
    tracemalloc.start()
    with pytest.raises(CaseError):
        read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("size", [b"1024 1024 1024", b"16384 16384 4"])
def test_a_size_that_the_file_cannot_hold_asks_for_no_memory(mha, size):
    edit_header(mha, b"DimSize = 12 14 16", b"DimSize = " + size)
    assert peak_memory(mha) < 1 << 24


def test_a_file_much_larger_than_its_image_is_not_read_whole(mha):
    raw = mha.read_bytes().replace(b"CompressedData = True", b"CompressedData = False")
    for data in (mha.read_bytes(), raw):
        with mha.open("wb") as file:
            file.write(data[:-1])
            file.truncate(1 << 30)
        assert peak_memory(mha) < 1 << 24


@pytest.mark.parametrize("suffix", [".mha", ".nii", ".nii.gz", ".tif"])
@pytest.mark.parametrize("place", ["pipe", "folder", "device"])
def test_no_file_in_an_images_place(tmp_path, suffix, place):
    path = tmp_path / f"a{suffix}"
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}
    make[place](path)
    for read in (read_image, read_geometry):
        with pytest.raises(CaseError, match=r"image file is a folder, a pipe or a device"):
            read(path)


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


@pytest.mark.parametrize(
    "spacing", [b"0 2 3", b"-1 2 3", b"nan 2 3", b"1 2", b"1 2 x", b"1 2 1e9", b"1e-9 2 3"]
)
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


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_an_image_that_is_not_what_was_written_does_not_take_the_place(
    tmp_path, monkeypatch, damage
):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"old")
    write, image = sitk.WriteImage, GRID.image(np.ones(GRID.shape, np.int16))

    def faulty(given, name, *options):
        write(given if damage == "cut" else given + 1, name, *options)
        if damage == "cut":
            os.truncate(name, os.path.getsize(name) - 9)

    monkeypatch.setattr(sitk, "WriteImage", faulty)
    with pytest.raises(OSError, match=r"a\.nii\.gz: the image could not be written whole"):
        write_image(image, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def write_stack(path, array, description: str | None = None, **options):
    """A TIFF with ImageJ's description, a page a slice."""
    slices = len(array)
    text = description or f"ImageJ=1.54f\nimages={slices}\nslices={slices}\nunit=mm\nspacing=3.0\n"
    plain = {"photometric": "minisblack", "metadata": None, "contiguous": False}
    options = plain | {"resolution": (1.0, 0.5), "resolutionunit": 1} | options
    tifffile.imwrite(path, array, description=text, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"rowsperstrip": 5},
        {"rowsperstrip": 5, "compression": "zlib"},
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "zlib"},
    ],
)
def test_tiff_of_every_make(tmp_path, array, options):
    write_stack(tmp_path / "a.tif", array, **options)
    image, notes = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(image.GetSpacing(), (1.0, 2.0, 3.0))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    assert len(notes) == 1


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m"])
def test_tiff_in_microns_as_imagej_names_them(tmp_path, array, unit):
    slices = len(array)
    text = f"ImageJ=1.54f\nimages={slices}\nslices={slices}\nunit={unit}\nspacing=3000.0\n"
    write_stack(tmp_path / "a.tif", array, text, resolution=(1e-3, 5e-4))
    np.testing.assert_allclose(read_image(tmp_path / "a.tif")[0].GetSpacing(), (1.0, 2.0, 3.0))


@pytest.mark.parametrize("kind", ["frames", "channels"])
def test_tiff_in_time_or_channels_is_no_volume(tmp_path, array, kind):
    text = f"ImageJ=1.54f\nimages={len(array)}\n{kind}={len(array)}\nunit=mm\nspacing=3.0\n"
    write_stack(tmp_path / "a.tif", array, text)
    with pytest.raises(CaseError, match=r"axes \wYX, expected numbers in slices"):
        read_image(tmp_path / "a.tif")


def test_tiff_in_colours_is_no_volume(tmp_path):
    """Its rows, columns and colours were once three axes."""
    text = "ImageJ=1.54f\nimages=1\nunit=mm\nspacing=3.0\n"
    write_stack(tmp_path / "a.tif", np.zeros((8, 9, 3), "u1"), text, photometric="rgb")
    with pytest.raises(CaseError, match="expected numbers in slices"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("more", [-3, 3, 100])
def test_tiff_of_other_pages_than_it_says(tmp_path, array, more):
    slices = len(array) + more
    text = f"ImageJ=1.54f\nimages={slices}\nslices={slices}\nunit=mm\nspacing=3.0\n"
    write_stack(tmp_path / "a.tif", array, text)
    with pytest.raises(CaseError, match=r"16 pages found|truncated or damaged"):
        read_image(tmp_path / "a.tif")


def patch_tag(path, tag: str, value: int, page: int = 1) -> None:
    with tifffile.TiffFile(path) as tiff:
        found = tiff.pages[page].aspage().tags[tag]
        size = {3: 2, 4: 4}[int(found.dtype)]
    data = bytearray(path.read_bytes())
    data[found.valueoffset : found.valueoffset + size] = value.to_bytes(size, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("StripByteCounts", 0),
        ("StripByteCounts", 7),
        ("StripOffsets", 0),
        ("StripOffsets", 1 << 30),
    ],
)
def test_tiff_with_a_piece_that_is_not_there(tmp_path, array, compression, tag, value):
    """Its voxels were once zeros."""
    path = tmp_path / "a.tif"
    write_stack(path, array, compression=compression)
    patch_tag(path, tag, value)
    with pytest.raises(CaseError, match=r"truncated|damaged"):
        read_image(path)


def test_tiff_that_inflates_to_more_than_it_declares(tmp_path, array):
    path = tmp_path / "a.tif"
    write_stack(path, array, compression="zlib")
    bomb, place = zlib.compress(bytes(1 << 27), 1), path.stat().st_size
    path.write_bytes(path.read_bytes() + bomb)
    patch_tag(path, "StripOffsets", place)
    patch_tag(path, "StripByteCounts", len(bomb))
    assert peak_memory(path) < 1 << 24
    with pytest.raises(CaseError, match="inflates to more than the declared"):
        read_image(path)


def test_tiff_of_another_compression_is_named(tmp_path, array):
    write_stack(tmp_path / "a.tif", array)
    for page in range(len(array)):
        patch_tag(tmp_path / "a.tif", "Compression", 5, page)
    with pytest.raises(CaseError, match="TIFF compression 5, expected none or deflate"):
        read_image(tmp_path / "a.tif")


def test_tiff_that_names_another_file(tmp_path, array):
    """OME's metadata may say that the voxels lie elsewhere."""
    write_stack(tmp_path / "other.tif", array)
    about = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/'
        'OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0"><Pixels DimensionOrder="XYZCT" '
        'ID="Pixels:0" SizeC="1" SizeT="1" SizeX="12" SizeY="14" SizeZ="16" Type="int16">'
        '<TiffData FirstZ="0" IFD="0" PlaneCount="16"><UUID FileName="other.tif">urn:uuid:2</UUID>'
        "</TiffData></Pixels></Image></OME>"
    )
    text = "ImageJ=1.54f\nimages=16\nslices=16\nunit=mm\nspacing=3.0\n"
    path = tmp_path / "a.tif"
    write_stack(path, array[:1], about, software=text)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages.first.tags["Software"].offset
    data = bytearray(path.read_bytes())
    data[place : place + 2] = (270).to_bytes(2, "little")  # a second description
    path.write_bytes(data)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_imagej and tiff.series[0].shape == array.shape
    with pytest.raises(CaseError, match=r"a\.tif: TIFF of int16"):
        read_image(path)
