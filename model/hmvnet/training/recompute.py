"""Activations computed a second time on the way back, in place of being kept.

Chen et al., Training deep nets with sublinear memory cost, 2016, arXiv:1604.06174; by torch's
``checkpoint``. A stage's inner activations are freed after it; its input stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(network: nn.Module, name: str) -> None:
    """Let a network's stages do so from now on, where gradients are asked for.

    Args:
        name: the network's, for the message.

    Raises:
        ValueError: it does not say which its stages are (``run_stage``).
    """
    if not hasattr(network, "run_stage"):
        raise ValueError(f"checkpoint_activations: network '{name}' cannot, only hmvnet can")
    setattr(network, "run_stage", run_again)  # noqa: B010  a Module's attributes are not typed


def run_again(stage: Callable[..., Any], *inputs: Any) -> Any:
    """``stage(*inputs)``, computed again for the gradients; norms take its statistics once."""
    if not torch.is_grad_enabled():
        return stage(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_statistics(stage)

    return checkpoint(
        stage, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


@contextmanager
def _without_statistics(stage: Callable[..., Any]) -> Iterator[None]:
    """BatchNorms do not count what they see; torch wants them to do all else as the first time."""
    modules = stage.modules() if isinstance(stage, nn.Module) else ()
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count
