"""The networks of a training's best validations, kept beside its checkpoint.

The mean of a few snapshots of one training is the cheapest ensemble (Huang et al., Snapshot
ensembles, ICLR 2017, arXiv:1704.00109). They are chosen on the validation patients, whose figures
are then a little too good.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hmvnet.exits import RefusedError
from hmvnet.files import remove, replacing, sha256
from hmvnet.state import read_state, write_state

FOLDER, INDEX = "best", "best.json"


@dataclass(frozen=True)
class Kept:
    """One network: after which step, and its score, higher being better; no digest: not kept."""

    step: int
    score: float
    sha256: str = ""


class Best:
    """The ``count`` best networks of one training.

    Args:
        run: folder of the training's checkpoint.
        key: of what the scores hang on: the training, the rules and the patients that judge.
        count: 0: none is kept, nor is one thrown away.
    """

    def __init__(self, run: Path, key: str, count: int) -> None:
        # Its own for each key: other rules, asked for by mistake, throw away nothing.
        self.folder = run / FOLDER / sha256(key.encode())[:12]
        self.key = key
        self.count = count

    def offer(self, network: nn.Module, step: int, score: float) -> None:
        """Keep it if it is among the best; of equal ones the later is better.

        A training that goes on from a checkpoint offers what it has offered before, once more.
        """
        new = Kept(step, score)
        others = [one for one in self._offered() if one.step != step]
        path = self._path(step)
        if new in _ranked([*others, new])[: self.count]:
            with replacing(path) as temporary:
                save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary)
            new = Kept(step, score, sha256(path))
        ranked = _ranked([*others, new])
        kept = ranked[: self.count or None]
        rows = [[one.step, one.score, one.sha256] for one in kept]
        rows += [[one.step, one.score, ""] for one in ranked[len(kept) :]]
        write_state(self.folder / INDEX, self.key, {"offered": rows})
        wanted = {self._path(one.step) for one in kept if one.sha256}
        for old in self.folder.glob("step*.safetensors"):
            if old not in wanted:
                remove(old)

    def networks(self, validations: int) -> list[dict[str, Tensor]]:
        """Their tensors, the best first.

        Args:
            validations: that the training had; as many are expected, up to ``count``.

        Raises:
            RefusedError: fewer are there, a file is gone or damaged, a better network was thrown
                away while fewer were kept, or some were ranked by other scores.
        """
        offered, expected = self._offered(), min(self.count, validations)
        if len(offered) < validations:
            raise RefusedError(
                f"{self.folder}: of this training's {validations} validations {len(offered)} are "
                "ranked by today's rules of postprocessing, validation patients and version; "
                "expected all of them: put those back, use another --run to train anew, or "
                "training.keep_best=0"
            )
        best = offered[: self.count]
        found = list(takewhile(self._is_whole, best))
        if len(found) < expected:
            raise RefusedError(
                f"{self.folder}: of the {expected} best networks of this training the first "
                f"{len(found)} are there and whole: they are kept while it runs, as many as "
                "training.keep_best says; use another --run to train anew, or "
                f"training.keep_best={len(found)}"
            )
        return [load_file(self._path(one.step)) for one in found]

    def _offered(self) -> list[Kept]:
        """All of this training, the best first."""
        stored = read_state(self.folder / INDEX, self.key) or {}
        return [Kept(*row) for row in stored.get("offered", [])]

    def _is_whole(self, kept: Kept) -> bool:
        path = self._path(kept.step)
        return bool(kept.sha256) and path.is_file() and sha256(path) == kept.sha256

    def _path(self, step: int) -> Path:
        return self.folder / f"step{step}.safetensors"


def _ranked(networks: list[Kept]) -> list[Kept]:
    return sorted(networks, key=lambda one: (-one.score, -one.step))


def member_files(file: str, count: int) -> list[str]:
    """Names in a bundle of a fold's networks, the best having the fold's own: ``fold0-2`` ..."""
    stem = file.removesuffix(".safetensors")
    return [file, *(f"{stem}-{place}.safetensors" for place in range(2, count + 1))]


def fold_file(name: str) -> str:
    """The fold's own of what ``member_files`` names."""
    return re.sub(r"-\d+(?=\.safetensors$)", "", name)
