"""NIfTI files, ``.nii`` and ``.nii.gz``; their headers are written by nibabel."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from hypothesis import strategies as st

from fuzz.samples import Draw, Kind, Right, changed_bytes, several
from fuzz.volumes import (
    IDENTITY,
    ImageFile,
    cut,
    draw_volume,
    flip,
    gzip_bomb,
    no_image,
    quiet,
    read_file,
    still_inflates,
)
from hmvnet.case import Grid

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Nifti(ImageFile):
    """What the header says, by nibabel's names, and what is between it and the voxels."""

    version: int = 1
    order: str = "<"
    compressed: bool = False
    sform: int = 1
    qform: int = 1
    header: dict[str, Any] = field(default_factory=dict)
    extensions: bytes = bytes(4)
    raw: bytes = b""
    level: int = 6

    def head(self) -> bytes:
        kind = nib.Nifti1Header if self.version == 1 else nib.Nifti2Header
        header = kind(endianness=self.order)
        header.set_data_dtype(self.array.dtype)
        header.set_data_shape(self.grid.size)
        header.set_zooms(self.grid.spacing)
        affine = TO_RAS @ self.grid.affine
        header.set_sform(affine, self.sform) if self.sform else header.set_sform(None, 0)
        header.set_qform(affine, self.qform) if self.qform else header.set_qform(None, 0)
        header["magic"] = header.single_magic
        header["vox_offset"] = len(header.binaryblock) + len(self.extensions)
        header["xyzt_units"] = 2
        for name, value in self.header.items():
            place, _, index = name.partition(".")
            if index:
                header[place][int(index)] = value
            else:
                header[place] = value
        return header.binaryblock

    def plain(self) -> bytes:
        return self.head() + self.extensions + self.raw

    def parts(self) -> bytes:
        return gzip.compress(self.plain(), self.level, mtime=0) if self.compressed else self.plain()

    def set_plain(self, plain: bytes) -> None:
        """Bytes in the place of the header and the voxels, compressed as before."""
        self.content = gzip.compress(plain, mtime=0) if self.compressed else plain


def _drawing(name: str, compressed: bool):
    def clean(draw: Draw) -> Nifti:
        array, grid = draw_volume(draw)
        return Nifti(
            {"voxels": array, "grid": grid},
            name=name,
            named=(name,),
            array=array,
            grid=grid,
            version=draw(st.sampled_from([1, 2])),
            compressed=compressed,
            raw=array.tobytes(),
            tolerance=1e-6,
        )

    return clean


NII = Kind(".nii", _drawing("image.nii", False), read_file)
NII_GZ = Kind(".nii.gz", _drawing("image.nii.gz", True), read_file)


def both(right: Right):
    """Enters a change for both kinds."""

    def enter(change):
        return NII.mutation(right)(NII_GZ.mutation(right)(change))

    return enter


@both(Right.SAME)
def the_other_byte_order(draw: Draw, image: Nifti) -> None:
    image.order = ">"
    image.raw = image.array.astype(image.array.dtype.newbyteorder(">")).tobytes()


@both(Right.SAME)
def one_orientation_alone(draw: Draw, image: Nifti) -> None:
    image.sform, image.qform = draw(st.sampled_from([(0, 1), (1, 0), (4, 0), (0, 2), (2, 1)]))


@both(Right.SAME)
def more_axes_of_one(draw: Draw, image: Nifti) -> None:
    count = draw(st.integers(4, 7))
    image.header |= {"dim.0": count} | {f"dim.{i}": 1 for i in range(4, count + 1)}


@both(Right.SAME)
def anything_beyond_the_axes(draw: Draw, image: Nifti) -> None:
    image.header |= {f"dim.{i}": draw(st.integers(-9, 9)) for i in range(4, 8)}
    image.header |= {f"pixdim.{i}": draw(st.sampled_from([0.0, 1.0, np.nan])) for i in (4, 5, 6, 7)}


@both(Right.SAME)
def header_extensions(draw: Draw, image: Nifti) -> None:
    size = 16 * draw(st.integers(1, 40))
    body = draw(st.binary(max_size=size - 8)).ljust(size - 8, b"\0")
    image.extensions = bytes([1, 0, 0, 0]) + struct.pack("<2i", size, 6) + body


@both(Right.SAME)
def a_gap_before_the_voxels(draw: Draw, image: Nifti) -> None:
    image.extensions = draw(st.binary(max_size=200)).rjust(4 + 16 * 13, b"\0")


@both(Right.SAME)
def scaled(draw: Draw, image: Nifti) -> None:
    slope, intercept = draw(st.tuples(*[st.integers(-400, 400).map(lambda n: n / 16)] * 2))
    image.header |= {"scl_slope": slope, "scl_inter": intercept}
    if slope:  # 0: no scaling, whatever the intercept
        image.values["voxels"] = image.array * slope + intercept
        image.tolerance = 1e-5


