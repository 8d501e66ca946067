"""Augmentation of training patches, on the CPU.

Every sample has a random generator of its own, so that a sample depends on its number alone:
not on the batch it is in, the thread or process that makes it, or when training was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from monai.networks.layers import gaussian_1d
from scipy.spatial.transform import Rotation
from torch import Tensor

from hmvnet.config import AugmentationSettings
from hmvnet.imaging import warp
from hmvnet.imaging.compiled import compiled
from hmvnet.imaging.intensity import AIR

MIRROR = np.array([1.0, 1.0, -1.0])  # z, y, x
LEAST = 1e-20  # whose power stands for that of 0


@dataclass(frozen=True)
class Move:
    """How a patch is flipped, rotated, scaled and deformed, and PET is moved against CT.

    Attributes:
        matrix: ``[3, 3]`` (z, y, x) rotation and scale; None: neither.
        flip: left-right only: the others are not anatomy.
        coarse: ``[3, 4, 4, 4]`` voxels of a smooth deformation at corners of the patch and between;
            None: none.
        shift: ``[3]`` voxels (z, y, x) between PET and CT.
    """

    matrix: np.ndarray | None
    flip: bool
    coarse: np.ndarray | None
    shift: np.ndarray

    @classmethod
    def drawn(cls, settings: AugmentationSettings, rng: np.random.Generator) -> Move:
        """A random one."""
        matrix = coarse = None
        if rng.random() < settings.affine:
            angles = rng.uniform(-1, 1, 3) * settings.rotation_degrees
            matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
            matrix *= 1 + rng.uniform(-1, 1) * settings.scale
        flip = bool(rng.random() < settings.flip)
        elastic = rng.random() < settings.elastic
        shift = np.zeros(3)
        if rng.random() < settings.misalignment:
            shift = rng.uniform(-1, 1, 3) * settings.misalignment_mm
        if elastic:
            coarse = rng.normal(size=(3, 4, 4, 4)) * settings.elastic_mm / 2
        return cls(matrix, flip, coarse, shift)

    def margin(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """Voxels (z, y, x) that have to be read around the patch for all of it to have content."""
        if not self._deforms and not self.shift.any():
            return 0, 0, 0
        half = (np.array(patch) - 1) / 2
        corner = half if self.matrix is None else np.abs(self.matrix) @ half
        bend = 0.0 if self.coarse is None else np.abs(self.coarse).max((1, 2, 3))
        beyond = np.ceil(corner + bend + np.abs(self.shift) - half + warp.SLACK).astype(int)
        z, y, x = np.maximum(beyond, 0).tolist()
        return z, y, x

    @property
    def _deforms(self) -> bool:
        return self.matrix is not None or self.coarse is not None

    def __call__(
        self, volume: Tensor, labels: Tensor, patch: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """Moved image and labels, in new memory; one interpolation for all changes.

        Args:
            volume: ``[2, z, y, x]`` (CT, PET), larger than the patch by ``margin`` or more on every
                side, or with air where it is not; ``[z, y, x]`` of ``labels`` alike.
        """
        if self._deforms:
            points = self._points(patch, np.zeros(3))
            if not self.shift.any():
                return warp.linear(volume, points), warp.nearest(labels, points)
            ct = warp.linear(volume[:1], points)
            labels = warp.nearest(labels, points)
        else:
            labels = self._cut(labels, patch)
            if not self.shift.any():
                return self._cut(volume, patch).float(), labels
            ct = self._cut(volume[:1], patch).float()
        pet = warp.linear(volume[1:], self._points(patch, self.shift))
        return torch.cat([ct, pet]), labels

    def _points(self, patch: tuple[int, int, int], shift: np.ndarray) -> warp.Points:
        matrix = np.eye(3) if self.matrix is None else self.matrix
        field = None
        if self.coarse is not None:
            field = warp.stretched(torch.from_numpy(self.coarse).float(), patch, corners=True)
        if self.flip:  # of the volume, about the common centre
            matrix, shift = MIRROR[:, None] * matrix, MIRROR * shift
            if field is not None:
                field[2].neg_()
        return warp.Points(patch, matrix, shift, field)

    def _cut(self, array: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """The middle, flipped where it is to be, as a copy."""
        first = [(n - m) // 2 for n, m in zip(array.shape[-3:], patch)]
        z, y, x = (slice(f, f + n) for f, n in zip(first, patch))
        inner = array[..., z, y, x]
        return inner.flip(-1) if self.flip else inner.clone()


def draw_patch(
    volume: np.ndarray,
    label: np.ndarray,
    patch: tuple[int, int, int],
    settings: AugmentationSettings,
    rng: np.random.Generator,
    move: Move | None = None,
) -> tuple[Tensor, Tensor]:
    """An augmented patch.

    Args:
        volume: ``[2, z, y, x]`` CT in [0, 1], PET in [-1, 1], larger than the patch by as many
            voxels on every side as ``move.margin`` says; ``[z, y, x]`` of ``label`` alike.
        move: None: drawn first.

    Returns:
        image ``[2, z, y, x]`` float32 and label ``[z, y, x]`` uint8, both of size ``patch``.
    """
    move = move or Move.drawn(settings, rng)
    with torch.autocast("cpu", enabled=False):  # the loop's would reach its products
        image, labels = move(torch.from_numpy(volume), torch.from_numpy(label), patch)
        return _intensity(image, settings, rng), labels


def compile_loops() -> None:
    """Have numba compile all that ``draw_patch`` calls, which else its first patches wait for."""
    points = warp.Points((2, 2, 2), np.eye(3), np.zeros(3))
    warp.linear(torch.zeros(2, 2, 2, 2), points)
    warp.nearest(torch.ones(2, 2, 2, dtype=torch.uint8), points)
    blurred(torch.zeros(2, 2, 2), 1.0)


def _intensity(image: Tensor, settings: AugmentationSettings, rng: np.random.Generator) -> Tensor:
    """Per modality: gain, offset, gamma, noise, blur, low resolution; rarely one is dropped.

    Args:
        image: is overwritten.
    """
    for channel, low in zip(image, AIR):
        if changes := _changes(settings, rng):
            span = 1.0 - low
            unit = channel if low == 0 else channel.sub_(low).div_(span)
            for change in changes:
                unit = change(unit)
            unit.clamp_(0, 1)
            if low != 0:
                unit.mul_(span).add_(low)
            if unit is not channel:
                channel.copy_(unit)
    if rng.random() < settings.drop_modality:
        lost = int(rng.integers(2))
        image[lost] = AIR[lost]
    return image


def _changes(
    settings: AugmentationSettings, rng: np.random.Generator
) -> list[Callable[[Tensor], Tensor]]:
    """Of one channel, drawn in a fixed order; each may overwrite what it is given."""
    changes: list[Callable[[Tensor], Tensor]] = []
    if rng.random() < settings.low_resolution:
        changes.append(partial(coarsened, factor=rng.uniform(1.5, 3.0)))
    if rng.random() < settings.blur:
        changes.append(partial(blurred, sigma=rng.uniform(0.4, 1.2)))
    if rng.random() < settings.intensity:
        gamma, gain = math.exp(rng.uniform(-0.3, 0.3)), rng.uniform(0.85, 1.15)
        changes.append(partial(toned, gamma=gamma, gain=gain, offset=rng.uniform(-0.03, 0.03)))
    if rng.random() < settings.noise:
        seed = int(rng.integers(2**62))
        changes.append(partial(_noisy, seed=seed, sigma=rng.uniform(0.0, 0.06)))
    return changes


def _noisy(channel: Tensor, seed: int, sigma: float) -> Tensor:
    noise = torch.randn(channel.shape, generator=torch.Generator().manual_seed(seed))
    return channel.add_(noise, alpha=sigma)


def toned(channel: Tensor, gamma: float, gain: float, offset: float) -> Tensor:
    """Values, in [0, 1] once those beyond are cut off, to a power, times a gain, plus an offset.

    Args:
        channel: is overwritten.
    """
    # A power by its logarithm takes a quarter of its time, but for that of 0, which takes three.
    channel.clamp_(LEAST, 1).log_().mul_(gamma).exp_()
    return channel.mul_(gain).add_(offset)


def coarsened(channel: Tensor, factor: float) -> Tensor:
    """``[z, y, x]`` as of voxels that are so many times as large, on the same grid."""
    size = [max(2, round(n / factor)) for n in channel.shape]
    return warp.stretched(warp.stretched(channel, size), channel.shape)


def blurred(channel: Tensor, sigma: float) -> Tensor:
    """``[z, y, x]`` under a Gaussian of ``sigma`` voxels; beyond the border lies what is on it."""
    weights = gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True)
    out = torch.empty(channel.shape)
    _blur(channel.contiguous().numpy(), weights.float().numpy(), out.numpy())
    return out


@compiled
def _blur(values: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Fill ``[z, y, x]`` with weighted sums along all three axes, a plane at a time."""
    depth, rows, columns = values.shape
    reach = len(weights) // 2
    plane = np.empty((rows, columns), np.float32)
    line = np.empty(columns + 2 * reach, np.float32)
    middle = line[reach : reach + columns]
    for k in range(depth):
        plane[:] = 0
        for n in range(len(weights)):
            other = values[min(max(k + n - reach, 0), depth - 1)]
            for j in range(rows):
                _add(plane[j], weights[n], other[j])
        for j in range(rows):
            line[:] = 0
            for n in range(len(weights)):
                _add(middle, weights[n], plane[min(max(j + n - reach, 0), rows - 1)])
            line[:reach] = middle[0]
            line[reach + columns :] = middle[columns - 1]
            out[k, j] = 0
            for n in range(len(weights)):
                _add(out[k, j], weights[n], line[n : n + columns])


@compiled
def _add(line: np.ndarray, weight: float, other: np.ndarray) -> None:
    for i in range(len(line)):
        line[i] += weight * other[i]
