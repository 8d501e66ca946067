"""MetaImage files, ``.mha``."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from fuzz.samples import Draw, Kind, Right, changed_bytes, several
from fuzz.volumes import (
    IDENTITY,
    ImageFile,
    cut,
    draw_volume,
    flip,
    no_image,
    read_file,
    still_inflates,
    zlib_bomb,
)
from hmvnet.case import Grid

NAMES = {
    "i1": "MET_CHAR",
    "u1": "MET_UCHAR",
    "i2": "MET_SHORT",
    "u2": "MET_USHORT",
    "i4": "MET_INT",
    "u4": "MET_UINT",
    "f4": "MET_FLOAT",
    "f8": "MET_DOUBLE",
}


def _text(values: object) -> str:
    return " ".join(f"{v:.17g}" for v in np.ravel(values))  # type: ignore[call-overload]


@dataclass
class MetaImage(ImageFile):
    """The header's lines but the last, and the voxels as bytes."""

    fields: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    compressed: bool = True
    level: int = 6
    line: str = "{} = {}\n"
    last: str = "ElementDataFile = LOCAL\n"

    def header(self) -> bytes:
        lines = "".join(self.line.format(*pair) for pair in self.fields.items()) + self.last
        return lines.encode("latin-1")

    def payload(self) -> bytes:
        return zlib.compress(self.raw, self.level) if self.compressed else self.raw

    def parts(self) -> bytes:
        return self.header() + self.payload()


def _clean(draw: Draw) -> MetaImage:
    array, grid = draw_volume(draw)
    compressed = draw(st.booleans())
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        "TransformMatrix": _text(grid.axes.T),
        "Offset": _text(grid.origin),
        "ElementSpacing": _text(grid.spacing),
        "DimSize": _text(grid.size),
        "ElementType": NAMES[array.dtype.str[1:]],
    }
    return MetaImage(
        {"voxels": array, "grid": grid},
        name="image.mha",
        named=("image.mha",),
        array=array,
        grid=grid,
        fields=fields,
        raw=array.tobytes(),
        compressed=compressed,
        tolerance=1e-12,
    )


MHA = Kind(".mha", _clean, read_file)


@MHA.mutation(Right.SAME)
def fields_in_any_order(draw: Draw, image: MetaImage) -> None:
    image.fields = dict(draw(st.permutations(list(image.fields.items()))))


@MHA.mutation(Right.SAME)
def fields_that_say_nothing(draw: Draw, image: MetaImage) -> None:
    more = {
        "Comment": "a = b, n\xe4her: x",
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementNumberOfChannels": "1",
        "HeaderSize": "0",
        "Modality": "MET_MOD_PET",
        "ElementSize": "9 9 9",
        "0008|0060": "PT",
    }
    names = draw(st.lists(st.sampled_from(sorted(more)), min_size=1, unique=True))
    image.fields = {name: more[name] for name in names} | image.fields


@MHA.mutation(Right.SAME)
def lines_of_another_system(draw: Draw, image: MetaImage) -> None:
    image.line = draw(st.sampled_from(["{} = {}\r\n", "{}={}\n", "{} =  {}  \n", " {}\t=\t{}\n"]))
    image.last = draw(st.sampled_from(["ElementDataFile = LOCAL\r\n", "ElementDataFile=LOCAL \n"]))


@MHA.mutation(Right.SAME)
def blank_lines(draw: Draw, image: MetaImage) -> None:
    image.line = draw(st.sampled_from(["{} = {}\n\n", "\n{} = {}\n", "{} = {}\n \t\n"]))


@MHA.mutation(Right.SAME)
def local_in_any_case(draw: Draw, image: MetaImage) -> None:
    word = draw(st.sampled_from(["Local", "local"]))
    image.last = f"ElementDataFile = {word}\n"


@MHA.mutation(Right.SAME)
def other_names_of_fields(draw: Draw, image: MetaImage) -> None:
    for names in (("Offset", "Position", "Origin"), ("TransformMatrix", "Rotation", "Orientation")):
        image.fields[draw(st.sampled_from(names))] = image.fields.pop(names[0])
    if draw(st.booleans()):
        image.fields["ElementSize"] = image.fields.pop("ElementSpacing")


@MHA.mutation(Right.SAME)
def other_spellings_of_flags(draw: Draw, image: MetaImage) -> None:
    for name in ("BinaryData", "CompressedData", "BinaryDataByteOrderMSB"):
        spelled = {"True": ["true", "TRUE", "T", "1"], "False": ["false", "FALSE", "F", "0"]}
        image.fields[name] = draw(st.sampled_from(spelled[image.fields[name]]))


