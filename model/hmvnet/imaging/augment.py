"""Augmentation of training patches, on the device the patches are on.

Every sample has a random generator of its own, so that a sample depends on its number alone:
not on the batch it is in, the process that makes it, or when training was resumed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional as F

from hmvnet.config import AugmentationSettings
from hmvnet.imaging.intensity import AIR

MARGIN = 12  # voxels read around a patch so that rotation and scaling find content there


def draw_patch(
    volume: np.ndarray,
    label: np.ndarray,
    patch: tuple[int, int, int],
    settings: AugmentationSettings,
    rng: np.random.Generator,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """An augmented patch from a crop that is ``MARGIN`` voxels larger on every side.

    Args:
        volume: ``[2, z, y, x]`` CT in [0, 1], PET in [-1, 1]; ``[z, y, x]`` of ``label`` alike.

    Returns:
        image ``[2, z, y, x]`` float32 and label ``[z, y, x]`` uint8, both of size ``patch``.
    """
    image = torch.from_numpy(np.ascontiguousarray(volume, np.float32)).to(device)
    labels = torch.from_numpy(np.ascontiguousarray(label)).to(device)
    image, labels = _spatial(image, labels, patch, settings, rng)
    return _intensity(image, settings, rng), labels


def _spatial(
    image: Tensor,
    labels: Tensor,
    patch: tuple[int, int, int],
    settings: AugmentationSettings,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Flip, rotate, scale, deform; PET moved against CT. One interpolation for all of them."""
    matrix = np.eye(3)  # z, y, x
    moved = rng.random() < settings.affine
    if moved:
        angles = rng.uniform(-1, 1, 3) * settings.rotation_degrees
        matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        matrix *= 1 + rng.uniform(-1, 1) * settings.scale
    if rng.random() < settings.flip:  # left-right only: the others are not anatomy
        image, labels = image.flip(-1), labels.flip(-1)
    elastic = rng.random() < settings.elastic
    shift = np.zeros(3)
    if rng.random() < settings.misalignment:
        shift = rng.uniform(-1, 1, 3) * settings.misalignment_mm
    if not (moved or elastic or shift.any()):
        z, y, x = (slice(MARGIN, MARGIN + n) for n in patch)
        return image[:, z, y, x], labels[z, y, x]

    points = _voxel_grid(patch, image.device) @ torch.from_numpy(matrix.T).to(image)
    if elastic:
        coarse = (
            torch.from_numpy(rng.normal(size=(1, 3, 4, 4, 4))).to(image) * settings.elastic_mm / 2
        )
        field = F.interpolate(coarse, patch, mode="trilinear", align_corners=True)
        points = points + field[0].movedim(0, -1)
    ct = _sample(image[:1], points, AIR[0])
    pet_points = points + torch.from_numpy(shift).to(image) if shift.any() else points
    pet = _sample(image[1:], pet_points, AIR[1])
    warped = _sample(labels[None].float(), points, 0.0, mode="nearest")[0].to(torch.uint8)
    return torch.cat([ct, pet]), warped


def _voxel_grid(patch: tuple[int, int, int], device: torch.device) -> Tensor:
    """Voxel offsets from the patch centre, ``[z, y, x, 3]`` (z, y, x)."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in patch]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _sample(image: Tensor, points: Tensor, fill: float, mode: str = "bilinear") -> Tensor:
    """``[c, z, y, x]`` at voxel offsets from its centre; ``fill`` outside."""
    half = torch.tensor([n / 2 for n in image.shape[1:]], device=image.device)
    grid = (points / half).flip(-1)[None]  # grid_sample wants x, y, z
    out = F.grid_sample(image[None] - fill, grid, mode=mode, align_corners=False)
    return out[0] + fill


def _intensity(image: Tensor, settings: AugmentationSettings, rng: np.random.Generator) -> Tensor:
    """Per modality: gain, offset, gamma, noise, blur, low resolution; rarely one is dropped."""
    channels = []
    for channel, (low, high) in zip(image, (AIR[:1] + (1.0,), AIR[1:] + (1.0,))):
        unit = (channel - low) / (high - low)
        if rng.random() < settings.low_resolution:
            unit = _low_resolution(unit, rng.uniform(1.5, 3.0))
        if rng.random() < settings.blur:
            unit = _blur(unit, rng.uniform(0.4, 1.2))
        if rng.random() < settings.intensity:
            unit = unit.clamp(0, 1) ** math.exp(rng.uniform(-0.3, 0.3))
            unit = unit * rng.uniform(0.85, 1.15) + rng.uniform(-0.03, 0.03)
        if rng.random() < settings.noise:
            seed = torch.Generator(image.device).manual_seed(int(rng.integers(2**62)))
            noise = torch.randn(unit.shape, generator=seed, device=unit.device)
            unit = unit + noise * rng.uniform(0.0, 0.06)
        channels.append(unit.clamp(0, 1) * (high - low) + low)
    if rng.random() < settings.drop_modality:
        lost = int(rng.integers(2))
        channels[lost] = torch.full_like(channels[lost], AIR[lost])
    return torch.stack(channels)


def _low_resolution(channel: Tensor, factor: float) -> Tensor:
    size = [max(2, round(n / factor)) for n in channel.shape]
    small = F.interpolate(channel[None, None], size, mode="trilinear")
    return F.interpolate(small, channel.shape, mode="trilinear")[0, 0]


def _blur(channel: Tensor, sigma: float) -> Tensor:
    kernel = gaussian_1d(torch.tensor(sigma, device=channel.device), truncated=3.0)
    return separable_filtering(channel[None, None], [kernel] * 3, mode="replicate")[0, 0]
