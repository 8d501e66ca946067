"""What a network sees that brings a preprocessing of its own, as nnU-Net's do.

A scan is cropped to what is not 0, each channel is scaled in its own way, and the crop is resized
to the network's spacing; logits go the same way back (Isensee et al., "nnU-Net: a self-configuring
method for deep learning-based biomedical image segmentation", Nature Methods 2021). All of it is
said by settings, which a bundle keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from hmvnet.case import CLASSES, Grid
from hmvnet.config import Length
from hmvnet.imaging.components import Box, bounding_box
from hmvnet.imaging.resize import flat_axis, resized, resized_box

Axis = Annotated[int, Field(ge=0, le=2)]
LEAST_DEVIATION = 1e-8  # as nnU-Net's: what a constant channel is divided by


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ChannelScaling(_Part):
    """How one channel is scaled, before it is resized.

    Attributes:
        scheme: ``ct``: clipped to ``low`` and ``high``, then less ``mean`` over ``deviation``;
            ``z-score``: less its own mean over its own deviation; ``rescale``: its own range to
            [0, 1]; ``none``: as it is.
        masked: for ``z-score``, of and for what is not 0 alone.
    """

    scheme: Literal["ct", "z-score", "rescale", "none"]
    masked: bool = False
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, image: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
        """The channel ``[z, y, x]``, float32; ``inside`` is what is not 0, where it is asked."""
        image = image.astype(np.float32)
        if self.scheme == "ct":
            return (np.clip(image, self.low, self.high) - np.float32(self.mean)) / np.float32(
                max(self.deviation, LEAST_DEVIATION)
            )
        if self.scheme == "z-score":
            mask = inside if self.masked else None
            part = image if mask is None else image[mask]
            scaled = (image - part.mean()) / max(part.std(), LEAST_DEVIATION)
            return scaled if mask is None else np.where(mask, scaled, image)
        if self.scheme == "rescale":
            image -= image.min()
            return image / max(image.max(), LEAST_DEVIATION)
        return image


class NetworkInput(_Part):
    """What lies before and behind a network with a preprocessing of its own.

    Attributes:
        field: ``region``: it sees the working region alone, on the working grid; ``ct``: the whole
            CT on its own grid, the PET resampled onto it.
        channels: how CT and PET are scaled.
        pet_first: whether the network takes PET before CT.
        transpose: which axis of ``[z, y, x]`` each of the network's axes is.
        spacing_mm: of the network's voxels along its own axes.
        order: of the splines that resize the scan.
        separate: ``flat_axis``'s, for the scan and for the logits.
        mirror_axes: of the network's axes, those along which it may be shown the scan mirrored.
        step: from one window to the next at most, as a share of the window.
        heads: which class (0 background, 1 GTVp, 2 GTVn) each of the network's outputs is; several
            may be one, whose probabilities are then summed.
    """

    field: Literal["region", "ct"]
    channels: tuple[ChannelScaling, ChannelScaling]
    pet_first: bool = False
    transpose: tuple[Axis, Axis, Axis] = (0, 1, 2)
    spacing_mm: tuple[Length, Length, Length]
    order: Annotated[int, Field(ge=0, le=5)] = 3
    separate: tuple[bool | None, bool | None] = (None, None)
    mirror_axes: tuple[Axis, ...] = ()
    step: Annotated[float, Field(gt=0, le=1)] = 0.5
    heads: tuple[Annotated[int, Field(ge=0, lt=len(CLASSES))], ...] = tuple(range(len(CLASSES)))

    @model_validator(mode="after")
    def _whole(self) -> NetworkInput:
        if sorted(self.transpose) != [0, 1, 2]:
            raise ValueError(f"transpose {self.transpose} is no order of the axes 0, 1, 2")
        if set(self.heads) != set(range(len(CLASSES))):
            raise ValueError(f"heads {self.heads}: expected each of {', '.join(CLASSES)}")
        return self

    def prepare(self, raw: np.ndarray, grid: Grid) -> Prepared:
        """A scan as the network sees it.

        Args:
            raw: float32 ``[2, z, y, x]``, CT in HU and PET in SUV.
            grid: of ``raw``.
        """
        inside = (raw != 0).any(axis=0)
        crop = bounding_box(inside) if inside.any() else (slice(0, n) for n in grid.shape)
        crop = tuple(crop)
        masked = any(channel.masked for channel in self.channels)
        filled = ndimage.binary_fill_holes(inside)[crop] if masked else None
        scaled = [scale(raw[i][crop], filled) for i, scale in enumerate(self.channels)]
        own = np.stack(scaled[::-1] if self.pet_first else scaled)
        own = own.transpose(0, *(axis + 1 for axis in self.transpose))
        before, after = self._spacings(grid)
        shape = [max(1, round(mm / to * n)) for mm, to, n in zip(before, after, own.shape[1:])]
        own = resized(own, shape, self.order, flat_axis(before, after, self.separate[0]))
        return Prepared(self, own, grid, crop)

    def _spacings(self, grid: Grid) -> tuple[list[float], Sequence[float]]:
        """The scan's spacing along the network's axes, and the network's own."""
        return [grid.spacing[::-1][axis] for axis in self.transpose], self.spacing_mm