@MHA.mutation(Right.SAME)
def numbers_written_otherwise(draw: Draw, image: MetaImage) -> None:
    form = draw(st.sampled_from(["{:.17e}", "{:+.17g}", "{:.17E}"]))
    for name, values in (("Offset", image.grid.origin), ("ElementSpacing", image.grid.spacing)):
        image.fields[name] = "  ".join(form.format(v) for v in values)
    image.fields["DimSize"] = " ".join(f"{n}.0" for n in image.grid.size)


@MHA.mutation(Right.SAME)
def the_other_byte_order(draw: Draw, image: MetaImage) -> None:
    name = draw(st.sampled_from(["BinaryDataByteOrderMSB", "ElementByteOrderMSB"]))
    del image.fields["BinaryDataByteOrderMSB"]
    image.fields[name] = draw(st.sampled_from(["True", "1"]))
    image.raw = image.array.astype(image.array.dtype.newbyteorder(">")).tobytes()


@MHA.mutation(Right.SAME)
def fields_left_at_their_default(draw: Draw, image: MetaImage) -> None:
    for name in ("ObjectType", "BinaryData", "BinaryDataByteOrderMSB"):
        del image.fields[name]
    if not image.compressed:
        del image.fields["CompressedData"]


@MHA.mutation(Right.SAME)
def any_level_of_compression(draw: Draw, image: MetaImage) -> None:
    image.compressed, image.fields["CompressedData"] = True, "True"
    image.level = draw(st.integers(0, 9))
    if draw(st.booleans()):
        image.fields["CompressedDataSize"] = str(len(image.payload()))


@MHA.mutation(Right.SAME)
def not_numbers_among_the_voxels(draw: Draw, image: MetaImage) -> None:
    image.array = image.array.astype("f4")
    image.array[0, 0, :] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    image.values["voxels"], image.raw = image.array, image.array.tobytes()
    image.fields["ElementType"] = "MET_FLOAT"


@MHA.mutation(Right.REPAIRED)
def no_place_or_axes(draw: Draw, image: MetaImage) -> None:
    names = draw(st.sets(st.sampled_from(["Offset", "TransformMatrix"]), min_size=1))
    image.fields = {name: value for name, value in image.fields.items() if name not in names}
    grid = image.grid
    image.values["grid"] = Grid(
        grid.size,
        grid.spacing,
        (0.0, 0.0, 0.0) if "Offset" in names else grid.origin,
        IDENTITY if "TransformMatrix" in names else grid.direction,
    )


@MHA.mutation(Right.REPAIRED)
def bytes_after_a_compressed_stream(draw: Draw, image: MetaImage) -> None:
    image.compressed, image.fields["CompressedData"] = True, "True"
    image.content = image.parts() + draw(st.binary(min_size=1, max_size=300))


@MHA.mutation(Right.REPAIRED)
def axes_nearly_orthonormal(draw: Draw, image: MetaImage) -> None:
    axes = image.grid.axes
    axes[:, 1] += draw(st.sampled_from([2e-4, 1e-3, 4e-3])) * axes[:, 0]
    image.fields["TransformMatrix"] = _text(axes.T)
    left, _, right = np.linalg.svd(axes)
    grid = image.grid
    image.values["grid"] = Grid(
        grid.size, grid.spacing, grid.origin, tuple((left @ right).ravel().tolist())
    )


@MHA.mutation(Right.REFUSED)
def cut_anywhere(draw: Draw, image: MetaImage) -> None:
    cut(draw, image)


@MHA.mutation(Right.REFUSED)
def a_bit_of_the_stream(draw: Draw, image: MetaImage) -> Right:
    image.compressed, image.fields["CompressedData"] = True, "True"
    start = len(image.header())
    flip(draw, image, start, start + len(image.payload()))
    return still_inflates(image.data()[start:], image.raw, "zlib")


@MHA.mutation(Right.REFUSED)
def bytes_after_the_voxels(draw: Draw, image: MetaImage) -> None:
    image.compressed, image.fields["CompressedData"] = False, "False"
    image.content = image.parts() + draw(st.binary(min_size=1, max_size=300))


@MHA.mutation(Right.REFUSED)
def a_field_left_out(draw: Draw, image: MetaImage) -> None:
    name = draw(st.sampled_from(["NDims", "DimSize", "ElementSpacing", "ElementType"]))
    del image.fields[name]


