"""``hmvnet survival compare --test DIR``: models fitted to one cohort, scored on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from hmvnet.case import DAYS_PER_YEAR, Outcomes
from hmvnet.config import Settings
from hmvnet.experiments.compare_survival import (
    TIMES,
    Cohort,
    load_cohort,
    models_of,
    predictor,
)
from hmvnet.experiments.survival_report import (
    draw,
    print_table,
    readable_names,
    write_tables,
)
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.progress import print_notes, show_progress
from hmvnet.reading.folder import Patient
from hmvnet.state import claiming_run
from hmvnet.survival.bootstrap import bootstrap_concordance
from hmvnet.survival.decision import DecisionCurve, decision_curve
from hmvnet.survival.validation import OutOfFold, comparison_table, score, survival_at
from hmvnet.table_files import write_table
from hmvnet.training.descriptions import Described, outcomes_of
from hmvnet.training.leaks import refuse_hidden_outcome
from hmvnet.training.prognosis import refuse_few

DECISION_YEARS = 3


@claiming_run
def compare_elsewhere(
    settings: Settings,
    test: Path,
    weights: Path | None,
    run: Path,
    console: Console,
    names: Sequence[str] = (),
    reference: str = "",
) -> pd.DataFrame:
    """Fit every model to ``data.root``, score it on the patients of ``test``, print one table.

    Columns of the other cohort are found by the schema; what it lacks and categories that nobody
    fitted to had are missing there, and said. Writes what ``compare_survival`` writes, and decision
    curves at three years (``decision.csv``, ``decision.png``).

    Args:
        names, reference: as ``compare_survival``.

    Raises:
        ValueError: as ``compare_survival``, or a patient in both cohorts.
    """
    run.mkdir(parents=True, exist_ok=True)
    names, reference = models_of(names, reference, settings)
    schema = settings.clinical.record_schema

    def check(patients: Sequence[Patient | Described]) -> None:
        refuse_hidden_outcome(patients, schema)
        refuse_few(outcomes_of(patients))

    known = load_cohort(settings, weights, run, check=check)
    ids = {p.patient_id for p in known.patients}

    def check_apart(patients: Sequence[Patient | Described]) -> None:
        if both := sorted(ids & {p.patient_id for p in patients}):
            raise ValueError(
                f"{len(both)} patients in both cohorts, {both[0]} among them: none may be"
            )

    data = settings.data.model_copy(update={"root": str(test)})
    elsewhere = settings.model_copy(update={"data": data})
    other = load_cohort(elsewhere, weights, run, lenient=True, check=check_apart)
    encoder = ClinicalEncoder(schema).fit([p.record for p in known.patients])
    notes = encoder.encode([p.record for p in other.patients])[1]
    told = (*known.notes, *encoder.notes_)
    print_notes(console, [*told, *(f"{test}: {note}" for note in (*other.notes, *notes))])
    whole = replace(known, patients=[*known.patients, *other.patients], truth=None)
    outcomes, seed = other.outcomes, settings.prognosis.seed
    rows = np.arange(len(whole.patients))
    train, unseen = rows[: len(known.patients)], rows[len(known.patients) :]
    predictions: dict[str, OutOfFold] = {}
    with show_progress("fit", len(names)) as progress:
        for name in names:
            progress.note(name)
            model = predictor(name, whole, settings, run, TIMES)
            risk, curves = model(train, unseen, np.random.default_rng([seed, 1]))
            some = None if curves is None else curves[None]
            predictions[name] = OutOfFold(risk[None], some, None if some is None else TIMES)
            progress.advance()
    fold = np.zeros((1, len(outcomes)), int)
    scores = {
        name: score(found, outcomes, fold, followed=outcomes) for name, found in predictions.items()
    }
    risks = {name: found.risk for name, found in predictions.items()}
    boot = bootstrap_concordance(outcomes, risks, np.random.default_rng([seed, 2]), fold)
    table = comparison_table(scores, boot, reference)
    title = _title(known, outcomes)
    write_tables(table, risks, [p.patient_id for p in other.patients], fold, run, title)
    draw(predictions, scores, boot, outcomes, fold, run, title)
    _write_decisions(predictions, outcomes, run)
    print_table(table, title, console)
    console.print(f"wrote survival.md, survival.csv, risks.csv and pictures to {run}", markup=False)
    return table


def _title(known: Cohort, outcomes: Outcomes) -> str:
    seen, unseen = int(known.outcomes.event.sum()), int(outcomes.event.sum())
    return (
        f"{len(outcomes)} patients of another cohort, {unseen} relapses; fitted to "
        f"{len(known.patients)}, {seen} relapses"
    )


def _write_decisions(predictions: dict[str, OutOfFold], outcomes: Outcomes, run: Path) -> None:
    from hmvnet.training import pictures  # matplotlib only here

    time = DECISION_YEARS * DAYS_PER_YEAR
    curves: dict[str, DecisionCurve] = {}
    for name, found in predictions.items():
        survival = survival_at(found, outcomes, time)
        if survival is not None:
            curves[name] = decision_curve(outcomes, 1.0 - survival[0], time)
    if not curves:
        return
    first = next(iter(curves.values()))
    columns = {name: curve.model for name, curve in curves.items()}
    write_table(
        pd.DataFrame({"threshold": first.thresholds, **columns, "everyone": first.everyone}),
        run / "decision.csv",
    )
    words = readable_names(curves)
    named = {words[name]: curve for name, curve in curves.items()}
    figure = pictures.decision_figure(named, pictures.counted(outcomes), DECISION_YEARS)
    pictures.save(figure, run / "decision.png")
