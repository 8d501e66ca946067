"""The command line: ``hmvnet predict``, ``segmentation``, ``survival``, and what helps them.

Every command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hmvnet import __version__
from hmvnet.exits import Exit, RefusedError, ending, fault, leave_where_asked
from hmvnet.progress import REMARKS, print_lines

if TYPE_CHECKING:
    from rich.console import Console

    from hmvnet.cohort import Crew
    from hmvnet.config import Settings

# What typer raises for wrong options and arguments: click's own, which newer typer carries inside.
UsageError: Any = typer.BadParameter.__mro__[1]
# The packages that an extra brings, for whoever installed the package without it.
EXTRAS = {
    "sksurv": "baselines",
    "lightning_fabric": "train",
    "tensorboard": "train",
    "blosc2": "train",
    "onnx": "train",
    "onnxscript": "train",
    "einops": "train",
    "tabulate": "train",
    "highdicom": "dicom",
    "dask": "cluster",
    "distributed": "cluster",
}


def _commands(text: str, *, alone: bool = False) -> typer.Typer:
    """A group of commands; ``alone``: it does something without one."""
    return typer.Typer(
        help=text,
        no_args_is_help=not alone,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


app = _commands("Head-and-neck PET/CT segmentation and RFS prediction. Not for clinical use.")
segmentation = _commands("Train, score, tune and compare segmentation networks.")
survival = _commands("Train, score and compare survival models.")
stage = _commands("Train and compare staging models: T and N of AJCC's 7th edition.")
bench = _commands("Measure this project and its baselines side by side.")
export = _commands("Write the bundle's ONNX files, or data for nnU-Net.", alone=True)
import_ = _commands("Take over models that other programs trained.")
app.add_typer(segmentation, name="segmentation")
app.add_typer(survival, name="survival")
app.add_typer(stage, name="stage")
app.add_typer(bench, name="bench")
app.add_typer(export, name="export")
app.add_typer(import_, name="import")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="settings file; default: the built-in settings")
]
RunOption = Annotated[Path, typer.Option("--run", help="folder of this run's files")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings, section.name=value", show_default=False)
]
WeightsOption = Annotated[
    str, typer.Option("--weights", help="bundle: folder, or URL#sha256=...; default: shipped")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>")]
LimitOption = Annotated[int, typer.Option(min=0, help="first N patients only; 0: all")]
FoldOption = Annotated[list[int] | None, typer.Option(help="fold(s); all if left out")]
TaskOption = Annotated[int, typer.Option(min=1, max=2, help="1 segmentation, 2 survival")]
ScoreOption = Annotated[
    Literal["2025", "2026"], typer.Option(help="the year whose figures are to be highest")
]
EvalTaskOption = Annotated[
    int | None,
    typer.Option("--task", min=1, max=2, help="1 segmentation alone, 2 survival alone"),
]
NetworkOption = Annotated[
    list[str] | None,
    typer.Option(
        help="a network and its options, 'hmvnet window=4'; nnU-Net itself: nnunet; repeatable"
    ),
]
TestOption = Annotated[
    Path | None, typer.Option(help="score on this data folder, not on the folds")
]


def _above_0(minutes: float | None) -> float | None:
    if minutes is not None and not 0 < minutes < math.inf:  # nor no number
        raise typer.BadParameter(f"{minutes:g} minutes, expected a number above 0")
    return minutes


MinutesOption = Annotated[
    float | None,
    typer.Option(callback=_above_0, help="stop after this; the same command goes on"),
]
TrainMinutesOption = Annotated[
    float | None,
    typer.Option(callback=_above_0, help="equal training time a fold, rather than equal steps"),
]
BudgetsOption = Annotated[
    str,
    typer.Option(
        help="train along one schedule cut at these: minutes of CPU time a fold, 3,10,30, or "
        "steps, 100steps,300steps"
    ),
]
ModelOption = Annotated[
    list[str] | None, typer.Option(help="a survival model; repeatable; default: all")
]
RepeatsOption = Annotated[int, typer.Option(min=1, help="cross-validations")]
RecordOption = Annotated[
    Path | None,
    typer.Option(help="ehr.json of a CT and a PET, or a table (CSV, Excel) of many patients"),
]
SheetOption = Annotated[
    str, typer.Option(help="sheet of Excel tables; default: the only one that holds something")
]
SuvFactorOption = Annotated[float | None, typer.Option(min=0, help="PET values times this are SUV")]
SeriesOption = Annotated[
    list[str] | None, typer.Option(help="UID of a DICOM series to use; repeatable")
]
KeepNamesOption = Annotated[
    bool, typer.Option("--keep-names", help="DICOM patients under their own ids")
]
ReferenceOption = Annotated[str, typer.Option(help="model to take differences to")]

COMPARED_NETWORKS = ("hmvnet", "segresnet", "swinunetr", "resenc-unet")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


GoOnOption = Annotated[
    bool, typer.Option("--continue", help="leave patients that are there with the same images")
]


def _say_counts(counts: Counter[str], total: int, output: Path) -> None:
    """How many patients were written, were there already or were refused."""
    words = ("written", "there already", "refused")
    said = [f"{counts[word]} {word}" for word in words if counts[word] or word != "there already"]
    _say(f"{total} patients: {', '.join(said)}; in {output}")


def _say(text: object) -> None:
    _console().print(text, soft_wrap=True, markup=False)


def _settings(config: Path | None, overrides: list[str] | None) -> Settings:
    from hmvnet.settings_file import load_settings

    return load_settings(config, overrides or ())


def _bundle(weights: str) -> Path:
    from hmvnet.bundle import find_bundle

    return find_bundle(weights or None)


# --- one scan or many ----------------------------------------------------------------------------


@app.command()
def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="a CT file and a PET file; a folder: DICOM, HECKTOR, nnU-Net, BIDS, "
            "grand-challenge input; a zip of DICOM; a CSV of patient, ct, pet, record",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a folder a patient is made here")
    ] = None,
    weights: WeightsOption = "",
    record: RecordOption = None,
    sheet: SheetOption = "",
    list_: Annotated[
        bool, typer.Option("--list", help="say what is recognised, and do no more")
    ] = False,
    suv_factor: SuvFactorOption = None,
    series: SeriesOption = None,
    keep_names: KeepNamesOption = False,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="of DICOM: also SEG, report and RTSTRUCT")
    ] = False,
    part: Annotated[
        str, typer.Option(help="a share of the patients, k/n: of job arrays, as 3/8")
    ] = "",
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes on this machine, of many patients")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="a Dask scheduler whose workers predict, as tcp://host:8786")
    ] = "",
    mask: Annotated[
        Path | None,
        typer.Option(help="a corrected mask of one patient: image, RTSTRUCT or SEG"),
    ] = None,
    region: Annotated[
        str, typer.Option(help="head-neck, or centre for scans that hold no head")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="a setting in the bundle's place, section.name=value"),
    ] = None,
    device: DeviceOption = "auto",
    picture: Annotated[bool, typer.Option(help="also draw slices and projections")] = True,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page", help="also a page to look at; default: of one patient, not of many"
        ),
    ] = None,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="also a map of how unsure each voxel is")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="write again what is there")] = False,
    go_on: Annotated[bool, typer.Option("--continue", help="skip patients that are there")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit code 4 where a verdict is review")
    ] = False,
) -> int:
    """Segment GTVp and GTVn, measure the lesions, predict the RFS risk."""
    from hmvnet.cohort import InTurn, Order, Outcome, part_of, predict_cohort
    from hmvnet.pipeline import load_pipeline
    from hmvnet.progress import show_progress
    from hmvnet.reading.inputs import Asked, find_sources
    from hmvnet.writing.cohort import is_cohort, mend_failures, write_cohort, write_failures
    from hmvnet.writing.index import INDEX, refuse_foreign, write_index
    from hmvnet.writing.summary import Narrator

    if force and go_on:
        raise RefusedError("--force and --continue exclude each other")
    if scheduler and (workers or mask):
        raise RefusedError("--scheduler goes neither with --workers nor with --mask")
    if scheduler:  # other machines have other working directories
        inputs, output = [p.absolute() for p in inputs], output and output.absolute()
    given = [*(set_ or []), *([f"data.region={region}"] if region else [])]
    asked = Asked(record, True, keep_names, tuple(series or ()), suv_factor, sheet)
    sources = find_sources(inputs, asked)  # refuses before the weights are loaded
    if list_:
        for line in sources.listing():
            print(line)
        return Exit.OK
    if output is None:
        raise RefusedError("--output is missing: a folder in which a folder a patient is made")
    print_lines(sources.told)
    narrator, alone = Narrator(), len(sources) == 1
    listed = not alone or is_cohort(output)  # one of a cohort that is there
    if listed:
        refuse_foreign(output)
    crew: Crew
    if scheduler or (workers and not alone):
        from hmvnet.cluster import Workers

        crew = Workers(weights or None, device, given, count=workers or 0, scheduler=scheduler)
    else:
        crew = InTurn(load_pipeline(weights or None, device, given), narrator if alone else None)
    if crew.manifest.prognosis is None:
        sources = find_sources(inputs, replace(asked, needs_record=False))
    chosen = part_of(sources, part) if part else list(sources)

    def tell(found: Outcome) -> None:
        name, said = found.patient_id, found.prediction
        if alone and said:
            where = str(crew.pipeline.device) if isinstance(crew, InTurn) else ""
            narrator.summary(said, crew.manifest.name, where, [order.output / name])
        else:
            for note in found.notes:  # the summary of one patient has them
                narrator(f"{name}: note: {note}")
            if found.status == "done":
                narrator(f"{name}: {found.lesions} lesions, {found.verdict}")
        if why := found.why or "; ".join(found.problems):
            narrator.problem(f"{name}: {why}")
        progress.advance()

    page = alone if page is None else page
    order = Order(output, picture, page, dicom, entropy, listed, mask, tuple(given))
    with show_progress("patients", len(chosen), quiet=alone) as progress:
        result = predict_cohort(
            chosen,
            crew,
            order,
            existing="replace" if force else "skip" if go_on else "refuse",
            strict=strict,
            on_begin=progress.begin,
            on_outcome=tell,
        )
    code = result.code
    if listed:
        if alone:
            mend_failures(chosen[0].patient_id, result.failures, output)
        else:
            write_failures(result.failures, output, f"-{part.replace('/', 'of')}" if part else "")
        write_cohort(output)
        try:
            write_index(output)
        except Exception as error:  # the patients' folders are whole
            leave_where_asked()
            narrator.problem(f"{INDEX} not written: {fault(error)}")
            code = code or Exit.INCOMPLETE
    if not alone or result.skipped:
        counts = {
            "predicted": result.done,
            "there already": result.skipped,
            "refused": result.refused,
            "failed": result.failed,
            "incomplete": result.incomplete,
            "to review": result.review,
        }
        said = ", ".join(f"{len(found)} {word}" for word, found in counts.items())
        _say(f"{len(chosen)} patients: {said}; in {output}")
    return code


@app.command()
def convert(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="as of predict: DICOM, BIDS, a list")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the data folder to write")],
    record: RecordOption = None,
    sheet: SheetOption = "",
    contour: Annotated[
        list[str] | None,
        typer.Option(help="name=gtvp or name=gtvn, of contours; repeatable; default: usual names"),
    ] = None,
    suv_factor: SuvFactorOption = None,
    series: SeriesOption = None,
    keep_names: KeepNamesOption = False,
    go_on: GoOnOption = False,
) -> int:
    """Write a data folder for training: CT in HU, PET in SUV, RTSTRUCT or SEG as labels."""
    from hmvnet.cohort import check_names
    from hmvnet.imaging.agreement import check_agreement
    from hmvnet.imaging.coarse import Coarse
    from hmvnet.reading.contours import parse_names
    from hmvnet.reading.dicom import Scan
    from hmvnet.reading.inputs import Asked, find_sources
    from hmvnet.writing.dataset import DataFolder, OtherImagesError
    from hmvnet.writing.summary import Narrator

    names = parse_names(contour) if contour else None
    asked = Asked(record, True, keep_names, tuple(series or ()), suv_factor, sheet)
    sources, narrator = find_sources(inputs, asked), Narrator()
    print_lines(sources.told)
    counts = Counter[str]()
    check_names(sources)
    there = [name for one in sources if (output / (name := one.patient_id)).exists()]
    if there and not go_on:
        raise RefusedError(
            f"{output / there[0]} is there already ({len(there)} of {len(sources)} "
            "patients); --continue goes on with the others"
        )
    folder = DataFolder(output)
    for source in sorted(sources, key=lambda one: one.patient_id not in there):
        try:
            case = source.read_with_truth(names) if isinstance(source, Scan) else source.read()
            findings = check_agreement(case, Coarse.of(case))
            is_new = folder.write(case)
        except RefusedError as error:
            if isinstance(error, OtherImagesError) and sources.kind == "DICOM" and not keep_names:
                raise RefusedError(
                    f"{error}: names of DICOM patients are numbers, which move where patients are "
                    "added; use --keep-names, or another folder"
                ) from error
            narrator.problem(f"{source.patient_id}: {error}")
            counts["refused"] += 1
            continue
        counts["written" if is_new else "there already"] += 1
        truth = "with truth" if case.truth else "without truth"
        narrator(f"{case.patient_id}: {truth}{'' if is_new else ', there already'}")
        for note in (*case.notes, *(finding.text for finding in findings)):
            narrator(f"{case.patient_id}: note: {note}")
    _say_counts(counts, len(sources), output)
    return Exit.REFUSED if counts["refused"] else Exit.OK


# --- segmentation --------------------------------------------------------------------------------


@segmentation.command("train")
def segmentation_train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/train"),
    fold: FoldOption = None,
) -> None:
    """Train on a data folder; writes checkpoints, logs, curves and a weight bundle under --run."""
    from hmvnet.training.segmentation_bundle import train_segmentation_bundle

    _say(f"bundle: {train_segmentation_bundle(_settings(config, overrides), run, fold)}")


@segmentation.command("eval")
def segmentation_eval(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/eval"),
    limit: LimitOption = 0,
) -> None:
    """Score a weight bundle on a data folder: the challenge's metrics, per patient and in all."""
    from hmvnet.experiments.evaluate import evaluate_segmentation

    settings = _settings(config, overrides)
    evaluate_segmentation(settings, _bundle(weights), run, limit, _console())


