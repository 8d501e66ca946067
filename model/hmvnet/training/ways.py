"""One pass over the region, sliding windows of the training patch, or both: what suits a network.

What a network learnt on patches may not hold for a region: the statistics of its norms are others
there. So each is tried on validation patients, and a bundle says which is to be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import nn

from hmvnet.config import Settings, Windows
from hmvnet.files import digest
from hmvnet.state import read_state, write_state
from hmvnet.training.cache import Prepared
from hmvnet.training.engine import work_clock
from hmvnet.training.segmentation import evaluate, figures_of, mean_dice

MOST_PATIENTS = 20  # that are looked at: windows take many times as long
GAIN = 0.005  # of Dice, that what costs more has to be worth
WAYS = "ways.json"
ALL: tuple[Windows, ...] = get_args(Windows)  # cheapest first


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
        """Of one fold's network; None where it sees windows only, or nobody is left to try it on.

        Args:
            key: of the training; what was measured is kept under ``folder``.
        """
        some = validation[:MOST_PATIENTS]
        if not some or not network.whole_region:
            return None
        rules = settings.postprocessing.model_dump(mode="json")
        key = digest(key, rules, [case.patient_id for case in some], ALL)
        if stored := read_state(folder / WAYS, key):
            return cls(**stored)
        dice, seconds, clock = {}, {}, work_clock(device)
        for windows in ALL:
            began = clock()
            found = figures_of(evaluate(network, some, settings, device, windows=windows))
            dice[windows] = mean_dice(found)
            seconds[windows] = (clock() - began) / len(some)
        ways = cls(len(some), dice, seconds)
        write_state(folder / WAYS, key, asdict(ways))
        return ways

    def figures(self) -> dict[str, float]:
        """Without the seconds, which differ from call to call."""
        return {
            "patients": self.patients,
            "one_pass": self.dice["never"],
            "windows": self.dice["always"],
            "both": self.dice["both"],
        }


def wanted(folds: Sequence[Ways]) -> Windows:
    """What is worth its seconds, over the patients of all folds."""
    best: Windows = "never"
    for other in ALL if folds else ():
        gains = [one.dice[other] - one.dice[best] for one in folds]
        if np.average(gains, weights=[one.patients for one in folds]) > GAIN:
            best = other
    return best
