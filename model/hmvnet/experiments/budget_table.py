"""Tables and the curve of a comparison at equal budgets, from the files of its results."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hmvnet.experiments.budgets import WAYS, Budget
from hmvnet.experiments.compare_table import COMPARED
from hmvnet.files import visible
from hmvnet.segmentation.metrics import CaseScore, aggregate
from hmvnet.state import read_state
from hmvnet.survival.bootstrap import Interval, bootstrap_segmentation

DICE = "gtvp_mean_dice"
SAMPLES = 10_000


@dataclass(frozen=True)
class Result:
    """One training, scored in one way.

    Attributes:
        training: what it was and what it cost.
        seconds: of the network, a patient each.
    """

    network: str
    budget: Budget
    fold: int
    way: str
    training: Mapping[str, Any]
    seconds: Sequence[float]
    scores: Sequence[CaseScore]

    def row(self) -> dict[str, Any]:
        """Of the table of runs."""
        total = aggregate(self.scores)
        return {
            "network": self.network,
            "inference": self.way,
            "budget": str(self.budget),
            "fold": self.fold,
            "patients": total.patients,
            **{name: round(getattr(total, name), 4) for name in COMPARED},
            "network_seconds": round(float(np.median(self.seconds)), 4),
            **{k: v if not isinstance(v, list) else "x".join(map(str, v))
               for k, v in self.training.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A network at a budget, over the folds that are there.

    Attributes:
        differences: by metric, this less the first network on the patients of both; none of the
            first itself, nor where they share no patient.
        minutes: charged, the mean of the folds.
        seconds: of the network, the median patient.
        device: CPU or GPU, on which they were taken; both where folds differ.
    """

    network: str
    way: str
    budget: Budget
    folds: Sequence[int]
    patients: int
    figures: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    shared: int
    steps: float
    minutes: float
    seconds: float
    parameters: int
    device: str


def load_results(
    folder: Path, protocol: str, asked: Collection[str] = ()
) -> tuple[list[Result], int]:
    """Every result of a protocol, and how many files are left out.

    Those of other protocols and damaged ones; and where a network, budget and fold have several
    (what it starts from was trained anew, say) all but one: of ``asked``, else the newest.

    Args:
        asked: keys of results.
    """
    chosen: dict[tuple[str, Budget, int], tuple[bool, float, Mapping[str, Any]]] = {}
    others = 0
    for path in visible(folder.glob("*.json")) if folder.is_dir() else []:
        key = path.stem.rpartition("--")[2]
        stored = read_state(path, key)
        if stored is None or stored["protocol"] != protocol:
            others += 1
            continue
        training = stored["network"], Budget(**stored["budget"]), stored["fold"]
        others += training in chosen
        this = key in asked, path.stat().st_mtime, stored
        chosen[training] = max(chosen.get(training, this), this, key=lambda one: one[:2])
    results = [
        Result(
            *training,
            way,
            stored["training"],
            found["network_seconds"],
            [CaseScore.from_dict(score) for score in found["scores"]],
        )
        for training, (_, _, stored) in chosen.items()
        for way, found in stored["ways"].items()
    ]
    return results, others


def in_order(results: Sequence[Result], networks: Sequence[str]) -> list[Result]:
    """By budget, then network (those named first, in their order), way and fold."""
    names = [*networks, *sorted({r.network for r in results} - set(networks))]
    return sorted(
        results,
        key=lambda r: (r.budget, names.index(r.network), [*WAYS].index(r.way), r.fold),
    )


def points(
    results: Sequence[Result], networks: Sequence[str], rng: np.random.Generator | None = None
) -> list[Point]:
    """A network's folds together, with paired differences to the first network at each budget.

    That is the first of ``networks``, in one pass where it has it. Intervals are at 95%.
    """
    rng = rng or np.random.default_rng(0)
    groups: dict[tuple[Budget, str, str], list[Result]] = {}
    for one in in_order(results, networks):
        groups.setdefault((one.budget, one.network, one.way), []).append(one)
    found = []
    for (budget, network, way), mine in groups.items():
        # The first in order at this budget, where it is of the network that is to be first.
        reference = next(key for key in groups if key[0] == budget)
        first = groups[reference] if reference[1] == networks[0] else []
        scores = _by_patient(mine)
        figures = bootstrap_segmentation({network: list(scores.values())}, rng, SAMPLES)
        differences, shared = {}, 0
        if first and reference != (budget, network, way):
            theirs = _by_patient(first)
            both = [name for name in theirs if name in scores]
            shared = len(both)
            if both:
                boot = bootstrap_segmentation(
                    {"first": [theirs[n] for n in both], "this": [scores[n] for n in both]},
                    rng,
                    SAMPLES,
                )
                differences = {m: boot[m].difference("this", "first") for m in COMPARED}
        found.append(
            Point(
                network,
                way,
                budget,
                [one.fold for one in mine],
                len(scores),
                {m: figures[m].interval(network) for m in COMPARED},
                differences,
                shared,
                float(np.mean([one.training["steps"] for one in mine])),
                float(np.mean([one.training["minutes_charged"] for one in mine])),
                float(np.median([s for one in mine for s in one.seconds])),
                mine[0].training["parameters"],
                " and ".join(sorted({one.training["device"] for one in mine})),
            )
        )
    return found


def _by_patient(results: Sequence[Result]) -> dict[str, CaseScore]:
    return {score.patient_id: score for one in results for score in one.scores}


def run_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row a run and way of scoring."""
    return pd.DataFrame([one.row() for one in results])


def patient_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row a run, way of scoring and patient."""
    rows = [
        {
            "network": one.network,
            "inference": one.way,
            "budget": str(one.budget),
            "fold": one.fold,
            "patient": score.patient_id,
            "gtvp_dice": round(score.gtvp.dice, 4),
            "gtvn_dice": round(score.gtvn.dice, 4),
        }
        for one in results
        for score in one.scores
    ]
    return pd.DataFrame(rows)


def summary(found: Sequence[Point], first: str, with_nodes: bool) -> pd.DataFrame:
    """The comparison's table, as text: a row a budget and network."""
    shown = {m: title for m, title in COMPARED.items() if with_nodes or m.startswith("gtvp")}
    rows = []
    for one in found:
        row: dict[str, object] = {
            "budget": str(one.budget),
            "network": one.network,
            "inference": one.way,
            "folds": " ".join(map(str, one.folds)),
            "patients": one.patients,
        }
        for metric, title in shown.items():
            row[title] = str(one.figures[metric]) if metric == DICE else _plain(one, metric)
            gap = one.differences.get(metric)
            row[f"less {first}, {title}"] = f"{gap:+.3f}" if gap else ""
        row["patients shared"] = one.shared or ""
        row["steps"] = round(one.steps)
        row["min charged"] = f"{one.minutes:.2f}"
        row["device"] = one.device
        row["network s a patient"] = f"{one.seconds:.2f}"
        row["M parameters"] = f"{one.parameters / 1e6:.1f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _plain(one: Point, metric: str) -> str:
    return f"{one.figures[metric].estimate:.3f}"