@segmentation.command("tune")
def segmentation_tune(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/tune"),
    limit: LimitOption = 0,
    score: ScoreOption = "2025",
) -> None:
    """Choose a bundle's postprocessing on patients its networks did not see."""
    from hmvnet.experiments.tune import tune

    settings = _settings(config, overrides)
    _say(f"bundle: {tune(settings, _bundle(weights), run, limit, _console(), score)}")


@segmentation.command("compare")
def segmentation_compare(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/compare"),
    network: NetworkOption = None,
    fold: FoldOption = None,
    test: TestOption = None,
    minutes: MinutesOption = None,
    train_minutes: TrainMinutesOption = None,
    budgets: BudgetsOption = "",
    jobs: Annotated[int, typer.Option(min=0, help="of --budgets: trainings at a time")] = 1,
    scheduler: Annotated[
        str, typer.Option(help="of --budgets: a Dask scheduler, as tcp://host:8786")
    ] = "",
    windows: Annotated[
        bool,
        typer.Option(
            help="of --budgets: score one-pass networks in windows and as both's mean, too"
        ),
    ] = True,
    paces: Annotated[
        Path | None,
        typer.Option(help="of --budgets: a -runs.csv by whose seconds a step minutes are charged"),
    ] = None,
) -> None:
    """Train and score networks alike; one table, pictures."""
    from hmvnet.experiments.compare_networks import compare_networks, parse_contender

    contenders = [parse_contender(text) for text in network or COMPARED_NETWORKS]
    settings = _settings(config, overrides)
    if budgets:
        from hmvnet.experiments.budgets import parse_budgets
        from hmvnet.experiments.compare_budgets import compare_budgets

        if test or train_minutes:
            raise RefusedError("--budgets goes neither with --test nor with --train-minutes")
        compare_budgets(
            settings,
            contenders,
            run.absolute() if scheduler else run,
            parse_budgets(budgets),
            fold,
            _console(),
            jobs=jobs,
            scheduler=scheduler,
            minutes=minutes,
            windows=windows,
            paces=paces,
        )
        return
    if jobs != 1 or scheduler or not windows or paces:
        raise RefusedError("--jobs, --scheduler, --no-windows and --paces go with --budgets only")
    compare_networks(settings, contenders, run, fold, _console(), test, minutes, train_minutes)


