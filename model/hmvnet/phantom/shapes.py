"""Implicit shapes and the painter that samples them on a voxel lattice.

A shape lives in the *canonical* patient frame: millimetres, LPS (x to the patient's left, y to the
back, z to the head), origin in the oropharynx. ``distance`` is an approximate signed distance in
mm, negative inside and zero exactly on the surface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Point = tuple[float, float, float]
Wave = tuple[float, float, float, float, float]
# A value that varies from place to place, of canonical x, y, z.
Field = Callable[[Array, Array, Array], Array]


class Shape(Protocol):
    def bounds(self) -> tuple[Point, Point]: ...

    def distance(self, x: Array, y: Array, z: Array) -> Array: ...


@dataclass(frozen=True)
class Ellipsoid:
    """Ellipsoid; ``power`` 2 is round, larger is boxier."""

    center: Point
    radii: Point
    power: float = 2.0

    def bounds(self) -> tuple[Point, Point]:
        return _box(self.center, self.radii)

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        u, v, w = _normalised(self.center, self.radii, x, y, z)
        if self.power == 2.0:
            k = np.sqrt(u * u + v * v + w * w)
        else:
            p = self.power
            k = (np.abs(u) ** p + np.abs(v) ** p + np.abs(w) ** p) ** (1.0 / p)
        return (k - 1.0) * np.float32(_mean_radius(self.radii))


@dataclass(frozen=True)
class Blob:
    """Ellipsoid with a wavy surface: the shape of a lesion.

    Each wave is (kx, ky, kz, phase, amplitude) in units of the radii, so the whole shape scales
    with ``radii`` and its volume is ``unit_volume(waves) * rx * ry * rz``.
    """

    center: Point
    radii: Point
    waves: tuple[Wave, ...] = ()

    def bounds(self) -> tuple[Point, Point]:
        swell = 1.0 + sum(abs(wave[4]) for wave in self.waves)
        return _box(self.center, _times(self.radii, swell))

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        level = self.level(*_normalised(self.center, self.radii, x, y, z))
        return level * np.float32(_mean_radius(self.radii))

    def level(self, u: Array, v: Array, w: Array) -> Array:
        """Negative inside; coordinates in units of the radii."""
        level = np.sqrt(u * u + v * v + w * w) - np.float32(1.0)
        for kx, ky, kz, phase, amplitude in self.waves:
            wave = np.float32(kx) * u + np.float32(ky) * v + np.float32(kz) * w
            level = level - np.float32(amplitude) * np.sin(wave + np.float32(phase))
        return level

    def scaled(self, factor: float) -> Blob:
        return Blob(self.center, _times(self.radii, factor), self.waves)

    def unit_volume(self, points: int = 40) -> float:
        """Volume in units of rx * ry * rz, by counting a regular lattice of points."""
        inside, _, step = self._inside(points)
        return float(np.count_nonzero(inside)) * step**3

    def unit_points(self, points: int = 40) -> Array:
        """The same lattice's points inside, (u, v, w) in units of the radii, ``[n, 3]``."""
        inside, axis, _ = self._inside(points)
        return axis[np.argwhere(inside)[:, ::-1]]

    def _inside(self, points: int) -> tuple[NDArray[np.bool_], Array, float]:
        reach = 1.0 + sum(abs(wave[4]) for wave in self.waves)
        step = 2.0 * reach / points
        axis = (np.arange(points, dtype=np.float32) + 0.5) * step - reach
        inside = self.level(axis[None, None, :], axis[None, :, None], axis[:, None, None]) < 0
        return inside, axis, step


@dataclass(frozen=True)
class Capsule:
    """Straight tube with round ends whose radius goes from ``radius_a`` to ``radius_b``."""

    a: Point
    b: Point
    radius_a: float
    radius_b: float

    def bounds(self) -> tuple[Point, Point]:
        (ax, ay, az), (bx, by, bz) = self.a, self.b
        r = max(self.radius_a, self.radius_b)
        low = (min(ax, bx) - r, min(ay, by) - r, min(az, bz) - r)
        return low, (max(ax, bx) + r, max(ay, by) + r, max(az, bz) + r)

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        ux, uy, uz = x - np.float32(self.a[0]), y - np.float32(self.a[1]), z - np.float32(self.a[2])
        dx, dy, dz = (np.float32(q - p) for p, q in zip(self.a, self.b, strict=True))
        length2 = dx * dx + dy * dy + dz * dz
        t = np.clip((ux * dx + uy * dy + uz * dz) / length2, 0.0, 1.0)
        ex, ey, ez = ux - t * dx, uy - t * dy, uz - t * dz
        radius = np.float32(self.radius_a) + t * np.float32(self.radius_b - self.radius_a)
        return np.sqrt(ex * ex + ey * ey + ez * ez) - radius


