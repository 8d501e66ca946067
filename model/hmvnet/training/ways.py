"""One pass over the region, sliding windows of the training patch, or both: what suits a network.

What a network learnt on patches may not hold for a region: the statistics of its norms are others
there. So each is tried on validation patients, and a bundle says which is to be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hmvnet.config import Settings, Windows
from hmvnet.files import digest
from hmvnet.progress import print_lines
from hmvnet.segmentation.ensemble import Ensemble
from hmvnet.segmentation.forward import Forward, TorchForward
from hmvnet.segmentation.metrics import CaseScore
from hmvnet.state import read_state, write_state
from hmvnet.training.cache import Prepared
from hmvnet.training.engine import work_clock
from hmvnet.training.segmentation import figures_of, mean_dice, score, score_key

MOST_PATIENTS = 20  # that are looked at: windows take many times as long
GAIN = 0.005  # of Dice, that what costs more has to be worth
WAYS = "ways.json"
ALL: tuple[Windows, ...] = get_args(Windows)  # cheapest first
NAMES: dict[Windows, str] = {"never": "one_pass", "always": "windows", "both": "both"}
# Passes whose mean a way is.
PARTS: dict[Windows, tuple[Windows, ...]] = {
    "never": ("never",),
    "always": ("always",),
    "both": ("never", "always"),
}


@dataclass(frozen=True)
class Ways:
    """Dice and seconds a patient by ``inference.windows``.

    Dice is the mean of GTVp's mean and GTVn's aggregated Dice.
    """

    patients: int
    dice: Mapping[Windows, float]
    seconds: Mapping[Windows, float]

    @classmethod
    def of(
        cls,
        network: nn.Module,
        validation: Sequence[Prepared],
        settings: Settings,
        device: torch.device,
        key: str,
        folder: Path,
    ) -> Ways | None:
        """Of one fold's network; None where it sees windows only, nobody is left to try it on, or
        memory does not suffice for one of the ways.

        Args:
            key: of the training; what was measured is kept under ``folder``.
        """
        some = validation[:MOST_PATIENTS]
        if not some or not network.whole_region:
            return None
        key = digest(score_key(key, settings, some), ALL)
        if stored := read_state(folder / WAYS, key):
            return cls(**stored)
        patch = settings.training.patch_size
        forwards = {
            w: TorchForward(network, device, patch, wants_maps=False, windows=w)
            for w in PARTS["both"]
        }
        each = EachWay(forwards, device)
        scores: dict[Windows, list[CaseScore]] = {windows: [] for windows in ALL}
        seconds = dict.fromkeys(ALL, 0.0)
        for case in some:
            for windows in each.of_next_patient(ALL):
                scores[windows].append(score(Ensemble([each]), case, settings))
                if each.notes:  # it would be said to be of a way that it is not of
                    print_lines([f"note: ways of inference not compared: {each.notes[0]}"])
                    return None
                seconds[windows] += each.seconds / len(some)
        dice = {windows: mean_dice(figures_of(found)) for windows, found in scores.items()}
        ways = cls(len(some), dice, seconds)
        write_state(folder / WAYS, key, asdict(ways))
        return ways

    def figures(self) -> dict[str, float]:
        """Without the seconds, which differ from call to call."""
        return {"patients": self.patients, **{NAMES[w]: self.dice[w] for w in ALL}}

    @staticmethod
    def is_whole(figures: Mapping[str, float]) -> bool:
        """Whether all ways of now were tried, and not only those of an earlier version."""
        return set(NAMES.values()) <= set(figures)

    @classmethod
    def read(cls, figures: Mapping[str, float]) -> Ways:
        """From ``figures``."""
        return cls(int(figures["patients"]), {w: figures[NAMES[w]] for w in ALL}, {})


class EachWay:
    """A network run in one pass, in windows and as both, each computed once of a volume.

    Args:
        forwards: the network in one pass, in windows, or in either, by ``inference.windows``.
    """

    def __init__(self, forwards: Mapping[Windows, Forward], device: torch.device) -> None:
        self.forwards = forwards
        self.own = next(iter(forwards.values())).own
        self.notes: tuple[str, ...] = ()
        self._clock = work_clock(device)
        self._way: Windows = "never"
        self._found: dict[Any, tuple[Tensor, Sequence[Tensor], tuple[str, ...], float]] = {}

    def of_next_patient(self, ways: Iterable[Windows]) -> Iterator[Windows]:
        """Each way in turn, by which it is then called; of the patient before all is forgotten."""
        self._found.clear()
        for self._way in ways:
            yield self._way

    @property
    def seconds(self) -> float:
        """That the present way's passes took: of the CPU, or on a GPU of the wall."""
        parts = PARTS[self._way]
        return sum(found[-1] for (part, _), found in self._found.items() if part in parts)

    def __call__(
        self, volume: Tensor, axes: tuple[int, ...] = ()
    ) -> tuple[Tensor, Sequence[Tensor]]:
        passes = [self._once(part, volume, axes) for part in PARTS[self._way]]
        self.notes = sum((notes for _, _, notes, _ in passes), ())
        return torch.stack([values for values, *_ in passes]).mean(0), passes[0][1]

    def _once(self, part: Windows, volume: Tensor, axes: tuple[int, ...]):
        if (part, axes) not in self._found:
            began, forward = self._clock(), self.forwards[part]
            values, maps = forward(volume, axes)
            self._found[part, axes] = values, maps, forward.notes, self._clock() - began
        return self._found[part, axes]


def wanted(folds: Sequence[Ways]) -> Windows:
    """What is worth its seconds, over the patients of all folds."""
    best: Windows = "never"
    for other in ALL if folds else ():
        gains = [one.dice[other] - one.dice[best] for one in folds]
        if np.average(gains, weights=[one.patients for one in folds]) > GAIN:
            best = other
    return best
