"""What every segmentation network returns."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """A network's answer; a tuple, so that it passes through DDP, mixed precision and export.

    Attributes:
        logits: ``[b, classes, z, y, x]`` at the input's size.
        scales: coarser logits for deep supervision, finest first; empty unless asked for.
        features: maps of the encoder's stages, each ``[b, c, z, y, x]``, finest first; empty of
            networks whose maps nobody reads.
    """

    logits: Tensor
    scales: tuple[Tensor, ...] = ()
    features: tuple[Tensor, ...] = ()


def stride_of(full: int, small: int) -> int:
    """Of a map of ``small`` voxels over ``full`` ones: the smallest power of two that covers them.

    So networks have it that halve an axis again and again, rounding up, or pad it at its end.
    """
    return 2 ** math.ceil(math.log2(max(1, full / small)))
