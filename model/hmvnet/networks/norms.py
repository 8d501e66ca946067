"""Norms of convolution features."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class _SumOverProcesses(torch.autograd.Function):
    """All-reduced sum; so is the gradient, for what every process adds to the shared loss."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm3d):
    """BatchNorm whose statistics are of the whole batch where processes share it.

    torch's SyncBatchNorm does the same, on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        shared = distributed.is_available() and distributed.is_initialized()
        if not self.training or not shared or distributed.get_world_size() == 1:
            return super().forward(x)
        values, axes, view = x.float(), (0, 2, 3, 4), (1, -1, 1, 1, 1)
        count = values.numel() / values.shape[1] * distributed.get_world_size()
        mean = _SumOverProcesses.apply(values.sum(axes)) / count
        centred = values - mean.view(view)
        variance = _SumOverProcesses.apply(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / max(count - 1, 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(view) + self.bias.view(view)).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """As ``nn.BatchNorm3d``: a moving average, or without momentum the mean of all."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class VoxelNorm(nn.Module):
    """Each voxel's channels over their root mean square, scaled and shifted a channel.

    Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019, voxel by voxel: it
    has no statistics, so that a voxel's value hangs on nothing around it.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[b, c, z, y, x]`` to the same shape; cheapest in channels_last_3d."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)  # else it is not fused
        last = F.rms_norm(x.movedim(1, -1), weight.shape, weight, self.eps) + bias
        return last.movedim(-1, 1)


NORMS: Final = ("batch", "group", "voxel")


def make_norm(channels: int, norm: str) -> nn.Module:
    """The norm of convolution features ``[b, c, z, y, x]``, one of ``NORMS``."""
    if norm == "voxel":
        return VoxelNorm(channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)
    return SharedBatchNorm(channels)