# --- survival ------------------------------------------------------------------------------------


@survival.command("train")
def survival_train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/train"),
) -> None:
    """Fit the survival model beside a bundle's networks; writes a bundle of both under --run."""
    from hmvnet.training.survival_bundle import train_survival_bundle

    _say(f"bundle: {train_survival_bundle(_settings(config, overrides), _bundle(weights), run)}")


@survival.command("eval")
def survival_eval(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/eval"),
    limit: LimitOption = 0,
) -> None:
    """Harrell's C-index of a bundle on patients that none of its models saw."""
    from hmvnet.experiments.evaluate_survival import evaluate_survival

    settings = _settings(config, overrides)
    evaluate_survival(settings, _bundle(weights), run, limit, _console())


@survival.command("recalibrate")
def survival_recalibrate(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/recalibrate"),
) -> None:
    """Fit a bundle's survival curve to a few patients of where it is used; writes a bundle."""
    from hmvnet.experiments.evaluate_survival import recalibrate_survival

    settings = _settings(config, overrides)
    _say(f"bundle: {recalibrate_survival(settings, _bundle(weights), run, _console())}")


@survival.command("compare")
def survival_compare(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/compare"),
    model: ModelOption = None,
    repeats: RepeatsOption = 5,
    reference: ReferenceOption = "",
    test: TestOption = None,
    centres: Annotated[
        bool, typer.Option(help="leave out a centre after the other, too, where there are several")
    ] = True,
) -> None:
    """Fit and score survival models alike, on folds or on another cohort; one table, pictures."""
    from hmvnet.experiments.compare_survival import compare_survival
    from hmvnet.experiments.external_survival import compare_elsewhere

    settings, names = _settings(config, overrides), model or ()
    bundle = None if settings.clinical.tables else _bundle(weights)
    if test is not None:
        compare_elsewhere(settings, test, bundle, run, _console(), names, reference)
    else:
        compare_survival(settings, bundle, run, _console(), names, repeats, reference, centres)


