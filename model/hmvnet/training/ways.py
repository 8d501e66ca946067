"""One pass over the region, or sliding windows of the training patch: which suits a network.

What a network learnt on patches may not hold for a region: the statistics of its norms are others
there. So both are tried on validation patients, and a bundle says which is to be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hmvnet.config import Settings
from hmvnet.files import digest
from hmvnet.state import read_state, write_state
from hmvnet.training.cache import Prepared
from hmvnet.training.engine import work_clock
from hmvnet.training.segmentation import evaluate, figures_of, mean_dice

MOST_PATIENTS = 20  # that are looked at: windows take many times as long
GAIN = 0.005  # of Dice, that windows have to be worth
WAYS = "ways.json"


@dataclass(frozen=True)
class Ways:
    """Dice in one pass and in windows, and the seconds a patient of both.

    Dice is the mean of GTVp's mean and GTVn's aggregated Dice.
    """

    patients: int
    one_pass: float
    windows: float
    seconds: tuple[float, float]

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
        key = digest(key, rules, [case.patient_id for case in some])
        if stored := read_state(folder / WAYS, key):
            return cls(**{**stored, "seconds": tuple(stored["seconds"])})
        dice, seconds, clock = [], [], work_clock(device)
        for windows in (False, True):
            began = clock()
            found = figures_of(evaluate(network, some, settings, device, windows=windows))
            dice.append(mean_dice(found))
            seconds.append((clock() - began) / len(some))
        ways = cls(len(some), dice[0], dice[1], (seconds[0], seconds[1]))
        write_state(folder / WAYS, key, asdict(ways))
        return ways

    def figures(self) -> dict[str, float]:
        """Without the seconds, which differ from call to call."""
        return {"patients": self.patients, "one_pass": self.one_pass, "windows": self.windows}


def wants_windows(folds: Sequence[Ways]) -> bool:
    """Whether windows are worth their seconds, over the patients of all folds."""
    if not folds:
        return False
    gain = np.average([w.windows - w.one_pass for w in folds], weights=[w.patients for w in folds])
    return bool(gain > GAIN)
