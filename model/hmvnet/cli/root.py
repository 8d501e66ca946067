"""``hmvnet`` itself: its commands put together, how they end, and the names of before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmvnet import __version__
from hmvnet.cli.bench import bench
from hmvnet.cli.exchange import export, import_
from hmvnet.cli.helpers import phantom, show_settings
from hmvnet.cli.options import (
    SETTLED,
    ConfigOption,
    EvalTaskOption,
    FoldOption,
    LimitOption,
    MinutesOption,
    ModelOption,
    NetworkOption,
    Overrides,
    ReferenceOption,
    RepeatsOption,
    RunOption,
    TaskOption,
    TestOption,
    TrainMinutesOption,
    WeightsOption,
    bundle_of,
    commands,
    console,
    settings_of,
)
from hmvnet.cli.scans import convert, predict
from hmvnet.cli.segmentation import (
    segmentation,
    segmentation_compare,
    segmentation_eval,
    segmentation_train,
    segmentation_tune,
)
from hmvnet.cli.stage import stage
from hmvnet.cli.survival import survival, survival_compare, survival_eval, survival_train
from hmvnet.exits import Exit, RefusedError, ending
from hmvnet.progress import REMARKS, print_lines

# What typer raises for wrong options and arguments: click's own, which newer typer carries inside.
UsageError: Any = typer.BadParameter.__mro__[1]
# The packages that an extra brings, for whoever installed the package without it.
EXTRAS = {
    "sksurv": "baselines",
    "lightning_fabric": "train",
    "tensorboard": "train",
    "blosc2": "train",
    "numba": "train",
    "onnx": "train",
    "onnxscript": "train",
    "einops": "train",
    "tabulate": "train",
    "highdicom": "dicom",
    "dask": "cluster",
    "distributed": "cluster",
}

app = commands("Head-and-neck PET/CT segmentation and RFS prediction. Not for clinical use.")
for group, name in (
    (segmentation, "segmentation"),
    (survival, "survival"),
    (stage, "stage"),
    (bench, "bench"),
    (export, "export"),
    (import_, "import"),
):
    app.add_typer(group, name=name)
app.command()(predict)
app.command()(convert)
app.command("settings")(show_settings)
app.command()(phantom)


# --- the names of before, and what scores by both --------------------------------------------


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

    settings = settings_of(config, overrides, SETTLED)
    evaluate_challenge(settings, bundle_of(weights), run, limit, console())


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


# --- how it runs -----------------------------------------------------------------------------


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
            f"this needs {error.name}, of the extra '{extra}': pip install '.[{extra}]'"
        ) from error
    except UsageError as error:
        message, context = error.format_message(), error.ctx
        if message.startswith("Usage:"):  # no arguments at all: the help itself
            print(message)
            return Exit.REFUSED
        where = context.command_path if context else "hmvnet"
        raise RefusedError(f"{message} (see {where} --help)") from error
