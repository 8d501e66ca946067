"""Values of a volume between its voxels, on a CPU in about half of torch's time.

What ``torch.nn.functional.grid_sample`` computes with ``padding_mode="zeros"``, to rounding. That
goes from point to point in three dimensions; here the corners of all points' cells are gathered one
after the other, and a slab of planes at a time stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SLAB = 100_000  # points at a time, about
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
        field: ``[3, z, y, x]`` voxels that are added; None: none.
    """

    shape: tuple[int, int, int]
    matrix: np.ndarray
    shift: np.ndarray
    field: Tensor | None = None

    def slabs(
        self, within: Sequence[int], part: Sequence[slice] = (slice(None),) * 3
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """Planes of a part of the patch, and the points z, y, x, as indices into a volume.

        The points of one slab are overwritten by the next.

        Args:
            within: the volume's shape.
        """
        z, y, x = (
            torch.arange(n, dtype=torch.float32)[cut] - (n - 1) / 2
            for n, cut in zip(self.shape, part)
        )
        cut_z, cut_y, cut_x = part
        field = None if self.field is None else self.field[:, cut_z, cut_y, cut_x]
        step = max(1, SLAB // (len(y) * len(x)))
        room = torch.empty((3, min(step, len(z)), len(y), len(x)))
        for first in range(0, len(z), step):
            planes = slice(first, min(first + step, len(z)))
            points = list(room[:, : planes.stop - first])
            for axis, (row, n) in enumerate(zip(self.matrix.tolist(), within)):
                lines = (row[0] * z[planes])[:, None] + row[1] * y
                along = row[2] * x + (float(self.shift[axis]) + (n - 1) / 2)
                torch.add(lines[:, :, None], along, out=points[axis])
                if field is not None:
                    points[axis].add_(field[axis, planes])
            yield planes, points

    def near(self, low: np.ndarray, high: np.ndarray) -> list[slice]:
        """The part of the patch whose points can lie in a box; the others do not.

        Args:
            low: ``[3]`` voxels from the volume's centre; ``high`` alike.
        """
        bend = np.zeros(3) if self.field is None else self.field.abs().amax((1, 2, 3)).numpy()
        back = np.linalg.inv(self.matrix)
        ends = np.stack([back * (low - self.shift - bend), back * (high - self.shift + bend)])
        centre = (np.array(self.shape) - 1) / 2
        first = np.floor(ends.min(0).sum(1) + centre - SLACK)
        last = np.ceil(ends.max(0).sum(1) + centre + SLACK)
        cuts = (np.clip(end, 0, self.shape).astype(int) for end in (first, last + 1))
        return [slice(a, b) for a, b in zip(*cuts)]


def linear(volume: Tensor, points: Points, fill: Sequence[float]) -> Tensor:
    """Trilinear values of ``[c, z, y, x]`` at points: float32 ``[c, z, y, x]`` of their shape.

    Args:
        fill: the value of each channel outside.
    """
    shape = volume.shape[1:]
    channels = [_padded(values, outside).flatten() for values, outside in zip(volume, fill)]
    line = shape[2] + 2
    plane = (shape[1] + 2) * line
    out = torch.empty((len(volume), *points.shape))
    scratch: list[Tensor] = []
    for planes, where in points.slabs(shape):
        index, (dz, dy, dx) = _cells(where, shape, (plane, line, 1))
        if not scratch or scratch[0].shape != index.shape:
            scratch = [torch.empty(index.shape) for _ in range(3)]
        for channel, whole in zip(channels, out):
            target = whole[planes].view(-1)
            _face(channel, index, line, dy, dx, target, scratch[:2])
            _face(channel[plane:], index, line, dy, dx, scratch[2], scratch[:2])
            target.lerp_(scratch[2], dz)
    return out


def _face(
    channel: Tensor,
    index: Tensor,
    line: int,
    dy: Tensor,
    dx: Tensor,
    out: Tensor,
    scratch: Sequence[Tensor],
) -> None:
    """Bilinear values in a plane of each point's cell."""
    one, other = scratch
    torch.index_select(channel, 0, index, out=out)
    out.lerp_(torch.index_select(channel[1:], 0, index, out=one), dx)
    torch.index_select(channel[line:], 0, index, out=one)
    one.lerp_(torch.index_select(channel[line + 1 :], 0, index, out=other), dx)
    out.lerp_(one, dy)


def nearest(labels: Tensor, points: Points) -> Tensor:
    """The nearest voxels of ``[z, y, x]`` to points; 0 outside.

    Looked up near what is not 0 alone, mostly a small part.
    """
    out = torch.zeros(points.shape, dtype=labels.dtype)
    image = labels.amax(0)
    if not image.any():
        return out
    lines = (labels.flatten(1).amax(1), image.amax(1), image.amax(0))
    ends = np.array([line.nonzero()[[0, -1], 0].tolist() for line in lines])
    centre = (np.array(labels.shape) - 1) / 2
    part = points.near(ends[:, 0] - centre - 0.5, ends[:, 1] - centre + 0.5)
    if any(cut.start >= cut.stop for cut in part):
        return out
    padded = _padded(labels, 0)
    _, rows, columns = padded.shape
    target = out[tuple(part)]
    for planes, where in points.slabs(labels.shape, part):
        z, y, x = (
            point.round_().clamp_(-1, n).add_(1).to(torch.int32)
            for point, n in zip(where, labels.shape)
        )
        index = z.mul_(rows * columns).add_(y.mul_(columns)).add_(x)
        target[planes] = padded.flatten().index_select(0, index.flatten()).view_as(index)
    return out


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


def _padded(values: Tensor, fill: float) -> Tensor:
    """``[z, y, x]`` with a voxel around it; of half precision as float32."""
    kind = torch.float32 if values.is_floating_point() else values.dtype
    padded = torch.empty([n + 2 for n in values.shape], dtype=kind)
    for axis in range(3):
        padded.select(axis, 0).fill_(fill)
        padded.select(axis, -1).fill_(fill)
    padded[1:-1, 1:-1, 1:-1] = values
    return padded


def _cells(
    where: Sequence[Tensor], shape: Sequence[int], strides: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Of each point the flat index of its cell's first corner, and where in the cell it lies.

    Args:
        where: the points' indices z, y, x, which become their shares of the cell.
        shape: of the volume, without the voxel around it.
        strides: of the volume with it.
    """
    index = torch.zeros(where[0].numel(), dtype=torch.int32)
    shares = []
    for point, n, stride in zip(where, shape, strides):
        share = point.view(-1).clamp_(-1, n).add_(1)
        floor = share.floor().clamp_(max=n)  # the last corner belongs to the cell before it
        index.add_(floor.to(torch.int32), alpha=stride)
        shares.append(share.sub_(floor))
    return index, shares
