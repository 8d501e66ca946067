"""Running segmentation networks: torch or ONNX Runtime, one pass or sliding windows."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from hmvnet.bundle import Bundle, WeightsError
from hmvnet.config import InferenceSettings
from hmvnet.exits import RefusedError, is_out_of_memory
from hmvnet.imaging.intensity import pad_with_air
from hmvnet.networks.registry import build_network

Precision = Literal["auto", "32", "bf16"]


def load_network(bundle: Bundle, file: str) -> nn.Module:
    """A bundle's segmentation network with the weights of one of its files.

    Raises:
        WeightsError: they are not of this network, or of an earlier version of it.
    """
    part = bundle.manifest.segmentation
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in part.options.items()}
    network = build_network(part.network, options)
    try:
        network.load_state_dict(bundle.tensors(file))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise WeightsError(
            f"bundle '{bundle.manifest.name}': the weights in {file} are not those of the network "
            f"'{part.network}' of this version; train them again"
        ) from error
    return network


def channels_last(network: nn.Module) -> nn.Module:
    """The same network, its weights in channels_last_3d."""
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is the first GPU, else the CPU.

    Raises:
        RefusedError: no such device, or a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RefusedError(f"device '{name}': expected auto, cpu, cuda or cuda:<number>")
    device = torch.device(name)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        visible = f"{found} are" if found else "no CUDA GPU is"
        raise RefusedError(f"device '{name}' asked for, but {visible} visible")
    return device


@dataclass(frozen=True)
class NetworkOutput:
    """What the segmentation ensemble says of one volume.

    Attributes:
        probabilities: float32 ``[3, z, y, x]``, averaged over the members that ran.
        features: the encoder maps, each ``[c, z, y, x]``; only where there is one member (the
            channels of two trainings have nothing in common) and its network gives them.
        notes: what ran and what the time budget left out, then what its members and the ensemble
            say besides.
    """

    probabilities: np.ndarray
    features: tuple[np.ndarray, ...] = ()
    notes: tuple[str, ...] = ()


class Forward(Protocol):
    """One trained network: ``[1, 2, z, y, x]`` to probabilities, on the CPU, and encoder maps.

    Attributes:
        notes: what a person should know of the last call.
    """

    notes: tuple[str, ...]

    def __call__(self, volume: Tensor) -> tuple[Tensor, Sequence[Tensor]]: ...


class TorchForward:
    """A torch network; the whole region at once where it may, else in sliding windows.

    Where memory does not suffice, the GPU's or the machine's, it goes on in windows, and then on
    the CPU; the notes of each call say so.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        patch: tuple[int, int, int] = (96, 96, 96),
        precision: Precision = "auto",
    ) -> None:
        self.device = device
        self.precision = precision
        self.patch = patch
        # channels_last_3d halves HM-VNet's time: its attention wants it.
        self.network = channels_last(network).eval()
        self.notes: tuple[str, ...] = ()

    def __call__(self, volume: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        self.notes = ()
        home = next((p.device for p in self.network.parameters()), self.device)
        ways = self._ways()
        try:
            for way, other in pairwise(ways):
                try:
                    return self._run(volume, way)
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
            return self._run(volume, ways[-1])
        finally:
            self.network.to(home)  # a training that validates goes on with it

    def _ways(self) -> list[_Way]:
        """In the order in which they are tried."""
        devices = dict.fromkeys([self.device, torch.device("cpu")])
        windows = (False, True) if self.network.whole_region else (True,)
        return [_Way(device, cut) for device in devices for cut in windows]

    def _run(self, volume: Tensor, way: _Way) -> tuple[Tensor, Sequence[Tensor]]:
        self.network.to(way.device)
        x = volume.to(way.device).contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode(), _autocast(way.device, self.precision):
            if way.windows:
                logits, features = self._windows(x)
            else:
                logits, _, features = self.network(x)
            return torch.softmax(logits.float(), 1).cpu(), features

    def _windows(self, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Logits and encoder maps from sliding windows, of the same sizes as of one pass.

        Volume and windows are multiples of the stride to which the network itself would pad. A
        volume smaller than a window is padded with air first: the inferer would pad with zeros,
        which in the PET channel are a SUV of 10.
        """
        stride = getattr(self.network, "stride", 1)
        size = x.shape[2:]
        full, window = ([math.ceil(n / stride) * stride for n in ns] for ns in (size, self.patch))
        padded = [max(pair) for pair in zip(full, window, strict=True)]
        sliding = SlidingWindowInferer(window, overlap=0.5, mode="gaussian", sw_batch_size=1)

        def outputs(patch: Tensor) -> tuple[Tensor, ...]:
            logits, _, features = self.network(patch)
            return (logits, *features)

        air = [p - n for p, n in zip(padded, size, strict=True)]
        found = sliding(pad_with_air(x, air), outputs)
        logits, *maps = [found] if isinstance(found, Tensor) else found
        ends = [[m * n // p for m, n, p in zip(a.shape[2:], full, padded)] for a in maps]
        return _cut(logits, size), [_cut(a, end) for a, end in zip(maps, ends)]


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


def _cut(array: Tensor, size: Sequence[int]) -> Tensor:
    """The first ``size`` voxels ``[b, c, z, y, x]`` on each axis."""
    z, y, x = size
    return array[:, :, :z, :y, :x]


class OnnxForward:
    """An ONNX graph of fixed input size, in ONNX Runtime.

    Raises:
        RuntimeError: a GPU was asked for and ONNX Runtime would quietly use the CPU.
    """

    def __init__(self, model: bytes, device: torch.device) -> None:
        # After torch: its CUDA libraries are those that ONNX Runtime finds.
        import onnxruntime

        wanted = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        self.session = onnxruntime.InferenceSession(
            model, providers=list(dict.fromkeys([wanted, "CPUExecutionProvider"]))
        )
        found = self.session.get_providers()
        if wanted not in found:
            raise RuntimeError(f"ONNX Runtime gave {', '.join(found)}, but {wanted} was asked for")
        self.input = self.session.get_inputs()[0]
        self.notes: tuple[str, ...] = ()

    def __call__(self, volume: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        if list(volume.shape) != list(self.input.shape):
            raise RuntimeError(
                f"the ONNX graph takes {self.input.shape}, the volume is {list(volume.shape)}: "
                "export the bundle again for this size"
            )
        logits, *maps = self.session.run(None, {self.input.name: volume.numpy()})
        return torch.softmax(torch.from_numpy(logits), 1), [torch.from_numpy(m) for m in maps]


def _autocast(device: torch.device, precision: Precision):
    """``auto``: fp16 on GPUs (a T4 has no bf16), full precision on CPUs.

    The norms keep activations far from fp16's limit (at most 253 on a phantom). ``bf16`` halves
    the time of CPUs that have it; probabilities then differ in the third digit.
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    if precision == "auto" and device.type == "cuda":
        return torch.autocast("cuda", torch.float16)
    return contextlib.nullcontext()


@dataclass
class Ensemble:
    """Averages the probabilities of several networks, within a time budget.

    Attributes:
        members: one forward function a fold.
        flips: also run each on the left-right mirrored volume.
        time_budget_s: a pass that would, at the pace of the slowest so far, end later is left out;
            the first always runs.
        notes: what a person should know of how it was loaded; said of every volume.
    """

    members: Sequence[Forward]
    flips: bool = False
    time_budget_s: float = 240.0
    notes: tuple[str, ...] = ()
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def __call__(self, volume: np.ndarray) -> NetworkOutput:
        """``[2, z, y, x]`` float32 to averaged probabilities."""
        x = torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None]
        passes = [
            (member, mirrored)
            for mirrored in ((False, True) if self.flips else (False,))
            for member in self.members
        ]
        start, slowest, done = self.clock(), 0.0, 0
        total: Tensor | None = None
        features: tuple[np.ndarray, ...] = ()
        said: list[str] = []
        for member, mirrored in passes:
            began = self.clock()
            if done and began - start + slowest > self.time_budget_s:
                break
            probabilities, maps = member(x.flip(-1) if mirrored else x)
            said += member.notes
            if mirrored:
                probabilities = probabilities.flip(-1)
            if total is None:
                total = probabilities
                if len(self.members) == 1:
                    features = tuple(m[0].float().cpu().numpy() for m in maps)
            else:
                total = total + probabilities
            done += 1
            slowest = max(slowest, self.clock() - began)
        assert total is not None, "an ensemble has at least one member"
        mean = (total / done)[0].numpy()
        if not np.isfinite(mean).all():
            raise RuntimeError("the network gave NaN or infinite probabilities")
        left_out = len(passes) - done
        budget = f", {left_out} left out by the {self.time_budget_s:g} s budget" if left_out else ""
        ran = f"{done} of {len(passes)} network passes{budget}"
        return NetworkOutput(mean, features, (ran, *dict.fromkeys(said), *self.notes))


def load_ensemble(bundle: Bundle, device: torch.device, settings: InferenceSettings) -> Ensemble:
    """The bundle's segmentation networks, ready to run on a device.

    With the ``onnx`` back end a fold whose ONNX file is not there, or cannot run on the device,
    falls back to torch; the ensemble's notes say so.
    """
    part = bundle.manifest.segmentation
    members: list[Forward] = []
    notes = []
    for file in part.files:
        if settings.backend == "onnx":
            try:
                members.append(OnnxForward(bundle.read(Path(file).stem + ".onnx"), device))
                continue
            except (ImportError, RuntimeError, WeightsError) as error:
                notes.append(f"{file}: torch instead of ONNX Runtime ({error})")
        network = load_network(bundle, file)
        members.append(TorchForward(network, device, part.patch_size, settings.precision))
    return Ensemble(members, settings.flips, settings.time_budget_s, tuple(notes))
