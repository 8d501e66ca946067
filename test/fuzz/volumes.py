"""Small images to be written in one format or another, and the bits of their files."""

from __future__ import annotations

import gzip
import io
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from hypothesis import strategies as st

from fuzz.samples import Draw, Found, OneFile, Pipe, Right
from hmvnet.case import Grid
from hmvnet.reading.images import read_geometry, read_image

TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
BOMB = 1 << 28  # bytes that a bomb inflates to
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

plain_floats = st.integers(-50_000, 50_000).map(lambda n: n / 100)
spacings = st.integers(30, 800).map(lambda n: n / 100)


@dataclass
class ImageFile(OneFile):
    """An image's voxels ``[z, y, x]`` and grid, and the file that holds them."""

    array: np.ndarray = None  # type: ignore[assignment]
    grid: Grid = None  # type: ignore[assignment]


def draw_volume(draw: Draw, types: tuple[str, ...] = TYPES, *, turned: bool = True) -> Any:
    """Voxels and their grid: any size, type, place; any direction where ``turned``."""
    dtype = np.dtype(draw(st.sampled_from(types)))
    size = tuple(draw(st.tuples(*[st.integers(2, 12)] * 3)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    if dtype.kind == "f":
        array = rng.normal(0, 500, size[::-1]).astype(dtype)
    else:
        low, high = max(np.iinfo(dtype).min, -3000), min(np.iinfo(dtype).max, 3000)
        array = rng.integers(low, high, size[::-1]).astype(dtype)
    if draw(st.booleans()):  # some voxels alike: it compresses well
        array[:, : size[1] // 2] = 7
    direction = draw(directions) if turned else IDENTITY
    place = draw(st.tuples(*[plain_floats] * 3)) if turned else (0.0, 0.0, 0.0)
    return array, Grid(size, draw(st.tuples(*[spacings] * 3)), place, direction)


@st.composite
def _directions(draw: Draw) -> tuple[float, ...]:
    """Axes in any order and any sense, perhaps turned."""
    axes = np.eye(3)[:, draw(st.permutations(range(3)))]
    axes = axes * draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))
    angles = draw(st.sampled_from([(0.0, 0.0, 0.0), (0.2, -0.3, 0.5), (0.0, 0.0, 0.1)]))
    turn = np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix(), (3, 3))
    return tuple((turn @ axes).ravel().tolist())


directions = _directions()


def read_file(folder: Path, sample: OneFile) -> Found:
    """Voxels, grid and the header's grid of an image file."""
    path = folder / sample.name
    image, notes = read_image(path)
    if not read_geometry(path).same_as(Grid.of(image)):
        raise AssertionError("read_geometry and read_image give two grids")
    return Found({"voxels": sitk.GetArrayFromImage(image), "grid": Grid.of(image)}, notes)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what a library says on standard error, at whatever level."""
    logging.disable(logging.CRITICAL)
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.disable(logging.NOTSET)


def cut(draw: Draw, sample: OneFile, end: int | None = None) -> None:
    """The file ends anywhere before ``end``."""
    data = sample.data()
    sample.content = data[: draw(st.integers(0, (end or len(data)) - 1))]


def flip(draw: Draw, sample: OneFile, start: int, end: int) -> None:
    """A bit is another, from byte ``start`` to ``end``."""
    data = bytearray(sample.data())
    data[draw(st.integers(start, end - 1))] ^= 1 << draw(st.integers(0, 7))
    sample.content = bytes(data)


def still_inflates(stream: bytes, plain: bytes, kind: str) -> Right:
    """What zlib says of a changed stream: bits that say nothing may change."""
    try:
        if kind == "gzip":
            found = gzip.GzipFile(fileobj=io.BytesIO(stream)).read(len(plain) + 1)
        else:
            inflater = zlib.decompressobj()
            found = inflater.decompress(stream) + inflater.flush()
            found += b"" if inflater.eof else b"no end"
    except (OSError, EOFError, zlib.error):
        return Right.REFUSED
    return Right.SAME if found == plain else Right.REFUSED


@lru_cache
def zlib_bomb() -> bytes:
    """Zeros in a zlib stream."""
    return zlib.compress(bytes(BOMB), 1)


@lru_cache
def gzip_bomb() -> bytes:
    """Zeros in a gzip member."""
    return gzip.compress(bytes(BOMB), 1, mtime=0)


def no_image(draw: Draw, sample: OneFile) -> None:
    """Something else under the image's name."""
    sample.content = draw(
        st.sampled_from([b"", b"\0" * 2000, b"<html><body>404</body></html>", b"PK\3\4", Pipe()])
        | st.binary(min_size=1, max_size=400)
    )