WRONG = {
    "NDims": ["2", "4", "-3", "", "three", "3 3"],
    "DimSize": [
        "0 8 8",
        "-8 8 8",
        "8 8",
        "8 8 8 8",
        "nan 8 8",
        "1e9 1e9 1e9",
        "",
        "a b c",
        "8_0 8 8",
    ]
    + ["1 64 64", "8.5 8 8"],
    "ElementSpacing": [
        "0 1 1",
        "-1 1 1",
        "nan 1 1",
        "inf 1 1",
        "1 1",
        "1 1 1 1",
        "1,5 1 1",
        "1e6 1 1",
    ]
    + ["1e-300 1 1", "1e-30 1e-30 1e-30", "1_0 1 1"],
    "Offset": ["nan 0 0", "0 0", "0 0 0 0", "inf 0 0", "x y z", "1e300 0 0", "1e17 0 0"],
    "TransformMatrix": [
        "0 0 0 0 0 0 0 0 0",
        "1 0 0 0 1 0 0 0",
        "2 0 0 0 2 0 0 0 2",
        "1 0 0 1 0 0 0 0 1",
    ]
    + ["nan 0 0 0 1 0 0 0 1", "1e200 0 0 0 1e200 0 0 0 1e200"],
    "ElementType": ["MET_LONG", "MET_STRING", "short", "", "MET_FLOAT_ARRAY", "MET_NONE"],
    "ElementNumberOfChannels": ["3", "0", "-1"],
    "BinaryData": ["False", "0"],
    "CompressedData": ["perhaps", "2"],
    "BinaryDataByteOrderMSB": ["perhaps", "2"],
    "HeaderSize": ["-1", "17"],
    "ElementToIntensityFunctionSlope": ["2", "0.5"],
    "ElementToIntensityFunctionOffset": ["-1024"],
}


@MHA.mutation(Right.REFUSED)
def a_field_that_makes_no_sense(draw: Draw, image: MetaImage) -> None:
    name = draw(st.sampled_from(sorted(WRONG)))
    image.fields[name] = draw(st.sampled_from(WRONG[name]))


@MHA.mutation(Right.REFUSED)
def fields_that_contradict(draw: Draw, image: MetaImage) -> None:
    name, value = draw(
        st.sampled_from(
            [
                ("Position", "1.5 2.5 999"),
                ("Orientation", "0 1 0 0 0 1 1 0 0.5"),
                ("ElementByteOrderMSB", "True"),
            ]
        )
    )
    image.fields[name] = value


@MHA.mutation(Right.REFUSED)
def a_field_twice(draw: Draw, image: MetaImage) -> None:
    value = "3.25 3.5 3.75"
    image.fields["ElementSpacing "] = value  # another key here, the same in the file


@MHA.mutation(Right.REFUSED)
def voxels_in_another_file(draw: Draw, image: MetaImage) -> None:
    place = draw(
        st.sampled_from(["image.raw", "../image.raw", "/etc/passwd", "LIST", "a%02d.raw 1 9 1", ""])
    )
    image.last = f"ElementDataFile = {place}\n"
    image.files["image.raw"] = image.files["../image.raw"] = image.raw


@MHA.mutation(Right.REFUSED)
def a_header_without_end(draw: Draw, image: MetaImage) -> None:
    image.fields = {"Comment": "x" * draw(st.integers(17_000, 40_000))} | image.fields


@MHA.mutation(Right.REFUSED)
def more_declared_than_the_file_holds(draw: Draw, image: MetaImage) -> None:
    size = draw(st.sampled_from(["1024 1024 1024", "16384 16384 4", "640 640 640"]))
    image.fields["DimSize"], image.bounded = size, True


@MHA.mutation(Right.REFUSED)
def a_bomb(draw: Draw, image: MetaImage) -> None:
    image.compressed, image.fields["CompressedData"] = True, "True"
    image.content, image.bounded = image.header() + zlib_bomb(), True


@MHA.mutation(Right.REFUSED)
def another_type_of_another_width(draw: Draw, image: MetaImage) -> None:
    width = image.array.dtype.itemsize
    names = [name for kind, name in NAMES.items() if int(kind[1]) != width]
    image.fields["ElementType"] = draw(st.sampled_from(names))


MHA.mutation(Right.REFUSED)(no_image)


@MHA.mutation(Right.EITHER)
def any_bytes(draw: Draw, image: MetaImage) -> None:
    """Of the header. ITK is not asked what is right: a damaged one can end the whole process."""
    image.values, image.bounded = {}, True
    image.content = changed_bytes(draw, image.parts(), 0, len(image.header()))


@MHA.mutation(Right.SAME)
def several_at_once(draw: Draw, image: MetaImage) -> None:
    several(
        draw,
        image,
        other_spellings_of_flags,
        the_other_byte_order,
        any_level_of_compression,
        numbers_written_otherwise,
        other_names_of_fields,
        fields_that_say_nothing,
        fields_in_any_order,
        lines_of_another_system,
        local_in_any_case,
    )