# --- stage ---------------------------------------------------------------------------------------


@stage.command("train")
def stage_train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/train"),
) -> None:
    """Fit T and N models beside a bundle's networks; writes a bundle of all under --run."""
    from hmvnet.training.staging_bundle import train_staging_bundle

    _say(f"bundle: {train_staging_bundle(_settings(config, overrides), _bundle(weights), run)}")


@stage.command("compare")
def stage_compare(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/compare"),
    masks: Annotated[
        list[str] | None, typer.Option(help="true or predicted; repeatable; default: both")
    ] = None,
) -> None:
    """Cross-fit AJCC's rule and fitted models on true and on predicted masks; one table."""
    from hmvnet.experiments.compare_staging import compare_staging, known_masks

    settings = _settings(config, overrides)
    compare_staging(settings, _bundle(weights), run, _console(), known_masks(masks or ()))


# --- what helps ----------------------------------------------------------------------------------


@app.command("settings")
def show_settings(
    overrides: Overrides = None,
    config: ConfigOption = None,
    markdown: Annotated[bool, typer.Option(help="the reference, as a Markdown table")] = False,
) -> None:
    """Print the settings file: every setting, its value and its meaning."""
    from hmvnet.settings_file import settings_markdown, settings_xml

    if markdown and (overrides or config):
        raise RefusedError("--markdown prints the reference of all settings: it takes no others")
    text = settings_markdown() if markdown else settings_xml(_settings(config, overrides))
    print(text, end="")


