"""What a segmentation network is trained to make small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss, FocalLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn
from torch.nn import functional as F

from hmvnet.case import CLASSES
from hmvnet.networks.output import stride_of

SCALE_WEIGHTS = (1.0, 0.5, 0.25, 0.125)


class SegmentationLoss(nn.Module):
    """Dice of the lesion classes + cross-entropy (+ focal), over all scales.

    Classes that a patch has no voxel of count with ``absent_weight``. Their Dice loss is
    ``sum / (sum + 1)`` of the predicted probabilities: it presses on false positives, but an empty
    prediction earns 0 there, at which networks that start from nothing can collapse to background.
    Cross-entropy sees every voxel either way.
    """

    def __init__(self, focal_weight: float = 0.0, absent_weight: float = 0.0) -> None:
        super().__init__()
        # Sample by sample and class by class: the mean over a batch is then the mean over the
        # processes that share it, so that several GPUs compute what one does.
        self.dice = DiceLoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            reduction="none",
            smooth_nr=1.0,
            smooth_dr=1.0,
        )
        self.focal = FocalLoss(to_onehot_y=True, use_softmax=True) if focal_weight else None
        self.focal_weight = focal_weight
        self.absent_weight = absent_weight

    def forward(self, scales: Sequence[Tensor], label: Tensor) -> Tensor:
        """Logits ``[b, c, z, y, x]`` at falling resolutions; label ``[b, z, y, x]``."""
        total = label.new_zeros((), dtype=torch.float32)
        weight_sum = 0.0
        for logits, weight in zip(scales, SCALE_WEIGHTS):
            target = shrink_label(label, logits.shape[2:])[:, None]
            logits = logits.float()
            loss = self._dice(logits, target) + F.cross_entropy(logits, target[:, 0].long())
            if self.focal is not None:
                loss = loss + self.focal_weight * self.focal(logits, target)
            total, weight_sum = total + weight * loss, weight_sum + weight
        return total / weight_sum

    def _dice(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the samples: of the classes held, and weighted, of those that are not."""
        losses = self.dice(logits, target).flatten(1)  # (b, c)
        classes = torch.arange(1, losses.shape[1] + 1, device=target.device)
        held = (target.flatten(2) == classes[:, None]).any(-1).float()  # (b, c)
        means = [(losses * share).sum(1) / share.sum(1).clamp(min=1) for share in (held, 1 - held)]
        return (means[0] + self.absent_weight * means[1]).mean()


def shrink_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """A label map ``[b, z, y, x]`` on the ``size`` (z, y, x) of coarser logits.

    Each voxel gets the commonest class of its block; blocks reach outside as background.
    """
    steps = [stride_of(n, m) for n, m in zip(label.shape[1:], size)]
    pad = [m * step - n for n, m, step in zip(label.shape[1:], size, steps)]
    label = F.pad(label, (0, pad[2], 0, pad[1], 0, pad[0]))
    if max(steps) == 1:
        return label
    share = F.avg_pool3d(one_hot(label[:, None].float(), len(CLASSES)), steps)
    return share.argmax(1)
