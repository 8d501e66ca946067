"""Running a bundle's segmentation networks together, and averaging what they say."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hmvnet.bundle import Bundle, SegmentationPart, WeightsError
from hmvnet.config import InferenceSettings, Windows
from hmvnet.exits import RefusedError, is_out_of_memory, one_line
from hmvnet.imaging.network_input import NetworkInput
from hmvnet.memory import available_memory
from hmvnet.networks.registry import build_network, sees_region
from hmvnet.segmentation.forward import (
    Forward,
    LoadedForEachPass,
    TorchForward,
    mirrored_axes,
)
from hmvnet.segmentation.graphs import ENGINES, load_graph
from hmvnet.segmentation.scan import Scan, plain_maps

MEMORY_SHARE = 0.25  # of what is free, that all networks of an ensemble may have at once


def load_network(bundle: Bundle, file: str) -> nn.Module:
    """A bundle's segmentation network with the weights of one of its files.

    Raises:
        WeightsError: they are not of this network, or of an earlier version of it.
    """
    part = bundle.manifest.segmentation.part_of(file)
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
        disagreement: of the passes, folds' and flips' (``_Sum.disagreement``); None where none of
            them has another to agree with.
    """

    probabilities: np.ndarray
    features: tuple[np.ndarray, ...] = ()
    notes: tuple[str, ...] = ()
    disagreement: float | None = None


@dataclass
class Ensemble:
    """Averages what several networks say, within a time budget.

    Networks that see the working volume are averaged as probabilities; those that share a
    preprocessing of their own as logits on their own lattice, as nnU-Net does. Where there are
    both, their probabilities are averaged, by the number of networks that ran.

    Attributes:
        members: one forward function a fold.
        flips: also run each on mirrored volumes (``mirrored_axes``).
        time_budget_s: a pass that would, at the pace of the slowest so far, end later is left out;
            the first always runs.
        notes: what a person should know of how it was loaded; said of every volume.
    """

    members: Sequence[Forward]
    flips: Literal["none", "left-right", "all"] = "none"
    time_budget_s: float = 240.0
    notes: tuple[str, ...] = ()
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @property
    def on_ct(self) -> bool:
        """Whether any of the networks sees the whole CT on its own grid."""
        return any(m.own is not None and m.own.field == "ct" for m in self.members)

    def __call__(self, scan: np.ndarray | Scan) -> NetworkOutput:
        """Averaged probabilities.

        Args:
            scan: a case; or ``[2, z, y, x]`` float32, scaled, for networks that see nothing else.
        """
        passes: list[tuple[tuple[int, ...], Forward]] = [((), m) for m in self.members]
        # Every network once before any a second time: the budget may end it.
        turns = zip_longest(*(mirrored_axes(m.own, self.flips) for m in self.members))
        passes += [(a, m) for turn in turns for a, m in zip(turn, self.members) if a]
        start, slowest, done = self.clock(), 0.0, 0
        sums: dict[NetworkInput | None, _Sum] = {}
        features: tuple[np.ndarray, ...] = ()
        said: list[str] = []
        for axes, member in passes:
            began = self.clock()
            if done and began - start + slowest > self.time_budget_s:
                break
            own = member.own
            seen = scan.seen_by(own) if isinstance(scan, Scan) else scan
            x = torch.from_numpy(np.ascontiguousarray(seen, np.float32))[None]
            values, maps = member(x, axes)
            said += member.notes
            if not done and len(self.members) == 1:
                features = scan.maps(own, maps) if isinstance(scan, Scan) else plain_maps(maps)
            if own not in sums:
                sums[own] = _Sum(len(passes) > 1, own.heads if own else ())
            sums[own].add(values[0], member)
            done += 1
            slowest = max(slowest, self.clock() - began)
        mean = _mean(sums, scan)
        if not np.isfinite(mean).all():
            raise RuntimeError("the network gave NaN or infinite probabilities")
        left_out = len(passes) - done
        budget = f", {left_out} left out by the {self.time_budget_s:g} s budget" if left_out else ""
        ran = f"{done} of {len(passes)} network passes{budget}"
        apart = [s.disagreement for s in sums.values() if s.passes > 1]
        return NetworkOutput(
            mean,
            features,
            (ran, *dict.fromkeys(said), *self.notes),
            float(np.mean(apart)) if apart else None,
        )


