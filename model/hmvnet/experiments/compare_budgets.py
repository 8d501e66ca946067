"""``hmvnet segmentation compare --budgets``: accuracy against what training and inference cost.

Every network is trained along one schedule that is cut at each budget
(``hmvnet.experiments.budgets``), and scored on the patients of each fold. What is finished lies in
small files, one a network, budget and fold, so that a table grows over many calls and machines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from hmvnet.config import Settings, TrainingSettings
from hmvnet.exits import Exit, RefusedError, UnfinishedError
from hmvnet.experiments.budget_jobs import Ended, hands_of, run_units
from hmvnet.experiments.budget_table import (
    Point,
    in_order,
    load_results,
    patient_table,
    points,
    run_table,
    summary,
)
from hmvnet.experiments.budgets import Budget, Unit
from hmvnet.experiments.compare_networks import Contender
from hmvnet.experiments.nnunet_peer import NNUNet
from hmvnet.files import digest
from hmvnet.progress import track
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.state import claiming_run
from hmvnet.table_files import print_frame, write_markdown, write_table
from hmvnet.training.cache import files_hash
from hmvnet.training.loader import in_processes, worker_count
from hmvnet.training.schedule import DECAY_SHARE
from hmvnet.training.segmentation import SAME_COURSE, course_of
from hmvnet.training.segmentation_bundle import Fold, all_folds, check_network, chosen_folds

METHOD = 6  # to be raised when what a result means changes
RESULTS, NAME = "results", "segmentation-budgets"
FREE = {"steps", "freeze_norms_at"} | SAME_COURSE  # not asked here


@claiming_run
def compare_budgets(
    settings: Settings,
    contenders: Sequence[Contender | NNUNet],
    run: Path,
    budgets: Sequence[Budget],
    folds: Sequence[int] | None,
    console: Console,
    *,
    jobs: int = 1,
    scheduler: str = "",
    minutes: float | None = None,
    windows: bool = True,
    paces: Path | None = None,
) -> list[Point]:
    """Train and score every network at every budget, and write the table of all that is there.

    Writes ``segmentation-budgets.md``, ``.csv`` (as the table; ``-runs.csv`` a row a run,
    ``-patients.csv`` a row a run and patient) and ``.png`` under ``run``, and ``results/``: a file
    a network, budget and fold, with the scores of each patient. Files there, of an earlier call or
    brought from elsewhere, are not computed again and are part of the table, where they are of the
    same data and shared settings; others are left alone.

    Args:
        folds: to train now; None: all.
        jobs, scheduler: as for ``hmvnet.experiments.budget_jobs.hands_of``.
        minutes: stop after so long on the wall.
        windows: score networks that see the region in one pass in sliding windows and as the mean
            of both, too.
        paces: the ``-runs.csv`` of a comparison, by whose seconds a step minutes are charged here.

    Raises:
        ValueError: wrong data, fold or network.
        UnfinishedError: time was up; the next call goes on.
        RuntimeError: trainings failed; the others' results are written.
    """
    deadline = time.time() + 60 * minutes if minutes else float("inf")
    ours = [contender for contender in contenders if not isinstance(contender, NNUNet)]
    if len(ours) < len(contenders):
        raise RefusedError(
            "--budgets cuts one training at every budget, and nnU-Net's rate falls along a length "
            "that is known beforehand: compare it at equal steps, or with --train-minutes"
        )
    if len({contender.folder for contender in contenders}) < len(contenders):
        raise RefusedError("a network is given twice, expected each with options of its own")
    charged = read_paces(paces, [contender.single for contender in ours]) if paces else {}
    for contender in ours:
        check_network(own := contender.settings(settings))
        if budgets[0].unit == "min" and not paces:
            _refuse_uncounted(contender, own.training)
        if budgets[0].unit == "steps" and budgets[0].amount < 2 * contender.members:
            raise RefusedError(
                f"network '{contender.label}': its members share {budgets[0]}, expected two steps "
                "or more for each"
            )
    everything = all_folds(settings)
    plan = chosen_folds(everything, settings, folds)
    content = _content(everything)
    protocol = _protocol(settings, everything, content)
    results = run / RESULTS
    units = [
        Unit(
            contender,
            budget,
            fold,
            (own := contender.settings(settings)),
            run,
            results,
            Path(settings.data.cache or run / "cache"),
            protocol,
            _key(contender, own, budget, fold, content),
            windows,
            charged.get(contender.single, 0.0),
            deadline,
        )
        for budget in budgets
        for contender in ours
        for fold in plan
    ]
    labels = [contender.label for contender in ours]
    done = sum(not unit.missing() for unit in units)
    console.print(f"{len(units)} trainings, {done} finished before", markup=False)
    if other := sum(unit.paced_otherwise for unit in units):
        console.print(
            f"note: {other} results that are there were charged by another pace than the one asked "
            "for, and stay; to train anew, take them out of the folder of results",
            soft_wrap=True,
        )
    missed: list[Ended] = []
    with hands_of(jobs, scheduler, run) as hands:
        for ended in run_units(units, hands):
            said = ended.why or "done"
            console.print(f"{ended.unit}: {said}", markup=False, soft_wrap=True)
            if ended.code:
                missed.append(ended)
            else:
                _write(units, labels)
    found, others, table = _write(units, labels, draw=True)
    if others:
        console.print(
            f"note: {others} files in {results} are of other settings or weights, and left out"
        )
    if found:
        print_frame(table, console)
        console.print(
            f"wrote {NAME}.md, .csv, -runs.csv, -patients.csv and .png to {run}", markup=False
        )
    _raise(missed, [unit for unit in units if unit.missing()])
    return found


def read_paces(table: Path, networks: Sequence[str]) -> dict[str, float]:
    """Seconds of a step by network, the mean of the runs in a comparison's ``-runs.csv``.

    Raises:
        RefusedError: no such table, or a network is not in it.
    """
    try:
        runs = pd.read_csv(table, float_precision="round_trip")
    except (OSError, ValueError) as error:
        raise RefusedError(f"--paces {table}: cannot be read as a table: {error}") from error
    needed = {"network", "steps", "minutes_charged"}
    if missing := sorted(needed - set(runs.columns)):
        raise RefusedError(
            f"--paces {table}: no column {', '.join(missing)}, expected a table of runs"
        )
    found = {}
    for name in networks:
        own = runs[runs["network"] == name]
        if own.empty:
            raise RefusedError(f"--paces {table}: no run of network '{name}', whose pace is needed")
        found[name] = float(60 * own["minutes_charged"].sum() / own["steps"].sum())
    return found


def _refuse_uncounted(contender: Contender, training: TrainingSettings) -> None:
    """Where minutes are CPU time, the time of other processes would be missing.

    Raises:
        RefusedError: patches are drawn in some.
    """
    device = pick_device()
    drawn_in = in_processes(training.workers_are, device)
    if device.type == "cpu" and drawn_in and worker_count(training.workers, device):
        raise RefusedError(
            f"network '{contender.label}', training.workers_are=processes: budgets in minutes "
            "count this process's CPU time alone, expected threads, training.workers=0, or budgets "
            "in steps"
        )


def _raise(missed: Sequence[Ended], left: Sequence[Unit]) -> None:
    if failed := [one for one in missed if one.code != Exit.UNFINISHED]:
        names = "; ".join(f"{one.unit}: {one.why}" for one in failed)
        if all(one.code == Exit.REFUSED for one in failed):
            raise RefusedError(names)
        raise RuntimeError(f"{len(failed)} trainings failed: {names}")
    if left:
        raise UnfinishedError(f"{len(left)} trainings are left; the same command goes on")


def _write(
    units: Sequence[Unit], labels: Sequence[str], draw: bool = False
) -> tuple[list[Point], int, pd.DataFrame]:
    """The tables, and the curve where asked, of all results that are there."""
    run, asked = units[0].run, [unit.key for unit in units]
    found, others = load_results(units[0].results, units[0].protocol, asked)
    if not found:
        return [], others, pd.DataFrame()
    ordered = in_order(found, labels)
    write_table(run_table(ordered), run / f"{NAME}-runs.csv")
    write_table(patient_table(ordered), run / f"{NAME}-patients.csv")
    if not draw:
        return [], others, pd.DataFrame()
    made = points(found, labels)
    with_nodes = any(s.gtvn.truth_mm3 for one in found for s in one.scores)
    table = summary(made, labels[0], with_nodes)
    write_table(table, run / f"{NAME}.csv")
    write_markdown(table, run / f"{NAME}.md")
    from hmvnet.training.pictures_budgets import draw_budgets  # matplotlib only here

    draw_budgets(made, run / f"{NAME}.png")
    return made, others, table


# --- what a result hangs on ----------------------------------------------------------------------


def _content(everything: Sequence[Fold]) -> dict[str, str]:
    """By patient a digest of the files' content, wherever and whenever they were written."""
    first = everything[0]
    patients = [*first.seen, *first.validation]
    return {p.patient_id: files_hash(p) for p in track(patients, "look at files")}


def _dumped(settings: Settings) -> dict[str, object]:
    sections = {"preprocessing", "network", "augmentation", "postprocessing"}
    dumped = settings.model_dump(mode="json", include=sections)
    dumped["training"] = course_of(settings, FREE)
    inference = settings.inference.without_budget().model_dump(mode="json", exclude={"windows"})
    data = settings.data.model_dump(mode="json", include={"region", "extra_region"})
    return {**dumped, "inference": inference, "data": data, "method": [METHOD, DECAY_SHARE]}


def _who(fold: Fold, content: Mapping[str, str]) -> list[object]:
    parts = (fold.train, fold.extra, fold.validation)
    return [[[p.patient_id, content[p.patient_id]] for p in part] for part in parts]


def _protocol(settings: Settings, everything: Sequence[Fold], content: Mapping[str, str]) -> str:
    shared = {k: v for k, v in _dumped(settings).items() if k != "network"}
    return digest(shared, [_who(fold, content) for fold in everything])


def _key(
    contender: Contender, own: Settings, budget: Budget, fold: Fold, content: Mapping[str, str]
) -> str:
    several = [contender.members] if contender.members > 1 else []
    return digest(_dumped(own), str(budget), _who(fold, content), *several)