@dataclass(frozen=True)
class Prepared:
    """A scan on a network's own lattice.

    Attributes:
        array: float32 ``[2, *]`` along the network's axes.
        source: the grid of the scan that it was made of.
        crop: the part of it that the array covers, face to face.
    """

    settings: NetworkInput
    array: np.ndarray
    source: Grid
    crop: Box

    @property
    def grid(self) -> Grid:
        """The lattice of ``array``, whose axes are those of the network."""
        shape = self.array.shape[1:]
        part = self.source.crop(tuple(self.crop))  # type: ignore[arg-type]
        # Axis i (x, y, z) of the lattice is the array's axis 2 - i.
        axes = [2 - self.settings.transpose[2 - i] for i in range(3)]
        ratio = [part.size[axis] / shape[2 - i] for i, axis in enumerate(axes)]
        first = np.zeros(3)
        first[axes] = np.array(ratio) / 2 - 0.5
        return Grid(
            tuple(shape[::-1]),
            tuple(part.spacing[axis] * by for axis, by in zip(axes, ratio)),  # type: ignore[arg-type]
            tuple(part.points(first[None])[0].tolist()),
            tuple(part.axes[:, axes].ravel().tolist()),
        )

    def probabilities(self, logits: torch.Tensor, box: Box) -> np.ndarray:
        """The classes' probabilities ``[3, z, y, x]`` in a box of the source grid.

        Args:
            logits: ``[heads, *]`` on the network's lattice.
        """
        settings, back = self.settings, np.argsort(self.settings.transpose)
        before, after = settings._spacings(self.source)
        flat = flat_axis(after, before, settings.separate[1])
        own = logits.float().numpy().transpose(0, *(back + 1))
        flat = None if flat is None else settings.transpose[flat]
        shape = [part.stop - part.start for part in self.crop]
        common = [
            slice(max(a.start, b.start), max(min(a.stop, b.stop), a.start, b.start))
            for a, b in zip(self.crop, box, strict=True)
        ]
        out = np.zeros((len(CLASSES), *(part.stop - part.start for part in box)), np.float32)
        out[0] = 1.0
        if math.prod(part.stop - part.start for part in common) == 0:
            return out
        inner = [slice(c.start - a.start, c.stop - a.start) for c, a in zip(common, self.crop)]
        shares = torch.softmax(torch.from_numpy(resized_box(own, shape, inner, flat)), 0).numpy()
        z, y, x = (slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, box))
        found = out[:, z, y, x]
        found[0] = 0.0
        for head, kind in enumerate(settings.heads):
            found[kind] += shares[head]
        return out
