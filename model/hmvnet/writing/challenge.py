"""The challenge's output folder, as its two years want it: which files, where, and which sign."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import SimpleITK as sitk

from hmvnet.case import CaseError
from hmvnet.files import lies_inside, make_folder, write_text
from hmvnet.reading.images import write_image

if TYPE_CHECKING:  # who answers before the networks are loaded needs none of it
    from hmvnet.prognosis.risk import Risk

RISK_PATH = Path("rfs.json")
T_PATH, N_PATH = Path("t-stage.json"), Path("n-stage.json")
# What the platform gives a run, of which this part is used: the rest is for what cannot be hurried.
USED_SHARE = 0.8


@dataclass(frozen=True)
class Interface:
    """What one year's platform reads.

    Attributes:
        year: its name.
        mask: where the label mask goes, below the output folder.
        stages: whether T and N stage are wanted.
        longer_is_higher: whether ``rfs.json`` is read as time, higher = longer recurrence-free
            survival; else as risk, higher = earlier recurrence.
        limits_s: seconds that the platform gives a run, by task.
    """

    year: str
    mask: Path
    stages: bool
    longer_is_higher: bool
    limits_s: Mapping[str, float]

    def paths(self, task: str) -> tuple[Path, ...]:
        """What is to be written for a task, ``1``, ``2`` or ``both``."""
        mask = (self.mask,) if task in ("1", "both") else ()
        stages = (T_PATH, N_PATH) if self.stages else ()
        return (*mask, *stages, *((RISK_PATH,) if task in ("2", "both") else ()))

    def budget_s(self, task: str) -> float:
        """Seconds that a run may take, of those that the platform gives it."""
        return USED_SHARE * self.limits_s[task]

    def rfs(self, risk: Risk) -> float:
        """The number of ``rfs.json``: falls strictly with the risk where it is read as time.

        That is the expected recurrence-free days; of a bundle that knows none, the risk's negative.
        """
        if not self.longer_is_higher:
            return risk.value
        return -risk.value if risk.expected_days is None else risk.expected_days


INTERFACES: Mapping[str, Interface] = {
    one.year: one
    for one in (
        Interface(
            "2025",
            Path("images/tumor-lymph-node-segmentation/output.mha"),
            stages=False,
            longer_is_higher=False,
            # One image for both tasks: the time of both is not known to be given for one run.
            limits_s={"1": 600.0, "2": 900.0, "both": 600.0},
        ),
        Interface(
            "2026",
            Path("images/head-neck-tumor-segmentation/output.mha"),
            stages=True,
            longer_is_higher=True,
            limits_s={"both": 1500.0},
        ),
    )
}
# Of any year: an output of an earlier run is not to be taken for this one's.
ALL_PATHS = tuple(dict.fromkeys(p for one in INTERFACES.values() for p in one.paths("both")))


@dataclass
class OutputFolder:
    """Writes the outputs of one case, each whole or not at all.

    As a context, all of them or none. Outputs of an earlier run are removed on entry, so that a
    failure cannot leave a stale mask to be taken for a result.

    Attributes:
        written: what was, in that order.
    """

    root: Path
    interface: Interface = INTERFACES["2025"]
    written: list[Path] = field(default_factory=list)

    def clear(self) -> None:
        """Make the folder, and remove the outputs of an earlier run.

        Raises:
            CaseError: it cannot be written, or a link leads out of it.
        """
        try:
            make_folder(self.root)
            for stale in ALL_PATHS:
                if not lies_inside(self.root, stale.parent):  # a link itself is replaced
                    raise CaseError(f"{stale}: a link leads out of the output folder {self.root}")
                (self.root / stale).unlink(missing_ok=True)
        except OSError as error:
            raise CaseError(f"output folder {self.root} cannot be written") from error

    def __enter__(self) -> OutputFolder:
        self.clear()
        return self

    def write_mask(self, mask: sitk.Image) -> Path:
        """The uint8 label mask on the CT grid."""
        return self._write(self.interface.mask, lambda path: write_image(mask, path))

    def write_stages(self, t: str, n: str) -> tuple[Path, Path]:
        """``"T1"`` to ``"T4"`` and ``"N0"`` to ``"N3"``, each a JSON string of its own file."""
        first, second = (json.dumps(stage) for stage in (t, n))
        return (
            self._write(T_PATH, lambda path: write_text(first, path)),
            self._write(N_PATH, lambda path: write_text(second, path)),
        )

    def write_rfs(self, value: float) -> Path:
        """One finite number, as ``Interface.rfs`` makes it.

        Raises:
            ValueError: it is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"{RISK_PATH}: {value}, expected a finite number")
        text = json.dumps(float(value))
        return self._write(RISK_PATH, lambda path: write_text(text, path))

    def _write(self, relative: Path, write: Callable[[Path], None]) -> Path:
        path = self.root / relative
        self.written.append(path)
        write(path)
        return path

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            for path in self.written:
                path.unlink(missing_ok=True)
