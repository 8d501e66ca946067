"""``hmvnet segmentation``: networks are trained, scored, tuned and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmvnet.cli.options import (
    SETTLED,
    BudgetsOption,
    ConfigOption,
    FoldOption,
    LimitOption,
    MinutesOption,
    NetworkOption,
    Overrides,
    RunOption,
    ScoreOption,
    TestOption,
    TrainMinutesOption,
    WeightsOption,
    bundle_of,
    commands,
    console,
    say,
    settings_of,
)
from hmvnet.exits import RefusedError

COMPARED_NETWORKS = ("hmvnet", "segresnet", "swinunetr", "resenc-unet")

segmentation = commands("Train, score, tune and compare segmentation networks.")


@segmentation.command("train")
def segmentation_train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    run: RunOption = Path("runs/train"),
    fold: FoldOption = None,
) -> None:
    """Train on a data folder; writes checkpoints, logs, curves and a weight bundle under --run."""
    from hmvnet.training.segmentation_bundle import train_segmentation_bundle

    say(f"bundle: {train_segmentation_bundle(settings_of(config, overrides), run, fold)}")


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

    settings = settings_of(config, overrides, SETTLED)
    evaluate_segmentation(settings, bundle_of(weights), run, limit, console())


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

    settings = settings_of(config, overrides)
    say(f"bundle: {tune(settings, bundle_of(weights), run, limit, console(), score)}")


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
    settings = settings_of(config, overrides)
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
            console(),
            jobs=jobs,
            scheduler=scheduler,
            minutes=minutes,
            windows=windows,
            paces=paces,
        )
        return
    if jobs != 1 or scheduler or not windows or paces:
        raise RefusedError("--jobs, --scheduler, --no-windows and --paces go with --budgets only")
    compare_networks(settings, contenders, run, fold, console(), test, minutes, train_minutes)
