"""``hmvnet survival``: models of the risk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmvnet.cli.options import (
    SETTLED,
    ConfigOption,
    LimitOption,
    ModelOption,
    Overrides,
    ReferenceOption,
    RepeatsOption,
    RunOption,
    TestOption,
    WeightsOption,
    bundle_of,
    commands,
    console,
    say,
    settings_of,
)

survival = commands("Train, score and compare survival models.")


@survival.command("train")
def survival_train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/train"),
) -> None:
    """Fit the survival model beside a bundle's networks; writes a bundle of both under --run."""
    from hmvnet.training.survival_bundle import train_survival_bundle

    say(f"bundle: {train_survival_bundle(settings_of(config, overrides), bundle_of(weights), run)}")


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

    settings = settings_of(config, overrides, SETTLED)
    evaluate_survival(settings, bundle_of(weights), run, limit, console())


@survival.command("recalibrate")
def survival_recalibrate(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/recalibrate"),
) -> None:
    """Fit a bundle's survival curve to a few patients of where it is used; writes a bundle."""
    from hmvnet.experiments.evaluate_survival import recalibrate_survival

    settings = settings_of(config, overrides)
    say(f"bundle: {recalibrate_survival(settings, bundle_of(weights), run, console())}")


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

    settings, names = settings_of(config, overrides), model or ()
    bundle = None if settings.clinical.tables else bundle_of(weights)
    if test is not None:
        compare_elsewhere(settings, test, bundle, run, console(), names, reference)
    else:
        compare_survival(settings, bundle, run, console(), names, repeats, reference, centres)