@both(Right.SAME)
def no_scaling(draw: Draw, image: Nifti) -> None:
    slope = draw(st.sampled_from([0.0, np.nan, np.inf, 1.0]))
    image.header |= {"scl_slope": slope, "scl_inter": 0.0 if slope == 1 else -1024.0}


@both(Right.SAME)
def words_that_say_nothing(draw: Draw, image: Nifti) -> None:
    words = draw(st.binary(max_size=60))
    image.header |= {"descrip": words, "intent_name": words[:15], "aux_file": words[:20]}
    image.header |= {"cal_max": np.nan, "slice_duration": -1.0, "xyzt_units": 0}


@both(Right.SAME)
def under_the_other_name(draw: Draw, image: Nifti) -> None:
    image.compressed = not image.compressed


@both(Right.SAME)
def not_numbers_among_the_voxels(draw: Draw, image: Nifti) -> None:
    image.array = image.array.astype(draw(st.sampled_from(["f4", "f8"])))
    image.array[0, 0, :] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    image.values["voxels"], image.raw = image.array, image.array.tobytes()


@NII_GZ.mutation(Right.SAME)
def several_members(draw: Draw, image: Nifti) -> None:
    plain = image.plain()
    cuts = sorted(draw(st.lists(st.integers(0, len(plain)), max_size=6)))
    parts = [plain[a:b] for a, b in zip([0, *cuts], [*cuts, len(plain)])]
    image.content = b"".join(
        gzip.compress(part, draw(st.integers(0, 9)), mtime=0) for part in parts
    )


@NII_GZ.mutation(Right.SAME)
def a_member_with_a_long_header(draw: Draw, image: Nifti) -> None:
    """With extra fields, the file's name, a comment and a checksum of the header itself."""
    head = b"\x1f\x8b\x08\x1e" + bytes(4) + b"\x02\x03" + struct.pack("<H", 6) + b"AB\2\0xy"
    head += b"n\xe4me.nii\0a comment\0"
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    image.content = head + gzip.compress(image.plain(), draw(st.integers(0, 9)))[10:]


@NII_GZ.mutation(Right.SAME)
def zeros_after_the_stream(draw: Draw, image: Nifti) -> None:
    image.content = image.parts() + bytes(draw(st.integers(1, 700)))


@both(Right.REPAIRED)
def another_unit(draw: Draw, image: Nifti) -> None:
    unit, millimetres = draw(st.sampled_from([(1, 1000.0), (3, 1e-3)]))
    image.header["xyzt_units"] = unit + draw(st.sampled_from([0, 8, 16]))
    grid = image.grid
    image.grid = Grid(
        grid.size,
        tuple(s / millimetres for s in grid.spacing),
        tuple(o / millimetres for o in grid.origin),
        grid.direction,
    )


@both(Right.REPAIRED)
def no_orientation(draw: Draw, image: Nifti) -> None:
    image.sform = image.qform = 0
    image.values["grid"] = Grid(image.grid.size, image.grid.spacing)


@both(Right.REPAIRED)
def bytes_after_the_voxels(draw: Draw, image: Nifti) -> None:
    image.raw += draw(st.binary(min_size=1, max_size=300))


@both(Right.REPAIRED)
def orientations_that_disagree(draw: Draw, image: Nifti) -> None:
    if image.version == 1:
        image.header |= {"qoffset_x": float(image.grid.origin[0] + 77)}
    else:
        image.header |= {"qoffset_y": float(image.grid.origin[1] - 77)}


@both(Right.REPAIRED)
def spacing_that_disagrees(draw: Draw, image: Nifti) -> None:
    image.qform = 0
    image.header |= {f"pixdim.{i}": 1.0 + image.grid.spacing[i - 1] for i in (1, 2, 3)}


@both(Right.REFUSED)
def cut_anywhere(draw: Draw, image: Nifti) -> None:
    cut(draw, image)


@NII_GZ.mutation(Right.REFUSED)
def cut_before_it_was_compressed(draw: Draw, image: Nifti) -> None:
    plain = image.plain()
    image.set_plain(plain[: draw(st.integers(0, len(plain) - 1))])


@NII_GZ.mutation(Right.REFUSED)
def a_bit_of_the_stream(draw: Draw, image: Nifti) -> Right:
    image.level = draw(st.integers(0, 9))
    flip(draw, image, 10, len(image.parts()))
    return still_inflates(image.data(), image.plain(), "gzip")


@NII_GZ.mutation(Right.REFUSED)
def something_else_after_the_stream(draw: Draw, image: Nifti) -> None:
    image.content = image.parts() + b"PK" + draw(st.binary(max_size=50))


