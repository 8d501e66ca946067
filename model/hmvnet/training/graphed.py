"""A step's forward and backward pass as two CUDA graphs, launched as one call each.

HM-VNet is some thousand small kernels: a step of two patches of 96 voxels keeps an H100 busy for
16 ms, and Python takes 74 ms to launch it kernel by kernel. A graph holds the kernels with the
addresses they work on, and is launched at once (``torch.cuda.make_graphed_callables``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hmvnet.config import TrainingSettings
from hmvnet.exits import is_out_of_memory, note
from hmvnet.training.losses import SegmentationLoss

HALVES = {"bf16-mixed": torch.bfloat16}


def can_be_graphed(fabric: Fabric, settings: TrainingSettings) -> bool:
    """Whether a training's steps may be recorded.

    Not where a scaler has to look at gradients (fp16), processes exchange them, they are added up
    over batches (a recorded pass writes them to one place), or something else changes the network.
    """
    precision = str(fabric.strategy.precision.precision)
    return (
        settings.cuda_graph
        and fabric.device.type == "cuda"
        and fabric.world_size == 1
        and precision in (*HALVES, "32-true")
        and settings.accumulate == 1
        and settings.compile == "none"
        and not settings.checkpoint_activations
    )


class Judged(nn.Module):
    """A network and its loss: images and labels to the loss of all scales, float32."""

    def __init__(self, network: nn.Module, loss: SegmentationLoss, reduced: torch.dtype | None):
        super().__init__()
        self.network = network
        self.loss = loss
        self.reduced = reduced

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images ``[b, 2, z, y, x]``, labels ``[b, z, y, x]``."""
        kind = images.device.type
        # Casts are not kept from one call to the next: a graph would keep those of the first.
        with torch.autocast(kind, self.reduced, enabled=bool(self.reduced), cache_enabled=False):
            out = self.network(images, scales=True)
        return self.loss([scale.float() for scale in (out.logits, *out.scales)], labels)


class GraphedLoss:
    """The loss of a batch, whose gradients ``backward`` gives; recorded at the first call.

    A record holds what a norm did when it was made, with statistics of the batch or kept ones:
    ``forget`` has to be called where that changes. Where nothing can be recorded (a network that
    waits for the GPU in its forward pass), that is noted once, and kernels are launched one by one.
    """

    def __init__(self, network: nn.Module, loss: SegmentationLoss, precision: str) -> None:
        self.judged = Judged(network, loss, HALVES.get(precision))
        self._recorded: Any = None
        self._refused = False

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """As ``Judged``; the batch has the shape of the first one."""
        if self._recorded is None and not self._refused:
            self._record(images, labels)
        return (self._recorded or self.judged)(images, labels)

    def forget(self) -> None:
        """Record anew at the next call."""
        self._recorded = None

    def _record(self, images: Tensor, labels: Tensor) -> None:
        network = self.judged.network
        kept = [buffer.clone() for buffer in network.buffers()]
        random = torch.cuda.get_rng_state(images.device)
        graph: Any = torch.autograd.graph
        if hasattr(graph, "set_warn_on_accumulate_grad_stream_mismatch"):  # recording is on another
            graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        # A module of its own, since what is recorded takes the place of its forward.
        judged = Judged(network, self.judged.loss, self.judged.reduced)
        sample = (images.clone(), labels.clone())
        # Sizes are the same at every step: cudnn may try what is fastest for them.
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                self._recorded = torch.cuda.make_graphed_callables(
                    judged, sample, allow_unused_input=True
                )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._refused = True
            torch.cuda.synchronize(images.device)
            first = next(iter(str(error).splitlines()), "")
            note(f"the network's kernels are launched one by one, no CUDA graph: {first}")
        finally:
            network.zero_grad(set_to_none=True)
            torch.cuda.set_rng_state(random, images.device)
            _restore(list(network.buffers()), kept)


def _restore(buffers: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Norms have seen the first batch several times while it was recorded."""
    with torch.no_grad():
        for buffer, value in zip(buffers, kept):
            buffer.copy_(value)