@export.callback(invoke_without_command=True)
def export_onnx(
    context: typer.Context,
    weights: WeightsOption = "",
    size: Annotated[str, typer.Option(help="z,y,x voxels; default: the bundle's region")] = "",
) -> None:
    """Write the bundle's ONNX files beside its weights, and check them against torch."""
    from hmvnet.segmentation.onnx_export import export_bundle

    if context.invoked_subcommand:
        return
    words = size.split(",") if size else []
    if size and (len(words) != 3 or not all(w.strip().isdigit() and int(w) > 1 for w in words)):
        raise RefusedError(f"--size {size}: expected three whole numbers above 1, z,y,x")
    shape = (int(words[0]), int(words[1]), int(words[2])) if words else None
    for path, difference in export_bundle(_bundle(weights), shape):
        _say(f"wrote {path}; largest difference in probability {difference:.1e}")


@export.command("nnunet-dataset")
def export_nnunet_dataset(
    data: Annotated[Path, typer.Argument(help="a data folder, as training reads it")],
    out: Annotated[Path, typer.Argument(help="the folder to write, DatasetXXX_Name")],
    go_on: GoOnOption = False,
) -> int:
    """Write a data folder as nnU-Net's raw data: CT and PET on the CT's grid, labels."""
    from hmvnet.reading.folder import find_patients
    from hmvnet.writing.nnunet import DatasetWriter
    from hmvnet.writing.summary import Narrator

    found, writer = find_patients(data), DatasetWriter(out, go_on)
    print_lines(found.summary())
    narrator, counts = Narrator(), Counter[str]()
    for patient in found:
        try:
            case = patient.read()
            said = "written" if writer.write(case) else "there already"
        except RefusedError as error:
            narrator.problem(str(error))
            counts["refused"] += 1
            continue
        counts[said] += 1
        narrator(f"{patient.patient_id}: {said}")
        for note in case.notes:
            narrator(f"{patient.patient_id}: note: {note}")
    writer.close()
    _say_counts(counts, len(found), out)
    return Exit.REFUSED if counts["refused"] else Exit.OK


