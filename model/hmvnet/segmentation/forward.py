"""One trained network: torch or ONNX Runtime, one pass or sliding windows."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, combinations, pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmvnet.config import Windows
from hmvnet.exits import is_out_of_memory
from hmvnet.imaging.intensity import pad_with_air
from hmvnet.imaging.network_input import NetworkInput
from hmvnet.segmentation.windows import part_of, slide

Precision = Literal["auto", "32", "bf16"]
FORWARD_VERSION = 5  # to be raised when the same weights give other labels of a volume
STEP = 0.5  # from one window to the next, as a share of it


class Forward(Protocol):
    """One trained network: ``[1, 2, *]`` to probabilities, on the CPU, and encoder maps.

    Shown mirrored along ``axes``, what it says being mirrored back; windows one by one.

    Attributes:
        notes: what a person should know of the last call.
        own: the preprocessing that it brings, where it brings one. It is then given the scan as
            that says, and gives logits.
    """

    notes: tuple[str, ...]
    own: NetworkInput | None

    def __call__(
        self, volume: Tensor, axes: tuple[int, ...] = ()
    ) -> tuple[Tensor, Sequence[Tensor]]: ...


def mirrored_axes(own: NetworkInput | None, flips: str) -> list[tuple[int, ...]]:
    """Along which axes a network is shown ``[1, 2, *]`` mirrored: each tuple is a pass.

    Args:
        own: of nnU-Net's networks, which are mirrored along every set of the axes that they allow.
        flips: ``none``, ``left-right`` or ``all``, every set of the three axes.
    """
    if flips == "none" or (own is None and flips == "left-right"):
        return [] if flips == "none" else [(-1,)]
    axes = [axis + 2 for axis in own.mirror_axes] if own else [2, 3, 4]
    return list(chain.from_iterable(combinations(axes, n + 1) for n in range(len(axes))))


def mirrored(
    network: Callable[[Tensor], Sequence[Tensor]], axes: tuple[int, ...]
) -> Callable[[Tensor], Sequence[Tensor]]:
    """The same function, shown its input mirrored, with what it says mirrored back."""
    if not axes:
        return network
    return lambda x: [values.flip(axes) for values in network(x.flip(axes))]


class TorchForward:
    """A torch network; the whole region at once where it may, else in sliding windows.

    Or both, whose probabilities are averaged: what a norm or a border makes of the region and what
    it makes of a window differ, and so do their errors. Where memory does not suffice, the GPU's or
    the machine's, it goes on in windows, and then on the CPU; the notes of each call say so.

    Args:
        wants_maps: whether the encoder maps are asked for, which windows make costly.
        windows: sliding windows also where the network may see the whole region. With both, the
            encoder maps are those of the one pass.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        patch: tuple[int, int, int] = (96, 96, 96),
        precision: Precision = "auto",
        own: NetworkInput | None = None,
        wants_maps: bool = True,
        windows: Windows = "never",
    ) -> None:
        self.device = device
        self.precision = precision
        self.patch = patch
        self.own = own
        self.wants_maps = wants_maps
        self.windows = windows
        # channels_last_3d halves HM-VNet's time: its attention wants it.
        self.network = channels_last(network).eval()
        self.notes: tuple[str, ...] = ()

    def __call__(
        self, volume: Tensor, axes: tuple[int, ...] = ()
    ) -> tuple[Tensor, Sequence[Tensor]]:
        self.notes = ()
        home = next((p.device for p in self.network.parameters()), self.device)
        try:
            if not self.network.whole_region or self.windows == "always":
                return self._first_that_works(volume, axes, (True,), self.wants_maps)[1:]
            cut, values, maps = self._first_that_works(volume, axes, (False, True), self.wants_maps)
            if self.windows == "both" and not cut:
                values = (values + self._first_that_works(volume, axes, (True,), False)[1]) / 2
            return values, maps
        finally:
            self.network.to(home)  # a training that validates goes on with it

    def _first_that_works(
        self, volume: Tensor, axes: tuple[int, ...], windows: Sequence[bool], wants_maps: bool
    ) -> tuple[bool, Tensor, Sequence[Tensor]]:
        """By these ways, then by them on the CPU: whether in windows, and what came of it."""
        devices = dict.fromkeys([self.device, torch.device("cpu")])
        ways = [_Way(device, cut) for device in devices for cut in windows]
        for way, other in pairwise(ways):
            try:
                return way.windows, *self._run(volume, way, axes, wants_maps)
            except (MemoryError, RuntimeError) as error:
                if not _another_way_may_do(error, way):
                    raise
                short = is_out_of_memory(error)
            # Not in the block above: the error's frames still hold what was allocated there.
            why = "did not fit into memory" if short else "failed on the GPU"
            self.notes += (
                f"{way} {why}: done in {other}, which may differ slightly; to avoid it, free "
                "memory or name another device",
            )
            if short:
                torch.cuda.empty_cache()
        return ways[-1].windows, *self._run(volume, ways[-1], axes, wants_maps)

    def _run(
        self, volume: Tensor, way: _Way, axes: tuple[int, ...], wants_maps: bool
    ) -> tuple[Tensor, Sequence[Tensor]]:
        outputs = mirrored(partial(self._outputs, wants_maps), axes)
        self.network.to(way.device)
        x = volume.to(way.device)
        if way.windows:  # in one pass the network lays it out itself
            x = x.contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode(), _autocast(way.device, self.precision, self.own):
            if way.windows:
                window = whole_windows(self.patch, getattr(self.network, "stride", 1), x.shape[2:])
                logits, features = in_windows(x, outputs, window, self.own)
            else:
                logits, *features = outputs(x)
            logits = logits.float()
            if self.own is None:
                if _share_memory(logits, x, *features):  # a network may hand on what it was given
                    logits = logits.clone()
                logits = softmax_in_place(logits)
            return logits.cpu(), features

    def _outputs(self, wants_maps: bool, x: Tensor) -> tuple[Tensor, ...]:
        """Logits, then the encoder maps."""
        logits, _, features = self.network(x)
        return (logits, *(features if wants_maps else ()))


