"""``hmvnet stage``: models of T and N."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmvnet.cli.options import (
    ConfigOption,
    Overrides,
    RunOption,
    WeightsOption,
    bundle_of,
    commands,
    console,
    say,
    settings_of,
)

stage = commands("Train and compare staging models: T and N of AJCC's 7th edition.")


@stage.command("train")
def stage_train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    weights: WeightsOption = "",
    run: RunOption = Path("runs/train"),
) -> None:
    """Fit T and N models beside a bundle's networks; writes a bundle of all under --run."""
    from hmvnet.training.staging_bundle import train_staging_bundle

    say(f"bundle: {train_staging_bundle(settings_of(config, overrides), bundle_of(weights), run)}")


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

    settings = settings_of(config, overrides)
    compare_staging(settings, bundle_of(weights), run, console(), known_masks(masks or ()))