@import_.command("nnunet")
def import_nnunet(
    folder: Annotated[
        Path, typer.Argument(help="a trained model: plans.json, dataset.json, fold_*")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="the bundle to write")],
    fold: Annotated[
        list[str] | None, typer.Option(help="a fold to take; repeatable; default: all")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="final or best")] = "final",
    field: Annotated[
        str,
        typer.Option(help="what it sees: region, ct, or auto: what it was trained on by size"),
    ] = "auto",
    beside: Annotated[
        str, typer.Option(help="a bundle whose networks are averaged with these")
    ] = "",
    splits: Annotated[
        Path | None, typer.Option(help="splits_final.json: what each fold was trained on")
    ] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="none of your patients was trained on")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace a bundle that is there")] = False,
) -> None:
    """Write a bundle of a trained nnU-Net v2 model's networks."""
    from hmvnet.bundle import MANIFEST
    from hmvnet.training.nnunet_import import import_nnunet

    for option, value, known in (
        ("checkpoint", checkpoint, ("final", "best")),
        ("field", field, ("auto", "region", "ct")),
    ):
        if value not in known:
            raise RefusedError(f"--{option} {value}: expected {' or '.join(known)}")
    if splits and unseen:
        raise RefusedError("--splits and --unseen exclude each other")
    if out.exists() and not force:
        raise RefusedError(f"{out} is there already; --force replaces it")
    if out.exists() and not (out / MANIFEST).is_file():
        raise RefusedError(f"{out} is there, and no bundle: expected one, or a new folder")
    found = import_nnunet(
        folder,
        out,
        fold or (),
        checkpoint,  # type: ignore[arg-type]
        field,  # type: ignore[arg-type]
        _bundle(beside) if beside else None,
        splits,
        unseen,
    )
    print_lines(found.notes)
    _say(f"bundle: {found.folder}")


