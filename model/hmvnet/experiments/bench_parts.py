"""``hmvnet bench parts``: what the fusion model loses to the best single model, by patients.

So many patients are drawn for training, and all models scored on those left out; again and again.
The regret is the best single model's mean concordance less the fusion model's: who knew beforehand
which model would be the best here would gain that much. Models that are no part of it are tried as
further ones, each with an equal share before it is judged: what each of them would gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from rich.console import Console

from hmvnet.case import ClinicalRecord, Outcome, Outcomes, harrell_c
from hmvnet.config import PrognosisSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments.compare_survival import load_cohort, without_images
from hmvnet.files import digest
from hmvnet.progress import show_progress
from hmvnet.reading.records import ClinicalSchema
from hmvnet.state import claiming_run
from hmvnet.survival import baselines
from hmvnet.table_files import kept_rows, print_frame, write_markdown, write_table
from hmvnet.training.descriptions import Described, outcomes_of
from hmvnet.training.judged import fit_judged, inner_risks, predict_candidates
from hmvnet.training.prognosis import predict_parts
from hmvnet.training.shares import judged_shares

# Data sets that come with scikit-survival, and columns of them that tell the outcome.
BUILT_IN = {"flchain": ("chapter",), "gbsg2": (), "whas500": (), "aids": ()}
PARTS = {
    "icare": "network + ICARE",
    "direct": "ICARE",
    "linear": "Cox",
    "forest": "forest of residuals",
}
OTHERS = {"mtlr": "MTLR", "rsf": "random survival forest", "gbm": "gradient boosting"}
FUSION, WITH = "fusion", "fusion with "
MOST_TESTED = 1500
ROWS = 2  # counts changes to rows that no setting shows


@claiming_run
def bench_parts(
    settings: Settings,
    data: str,
    run: Path,
    sizes: Sequence[int],
    draws: int,
    seed: int,
    console: Console,
) -> pd.DataFrame:
    """Print and write (``parts.csv``, ``parts.md``) a row a size: concordances and the regret.

    Each draw's row is kept in ``draws.csv``, and used again by the same command.

    Args:
        data: a data set of scikit-survival; empty: the tables of the settings.

    Raises:
        ValueError: an unknown data set, or too few patients for a size.
        RefusedError: a part of the risk has no share, and would not be fitted.
    """
    for name in PARTS:  # the networks have what the others leave
        if not getattr(settings.prognosis, f"{name}_weight", 1):
            raise RefusedError(f"prognosis.{name}_weight is 0; expected every part to be compared")
    run.mkdir(parents=True, exist_ok=True)
    patients, schema = _patients(settings, data, run)
    if max(sizes) > len(patients) - 50:
        raise ValueError(f"{len(patients)} patients: none are left to test with {max(sizes)}")
    options = settings.prognosis.model_copy(update={"branches": ("table",)})
    models = [*PARTS, *OTHERS]
    who = [(p.patient_id, dict(p.record.values), asdict(p.outcome)) for p in patients]
    asked = [options.model_dump(mode="json"), models, data, seed]
    key = digest(ROWS, *asked, who, schema.to_dict())
    path = run / "draws.csv"
    rows, others = kept_rows(path, "key", key)
    with show_progress("draws", len(sizes) * draws, len(rows)) as progress:
        for size in sizes:
            for draw in range(draws):
                if any(row["size"] == size and row["draw"] == draw for row in rows):
                    continue
                scores = _score(patients, schema, options, size, (seed, draw))
                rows.append({"key": key, "size": size, "draw": draw, **scores})
                write_table(pd.DataFrame([*others, *rows]), path)
                progress.advance()
    table = regrets(pd.DataFrame(rows))
    write_table(table, run / "parts.csv")
    write_markdown(table, run / "parts.md", floatfmt=".4f")
    print_frame(table.round(4), console)
    return table


def regrets(draws: pd.DataFrame) -> pd.DataFrame:
    """A row a size: mean concordances over the draws, the regret and its standard error.

    That error is over draws of the same patients, who are in several: of another cohort it would be
    two to three times as large.
    """
    rows = []
    for size, some in draws.groupby("size"):
        single = some[[*PARTS.values(), *OTHERS.values()]]
        best = single.mean().idxmax()
        lost = some[best] - some[FUSION]
        rows.append(
            {
                "patients": int(str(size)),
                "draws": len(some),
                "events": some["events"].mean(),
                FUSION: some[FUSION].mean(),
                **single.mean().to_dict(),
                "best": best,
                "regret": lost.mean(),
                "standard error": lost.std() / np.sqrt(len(some)),
                **_gains(some),
            }
        )
    return pd.DataFrame(rows)


def _gains(draws: pd.DataFrame) -> dict[str, float]:
    """What each further part adds to the fusion model's concordance, and the standard error."""
    gains = {}
    for name in draws.columns[draws.columns.str.startswith(WITH)]:
        gained = draws[name] - draws[FUSION]
        gains[f"{name.removeprefix(WITH)}: gain as a part"] = gained.mean()
        gains[f"{name.removeprefix(WITH)}: its error"] = gained.std() / np.sqrt(len(gained))
    return gains


