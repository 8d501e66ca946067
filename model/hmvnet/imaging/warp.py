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

    def slabs(self, within: Sequence[int]) -> Iterator[tuple[slice, list[Tensor]]]:
        """Planes of the patch, and the points z, y, x, as indices into a volume of that shape.

        The points of one slab are overwritten by the next.
        """
        z, y, x = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.shape)
        step = max(1, SLAB // (len(y) * len(x)))
        room = torch.empty((3, min(step, len(z)), len(y), len(x)))
        for first in range(0, len(z), step):
            planes = slice(first, min(first + step, len(z)))
            points = list(room[:, : planes.stop - first])
            for axis, (row, n) in enumerate(zip(self.matrix.tolist(), within)):
                lines = (row[0] * z[planes])[:, None] + row[1] * y
                along = row[2] * x + (float(self.shift[axis]) + (n - 1) / 2)
                torch.add(lines[:, :, None], along, out=points[axis])
                if self.field is not None:
                    points[axis].add_(self.field[axis, planes])
            yield planes, points


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
    """The nearest voxels of ``[z, y, x]`` to points; 0 outside."""
    padded = _padded(labels, 0)
    _, rows, columns = padded.shape
    out = torch.empty(points.shape, dtype=labels.dtype)
    for planes, where in points.slabs(labels.shape):
        z, y, x = (
            point.round_().clamp_(-1, n).add_(1).to(torch.int32)
            for point, n in zip(where, labels.shape)
        )
        index = z.mul_(rows * columns).add_(y.mul_(columns)).add_(x)
        out[planes] = padded.flatten().index_select(0, index.flatten()).view_as(index)
    return out


def smooth_field(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """``[c, z, y, x]`` at the corners and between, linearly, to ``[c, *shape]``."""
    z, y, x = (_shares(n, fine) for n, fine in zip(coarse.shape[1:], shape))
    lines = torch.einsum("cijk,zi->czjk", coarse, z)
    planes = torch.einsum("czjk,yj->czyk", lines, y)
    return planes @ x.T


def _shares(n: int, fine: int) -> Tensor:
    """``[fine, n]``: how much of each of n values is in each of ``fine`` from the first to last."""
    return F.interpolate(torch.eye(n)[None], fine, mode="linear", align_corners=True)[0].T


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
