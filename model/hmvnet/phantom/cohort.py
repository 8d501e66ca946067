"""A cohort of phantoms on disk, in the layout of the HECKTOR 2025 or 2026 training data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import SimpleITK as sitk

from hmvnet.files import replacing, write_text
from hmvnet.reading.images import write_image
from hmvnet.reading.tables import TRUTH_TABLE
from hmvnet.table_files import write_table

from . import centres, pattern, stages
from .dicom import write_dicom
from .outcome import LESION_TERMS, TABLE_TERMS, best_c_index
from .patient import PatientPlan, PhantomSettings, draw_patient
from .render import Phantom, plan_truth, render

VERSION = 2
Layout = Literal["2025", "2026", "records"]
TABLE = "HECKTOR_2025_Training_{}.csv"
TABLE_2026 = "HECKTOR_2026_Training.csv"
TABLE_ALONE = "records.csv"
COLUMNS = (
    "CenterID",
    "Age",
    "Gender",
    "Tobacco Consumption",
    "Alcohol Consumption",
    "Performance Status",
    "Treatment",
    "M-stage",
    "HPV Status",
)
STAGE_COLUMNS = ("T-stage", "N-stage")
PLACES: Mapping[Layout, tuple[str, ...]] = {
    "2025": ("Task 1", "Task 2"),
    "2026": ("",),
    "records": (),
}


@dataclass(frozen=True)
class CohortSummary:
    """What was written. The concordances are NaN where too few patients can be compared."""

    root: Path
    patients: int
    relapse_rate: float
    best_c_index: float
    lesion_c_index: float
    table_c_index: float
    named_c_index: float

    def __str__(self) -> str:
        said = (
            f"{self.patients} SYNTHETIC patients in {self.root}\nrelapses {self.relapse_rate:.0%}; "
        )
        if not np.isfinite(self.best_c_index):
            return f"{said}too few to say which C-index can be reached"
        named = f", without what has no name {self.named_c_index:.3f}"
        return (
            f"{said}best reachable C-index {self.best_c_index:.3f} "
            f"(lesions alone {self.lesion_c_index:.3f}, table alone {self.table_c_index:.3f}"
            f"{named if self.named_c_index != self.best_c_index else ''})"
        )


def draw_cohort(
    count: int, seed: int, settings: PhantomSettings | None = None
) -> Iterator[PatientPlan]:
    """The plans of a cohort. Patient ``index`` depends on (seed, index) and the settings only."""
    for index in range(count):
        state = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint32)
        plan = draw_patient(int(state[0]), settings)
        # With the seed, so that patients of two cohorts never share a name.
        yield plan.renamed(f"SYN-{plan.scan.center}-{seed}-{index + 1:04d}")


def write_cohort(
    root: Path,
    count: int,
    seed: int,
    settings: PhantomSettings | None = None,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    compress_level: int = 1,
    dicom: bool = False,
    layout: Layout = "2025",
) -> CohortSummary:
    """Write ``count`` phantoms under ``root`` in the layout of HECKTOR 2025 or 2026.

    2025 has the folders ``Task 1`` and ``Task 2`` with a table each; 2026 has the patients' folders
    and one table, without M-stage; ``records`` is a table of records and outcomes without any
    image, which takes a hundredth of the time. With ``settings.stages`` tables have T-stage and
    N-stage.

    Patient folders come first, then the tables, then ``SYNTHETIC.md``. A patient's folder appears
    whole or not at all; one that is already there is kept, so an interrupted cohort can be
    continued. ``on_progress(done, count)`` is called after each patient. With ``dicom`` the images
    are under ``dicom/<patient>`` as well, the PET in Bq/mL.

    Raises ValueError for a count or jobs below 1, an unknown layout or one without images where
    DICOM is wanted, or when ``root`` holds another cohort.
    """
    root, settings = Path(root), settings or PhantomSettings()
    if count < 1 or jobs < 1:
        raise ValueError(f"count and jobs: found {count} and {jobs}, expected 1 or more")
    if layout not in PLACES:
        raise ValueError(f"layout: found {layout!r}, expected one of {list(PLACES)}")
    if dicom and not PLACES[layout]:
        raise ValueError(f"layout {layout!r} has no images, and DICOM is wanted")
    _claim(root, seed, settings, layout)
    plans = list(draw_cohort(count, seed, settings))
    last = (*PLACES[layout][-1:], *(["dicom"] if dicom else []))
    todo = [p for p in plans if not all((root / f / p.patient_id).is_dir() for f in last)]
    done = count - len(todo)
    for _ in _write_all(root, todo, jobs, compress_level, dicom, layout):
        done += 1
        if on_progress is not None:
            on_progress(done, count)
    _write_tables(root, plans, layout)
    summary = summarise(root, plans)
    write_text(_readme(summary, seed, settings), root / "SYNTHETIC.md")
    return summary


def summarise(root: Path, plans: list[PatientPlan]) -> CohortSummary:
    """Relapse rate and the concordances of the true linear predictor and of parts of it."""
    model = plans[0].settings.outcome_model
    days = [plan.rfs_days for plan in plans]
    relapse = [plan.relapse for plan in plans]
    parts: list[float] = []
    for names in (None, LESION_TERMS, TABLE_TERMS, (*LESION_TERMS, *TABLE_TERMS)):
        risk = [model.linear_predictor(plan.covariates, names) for plan in plans]
        try:
            parts.append(best_c_index(risk, days, relapse))
        except ValueError:
            parts.append(float("nan"))
    return CohortSummary(root, len(plans), float(np.mean(relapse)), *parts)


def _write_all(
    root: Path,
    plans: list[PatientPlan],
    jobs: int,
    compress_level: int,
    dicom: bool,
    layout: Layout,
) -> Iterator[None]:
    if jobs == 1:
        for plan in plans:
            _write_patient(root, plan, compress_level, dicom, layout)
            yield
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        work = [
            pool.submit(_write_patient, root, plan, compress_level, dicom, layout) for plan in plans
        ]
        try:
            for future in as_completed(work):
                future.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)


def _write_patient(
    root: Path, plan: PatientPlan, compress_level: int, dicom: bool, layout: Layout
) -> None:
    """Its folders, whole or not at all; each that comes later means that those are done."""
    phantom = render(plan)
    first, *others = (root / place / plan.patient_id for place in PLACES[layout])
    with replacing(first) as folder:
        folder.mkdir()
        for image, file in _files(phantom):
            write_image(image, folder / file, compress_level)
    for other in others:
        with replacing(other) as folder:
            folder.mkdir()
            for _, file in _files(phantom):
                _link(first / file, folder / file)
    if dicom:
        with replacing(root / "dicom" / plan.patient_id) as folder:
            write_dicom(phantom.ct, phantom.pet, folder, plan.patient_id)


def _files(phantom: Phantom) -> list[tuple[sitk.Image, str]]:
    name = phantom.patient_id
    return [
        (phantom.ct, f"{name}__CT.nii.gz"),
        (phantom.pet, f"{name}__PT.nii.gz"),
        (phantom.mask, f"{name}.nii.gz"),
    ]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _flat(marker: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in marker.items() if k != "settings"} | dict(marker["settings"])


def _claim(root: Path, seed: int, settings: PhantomSettings, layout: Layout) -> None:
    """Mark the folder as this cohort's; refuse to mix two cohorts in one folder."""
    usual = {"settings": vars(PhantomSettings()), "layout": "2025"}  # a marker of before lacks some
    mine = {"synthetic": True, "version": VERSION, "seed": seed, "settings": vars(settings)}
    mine["layout"] = layout
    marker = root / "cohort.json"
    if marker.exists():
        found = usual | json.loads(marker.read_text())
        found["settings"] = usual["settings"] | found["settings"]
        if found != mine:
            asked, here = _flat(mine), _flat(found)
            names = [name for name in asked | here if asked.get(name) != here.get(name)]
            differ = ", ".join(f"{n} {here.get(n)} in the place of {asked.get(n)}" for n in names)
            raise ValueError(
                f"{marker}: found another cohort, of {differ}; expected the same, or a new folder"
            )
        return
    if there := [*root.glob("*.csv"), *root.glob("Task */*.csv")]:
        raise ValueError(
            f"{there[0]} is there, and of no cohort of phantoms: expected a new folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(mine, indent=2) + "\n", marker)


def _write_tables(root: Path, plans: list[PatientPlan], layout: Layout) -> None:
    columns = [name for name in COLUMNS if layout != "2026" or name != "M-stage"]
    rows = [{"PatientID": plan.patient_id, **plan.record} for plan in plans]
    table = pd.DataFrame(rows, columns=["PatientID", *columns])
    whole = [name for name in columns if name != "M-stage"]
    for name in whole:
        if table[name].map(lambda value: isinstance(value, str)).any():  # some centres' codes
            table[name] = [int(v) if isinstance(v, float) else v for v in table[name]]
        else:
            table[name] = table[name].astype("Int64")
    if known := [plan.stages for plan in plans if plan.stages is not None]:
        observed = [(stage.observed_t, stage.observed_n) for stage in known]
        table[list(STAGE_COLUMNS)] = pd.DataFrame(observed, dtype=object)
    if layout == "2025":
        write_table(table, root / "Task 1" / TABLE.format("Task_1"))
    table["Relapse"] = [plan.relapse for plan in plans]
    table["RFS"] = [int(plan.rfs_days) for plan in plans]
    outcomes = {"2025": f"Task 2/{TABLE.format('Task_2')}", "2026": TABLE_2026}
    write_table(table, root / outcomes.get(layout, TABLE_ALONE))
    truth = {plan.patient_id: plan_truth(plan) for plan in plans}
    write_text(json.dumps(truth, indent=1) + "\n", root / "truth.json")
    flat = [
        {
            "PatientID": plan.patient_id,
            "linear_predictor": plan.linear_predictor,
            **plan.covariates,
            **({} if plan.stages is None else plan.stages.to_row()),
            "RFS": plan.rfs_days,
            "Relapse": plan.relapse,
        }
        for plan in plans
    ]
    write_table(pd.DataFrame(flat), root / TRUTH_TABLE)


def _rules(settings: PhantomSettings) -> str:
    """What drew what is off by default, for ``SYNTHETIC.md``."""
    parts = (
        (settings.stages, "Stages", stages.RULES),
        (settings.hidden_pattern, "Hidden pattern", pattern.RULES),
        (settings.centre_effects, "Centre effects", centres.rules()),
    )
    return "".join(f"## {title}\n\n{rules}\n" for there, title, rules in parts if there)


def _readme(summary: CohortSummary, seed: int, settings: PhantomSettings) -> str:
    model = settings.outcome_model
    terms = "\n".join(
        f"| {name} | {t.beta:+.2f} | {t.center:g} | {t.scale:g} |"
        for name, t in model.terms.items()
    )
    low, high = model.follow_up_days
    return f"""# SYNTHETIC data: digital phantoms, not patients

Every image, record and outcome in this folder was computed by `hmvnet phantom` (phantom version
{VERSION}, seed {seed}, {settings}).
Nothing comes from a person. The centre names are styles of scanner only; the centres they are named
after have nothing to do with these data.

{summary.patients} patients, {summary.relapse_rate:.1%} relapse.

## Outcome model

Weibull-Cox: S(t) = exp(-(t / s)^k exp(eta)), k = {model.shape:g}, s = {model.scale_days:g} days,
eta = sum beta (x - centre) / scale. Censored at the end of follow-up, uniform in
[{low:g}, {high:g}] days, or by loss, exponential with mean {model.loss_mean_days:g} days.

| covariate x | beta | centre | scale |
|---|---|---|---|
{terms}

{_rules(settings)}## Best reachable C-index (Harrell), on this very cohort

| risk | C-index |
|---|---|
| true linear predictor | {summary.best_c_index:.4f} |
| its lesion terms alone | {summary.lesion_c_index:.4f} |
| its table terms alone | {summary.table_c_index:.4f} |
| lesion and table terms | {summary.named_c_index:.4f} |
"""