@app.command()
def phantom(
    root: Annotated[Path, typer.Argument(help="folder to write the cohort to")],
    count: Annotated[int, typer.Option(min=1, help="patients")] = 20,
    seed: Annotated[
        int, typer.Option(min=0, help="the cohort is a function of seed and settings")
    ] = 0,
    whole_body: Annotated[
        bool, typer.Option(help="vertex to thigh instead of head and neck")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    dicom: Annotated[bool, typer.Option("--dicom", help="also as DICOM, PET in Bq/mL")] = False,
    stages: Annotated[
        bool, typer.Option("--stages", help="of all T and N stages, some of which invade")
    ] = False,
    hidden_pattern: Annotated[
        bool,
        typer.Option(
            "--hidden-pattern", help="outcomes hang on how the primary's uptake lies, too"
        ),
    ] = False,
    centre_effects: Annotated[
        bool,
        typer.Option("--centre-effects", help="centres differ in images, records and hazard"),
    ] = False,
    layout: Annotated[
        str, typer.Option(help="of HECKTOR: 2025 or 2026; records: no images")
    ] = "2025",
) -> None:
    """Write SYNTHETIC patients with known truth, in HECKTOR's layout."""
    from hmvnet.phantom import PhantomSettings, write_cohort
    from hmvnet.progress import show_progress

    with show_progress("phantoms", count) as progress:
        settings = PhantomSettings(
            whole_body=whole_body,
            stages=stages,
            hidden_pattern=hidden_pattern,
            centre_effects=centre_effects,
        )
        summary = write_cohort(
            root,
            count,
            seed,
            settings,
            jobs,
            lambda done, _: progress.reach(done),
            dicom=dicom,
            layout=layout,  # type: ignore[arg-type]  # write_cohort refuses others
        )
    _say(str(summary))


@bench.command("case")
def bench_case(
    weights: WeightsOption = "",
    folder: Annotated[Path, typer.Option(help="scratch folder")] = Path("runs/bench"),
    against: Annotated[
        Path | None,
        typer.Option(help="another checkout, run turn by turn in the baseline's place"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="turns of each, with --against")] = 3,
    windows: Annotated[
        int,
        typer.Option(min=0, help="of nnU-Net's own predictor, so many are timed; 0: all"),
    ] = 0,
) -> None:
    """One 512 x 512 x 200 case: every step here, the official baseline's way, and nnU-Net's."""
    from hmvnet.experiments.bench import compare_case
    from hmvnet.experiments.bench_against import bench_against

    console = _console()
    if against is not None:
        console.print(bench_against(_bundle(weights), folder, against, repeats, console))
        return
    compare_case(_bundle(weights), folder, console, windows)


@bench.command("networks")
def bench_networks(
    names: Annotated[
        str, typer.Option(help="networks, comma-separated, each with options after blanks")
    ] = "hmvnet,segresnet,swinunetr,resenc-unet,stu-net,unet3d,unetr",
    patch: Annotated[int, typer.Option(min=32, help="edge of the patch in voxels")] = 96,
    batch: Annotated[int, typer.Option(min=1, help="patches at a time")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="timed passes; the median counts")] = 3,
    device: DeviceOption = "cpu",
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (autocast)")] = "fp32",
) -> None:
    """Forward pass, training step and peak memory of each network on the same patches."""
    from hmvnet.experiments.bench_networks import network_table
    from hmvnet.segmentation.ensemble import pick_device

    if precision not in ("fp32", "bf16"):
        raise RefusedError(f"--precision {precision}: expected fp32 or bf16")
    where = pick_device(device)
    console = _console()
    many = re.split(r",(?=\s*[A-Za-z][\w-]*(?:[\s,]|$))", names)  # not those of depths=2,2
    console.print(network_table(many, patch, repeats, console, where, precision, batch))


@bench.command("loader")
def bench_patches(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/bench-loader"),
    samples: Annotated[int, typer.Option(min=1, help="patches a turn")] = 20,
    turns: Annotated[int, typer.Option(min=1, help="of each side")] = 5,
    patients: Annotated[int, typer.Option(min=1, help="of data.root, at most")] = 4,
) -> None:
    """Training patches per second and core, beside batchgeneratorsv2's with the same transforms."""
    from hmvnet.experiments.bench_loader import bench_loader

    bench_loader(_settings(config, overrides), run, _console(), samples, turns, patients)


@bench.command("verdict")
def bench_verdicts(
    weights: WeightsOption = "",
    run: RunOption = Path("runs/verdict"),
    count: Annotated[int, typer.Option(min=1, help="phantoms")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of the cohort")] = 3,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a setting in the bundle's place")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="a perturbation; default: all")] = None,
) -> None:
    """Phantoms as they are and perturbed: their verdicts against the Dice of their masks."""
    from hmvnet.experiments.bench_verdict import bench_verdict

    bench_verdict(_bundle(weights), run, count, seed, set_ or (), _console(), only or ())


def _whole_numbers(option: str, text: str, least: int) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) >= least for word in words):
        raise RefusedError(f"{option} {text}: expected whole numbers from {least} on, with commas")
    return [int(word) for word in words]


@bench.command("cohort")
def bench_cohorts(
    weights: WeightsOption = "",
    run: RunOption = Path("runs/cohort"),
    counts: Annotated[str, typer.Option(help="numbers of patients, comma-separated")] = "10,50,200",
    workers: Annotated[
        str, typer.Option(help="numbers of processes, comma-separated; 0: no other process")
    ] = "0,2",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a setting in the bundle's place")
    ] = None,
) -> None:
    """Cost per patient of small and large cohorts, in one process and in several."""
    from hmvnet.experiments.bench_cohort import bench_cohort

    many = _whole_numbers("--counts", counts, 2)
    bench_cohort(
        _bundle(weights), run, many, _whole_numbers("--workers", workers, 0), set_ or (), _console()
    )