def _score(
    patients: Sequence[Described],
    schema: ClinicalSchema,
    options: PrognosisSettings,
    size: int,
    seed: tuple[int, int],
) -> dict[str, float]:
    """Concordances on the patients left out, by model, and the events among those fitted to."""
    order = np.random.default_rng([*seed, size]).permutation(len(patients))
    train = [patients[i] for i in order[:size]]
    test = [patients[i] for i in order[size : size + MOST_TESTED]]
    seeded = options.model_copy(update={"seed": seed[1]})
    # Each part is there whatever its share.
    candidates = {name: partial(_fitted, name) for name in OTHERS}
    with TemporaryDirectory() as folder:
        place = Path(folder)
        inner = inner_risks(train, seeded, schema, place, True, candidates)
        given = seeded.model_copy(update={"inner_folds": 0})
        whole, _ = fit_judged(train, given, schema, place, quiet=True)
    seen, unseen = outcomes_of(train), outcomes_of(test)
    rng = np.random.default_rng(seed)
    risks = predict_parts(whole, test)
    risks |= predict_candidates(candidates, whole[0], train, test, rng)
    scores = {word: harrell_c(unseen, risks[name]) for name, word in (PARTS | OTHERS).items()}
    own = whole[0].weights
    for word, names in {FUSION: (), **{WITH + OTHERS[name]: (name,) for name in OTHERS}}.items():
        if names and inner is None:  # their risks have units of their own, which judging evens
            scores[word] = np.nan
            continue
        equal = 1 / (len(own) + len(names))
        rest = 1 - equal * len(names)
        shares = {k: rest * share for k, share in own.items()} | dict.fromkeys(names, equal)
        if inner is not None:
            oof = {name: inner.risks[name] for name in shares}
            shares = judged_shares(oof, seen, inner.fold, shares)
        risk = np.sum([share * risks[name] for name, share in shares.items()], axis=0)
        scores[word] = harrell_c(unseen, risk)
    return {"events": float(seen.event.sum()), **scores}


def _fitted(
    name: str, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator
) -> baselines.SurvivalModel:
    return baselines.create(name).fit(x, outcomes, rng)


def _patients(
    settings: Settings, data: str, run: Path
) -> tuple[Sequence[Described], ClinicalSchema]:
    if not data and not settings.clinical.tables:
        raise ValueError(
            f"no patients: expected --data, one of {', '.join(BUILT_IN)}, or clinical.tables of "
            "data.root"
        )
    if not data:
        return load_cohort(settings, None, run).patients, settings.clinical.record_schema
    if data not in BUILT_IN:
        raise ValueError(f"data set '{data}': expected one of {', '.join(BUILT_IN)}")
    from sksurv import datasets

    x, y = getattr(datasets, f"load_{data}")()
    event, time = y.dtype.names
    x = x.drop(columns=list(BUILT_IN[data]))
    numeric = {name: x[name].dtype.kind in "fiu" for name in x.columns}
    schema = {name: {"kind": "numeric" if n else "categorical"} for name, n in numeric.items()}
    records = [
        ClinicalRecord(
            {k: None if v != v else float(v) if numeric[k] else str(v) for k, v in row.items()}
        )
        for row in x.to_dict("records")
    ]
    outcomes = [Outcome(float(days), bool(hit)) for days, hit in zip(y[time], y[event])]
    ids = [str(number) for number in range(len(records))]
    return without_images(ids, records, outcomes), ClinicalSchema.from_dict(schema)
