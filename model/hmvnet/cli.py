"""The command line: ``hmvnet train | eval | tune | compare | export | settings | ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hmvnet.bundle import WeightsError
from hmvnet.config import load_settings, settings_markdown, settings_xml

app = typer.Typer(
    help="Head-and-neck PET/CT tumour segmentation and RFS prediction. Not for clinical use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="settings file; default: built-in")
]
RunOption = Annotated[Path, typer.Option("--run", help="folder of this run's files")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings, section.name=value", show_default=False)
]
TaskOption = Annotated[int, typer.Option(min=1, max=2, help="1 segmentation, 2 survival")]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="bundle folder; default: the shipped one")
]
COMPARED_NETWORKS = ("hmvnet", "segresnet", "swinunetr", "resenc-unet")


def bundle_folder(weights: Path | None) -> Path:
    """The bundle asked for, or the shipped one."""
    from hmvnet.bundle import find_bundle

    return find_bundle(weights)


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/train"),
    task: TaskOption = 1,
    weights: WeightsOption = None,
    fold: Annotated[
        list[int] | None, typer.Option(help="fold(s) to train; all if left out")
    ] = None,
) -> None:
    """Train on a data folder; writes checkpoints, logs, curves and a weight bundle under --run."""
    settings = load_settings(config, overrides or ())
    if task == 2:
        from hmvnet.training.task2 import train_task2

        console.print(f"bundle: {train_task2(settings, bundle_folder(weights), run)}")
        return
    from hmvnet.training.task1 import train_task1

    console.print(f"bundle: {train_task1(settings, run, fold)}")


@app.command("eval")
def evaluate(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    run: RunOption = Path("runs/eval"),
    task: TaskOption = 1,
    limit: Annotated[int, typer.Option(min=0, help="first N patients only; 0: all")] = 0,
) -> None:
    """Score a weight bundle on a data folder: the challenge's metrics, per patient and in all."""
    settings = load_settings(config, overrides or ())
    if task == 2:
        from hmvnet.experiments.evaluate import evaluate_task2

        evaluate_task2(settings, bundle_folder(weights), run, limit, console)
    else:
        from hmvnet.experiments.evaluate import evaluate_task1

        evaluate_task1(settings, bundle_folder(weights), run, limit, console)


@app.command()
def export(
    weights: WeightsOption = None,
    size: Annotated[str, typer.Option(help="z,y,x voxels; default: the bundle's region")] = "",
) -> None:
    """Write the bundle's ONNX files beside its weights, and check them against torch."""
    from hmvnet.segmentation.onnx_export import export_bundle

    shape = tuple(int(n) for n in size.split(",")) if size else None
    for path, error in export_bundle(bundle_folder(weights), shape):
        console.print(f"wrote {path}; largest difference in probability {error:.1e}")


@app.command()
def tune(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    run: RunOption = Path("runs/tune"),
    limit: Annotated[int, typer.Option(min=0, help="first N patients only; 0: all")] = 0,
) -> None:
    """Choose a bundle's postprocessing on patients its networks did not see."""
    from hmvnet.experiments.tune import tune as tune_bundle

    settings = load_settings(config, overrides or ())
    console.print(f"bundle: {tune_bundle(settings, bundle_folder(weights), run, limit, console)}")


@app.command()
def compare(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/compare"),
    task: TaskOption = 1,
    weights: WeightsOption = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="Task 1: a network and its options, 'hmvnet window=4'; repeatable"),
    ] = None,
    fold: Annotated[list[int] | None, typer.Option(help="Task 1: fold(s); all if left out")] = None,
    test: Annotated[
        Path | None, typer.Option(help="Task 1: score on this data folder, not on the folds")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Task 1: stop after this; the same command goes on")
    ] = None,
    train_minutes: Annotated[
        float | None,
        typer.Option(help="Task 1: equal training time a fold, rather than equal steps"),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Task 2: a survival model; repeatable; default: all")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Task 2: cross-validations")] = 5,
    reference: Annotated[str, typer.Option(help="Task 2: model to take differences to")] = "",
) -> None:
    """Train and score networks (Task 1) or survival models (Task 2) alike; one table, pictures."""
    settings = load_settings(config, overrides or ())
    if task == 2:
        from hmvnet.experiments.compare_survival import compare_task2

        bundle = None if settings.clinical.tables else bundle_folder(weights)
        compare_task2(settings, bundle, run, console, model or (), repeats, reference)
        return
    from hmvnet.experiments.compare_networks import Contender, compare_task1

    contenders = [Contender.parse(text) for text in network or COMPARED_NETWORKS]
    compare_task1(settings, contenders, run, fold, console, test, minutes, train_minutes)