WRONG: list[dict[str, Any]] = [
    *({"sizeof_hdr": n} for n in (0, 347, 540 << 8, -1)),
    *({"magic": m} for m in (b"ni1", b"", b"n+3", b"ni2\0\r\n\x1a\n")),
    *({"datatype": n} for n in (0, 1, 32, 128, 1536, 1792, 2048, 2304, 255, -4)),
    *({"dim.0": n} for n in (0, 1, 2, -3, 8, 100)),
    *({"dim.1": n} for n in (0, 1, -5, 32767)),
    {"dim.0": 4, "dim.4": 2},
    {"dim.0": 5, "dim.4": 1, "dim.5": 3},
    *({"pixdim.2": n} for n in (0.0, np.nan, np.inf, 1e30, 1e-30)),
    *({"vox_offset": n} for n in (0, 100, 1 << 30)),
    *({"scl_slope": 1.0, "scl_inter": n} for n in (np.nan, np.inf)),
    *({"xyzt_units": n} for n in (4, 5, 6, 7)),
    {"srow_x": [0, 0, 0, 0]},
    {"srow_y": [np.nan, 1, 0, 0]},
    {"srow_z": [0, 0, np.inf, 0]},
    *({"srow_x": [1, 0, 0, n]} for n in (np.nan, np.inf, 1e30)),
]


@both(Right.REFUSED)
def a_header_that_makes_no_sense(draw: Draw, image: Nifti) -> None:
    change = draw(st.sampled_from(WRONG))
    image.header |= change
    image.qform = 0
    image.sform = 0 if "pixdim.2" in change else 1


@both(Right.REFUSED)
def an_offset_that_is_no_place(draw: Draw, image: Nifti) -> None:
    image.version = 1
    image.header["vox_offset"] = draw(st.sampled_from([np.nan, np.inf, -352.0, 352.5, 1e30]))


@both(Right.REFUSED)
def a_sheared_orientation(draw: Draw, image: Nifti) -> None:
    image.qform = 0
    image.grid = Grid(image.grid.size, (1.0, 1.0, 1.0), direction=IDENTITY)
    image.header |= {"srow_x": [-1, draw(st.sampled_from([0.1, 0.5, -0.9])), 0, 0]}


@both(Right.REFUSED)
def more_declared_than_the_file_holds(draw: Draw, image: Nifti) -> None:
    size = draw(st.sampled_from([(1024, 1024, 1024), (16384, 16384, 4), (640, 640, 640)]))
    image.header |= {f"dim.{i}": n for i, n in enumerate(size, 1)}
    image.bounded = True


@NII_GZ.mutation(Right.REFUSED)
def a_bomb(draw: Draw, image: Nifti) -> None:
    """More than could lie after the voxels, or before them."""
    image.bounded = True
    if draw(st.booleans()):
        image.header["vox_offset"] = 1 << 27
    image.content = image.parts() + gzip_bomb()


both(Right.REFUSED)(no_image)


def _as_nibabel_reads_it(data: bytes) -> dict[str, Any]:
    """Voxels and grid; raises where it cannot."""
    kind = nib.Nifti1Image if data[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") else nib.Nifti2Image
    with np.errstate(all="ignore"), quiet():
        image = kind.from_bytes(data)
        affine = TO_RAS @ image.affine
        voxels = np.asarray(image.dataobj)
    voxels = voxels.reshape(*voxels.shape[:3], *(n for n in voxels.shape[3:] if n != 1))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size, place = tuple(voxels.shape), tuple(affine[:3, 3].tolist())
    direction = tuple((affine[:3, :3] / spacing).ravel().tolist())
    grid = Grid(size, tuple(spacing.tolist()), place, direction)  # type: ignore[arg-type]
    if not np.isfinite(grid.corners()).all():
        raise ValueError("no place")
    return {"voxels": voxels.T, "grid": grid}


@NII.mutation(Right.EITHER)
def a_bit_of_the_header(draw: Draw, image: Nifti) -> Right | None:
    """Read as nibabel reads it, or refused; what nibabel cannot read is refused."""
    image.sform, image.qform = draw(st.sampled_from([(1, 0), (0, 1), (1, 1)]))
    image.header |= draw(st.sampled_from([{}, {"scl_slope": 2.0, "scl_inter": -7.0}]))
    before = image.plain()
    flip(draw, image, 0, len(image.head()))
    image.tolerance = 1e-2
    handed = slice(76, 80) if image.version == 1 else slice(104, 112)
    if image.data()[handed] != before[handed]:
        image.values = {}  # -1.1 is -1 to the standard's own code and 1 to nibabel
        return None
    try:
        image.values = _as_nibabel_reads_it(image.data())
    except Exception:
        return Right.REFUSED
    return None


@both(Right.EITHER)
def any_bytes(draw: Draw, image: Nifti) -> None:
    image.values, image.bounded = {}, True
    image.set_plain(changed_bytes(draw, image.plain()))


@NII_GZ.mutation(Right.EITHER)
def any_bytes_of_the_stream(draw: Draw, image: Nifti) -> None:
    image.values, image.bounded = {}, True
    image.content = changed_bytes(draw, image.parts())


@both(Right.SAME)
def several_at_once(draw: Draw, image: Nifti) -> None:
    several(
        draw,
        image,
        the_other_byte_order,
        one_orientation_alone,
        more_axes_of_one,
        header_extensions,
        scaled,
        words_that_say_nothing,
        under_the_other_name,
    )
