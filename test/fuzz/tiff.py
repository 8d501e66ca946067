"""TIFF stacks as ImageJ writes them, ``.tif``."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tifffile
from hypothesis import strategies as st

from fuzz.samples import Draw, Kind, Right, changed_bytes, several
from fuzz.volumes import (
    ImageFile,
    draw_volume,
    no_image,
    read_file,
    still_inflates,
    zlib_bomb,
)

UNITS = {"mm": 1.0, "cm": 10.0, "micron": 1e-3, "um": 1e-3}


@dataclass
class Tiff(ImageFile):
    """What tifffile is told, and ImageJ's description."""

    options: dict[str, Any] = field(default_factory=dict)
    unit: str = "mm"
    about: dict[str, Any] = field(default_factory=dict)

    def description(self) -> str:
        slices = len(self.array)
        scale = UNITS.get(self.unit, 1.0)
        lines = {"ImageJ": "1.54f", "images": slices, "slices": slices, "unit": self.unit}
        lines |= {"spacing": self.grid.spacing[2] / scale, **self.about}
        return "".join(f"{key}={value}\n" for key, value in lines.items() if value is not None)

    def parts(self) -> bytes:
        buffer = io.BytesIO()
        scale = UNITS.get(self.unit, 1.0)
        per_unit = [scale / s for s in self.grid.spacing[:2]]
        options = {"resolution": per_unit, "resolutionunit": 1, "photometric": "minisblack"}
        options |= {"description": self.description(), "metadata": None, "contiguous": False}
        tifffile.imwrite(buffer, self.array, **(options | self.options))
        return buffer.getvalue()

    def segments(self) -> list[tuple[int, int]]:
        """Where the voxels lie, in bytes: place and length."""
        with tifffile.TiffFile(io.BytesIO(self.data())) as tiff:
            pages = [page.aspage() for page in tiff.pages]
            return [pair for page in pages for pair in zip(page.dataoffsets, page.databytecounts)]

    def deflated(self) -> None:
        self.options |= {"compression": "zlib"}


def _clean(draw: Draw) -> Tiff:
    array, grid = draw_volume(draw, turned=False)
    return Tiff(
        {"voxels": array, "grid": grid},
        name="image.tif",
        named=("image.tif",),
        notes=1,  # that a TIFF has no orientation
        array=array,
        grid=grid,
        tolerance=1e-12,
    )


TIF = Kind(".tif", _clean, read_file)


@TIF.mutation(Right.SAME)
def as_imagej_writes_it(draw: Draw, image: Tiff) -> None:
    """All voxels in one piece after the first page; only some types."""
    image.array = image.array.astype(draw(st.sampled_from(["u1", "u2", "f4"])))
    image.values["voxels"] = image.array
    spacing, options = image.grid.spacing, image.options
    meta = {"spacing": spacing[2], "unit": "mm", "axes": "ZYX"}
    options |= {"imagej": True, "metadata": meta, "description": None, "contiguous": True}
    options |= {"resolutionunit": None, "byteorder": draw(st.sampled_from("<>"))}


@TIF.mutation(Right.SAME)
def the_other_byte_order(draw: Draw, image: Tiff) -> None:
    image.options |= {"byteorder": ">"}


@TIF.mutation(Right.SAME)
def big_tiff(draw: Draw, image: Tiff) -> None:
    image.options |= {"bigtiff": True, "byteorder": draw(st.sampled_from("<>"))}


@TIF.mutation(Right.SAME)
def deflated(draw: Draw, image: Tiff) -> None:
    image.deflated()
    if image.array.dtype.kind != "f" and draw(st.booleans()):
        image.options |= {"predictor": True}


@TIF.mutation(Right.SAME)
def in_strips(draw: Draw, image: Tiff) -> None:
    image.options |= {"rowsperstrip": draw(st.integers(1, 5))}
    if draw(st.booleans()):
        image.deflated()


