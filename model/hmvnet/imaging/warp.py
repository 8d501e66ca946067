"""Values of a volume between its voxels, on a CPU: loops that numba compiles.

What ``torch.nn.functional.grid_sample`` computes with ``padding_mode="border"``, to rounding, in
a fifth of its time or less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hmvnet.imaging.compiled import compiled

SLACK = 0.01  # voxels, by which a point's place may be rounded
FEW = 8  # values along an axis, which a product takes less time to stretch than picking neighbours


@dataclass(frozen=True)
class Points:
    """Where in a volume the voxels of a patch come from; the two have one centre.

    Attributes:
        shape: of the patch (z, y, x).
        matrix: ``[3, 3]`` (z, y, x) from offsets of the patch's voxels from the centre, in voxels,
            to offsets in the volume.
        shift: ``[3]`` voxels (z, y, x) that are added.
        field: float32 ``[3, z, y, x]`` voxels that are added; None: none.
    """

    shape: tuple[int, int, int]
    matrix: np.ndarray
    shift: np.ndarray
    field: Tensor | None = None

    def within(self, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a volume: the first voxel's place in it (z, y, x) without the field, the matrix, and
        the field, empty where there is none.
        """
        half = (np.array(self.shape) - 1) / 2
        first = self.shift + (np.array(shape) - 1) / 2 - self.matrix @ half
        field = torch.empty(3, 0, 0, 0) if self.field is None else self.field.contiguous()
        return first, np.ascontiguousarray(self.matrix, np.float64), field.numpy()


def linear(volume: Tensor, points: Points) -> Tensor:
    """Trilinear values of ``[c, z, y, x]`` at points: float32 ``[c, z, y, x]`` of their shape.

    Beyond the outermost voxels lies what they are.

    Raises:
        ValueError: an axis of fewer than two voxels, between which nothing lies.
    """
    if min(volume.shape[1:]) < 2:
        raise ValueError(
            f"volume of shape {tuple(volume.shape)}: expected two voxels or more an axis"
        )
    out = torch.empty((len(volume), *points.shape))
    values = volume.float().contiguous().numpy()
    _linear(values, *points.within(volume.shape[1:]), out.numpy())
    return out


def nearest(labels: Tensor, points: Points) -> Tensor:
    """The nearest voxels of ``[z, y, x]`` to points."""
    if not labels.any():
        return torch.zeros(points.shape, dtype=labels.dtype)
    out = torch.empty(points.shape, dtype=labels.dtype)
    _nearest(labels.contiguous().numpy(), *points.within(labels.shape), out.numpy())
    return out


@compiled
def _linear(
    volume: np.ndarray, first: np.ndarray, matrix: np.ndarray, field: np.ndarray, out: np.ndarray
) -> None:
    """Fill ``[c, z, y, x]`` with values of ``[c, z, y, x]``."""
    channels, depth, rows, columns = volume.shape
    flat = volume.reshape(channels, -1)
    # Indices without a sign: numba looks whether the others count from the end.
    right, down, back = np.uint32(1), np.uint32(columns), np.uint32(rows * columns)
    n = out.shape[3]
    places = np.empty((3, n), np.float32)
    cells = np.empty(n, np.uint32)
    for k in range(out.shape[1]):
        for j in range(out.shape[2]):
            _line(k, j, first, matrix, field, volume.shape[1:], places)
            z, y, x = places
            for i in range(n):  # the last corner belongs to the cell before it
                corner_z = min(np.floor(z[i]), np.float32(depth - 2))
                corner_y = min(np.floor(y[i]), np.float32(rows - 2))
                corner_x = min(np.floor(x[i]), np.float32(columns - 2))
                z[i] -= corner_z
                y[i] -= corner_y
                x[i] -= corner_x
                cells[i] = _cell(corner_z, corner_y, corner_x, back, down)
            for c in range(channels):
                values, line = flat[c], out[c, k, j]
                for i in range(n):
                    cell = cells[i]
                    upper = _between(values[cell], values[cell + right], x[i])
                    cell += down
                    lower = _between(values[cell], values[cell + right], x[i])
                    near = _between(upper, lower, y[i])
                    cell += back
                    lower = _between(values[cell], values[cell + right], x[i])
                    cell -= down
                    upper = _between(values[cell], values[cell + right], x[i])
                    line[i] = _between(near, _between(upper, lower, y[i]), z[i])


