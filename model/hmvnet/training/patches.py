"""What a training step sees: augmented patches, each a function of its number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hmvnet.case import GTVN, GTVP
from hmvnet.config import Settings
from hmvnet.imaging.augment import Move, draw_patch
from hmvnet.imaging.intensity import AIR
from hmvnet.training.cache import Prepared, Stored

# To be raised when a number gives another patch by more than rounding, where patches are moved.
PATCHES_VERSION = 2


class PatchSampler:
    """Sample number -> augmented patch; the same number gives the same patch.

    Bit for bit on one kind of processor, to rounding on another.

    A share of the patches is centred near a tumour voxel, of GTVp and GTVn with equal chance where
    the patient has both; the others lie anywhere in the region.
    """

    def __init__(self, cases: Sequence[Prepared], settings: Settings) -> None:
        if not cases:
            raise ValueError("no training cases")
        self.cases = cases
        self.settings = settings
        self.patch = settings.training.patch_size

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Image ``[2, z, y, x]`` and label ``[z, y, x]``.

        Raises:
            OSError: a cached volume cannot be read any more.
        """
        case, start, rng = self.place(number)
        move = Move.drawn(self.settings.augmentation, rng)
        volume, label = self.read(case, start, move.margin(self.patch))
        return draw_patch(volume, label, self.patch, self.settings.augmentation, rng, move)

    def place(self, number: int) -> tuple[Prepared, np.ndarray, np.random.Generator]:
        """Whose patch it is, its first voxel (z, y, x), and what the rest is drawn by."""
        seed = self.settings.training.seed
        rng = np.random.default_rng([seed, number])
        # Every patient is seen once before any is seen twice.
        epoch, place = divmod(number, len(self.cases))
        order = np.random.default_rng([seed, epoch]).permutation(len(self.cases))
        case = self.cases[order[place]]
        return case, self._start(case, rng), rng

    def read(
        self, case: Prepared, start: np.ndarray, margin: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Volume ``[2, z, y, x]`` and label ``[z, y, x]`` of a patch and a margin around it.

        Args:
            margin: voxels (z, y, x) on either side.
        """
        first, size = start - np.array(margin), [n + 2 * m for n, m in zip(self.patch, margin)]
        return crop(case.volume, first, size, AIR), crop(case.label, first, size, (0,))

    def _start(self, case: Prepared, rng: np.random.Generator) -> np.ndarray:
        """First voxel (z, y, x) of the patch; may lie outside the volume."""
        patch = np.array(self.patch)
        kinds = [k for k in (GTVP, GTVN) if len(case.voxels[k])]
        if kinds and rng.random() < self.settings.training.tumour_fraction:
            voxels = case.voxels[kinds[rng.integers(len(kinds))]]
            centre = voxels[rng.integers(len(voxels))] + rng.uniform(-0.3, 0.3, 3) * patch
            return np.round(centre - patch / 2).astype(int)
        room = np.maximum(np.array(case.grid.shape) - patch, 0)
        return rng.integers(room + 1)


def crop(
    array: Stored, start: np.ndarray, size: Sequence[int], fill: Sequence[float]
) -> np.ndarray:
    """A box of a stored array ``[z, y, x]`` or ``[c, z, y, x]``, with ``fill`` outside of it.

    Args:
        start: first voxel (z, y, x) of the box; may lie outside.
        fill: of each channel.
    """
    shape = array.shape[-3:]
    low = np.clip(start, 0, shape)
    high = np.clip(start + np.array(size), low, shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high))
    inner = array[..., z, y, x]
    if inner.shape[-3:] == tuple(size):
        return inner
    out = np.empty((*inner.shape[:-3], *size), inner.dtype)
    out[...] = np.reshape(np.array(fill, inner.dtype), (-1, *[1] * 3)[-out.ndim :])
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low - start, high - start))
    out[..., z, y, x] = inner
    return out