@TIF.mutation(Right.SAME)
def in_tiles(draw: Draw, image: Tiff) -> None:
    image.options |= {"tile": (16, draw(st.sampled_from([16, 32])))}
    if draw(st.booleans()):
        image.deflated()


@TIF.mutation(Right.SAME)
def in_another_unit(draw: Draw, image: Tiff) -> None:
    image.unit = draw(st.sampled_from(sorted(UNITS)))


@TIF.mutation(Right.SAME)
def words_that_say_nothing(draw: Draw, image: Tiff) -> None:
    image.about |= {"min": "0.0", "loop": "false", "Info": "a = b", "images": None}
    image.options |= {"software": "x" * draw(st.integers(0, 300))}


@TIF.mutation(Right.SAME)
def bytes_after_the_end(draw: Draw, image: Tiff) -> None:
    image.content = image.parts() + draw(st.binary(min_size=1, max_size=200))


@TIF.mutation(Right.REFUSED)
def cut_before_the_end_of_the_voxels(draw: Draw, image: Tiff) -> None:
    if draw(st.booleans()):
        image.deflated()
    end = max(place + length for place, length in image.segments())
    image.content = image.data()[: draw(st.integers(0, end - 1))]


@TIF.mutation(Right.REFUSED)
def a_bit_of_a_stream(draw: Draw, image: Tiff) -> Right:
    image.deflated()
    place, length = draw(st.sampled_from(image.segments()))
    data = bytearray(image.data())
    plain = zlib.decompress(data[place : place + length])
    data[place + draw(st.integers(0, length - 1))] ^= 1 << draw(st.integers(0, 7))
    image.content = bytes(data)
    return still_inflates(image.content[place : place + length], plain, "zlib")


def _patched(image: Tiff, tag: str, value: int, page: int = 0, index: int = 0) -> None:
    """A tag's value in the file is another."""
    with tifffile.TiffFile(io.BytesIO(image.data())) as tiff:
        found = tiff.pages[page].aspage().tags[tag]
        form = tiff.byteorder + {3: "H", 4: "I", 5: "I", 16: "Q"}[int(found.dtype)]
        place = found.valueoffset + index * struct.calcsize(form)
    data = bytearray(image.data())
    struct.pack_into(form, data, place, value)
    image.content = bytes(data)


@TIF.mutation(Right.REFUSED)
def a_piece_that_is_not_there(draw: Draw, image: Tiff) -> None:
    if draw(st.booleans()):
        image.deflated()
    page = draw(st.integers(0, len(image.array) - 1))
    tag = draw(st.sampled_from(["StripByteCounts", "StripOffsets"]))
    _patched(image, tag, draw(st.sampled_from([0, 1 << 30])), page)


@TIF.mutation(Right.REFUSED)
def a_piece_too_short(draw: Draw, image: Tiff) -> None:
    page = draw(st.integers(0, len(image.array) - 1))
    _, length = image.segments()[page]
    _patched(image, "StripByteCounts", draw(st.integers(0, length - 1)), page)


@TIF.mutation(Right.REFUSED)
def a_compression_that_is_not_read(draw: Draw, image: Tiff) -> None:
    """Whether it is none of the two or the pieces are not what they should be."""
    for page in range(len(image.array)):
        _patched(image, "Compression", draw(st.sampled_from([5, 7, 8, 32773, 34925, 50000])), page)


@TIF.mutation(Right.REFUSED)
def more_declared_than_the_file_holds(draw: Draw, image: Tiff) -> None:
    image.bounded = True
    if draw(st.booleans()):
        image.deflated()
    value = draw(st.sampled_from([16_384, 65_535]))
    for page in range(len(image.array)):
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            _patched(image, tag, value, page)


@TIF.mutation(Right.REFUSED)
def a_bomb(draw: Draw, image: Tiff) -> None:
    image.deflated()
    image.bounded = True
    place = len(image.parts())
    image.content = image.parts() + zlib_bomb()
    page = draw(st.integers(0, len(image.array) - 1))
    _patched(image, "StripOffsets", place, page)
    _patched(image, "StripByteCounts", len(zlib_bomb()), page)


