"""How the learning rate goes, and the average of the weights that goes with it.

Two courses: a cosine, whose length has to be known beforehand, and warm-up, stable, decay (WSD),
which can be cut anywhere. Of the latter one training, the trunk, has a constant rate; wherever it
is cut, a short branch from there decays, and is what a training planned for that length would have
become (Hu et al., MiniCPM, 2024, arXiv:2404.06395; Hägele et al., Scaling laws and compute-optimal
training beyond fixed training durations, NeurIPS 2024, arXiv:2405.18392: as good as a cosine of
that length where the decay takes 10 to 20% of the steps).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ENDLESS = sys.maxsize  # steps of a training that something else ends
DECAY_SHARE = 0.2  # of a budget
EMA_DELAY = 10  # of its warm-up


def cosine(step: int, peak: float, warmup: int, steps: int) -> float:
    """The rate of a step, from 0: linear warm-up, then a cosine to 1% of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True)
class Trunk:
    """Linear warm-up, then a constant rate: a training without a planned end."""

    peak: float
    warmup: int
    steps: int = ENDLESS
    frozen_from: int = ENDLESS

    def rate(self, step: int) -> float:
        """The rate of a step, from 0."""
        return self.peak * min(1.0, (step + 1) / max(1, self.warmup))

    @property
    def key(self) -> list[Any]:
        """What distinguishes its checkpoints from those of another course."""
        return ["trunk", self.peak, self.warmup]


@dataclass(frozen=True)
class Decay:
    """A branch: from step ``first`` on the rate falls as ``1 - sqrt(share)`` in ``length`` steps.

    BatchNorm's statistics are settled and frozen at its beginning: the last part of a training,
    under the statistics that inference uses.
    """

    trunk: Trunk
    first: int
    length: int

    def rate(self, step: int) -> float:
        """The rate of a step, from 0; Hägele et al., eq. 2: better than a linear fall."""
        share = (step - self.first) / self.length
        return self.trunk.rate(step) * (1 - math.sqrt(min(1.0, max(0.0, share))))

    @property
    def steps(self) -> int:
        """After how many it ends, the trunk's before it included."""
        return self.first + self.length

    @property
    def frozen_from(self) -> int:
        """The first step under frozen statistics."""
        return self.first

    @property
    def key(self) -> list[Any]:
        """As of the trunk."""
        return [*self.trunk.key, "decay", self.first, self.length]


Tensors = tuple[Tensor, ...] | list[Tensor]


def warm_ema(
    decay: float, count: Callable[[], int]
) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An exponential moving average whose decay rises: ``min(decay, (1 + n) / (10 + n))``.

    As TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``. With a constant decay of
    0.995 a training of 150 steps would be averaged with its first weights at 47%, and a network of
    slow steps judged by that.

    Args:
        count: the updates so far, n. What torch hands over lies on the GPU: who reads it waits.

    Returns:
        A ``multi_avg_fn`` of ``torch.optim.swa_utils.AveragedModel``.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, _: Tensor | int) -> None:
        n = count()
        share = 1 - min(decay, (1 + n) / (EMA_DELAY + n))
        if averaged[0].is_floating_point():  # all are of one type
            torch._foreach_lerp_(averaged, current, share)  # one launch on a GPU; as torch's own
        else:
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return update
