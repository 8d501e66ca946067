"""``hmvnet survival compare``: the fusion model, its ablations and classical models, side by side.

All models see the same folds of a repeated, stratified cross-validation, and whatever is fitted is
fitted on a fold's training patients: the clinical encoder, feature statistics, networks, heads. The
lesion features come from segmentation networks that did not see the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from rich.console import Console

from hmvnet.bundle import load_bundle
from hmvnet.case import DAYS_PER_YEAR, ClinicalRecord, Outcome, Outcomes, plain_name
from hmvnet.config import Settings
from hmvnet.experiments.survival_report import (
    FUSIONS,
    LESIONS_TOO,
    TRUTH,
    draw,
    print_table,
    title_of,
    write_tables,
)
from hmvnet.files import digest
from hmvnet.lesions.features import LesionFeatures
from hmvnet.prognosis.encoder import ClinicalEncoder, notes_on
from hmvnet.prognosis.fusion import IMAGE_CHANNELS
from hmvnet.prognosis.member import LesionDescription
from hmvnet.progress import Progress, print_notes, show_progress
from hmvnet.reading.centres import UNKNOWN, name_centres
from hmvnet.reading.folder import Patient
from hmvnet.reading.frames import read_frame
from hmvnet.reading.names import first
from hmvnet.reading.tables import TRUTH_TABLE, read_outcome_table
from hmvnet.state import claiming_run, read_arrays, write_arrays
from hmvnet.survival import baselines
from hmvnet.survival.bootstrap import bootstrap_concordance
from hmvnet.survival.validation import (
    FitPredict,
    OutOfFold,
    comparison_table,
    cross_validate_by,
    score,
)
from hmvnet.training.descriptions import Described, handcrafted, load_described, outcomes_of
from hmvnet.training.folds import repeated_folds
from hmvnet.training.judged import fit_judged
from hmvnet.training.leaks import refuse_hidden_outcome
from hmvnet.training.prognosis import LEAST_PATIENTS, predict

CURVE_YEARS = 5
TIMES = np.linspace(30.0, CURVE_YEARS * DAYS_PER_YEAR, 60)  # days at which curves are compared
CENTRES_LEFT_OUT = "C, centres left out"
PREDICTIONS = 5  # counts changes to predictions that no setting shows


@dataclass(frozen=True)
class Cohort:
    """Patients with outcomes; ``has_images`` false: health records alone."""

    patients: Sequence[Described]
    has_images: bool
    truth: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def outcomes(self) -> Outcomes:
        """Their follow-up."""
        return outcomes_of(self.patients)


def load_cohort(
    settings: Settings,
    weights: Path | None,
    run: Path,
    lenient: bool = False,
    check: Callable[[Sequence[Patient | Described]], object] = lambda patients: None,
) -> Cohort:
    """The patients of ``data.root``: tables alone where ``clinical.tables`` names some.

    For a cohort of phantoms the linear predictor that drew the outcomes is read too: no model can
    be expected to do better.

    Args:
        lenient: whether tables may lack columns of the schema, which are then missing.
        check: told whom it is about before networks run, so that it can refuse them.

    Raises:
        ValueError: as ``check``, no data or no outcomes; LeakError as ``load_described``.
    """
    if settings.clinical.tables:
        cohort = _load_tables(settings, lenient)
        check(cohort.patients)
        return cohort
    assert weights is not None
    bundle, notes = load_bundle(weights).adjusted(settings)
    spacing = settings.prognosis.image_spacing_mm
    crops = settings.prognosis.wants_crops
    patients = load_described(bundle, settings, spacing, run, crops, check)
    truth_file, truth = Path(settings.data.root) / TRUTH_TABLE, None
    if truth_file.is_file():
        known = read_frame(truth_file, ["PatientID"]).set_index("PatientID")["linear_predictor"]
        truth = known.loc[[p.patient_id for p in patients]].to_numpy(float)
    return Cohort(patients, True, truth, notes)


def _load_tables(settings: Settings, lenient: bool) -> Cohort:
    clinical = settings.clinical
    root = Path(settings.data.root)
    found = read_outcome_table([root / name for name in clinical.tables], clinical.table_names)
    there = {plain_name(name) for name in found.columns}
    columns = clinical.record_schema.columns
    absent = [c.name for c in columns if not there & set(c.plain_names)]
    if absent and not lenient:
        raise ValueError(
            f"{', '.join(clinical.tables)}: no column of {first(absent)}; found "
            f"{first(sorted(found.columns))}; expected those, or columns of your own in a settings "
            "file (--config), as docs/hancock.xml has them"
        )
    patients = without_images(found.ids, found.records, found.outcomes)
    return Cohort(patients, False, None, found.notes)


def without_images(
    ids: Sequence[str], records: Sequence[ClinicalRecord], outcomes: Iterable[Outcome]
) -> list[Described]:
    """Patients of whom there are health records alone."""
    nothing = LesionDescription(
        np.zeros((IMAGE_CHANNELS, 1, 1, 1), np.float32),
        LesionFeatures((), np.zeros(0, np.float32)),
    )
    centres = name_centres(ids, records)
    return [
        Described(name, centre, nothing, record, outcome)
        for name, centre, record, outcome in zip(ids, centres, records, outcomes, strict=True)
    ]


def models_of(names: Sequence[str], reference: str, settings: Settings) -> tuple[list[str], str]:
    """The models that are compared, and the one that others' differences are taken to.

    Args:
        names: none: all that the cohort allows.
        reference: none: Cox's, or the first.

    Raises:
        ValueError: an unknown name, a model that needs images of a cohort without, or a reference
            that is not compared.
    """
    classical = list(baselines.available())
    has_images = not settings.clinical.tables
    for name in names:
        base = name.removesuffix(LESIONS_TOO)
        if name not in FUSIONS and base not in classical:
            raise ValueError(
                f"unknown survival model '{name}', expected one of "
                f"{', '.join([*FUSIONS, *classical])}, the last {len(classical)} also with "
                f"'{LESIONS_TOO}'"
            )
        needs_images = base != name or set(FUSIONS.get(name, ())) - {"table"}
        if needs_images and not has_images:
            raise ValueError(f"model '{name}' needs images, the cohort has health records alone")
    if not names and has_images:
        names = [*FUSIONS, *classical, *(name + LESIONS_TOO for name in classical[:2])]
    names = list(names) or ["fusion-table", *classical]
    reference = reference or ("coxph" if "coxph" in names else names[0])
    if reference not in names:
        raise ValueError(f"reference '{reference}' is not compared; expected one of {names}")
    return names, reference


def predictor(
    name: str, cohort: Cohort, settings: Settings, run: Path, times: np.ndarray
) -> FitPredict:
    """What fits model ``name`` on training rows and predicts test rows."""
    base = name.removesuffix(LESIONS_TOO)
    if name in FUSIONS:
        return _fusion(name, cohort, settings, run, times)
    return _classical(base, name != base, cohort, settings, times)


def _fusion(
    name: str, cohort: Cohort, settings: Settings, run: Path, times: np.ndarray
) -> FitPredict:
    options = settings.prognosis.model_copy(update={"branches": FUSIONS[name]})
    schema = settings.clinical.record_schema

    def fit_predict(train: np.ndarray, test: np.ndarray, rng: np.random.Generator):
        seeded = options.model_copy(update={"seed": int(rng.integers(2**31))})
        known = [cohort.patients[i] for i in train]
        # Checkpoints are of no use here: a fit takes seconds.
        with TemporaryDirectory(dir=run) as folder:
            members, seen = fit_judged(known, seeded, schema, Path(folder), quiet=True)
        if seen is None:
            return predict(members, [cohort.patients[i] for i in test]), None
        risk = predict(members, [cohort.patients[i] for i in test])
        return risk, seen.curve(cohort.outcomes[train]).survival(risk, times)

    return fit_predict


def _classical(
    base: str, with_lesions: bool, cohort: Cohort, settings: Settings, times: np.ndarray
) -> FitPredict:
    records = [p.record for p in cohort.patients]
    outcomes = cohort.outcomes
    lesions = handcrafted(cohort.patients) if with_lesions else np.zeros((len(records), 0))

    def fit_predict(train: np.ndarray, test: np.ndarray, rng: np.random.Generator):
        encoder = ClinicalEncoder(settings.clinical.record_schema)
        encoder.fit([records[i] for i in train])
        # Apart, as another hospital's columns may have other names.
        known, new = (
            np.concatenate([encoder.transform([records[i] for i in rows]), lesions[rows]], axis=1)
            for rows in (train, test)
        )
        model = baselines.create(base).fit(known, outcomes[train], rng)
        return model.predict_risk(new), model.predict_survival(new, times)

    return fit_predict


@claiming_run
def compare_survival(
    settings: Settings,
    weights: Path | None,
    run: Path,
    console: Console,
    names: Sequence[str] = (),
    repeats: int = 5,
    reference: str = "",
    by_centre: bool = True,
) -> pd.DataFrame:
    """Cross-validate every model, print one table, and write it with its pictures under ``run``.

    A model's predictions are kept, and used again by a call with the same settings and patients, so
    a comparison can be spread over calls of different ``names``.

    Writes ``survival.md`` and ``survival.csv``, ``risks.csv`` (a row a patient and repeat),
    ``forest.png``, ``kaplan-meier.png`` (of the first model) and ``calibration.png``.

    Args:
        names: models; none: all that the cohort allows.
        reference: the model that the others' differences are taken to; default CoxPH.
        by_centre: whether to leave out a centre after the other as well, where there are several:
            only patients of one centre are compared then.

    Raises:
        ValueError: unknown model, or as ``load_cohort``.
    """
    run.mkdir(parents=True, exist_ok=True)
    if settings.data.fold_by != "stratified":
        raise ValueError("survival compare repeats stratified folds; data.fold_by must be that")
    names, reference = models_of(names, reference, settings)

    def check(patients: Sequence[Patient | Described]) -> None:
        refuse_hidden_outcome(patients, settings.clinical.record_schema)
        repeated_folds(outcomes_of(patients).event, np.random.default_rng(0), settings.data.folds)

    cohort = load_cohort(settings, weights, run, check=check)
    outcomes = cohort.outcomes
    models = {name: predictor(name, cohort, settings, run, TIMES) for name in names}
    seed = settings.prognosis.seed
    centre = np.array([p.centre for p in cohort.patients])
    fold = repeated_folds(
        outcomes.event, np.random.default_rng(seed), settings.data.folds, repeats, centre
    )
    schema = settings.clinical.record_schema
    print_notes(console, [*cohort.notes, *notes_on([p.record for p in cohort.patients], schema)])
    left_out, why = _by_centre(centre, outcomes) if by_centre else (None, "")
    if why:
        print_notes(console, [f"no column of centres left out: {why}"])
    fits = len(models) * (
        repeats * settings.data.folds + (0 if left_out is None else left_out.max() + 1)
    )
    with show_progress("cross-validate", int(fits)) as progress:
        common = (models, cohort, settings, run, progress)
        predictions = _predictions(fold, [seed, 1], *common)
        elsewhere = {} if left_out is None else _predictions(left_out, [seed, 3], *common)
    if cohort.truth is not None:
        predictions[TRUTH] = OutOfFold(np.tile(cohort.truth, (repeats, 1)))
        elsewhere |= {TRUTH: OutOfFold(cohort.truth[None])} if elsewhere else {}
    scores = {name: score(found, outcomes, fold) for name, found in predictions.items()}
    risks = {name: found.risk for name, found in predictions.items()}
    boot = bootstrap_concordance(outcomes, risks, np.random.default_rng([seed, 2]), fold)
    table = comparison_table(scores, boot, reference)
    if left_out is not None:
        risk_there = {name: found.risk for name, found in elsewhere.items()}
        rng = np.random.default_rng([seed, 4])
        there = bootstrap_concordance(outcomes, risk_there, rng, left_out)
        table.insert(2, CENTRES_LEFT_OUT, [str(there.interval(str(name))) for name in table.index])
    ids = [p.patient_id for p in cohort.patients]
    title = title_of(outcomes, fold)
    write_tables(table, risks, ids, fold, run, title)
    draw(predictions, scores, boot, outcomes, fold, run, title)
    print_table(table, title, console)
    console.print(f"wrote survival.md, survival.csv, risks.csv and pictures to {run}", markup=False)
    return table


def _by_centre(centre: np.ndarray, outcomes: Outcomes) -> tuple[np.ndarray | None, str]:
    """A fold a centre, ``[1, n]``; or None, and where there are several centres why."""
    names, number = np.unique(centre, return_inverse=True)
    if len(names) < 2:
        return None, ""
    if unknown := int((centre == UNKNOWN).sum()):
        return None, f"the centre of {unknown} patients is not known"
    days, event = outcomes.days, outcomes.event
    for here in (number == i for i in range(len(names))):
        if (~here).sum() < LEAST_PATIENTS or not event[~here].any():
            return None, (
                f"without one of them {(~here).sum()} patients with {event[~here].sum()} relapses "
                f"are left, expected at least {LEAST_PATIENTS} and one"
            )
    last = np.zeros(len(names))
    np.maximum.at(last, number, days)
    if not (event & (days < last[number])).any():
        return None, "no two patients of one centre can be compared"
    return number[None], ""


def _predictions(
    fold: np.ndarray,
    seed: Sequence[int],
    models: Mapping[str, FitPredict],
    cohort: Cohort,
    settings: Settings,
    run: Path,
    progress: Progress,
) -> dict[str, OutOfFold]:
    """Of every model, those kept under ``run`` used again; ``fold`` ``[repeats, n]``."""
    data, predictions = _data_key(cohort, fold), {}
    for name, model in models.items():
        progress.note(name)
        path = run / "predictions" / f"{name}-{_key(name, settings, data)}.npz"
        if stored := read_arrays(path):
            found = OutOfFold(stored["risk"], stored.get("survival"), stored.get("times"))
            progress.advance(int((fold.max(axis=1) + 1).sum()))
        else:
            counted = _counted(model, progress.advance)
            found = cross_validate_by(counted, fold, np.random.default_rng(seed), TIMES)
            _save(found, path)
        predictions[name] = found
    return predictions


def _key(name: str, settings: Settings, data: str) -> str:
    """What a model's predictions hang on."""
    prognosis = settings.prognosis.model_dump(mode="json")
    return digest(
        PREDICTIONS,
        name,
        settings.clinical.model_dump(mode="json"),
        prognosis if name in FUSIONS else settings.prognosis.seed,
        data,
    )


def _data_key(cohort: Cohort, fold: np.ndarray) -> str:
    """Patients, records, outcomes, lesions, images and folds: the same for every model."""
    crops = np.stack([p.description.crops.values for p in cohort.patients])
    return digest(
        [p.patient_id for p in cohort.patients],
        [dict(p.record.values) for p in cohort.patients],
        cohort.outcomes.days,
        cohort.outcomes.event,
        np.stack([p.description.features.values for p in cohort.patients]),
        np.stack([p.description.image for p in cohort.patients]),
        *([crops] if crops.size else []),
        fold,
    )


def _save(found: OutOfFold, path: Path) -> None:
    arrays = {"risk": found.risk}
    if found.survival is not None and found.times is not None:
        arrays |= {"survival": found.survival, "times": found.times}
    write_arrays(path, **arrays)


def _counted(model: FitPredict, done: Callable[[], None]) -> FitPredict:
    def fit_predict(train: np.ndarray, test: np.ndarray, rng: np.random.Generator):
        found = model(train, test, rng)
        done()
        return found

    return fit_predict