@TIF.mutation(Right.REFUSED)
def a_spacing_that_makes_no_sense(draw: Draw, image: Tiff) -> None:
    wrong = [{"spacing": s} for s in (0, -1, "nan", "inf", "x", 1e9, None)]
    image.about |= draw(st.sampled_from([*wrong, {"unit": None}, {"unit": "furlong"}]))


@TIF.mutation(Right.REFUSED)
def no_resolution(draw: Draw, image: Tiff) -> None:
    """A rational number of 0 in one of its two parts."""
    tag = draw(st.sampled_from(["XResolution", "YResolution"]))
    _patched(image, tag, 0, index=draw(st.integers(0, 1)))


@TIF.mutation(Right.REFUSED)
def not_a_stack_of_slices(draw: Draw, image: Tiff) -> None:
    """In colours, in time, in channels, or of one slice."""
    slices, rows, columns = image.array.shape
    kind = draw(st.sampled_from(["colours", "frames", "channels", "slice"]))
    if kind == "colours":
        image.array = np.zeros((rows, columns, 3), "u1")
        image.options |= {"photometric": "rgb"}
        image.about |= {"images": 1, "slices": 1}
    elif kind == "slice":
        image.array = image.array[:1]
    else:
        image.about |= {"slices": 1, kind: slices, "hyperstack": "true"}


@TIF.mutation(Right.REFUSED)
def fewer_pages_than_it_says(draw: Draw, image: Tiff) -> None:
    image.about |= {"images": len(image.array) + 3, "slices": len(image.array) + 3}


@TIF.mutation(Right.REFUSED)
def more_pages_than_it_says(draw: Draw, image: Tiff) -> None:
    image.array = np.concatenate([image.array, image.array])
    image.about |= {"images": len(image.array) // 2, "slices": len(image.array) // 2}


@TIF.mutation(Right.REFUSED)
def voxels_in_another_file(draw: Draw, image: Tiff) -> None:
    """As OME has it: the file that is read says only where they are."""
    slices, rows, columns = image.array.shape
    place = draw(st.sampled_from(["other.tif", "../other.tif"]))
    image.files["other.tif"] = image.files["../other.tif"] = image.parts()
    spacing = image.grid.spacing
    about = f"""<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">
<Image ID="Image:0"><Pixels DimensionOrder="XYZCT" ID="Pixels:0" SizeC="1" SizeT="1"
 SizeX="{columns}" SizeY="{rows}" SizeZ="{slices}" Type="int16" PhysicalSizeX="{spacing[0]}"
 PhysicalSizeY="{spacing[1]}" PhysicalSizeZ="{spacing[2]}"><TiffData FirstZ="0" IFD="0"
 PlaneCount="{slices}"><UUID FileName="{place}">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>
"""
    image.options |= {"description": about, "software": image.description()}
    image.array = np.zeros((1, rows, columns), "i2")
    with tifffile.TiffFile(io.BytesIO(image.data())) as tiff:
        place = tiff.pages.first.tags["Software"].offset
    data = bytearray(image.data())
    struct.pack_into("<H", data, place, 270)  # it is a second description
    image.content = bytes(data)


TIF.mutation(Right.REFUSED)(no_image)


@TIF.mutation(Right.EITHER)
def any_bytes(draw: Draw, image: Tiff) -> None:
    """Of the header, the tags and the description."""
    image.values, image.bounded = {}, True
    image.options |= draw(st.sampled_from([{}, {"compression": "zlib"}, {"rowsperstrip": 2}]))
    image.content = changed_bytes(draw, image.parts(), 0, image.segments()[0][0])


@TIF.mutation(Right.SAME)
def several_at_once(draw: Draw, image: Tiff) -> None:
    layout = draw(st.sampled_from([in_strips, in_tiles]))
    several(draw, image, big_tiff, deflated, layout, in_another_unit, words_that_say_nothing)