@dataclass(frozen=True)
class Profile:
    """Stack of ellipses along z: the outline of the body.

    ``rows`` are (z, half width in x, half depth in y, centre y), z ascending, and should be dense
    enough for straight lines between them.
    """

    rows: tuple[tuple[float, float, float, float], ...]

    def bounds(self) -> tuple[Point, Point]:
        z, a, b, c = np.asarray(self.rows).T
        low = (-a.max(), (c - b).min(), z[0])
        return low, (a.max(), (c + b).max(), z[-1])

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        heights, width, depth, middle = np.asarray(self.rows, dtype=np.float32).T
        a = np.interp(z, heights, width).astype(np.float32)
        b = np.interp(z, heights, depth).astype(np.float32)
        c = np.interp(z, heights, middle).astype(np.float32)
        u, v = x / a, (y - c) / b
        k = np.sqrt(u * u + v * v)
        side = (k - np.float32(1.0)) * np.minimum(a, b)
        return np.maximum(side, np.maximum(z - heights[-1], heights[0] - z))


def tube(points: Sequence[Point], radii: Sequence[float]) -> list[Shape]:
    """A bent tube as capsules from point to point."""
    ends = list(zip(points, radii, strict=True))
    return [Capsule(a, b, ra, rb) for (a, ra), (b, rb) in pairwise(ends)]


@dataclass(frozen=True)
class Lattice:
    """Voxel centres in canonical coordinates: p = matrix @ (i, j, k) + offset.

    ``shape`` is (z, y, x); the columns of ``matrix`` follow i (x), j (y), k (z).
    """

    shape: tuple[int, int, int]
    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    @property
    def voxel(self) -> float:
        """Mean voxel edge in canonical mm."""
        return float(np.linalg.norm(self.matrix, axis=0).mean())

    def window(self, shape: Shape, margin: float) -> tuple[slice, slice, slice] | None:
        """Index box (z, y, x) that holds the shape and a margin in mm; None when outside."""
        low, high = (np.asarray(corner) for corner in shape.bounds())
        corners = np.stack(np.meshgrid(*zip(low - margin, high + margin, strict=True)), -1)
        index = (corners.reshape(-1, 3) - self.offset) @ np.linalg.inv(self.matrix).T
        first = np.maximum(np.floor(index.min(0)), 0).astype(int)
        last = np.minimum(np.ceil(index.max(0)) + 1, self.shape[::-1]).astype(int)
        if (last <= first).any():
            return None
        x, y, z = (slice(a, b) for a, b in zip(first, last, strict=True))
        return z, y, x

    def coordinates(self, window: tuple[slice, slice, slice]) -> tuple[Array, Array, Array]:
        """Canonical x, y, z of the voxels in a window, as arrays that broadcast to its shape.

        An upright patient needs one axis per coordinate only, which is what makes painting fast.
        """
        k, j, i = (np.arange(s.start, s.stop, dtype=np.float32) for s in window)
        steps = (i[None, None, :], j[None, :, None], k[:, None, None])
        out = []
        for row, offset in zip(self.matrix, self.offset, strict=True):
            value: Array = np.full((1, 1, 1), offset, dtype=np.float32)
            for weight, step in zip(row, steps, strict=True):
                if abs(weight) > 1e-9:
                    value = value + np.float32(weight) * step
            out.append(value)
        return out[0], out[1], out[2]


def paint(volume: Array, lattice: Lattice, shape: Shape, value: float | Field) -> None:
    """Fill a shape in place; voxels cut by its surface get the mixture (partial volume)."""
    width = lattice.voxel
    window = lattice.window(shape, width)
    if window is None:
        return
    part = volume[window]
    place = lattice.coordinates(window)
    cover = shape.distance(*place)
    cover *= np.float32(-1.0 / width)
    cover += np.float32(0.5)
    np.clip(cover, 0.0, 1.0, out=cover)
    inside = value(*place) if callable(value) else np.float32(value)
    part += cover * (inside - part)


def label(mask: NDArray[np.uint8], lattice: Lattice, shape: Shape, value: int) -> None:
    """Set the voxels of a label map whose centre lies inside the shape."""
    window = lattice.window(shape, 0.0)
    if window is not None:
        mask[window][shape.distance(*lattice.coordinates(window)) < 0] = value


def _normalised(center: Point, radii: Point, x: Array, y: Array, z: Array) -> list[Array]:
    return [
        (p - np.float32(c)) * np.float32(1.0 / r)
        for p, c, r in zip((x, y, z), center, radii, strict=True)
    ]


def _mean_radius(radii: Point) -> float:
    return float(np.prod(radii)) ** (1.0 / 3.0)


def _times(radii: Point, factor: float) -> Point:
    return radii[0] * factor, radii[1] * factor, radii[2] * factor


def _box(center: Point, radii: Point) -> tuple[Point, Point]:
    (cx, cy, cz), (rx, ry, rz) = center, radii
    return (cx - rx, cy - ry, cz - rz), (cx + rx, cy + ry, cz + rz)