@bench.command("survival")
def bench_survival_models(
    run: RunOption = Path("runs/bench-survival"),
    sizes: Annotated[str, typer.Option(help="numbers of patients")] = "500,1000,2000,4000",
    icare: Annotated[
        Path | None, typer.Option(help="python of an environment with icare 0.1.0")
    ] = None,
) -> None:
    """Seconds of a fit against the number of patients, beside scikit-survival's and icare's."""
    from hmvnet.experiments.bench_survival import bench_survival

    bench_survival(run, _console(), _sizes(sizes), icare)


@bench.command("parts")
def bench_parts_of_the_risk(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/bench-parts"),
    data: Annotated[
        str, typer.Option(help="flchain, gbsg2, whas500 or aids; default: clinical.tables")
    ] = "",
    sizes: Annotated[str, typer.Option(help="numbers of training patients")] = "100,200,400",
    draws: Annotated[int, typer.Option(min=2, help="draws of each size")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="of the draws")] = 0,
) -> None:
    """What the fusion model loses to the best single model, by the number of patients."""
    from hmvnet.experiments.bench_parts import bench_parts

    bench_parts(_settings(config, overrides), data, run, _sizes(sizes), draws, seed, _console())


def _sizes(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(w.isdigit() and int(w) >= 100 for w in words):
        raise RefusedError(f"--sizes {text}: expected whole numbers from 100 on, comma-separated")
    return sorted({int(w) for w in words})


# --- the names of before -------------------------------------------------------------------------


@app.command("train", hidden=True)
def train_of_before(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/train"),
    task: TaskOption = 1,
    weights: WeightsOption = "",
    fold: FoldOption = None,
) -> None:
    """``segmentation train``, or with ``--task 2`` ``survival train``."""
    if task == 1:
        segmentation_train(overrides, config, run, fold)
    else:
        survival_train(overrides, config, weights, run)


@app.command("eval")
def evaluate(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/eval"),
    task: EvalTaskOption = None,
    limit: LimitOption = 0,
) -> None:
    """Score a bundle by both challenges' figures: masks, stages and risks, all and per centre.

    With ``--task 1`` as ``segmentation eval``, with ``--task 2`` as ``survival eval``.
    """
    if task is not None:
        (segmentation_eval if task == 1 else survival_eval)(overrides, config, weights, run, limit)
        return
    from hmvnet.experiments.evaluate_challenge import evaluate_challenge

    settings = _settings(config, overrides)
    evaluate_challenge(settings, _bundle(weights), run, limit, _console())


app.command("tune", hidden=True)(segmentation_tune)


@app.command("compare", hidden=True)
def compare_of_before(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/compare"),
    task: TaskOption = 1,
    weights: WeightsOption = "",
    network: NetworkOption = None,
    fold: FoldOption = None,
    test: TestOption = None,
    minutes: MinutesOption = None,
    train_minutes: TrainMinutesOption = None,
    model: ModelOption = None,
    repeats: RepeatsOption = 5,
    reference: ReferenceOption = "",
) -> None:
    """``segmentation compare``, or with ``--task 2`` ``survival compare``."""
    if task == 1:
        segmentation_compare(overrides, config, run, network, fold, test, minutes, train_minutes)
    else:
        survival_compare(overrides, config, weights, run, model, repeats, reference, test)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False,
) -> None:
    """Head-and-neck PET/CT segmentation and RFS prediction. Not for clinical use."""
    if version:
        print(f"hmvnet {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what was given and is wrong ends in one clear line and exit code 2."""
    raise SystemExit(ending(lambda: _run(arguments), (ValueError,)))


def _run(arguments: list[str] | None) -> int:
    command = typer.main.get_command(app)
    try:
        code = command(arguments, prog_name="hmvnet", standalone_mode=False) or Exit.OK
        print_lines(REMARKS.summary())
        if code == Exit.INTERRUPTED:
            raise KeyboardInterrupt
        return code
    except typer.Abort as abort:  # typer's for Ctrl-C, and for a file that ends too early
        raise (abort.__cause__ or abort.__context__ or KeyboardInterrupt()) from None
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise RefusedError(
            f"this needs {error.name}, of the extra '{extra}': pip install 'hmvnet[{extra}]'"
        ) from error
    except UsageError as error:
        message, context = error.format_message(), error.ctx
        if message.startswith("Usage:"):  # no arguments at all: the help itself
            print(message)
            return Exit.REFUSED
        where = context.command_path if context else "hmvnet"
        raise RefusedError(f"{message} (see {where} --help)") from error


if __name__ == "__main__":
    main(sys.argv[1:])
