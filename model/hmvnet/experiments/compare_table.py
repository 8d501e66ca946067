"""One table of all that ``segmentation compare`` compares: what each scores, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from hmvnet.experiments.bench import growth
from hmvnet.segmentation import metrics
from hmvnet.survival.bootstrap import bootstrap_segmentation

COMPARED = {
    "gtvp_mean_dice": "GTVp mean Dice",
    "gtvn_aggregated_dice": "GTVn agg. Dice",
    "gtvn_aggregated_f1": "GTVn agg. F1",
}


def folder_name(label: str) -> str:
    """A contender's folder, made of its label."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", label)


@dataclass(frozen=True)
class Cost:
    """What a network costs: parameters, training (steps and minutes of all folds), and inference.

    ``peak_mb`` is of the GPU where there is one, else what the process's memory grew by.
    """

    parameters: int
    steps: int
    training_minutes: float
    network_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Scored:
    """One contender's scores, a patient each, in the order of all contenders."""

    scores: list[metrics.CaseScore]
    cost: Cost


@contextmanager
def peak_mb() -> Iterator[Callable[[], float]]:
    """Peak MB of the GPU, or MB by which the process grew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() / 2**20
        return
    with growth() as grown:
        yield grown


def comparison(
    scored: Mapping[str, Scored], rng: np.random.Generator | None = None
) -> pd.DataFrame:
    """One row a network, in order; differences are this one less the first network.

    With paired 95% bootstrap intervals over patients (``bootstrap_segmentation``).
    Metrics of nodes are left out where no patient has any.
    """
    rng = rng or np.random.default_rng(0)
    first, *_ = scored
    with_nodes = any(s.gtvn.truth_mm3 for s in scored[first].scores)
    compared = {k: v for k, v in COMPARED.items() if with_nodes or k.startswith("gtvp")}
    rows = []
    for name, one in scored.items():
        total = metrics.aggregate(one.scores)
        row: dict[str, object] = {"network": name, "patients": total.patients}
        boot = bootstrap_segmentation({first: scored[first].scores, name: one.scores}, rng)
        for metric, title in compared.items():
            row[title] = f"{getattr(total, metric):.3f}"
            difference = boot[metric].difference(name, first)
            row[f"less {first}, {title}"] = "" if name == first else f"{difference:+.3f}"
        row["GTVp HD95 mm"] = f"{total.gtvp_mean_hd95_mm:.1f}"
        row["of patients"] = total.gtvp_hd95_patients
        if with_nodes:
            row["GTVn HD95 mm"] = f"{total.gtvn_mean_hd95_mm:.1f}"
            row["GTVn of patients"] = total.gtvn_hd95_patients
        row["M parameters"] = f"{one.cost.parameters / 1e6:.1f}"
        row["steps a fold"] = one.cost.steps
        row["training min"] = f"{one.cost.training_minutes:.1f}"
        row["network s a patient"] = f"{one.cost.network_seconds:.2f}"
        row["peak MB"] = f"{one.cost.peak_mb:.0f}"
        rows.append(row)
    return pd.DataFrame(rows)
