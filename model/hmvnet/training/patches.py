"""What a training step sees: augmented patches, each a function of its number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hmvnet.case import GTVN, GTVP
from hmvnet.config import Settings
from hmvnet.imaging.augment import MARGIN, draw_patch
from hmvnet.imaging.intensity import AIR
from hmvnet.training.cache import Prepared


class PatchSampler:
    """Sample number -> augmented patch; the same number gives the same patch, anywhere.

    A share of the patches is centred near a tumour voxel, of GTVp and GTVn with equal chance where
    the patient has both; the others lie anywhere in the region.
    """

    def __init__(self, cases: Sequence[Prepared], settings: Settings) -> None:
        if not cases:
            raise ValueError("no training cases")
        self.cases = cases
        self.settings = settings
        self.patch = settings.training.patch_size

    def __call__(self, number: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Image ``[2, z, y, x]`` and label ``[z, y, x]``."""
        rng = np.random.default_rng([self.settings.training.seed, number])
        # Every patient is seen once before any is seen twice.
        epoch, place = divmod(number, len(self.cases))
        order = np.random.default_rng([self.settings.training.seed, epoch]).permutation(
            len(self.cases)
        )
        case = self.cases[order[place]]
        start = self._start(case, rng)
        size = [n + 2 * MARGIN for n in self.patch]
        volume = np.stack([_crop(case.volume, c, start, size, fill) for c, fill in enumerate(AIR)])
        label = _crop(case.label, None, start, size, 0)
        return draw_patch(volume, label, self.patch, self.settings.augmentation, rng, device)

    def _start(self, case: Prepared, rng: np.random.Generator) -> np.ndarray:
        """First voxel (z, y, x) of the crop with its margin; may lie outside the volume."""
        patch = np.array(self.patch)
        kinds = [k for k in (GTVP, GTVN) if len(case.voxels[k])]
        if kinds and rng.random() < self.settings.training.tumour_fraction:
            voxels = case.voxels[kinds[rng.integers(len(kinds))]]
            centre = voxels[rng.integers(len(voxels))] + rng.uniform(-0.3, 0.3, 3) * patch
            start = np.round(centre - patch / 2).astype(int)
        else:
            room = np.maximum(np.array(case.grid.shape) - patch, 0)
            start = rng.integers(room + 1)
        return start - MARGIN


def _crop(array, channel: int | None, start: np.ndarray, size: Sequence[int], fill: float):
    """A box of a stored array, padded with ``fill`` where it reaches outside."""
    shape = array.shape[-3:]
    low = np.clip(start, 0, shape)
    high = np.clip(start + np.array(size), low, shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high))
    where = box if channel is None else (channel, *box)
    inner = np.asarray(array[where])
    inner = inner.reshape([b.stop - b.start for b in box])
    before, after = low - start, start + np.array(size) - high
    return np.pad(inner, list(zip(before, after)), constant_values=fill)
