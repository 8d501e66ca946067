"""A case as each segmentation network sees it, and what they say brought to one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hmvnet.case import Case, Finding, Grid
from hmvnet.imaging.network_input import NetworkInput, Prepared
from hmvnet.imaging.resample import resample, resample_pet_ct
from hmvnet.imaging.roi import Region
from hmvnet.networks.output import stride_of

OUTSIDE = (1.0, 0.0, 0.0)  # the classes' probabilities where nobody looked


@dataclass(frozen=True)
class Volume:
    """A case on its working grid.

    Attributes:
        region: where the working grid lies and how sure that is.
        raw: float32 ``[2, z, y, x]``, CT in HU and PET in SUV.
        scaled: the same, CT in [0, 1] and PET in [-1, 1]: what the network sees.
        findings: what makes the case, or its region, doubtful.
    """

    region: Region
    raw: np.ndarray
    scaled: np.ndarray
    findings: tuple[Finding, ...] = ()

    @property
    def grid(self) -> Grid:
        """The working grid."""
        return self.region.grid


@dataclass
class Scan:
    """A case, its working volume, and where the networks' probabilities are wanted.

    That is the working grid; or, where a network sees the whole CT (``NetworkInput.field``), the
    part of the CT's own grid that holds the working region: to go through the working grid would
    move its borders by half a voxel.
    """

    case: Case
    volume: Volume
    on_ct: bool = False
    _prepared: dict[NetworkInput, Prepared] = field(default_factory=dict, repr=False)

    @cached_property
    def ct_grid(self) -> Grid:
        """The CT's own."""
        return Grid.of(self.case.ct)

    @cached_property
    def whole(self) -> np.ndarray:
        """CT (HU) and PET (SUV) on the CT's grid, float32 ``[2, z, y, x]``."""
        return resample_pet_ct(self.case, self.ct_grid)

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """Where the probabilities are wanted: of the CT's grid, or all of the working grid."""
        if not self.on_ct:
            return tuple(slice(0, n) for n in self.volume.grid.shape)
        found = self.ct_grid.index_box(self.volume.grid, margin=1)
        return found or (slice(0, 1),) * 3

    @property
    def grid(self) -> Grid:
        """Of the probabilities."""
        return self.ct_grid.crop(self.box) if self.on_ct else self.volume.grid  # type: ignore[arg-type]

    @cached_property
    def beyond(self) -> np.ndarray:
        """Which voxels of ``grid`` have their centres outside the working grid, ``[z, y, x]``."""
        working, grid = self.volume.grid, self.grid
        to_index = np.linalg.solve(working.affine, grid.affine).astype(np.float32)
        z, y, x = np.ogrid[tuple(slice(0, n) for n in grid.shape)]
        out = np.zeros(grid.shape, bool)
        for row, size in zip(to_index, working.size):
            at = row[0] * x.astype(np.float32) + row[1] * y + row[2] * z + row[3]
            out |= (at < -0.5) | (at > size - 0.5)
        return out

    def seen_by(self, own: NetworkInput | None) -> np.ndarray:
        """float32 ``[2, *]``; None: of networks that see the working volume, scaled."""
        return self._own(own).array if own else self.volume.scaled

    def probabilities(self, own: NetworkInput | None, mean: Tensor) -> np.ndarray:
        """Float32 ``[3, z, y, x]`` on ``grid``.

        Args:
            mean: probabilities on the working grid, or logits on the network's own lattice.
        """
        if own and own.field == "ct" and self.on_ct:
            found = self._own(own).probabilities(mean, self.box)
            found[:, self.beyond] = np.array(OUTSIDE, found.dtype)[:, None]
            return found
        found = mean.numpy()
        if own:
            everywhere = tuple(slice(0, n) for n in self.volume.grid.shape)
            found = self._own(own).probabilities(mean, everywhere)
        if not self.on_ct:
            return found
        images = (self.volume.grid.image(part) for part in found)
        return np.stack([resample(i, self.grid, fill=p) for i, p in zip(images, OUTSIDE)])

    def maps(self, own: NetworkInput | None, maps: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
        """Encoder maps ``[1, c, *]`` as ``[c, z, y, x]`` that cover the working grid.

        Those on a network's own lattice are sampled at the working grid's, coarser by the power of
        two that is nearest to what they have.
        """
        if own is None:
            return plain_maps(maps)
        lattice, target = self._own(own).grid, self.volume.grid
        return tuple(_sampled(m[0].float().cpu(), lattice, target) for m in maps)

    def _own(self, own: NetworkInput) -> Prepared:
        if own not in self._prepared:
            grid = self.ct_grid if own.field == "ct" else self.volume.grid
            raw = self.whole if own.field == "ct" else self.volume.raw
            self._prepared[own] = own.prepare(raw, grid)
        return self._prepared[own]


def plain_maps(maps: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    """Maps ``[1, c, z, y, x]`` of any type as float32 ``[c, z, y, x]``."""
    return tuple(m[0].float().cpu().numpy() for m in maps)


def _sampled(values: Tensor, lattice: Grid, target: Grid) -> np.ndarray:
    """A map ``[c, z, y, x]`` from one grid's first voxels on, on a coarsened other one; linear."""
    # Of its last voxels a part may lie behind the grid: they are a stride apart, whatever its size.
    steps = [stride_of(n, m) for n, m in zip(lattice.shape, values.shape[1:])]
    coarseness = [step * mm for step, mm in zip(steps, lattice.spacing[::-1])]
    mean = float(np.prod(coarseness)) ** (1 / 3)
    strides = [2 ** max(0, round(np.log2(mean / mm))) for mm in target.spacing[::-1]]
    shape = [-(-n // s) for n, s in zip(target.shape, strides)]
    # From the target's voxels to shares of the map's extent, -1 to 1, as grid_sample has them.
    axes = [(np.arange(n) + 0.5) * s - 0.5 for n, s in zip(shape, strides)]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1)[..., ::-1].reshape(-1, 3)
    at = lattice.indices(target.points(index))
    extent = [step * m for step, m in zip(steps, values.shape[1:])][::-1]
    share = (2 * at + 1) / np.array(extent) - 1
    where = torch.from_numpy(share.reshape(1, *shape, 3).astype(np.float32))
    return F.grid_sample(values[None], where, padding_mode="border", align_corners=False)[0].numpy()