def softmax_in_place(logits: Tensor) -> Tensor:
    """Over the classes of ``[1, c, z, y, x]``, some planes at a time: they stay in the cache."""
    for planes in logits.split(8, 2):
        planes.copy_(torch.softmax(planes, 1))
    return logits


def _share_memory(array: Tensor, *others: Tensor) -> bool:
    return array.untyped_storage().data_ptr() in {a.untyped_storage().data_ptr() for a in others}


def channels_last(network: nn.Module) -> nn.Module:
    """The same network, its weights in channels_last_3d."""
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def whole_windows(patch: Sequence[int], stride: int, size: Sequence[int]) -> tuple[int, ...]:
    """The patch's size, up to multiples of a network's stride: its maps then fit together.

    But no longer than the volume, where the patch is not: one window's maps need fit no other's,
    and air behind the volume is nothing that a training's patches hold.
    """
    whole = (math.ceil(p / stride) * stride for p in patch)
    return tuple(max(p, min(w, n)) for p, w, n in zip(patch, whole, size, strict=True))


def in_windows(
    x: Tensor,
    network: Callable[[Tensor], Sequence[Tensor]],
    patch: Sequence[int],
    own: NetworkInput | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Logits and encoder maps from sliding windows, of the same sizes as of one pass.

    Maps begin where the volume does, and may end behind it: their strides are those of
    ``hmvnet.networks.output.stride_of``.

    A volume smaller than a window is padded: around it with 0 where the network brings its own
    preprocessing, as nnU-Net does; else with air behind it.

    Args:
        network: a window to logits and then encoder maps.
        patch: the window.
    """
    size = x.shape[2:]
    padded = [max(pair) for pair in zip(size, patch, strict=True)]
    more = [p - n for p, n in zip(padded, size, strict=True)]
    if own is None:
        before, full_x = [0, 0, 0], pad_with_air(x, more)
    else:
        before = [n // 2 for n in more]
        sides = [(first, n - first) for first, n in zip(before, more)]
        full_x = F.pad(x, [n for pair in reversed(sides) for n in pair])
    logits, *maps = (
        part_of(a, before, size, padded)
        for a in slide(full_x, patch, own.step if own else STEP, network)
    )
    return logits, maps


@dataclass(frozen=True)
class _Way:
    """How a network runs: where, and in one pass or in windows."""

    device: torch.device
    windows: bool

    def __str__(self) -> str:
        return f"{'sliding windows' if self.windows else 'one pass'} on {self.device}"


def _another_way_may_do(error: Exception, way: _Way) -> bool:
    """Whether memory was short, or a GPU is there that cannot be used."""
    on_gpu = way.device.type == "cuda"
    return is_out_of_memory(error) or (on_gpu and bool(re.search("CUDA|cuDNN", str(error))))


class LoadedForEachPass:
    """A network that is in memory only while it works, of an ensemble too large to be there whole.

    Args:
        load: gives the network, ready to run.
    """

    def __init__(self, load: Callable[[], Forward], own: NetworkInput | None) -> None:
        self.load = load
        self.own = own
        self.notes: tuple[str, ...] = ()

    def __call__(
        self, volume: Tensor, axes: tuple[int, ...] = ()
    ) -> tuple[Tensor, Sequence[Tensor]]:
        member = self.load()
        found = member(volume, axes)
        self.notes = member.notes
        return found


def _autocast(device: torch.device, precision: Precision, own: NetworkInput | None = None):
    """``auto``: fp16 on GPUs (a T4 has no bf16), bf16 on CPUs that multiply it, else full.

    The norms keep activations far from fp16's limit (at most 253 on a phantom). In bf16
    probabilities differ in the third digit; networks that bring their own preprocessing are to
    give what their own program gives, and stay at full precision on CPUs.
    """
    if wants_bf16(device, precision, own):
        return torch.autocast(device.type, torch.bfloat16)
    if precision == "auto" and device.type == "cuda":
        return torch.autocast("cuda", torch.float16)
    return contextlib.nullcontext()


def wants_bf16(device: torch.device, precision: Precision, own: NetworkInput | None) -> bool:
    """Whether a network computes in bf16; see ``_autocast``."""
    if precision == "auto":
        return device.type == "cpu" and not own and has_fast_bf16()
    return precision == "bf16"


@cache
def has_fast_bf16() -> bool:
    """Whether this machine's CPU multiplies bf16 itself (AVX512-BF16); others would be slower."""
    tell = getattr(torch.cpu, "get_capabilities", None)  # torch 2.10 has none
    return bool(tell and tell().get("avx512_bf16", False))