@dataclass
class _Sum:
    """Of the passes of networks that see the same.

    Attributes:
        keeps: whether to remember each pass's classes, for ``disagreement``.
        heads: which class each of the networks' outputs is; none: their number.
    """

    keeps: bool = False
    heads: tuple[int, ...] = ()
    total: Tensor | None = None
    passes: int = 0
    members: set[int] = field(default_factory=set)
    classes: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor, member: Forward) -> None:
        self.total = values if self.total is None else self.total + values
        self.passes += 1
        self.members.add(id(member))
        if self.keeps:
            self.classes.append(self._likeliest(values))

    @property
    def disagreement(self) -> float:
        """1 - Dice of each pass's tumour with the mean's, averaged; a voxel counts with its class.

        0 where all are alike, 1 where none of the tumour voxels is.
        """
        mean = self._likeliest(self.mean)
        tumour, apart = int((mean > 0).sum()), []
        for one in self.classes:
            size = int((one > 0).sum()) + tumour
            alike = int(((one == mean) & (one > 0)).sum())
            apart.append(1 - 2 * alike / size if size else 0.0)
        return float(np.mean(apart))

    def _likeliest(self, values: Tensor) -> Tensor:
        """The class of each voxel, uint8."""
        heads = torch.tensor(self.heads or range(len(values)), dtype=torch.uint8)
        return heads[values.argmax(0)]

    @property
    def mean(self) -> Tensor:
        assert self.total is not None
        return self.total if self.passes == 1 else self.total / self.passes


def _mean(sums: dict[NetworkInput | None, _Sum], scan: np.ndarray | Scan) -> np.ndarray:
    """Probabilities ``[3, z, y, x]``, each network weighing the same."""
    means = [
        scan.probabilities(own, s.mean) if isinstance(scan, Scan) else s.mean.numpy()
        for own, s in sums.items()
    ]
    if len(means) == 1:
        return means[0]
    weights = [len(s.members) for s in sums.values()]
    return np.average(means, axis=0, weights=weights).astype(np.float32)


def load_ensemble(bundle: Bundle, device: torch.device, settings: InferenceSettings) -> Ensemble:
    """The bundle's segmentation networks, ready to run on a device.

    With another back end a fold whose ONNX file is not there, or cannot run on the device, falls
    back to torch; the ensemble's notes say so.
    """
    files = bundle.manifest.segmentation.all_files
    members: list[Forward] = []
    notes = []
    one_by_one = sum(map(bundle.size, files)) > MEMORY_SHARE * _free_bytes(device)
    for file in files:
        part = bundle.manifest.segmentation.part_of(file)
        own = part.input
        windows = _windows(part, settings)
        if settings.backend != "torch":
            try:
                in_windows = own is not None or not sees_region(part.network, part.options)
                if not in_windows and windows != "never":
                    raise RuntimeError("its graph is of one pass")
                graph = bundle.read(Path(file).stem + ".onnx")
                how = (settings.backend, graph, device, settings.precision, own)
                otherwise = partial(_load_member, bundle, file, device, settings)
                members.append(load_graph(*how, in_windows, otherwise))
                continue
            except (ImportError, RuntimeError, WeightsError) as error:
                notes.append(
                    f"{file}: torch instead of {ENGINES[settings.backend]} ({one_line(str(error))})"
                )
        load = partial(_load_member, bundle, file, device, settings)
        if one_by_one:
            load()  # damage is found now
            members.append(LoadedForEachPass(load, own))
        else:
            members.append(load())
    if one_by_one:
        notes.append("networks are loaded one at a time: memory would not hold all of them")
    return Ensemble(members, settings.flips, settings.time_budget_s, tuple(notes))


def _load_member(
    bundle: Bundle, file: str, device: torch.device, settings: InferenceSettings
) -> TorchForward:
    part = bundle.manifest.segmentation.part_of(file)
    return TorchForward(
        load_network(bundle, file),
        device,
        part.patch_size,
        settings.precision,
        part.input,
        wants_maps=len(bundle.manifest.segmentation.all_files) == 1,
        windows=_windows(part, settings),
    )


def _windows(part: SegmentationPart, settings: InferenceSettings) -> Windows:
    return part.windows if settings.windows == "bundle" else settings.windows


def _free_bytes(device: torch.device) -> int:
    """Of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(available_memory())