bench = typer.Typer(
    help="Measure this project and its baselines side by side.", no_args_is_help=True
)
app.add_typer(bench, name="bench")


@bench.command("case")
def bench_case(
    weights: WeightsOption = None,
    folder: Annotated[Path, typer.Option(help="scratch folder")] = Path("runs/bench"),
) -> None:
    """One 512 x 512 x 200 case: every step here and done the official baseline's way."""
    from hmvnet.bundle import load_bundle
    from hmvnet.experiments.bench import case_table, run_baseline, run_ours, write_bench_case
    from hmvnet.pipeline import Pipeline
    from hmvnet.segmentation.ensemble import pick_device

    folder.mkdir(parents=True, exist_ok=True)
    with console.status("making the case"):
        write_bench_case(folder)
    with console.status("HM-VNet"):
        pipeline = Pipeline(
            load_bundle(bundle_folder(weights)), pick_device("cpu"), needs_risk=False
        )
        run_ours(folder, pipeline)  # warm-up: first-touch of memory and lazy imports
        ours = run_ours(folder, pipeline)
    with console.status("baseline (minutes)") as status:
        baseline = run_baseline(folder, lambda step: status.update(f"baseline: {step}"))
    console.print(case_table(ours, baseline))


@bench.command("networks")
def bench_networks(
    names: Annotated[str, typer.Option(help="comma-separated network names")] = (
        "hmvnet,segresnet,swinunetr,resenc-unet,unet3d,unetr"
    ),
    patch: Annotated[int, typer.Option(help="edge of the patch in voxels")] = 96,
    repeats: Annotated[int, typer.Option(min=1, help="timed passes; the median counts")] = 3,
) -> None:
    """Forward pass, training step and peak memory of each network on the same patch."""
    from hmvnet.experiments.bench import network_table

    console.print(network_table(names.split(","), patch, repeats, console))


@app.command()
def phantom(
    root: Annotated[Path, typer.Argument(help="folder to write the cohort to")],
    count: Annotated[int, typer.Option(min=1, help="patients")] = 20,
    seed: Annotated[int, typer.Option(help="the cohort is a function of seed and settings")] = 0,
    whole_body: Annotated[
        bool, typer.Option(help="vertex to thigh instead of head and neck")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
) -> None:
    """Write SYNTHETIC patients with known truth, in the HECKTOR 2025 layout."""
    from hmvnet.phantom import PhantomSettings, write_cohort
    from hmvnet.progress import show_progress

    with show_progress("phantoms", count) as progress:
        settings = PhantomSettings(whole_body=whole_body)
        summary = write_cohort(
            root, count, seed, settings, jobs, lambda done, _: progress.reach(done)
        )
    console.print(str(summary))


@app.command("settings")
def show_settings(
    overrides: Overrides = None,
    config: ConfigOption = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="the reference of all settings instead")
    ] = False,
) -> None:
    """Print the settings that a command would use, as a settings file."""
    if markdown and (config or overrides):
        raise ValueError("--markdown describes the defaults: it takes no settings")
    text = settings_markdown() if markdown else settings_xml(load_settings(config, overrides or ()))
    typer.echo(text, nl=False)


def main() -> None:
    """Run a command; wrong settings and data end in one clear line and exit code 2.

    75 (EX_TEMPFAIL): time was up, the same command goes on.
    """
    from hmvnet.exits import UnfinishedError

    try:
        app()
    except UnfinishedError as unfinished:
        Console(stderr=True).print(str(unfinished), highlight=False)
        raise SystemExit(75) from unfinished
    except (ValueError, WeightsError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
