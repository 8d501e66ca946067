"""``hmvnet bench survival``: seconds of a fit against the number of patients, and others' beside.

Simulated patients with forty variables. scikit-survival's Cox chooses among the same ridges by the
same inner cross-validation; the published package of ICARE (0.1.0) does not import with recent
scikit-learn and so runs in an environment of its own (``hmvnet.experiments.bench_icare``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from rich.console import Console
from sksurv.linear_model import CoxPHSurvivalAnalysis

from hmvnet.case import ClinicalRecord, Outcome, Outcomes
from hmvnet.config import PrognosisSettings
from hmvnet.experiments.bench_icare import our_fit, reference_fit, simulated
from hmvnet.experiments.compare_survival import without_images
from hmvnet.reading.records import ClinicalSchema
from hmvnet.survival.baselines import IcareModel, SksurvModel
from hmvnet.survival.cox import PENALTIES, RidgeCox
from hmvnet.survival.tuning import Tuned
from hmvnet.table_files import print_frame, write_markdown, write_table
from hmvnet.training.descriptions import Described
from hmvnet.training.judged import fit

VARIABLES = 40
SIZES = (500, 1000, 2000, 4000)
Timed = Callable[[np.ndarray, Outcomes], float]


def bench_survival(
    run: Path, console: Console, sizes: Sequence[int] = SIZES, icare: Path | None = None
) -> pd.DataFrame:
    """Print and write (``bench.csv``, ``bench.md``) a row a model, a column a number of patients.

    Args:
        icare: python of an environment with icare 0.1.0; without it that row is left out.
    """
    rows: dict[str, dict[str, float]] = {}
    for size in sizes:
        x, outcomes = simulated(size, VARIABLES)
        for name, timed in _models(icare).items():
            with console.status(f"{name}, {size} patients"):
                rows.setdefault(name, {})[f"{size}"] = timed(x, outcomes)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("seconds of a fit")
    if len(sizes) > 1:
        growth = np.log(table[f"{sizes[-1]}"] / table[f"{sizes[0]}"]) / np.log(sizes[-1] / sizes[0])
        table["grows as n to the"] = growth
    run.mkdir(parents=True, exist_ok=True)
    write_table(table.reset_index(), run / "bench.csv")
    write_markdown(table.reset_index(), run / "bench.md", floatfmt=".2f")
    print_frame(table.round(2).reset_index(), console)
    return table


def _models(icare: Path | None) -> Mapping[str, Timed]:
    """What is timed, by name; each after a fit of a few patients that loads what it needs."""
    models: dict[str, Timed] = {
        "Cox, ridge chosen": partial(_seconds, lambda: RidgeCox()),
        "the same, by scikit-survival": partial(_seconds, _sksurv_cox),
        "ICARE of 25 bags": partial(_seconds, lambda: IcareModel()),
        "ICARE, one": lambda x, outcomes: our_fit(x, outcomes, 1)[0],
        "fusion, table alone": _fusion_seconds,
    }
    if icare:
        models["ICARE, one, by the package icare"] = lambda x, outcomes: reference_fit(
            icare, x, outcomes, 1
        )[0]
    return models


def _sksurv_cox() -> Tuned:
    def of(ridge: float) -> SksurvModel:
        return SksurvModel(lambda seed: CoxPHSurvivalAnalysis(alpha=ridge, ties="efron"))

    return Tuned([partial(of, ridge) for ridge in PENALTIES])


def _seconds(make: Callable[[], RidgeCox | Tuned | IcareModel], x: np.ndarray, o: Outcomes):
    make().fit(x[:100], o[:100], np.random.default_rng(0))
    began = time.perf_counter()
    make().fit(x, o, np.random.default_rng(0))
    return time.perf_counter() - began


def _fusion_seconds(x: np.ndarray, outcomes: Outcomes) -> float:
    schema = ClinicalSchema.from_dict({f"v{j}": {"kind": "numeric"} for j in range(x.shape[1])})
    records = [ClinicalRecord({f"v{j}": float(v) for j, v in enumerate(row)}) for row in x]
    each = [Outcome(float(d), bool(e)) for d, e in zip(outcomes.days, outcomes.event)]
    patients = without_images([str(i) for i in range(len(x))], records, each)
    settings = PrognosisSettings(branches=("table",))
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)

    def fitted(some: Sequence[Described], settings: PrognosisSettings) -> float:
        with TemporaryDirectory() as folder:
            began = time.perf_counter()
            fit(some, settings, schema, Path(folder), quiet=True)
            return time.perf_counter() - began

    fitted(patients[:100], settings.model_copy(update={"members": 1, "steps": 5}))
    return fitted(patients, settings)