@compiled
def _nearest(
    volume: np.ndarray, first: np.ndarray, matrix: np.ndarray, field: np.ndarray, out: np.ndarray
) -> None:
    """Fill ``[z, y, x]`` with voxels of ``[z, y, x]``."""
    _, rows, columns = volume.shape
    flat = volume.reshape(-1)
    down, back = np.uint32(columns), np.uint32(rows * columns)
    n = out.shape[2]
    places = np.empty((3, n), np.float32)
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            _line(k, j, first, matrix, field, volume.shape, places)
            z, y, x = places
            for i in range(n):
                cell = _cell(np.rint(z[i]), np.rint(y[i]), np.rint(x[i]), back, down)
                out[k, j, i] = flat[cell]


@compiled
def _line(
    k: int,
    j: int,
    first: np.ndarray,
    matrix: np.ndarray,
    field: np.ndarray,
    shape: tuple[int, int, int],
    places: np.ndarray,
) -> None:
    """Fill ``[3, x]`` with where a line of the patch comes from, no farther out than the border."""
    for axis in range(3):
        start = np.float32(first[axis] + matrix[axis, 0] * k + matrix[axis, 1] * j)
        step, last = np.float32(matrix[axis, 2]), np.float32(shape[axis] - 1)
        place = places[axis]
        for i in range(len(place)):
            place[i] = start + step * np.float32(i)
        if field.size:
            bend = field[axis, k, j]
            for i in range(len(place)):
                place[i] += bend[i]
        for i in range(len(place)):
            place[i] = min(max(place[i], np.float32(0)), last)


@compiled
def _cell(z: float, y: float, x: float, back: int, down: int) -> int:
    """Flat index of whole numbers; by way of int32, which processors have an instruction for."""
    return np.uint32(np.int32(z)) * back + np.uint32(np.int32(y)) * down + np.uint32(np.int32(x))


@compiled
def _between(a: float, b: float, share: float) -> float:
    return a + share * (b - a)


def stretched(values: Tensor, shape: Sequence[int], corners: bool = False) -> Tensor:
    """``[*, z, y, x]`` at another number of voxels, linearly: ``[*, *shape]``, axes of 2 or more.

    What ``torch.nn.functional.interpolate`` computes, to rounding, in less than half of its time:
    one axis after the other.

    Args:
        corners: the outermost voxels of the two have the same centres; else the same borders.
    """
    grows = shape[-1] > values.shape[-1]
    for axis in (-1, -2, -3) if grows else (-3, -2, -1):  # x where there are fewest values
        n, fine = values.shape[axis], shape[axis]
        if axis == -1 or n <= FEW:
            values = _times(values, axis, _shares(n, fine, corners))
            continue
        step = (n - 1) / (fine - 1) if corners else n / fine
        where = torch.arange(fine) * step + (0 if corners else (step - 1) / 2)
        where.clamp_(0, n - 1)
        first = where.long().clamp_(max=n - 2)
        share = (where - first).view(-1, *[1] * (-1 - axis))
        nearer, farther = (values.index_select(axis, index) for index in (first, first + 1))
        values = nearer.lerp_(farther, share)
    return values


def _times(values: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """``[*, z, y, x]`` with ``matrix`` ``[fine, n]`` applied along an axis."""
    if axis == -1:
        return values @ matrix.T
    if axis == -2:
        return matrix @ values
    return (matrix @ values.flatten(-2)).unflatten(-1, values.shape[-2:])


def _shares(n: int, fine: int, corners: bool) -> Tensor:
    """``[fine, n]``: how much of each of n values is in each of ``fine``, linearly."""
    eye = torch.eye(n)[None]
    return F.interpolate(eye, fine, mode="linear", align_corners=corners)[0].T
