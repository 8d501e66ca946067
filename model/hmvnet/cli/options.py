"""What several commands share: options, how settings are read, how what was done is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hmvnet.exits import RefusedError

if TYPE_CHECKING:
    from rich.console import Console

    from hmvnet.config import Settings


def commands(text: str, *, alone: bool = False) -> typer.Typer:
    """A group of commands; ``alone``: it does something without one."""
    return typer.Typer(
        help=text,
        no_args_is_help=not alone,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


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
    list[str] | None, typer.Option(help="DICOM series to use, by UID or code (--list); repeatable")
]
KeepNamesOption = Annotated[
    bool, typer.Option("--keep-names", help="DICOM patients under their own ids")
]
ReferenceOption = Annotated[str, typer.Option(help="model to take differences to")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="a setting in the bundle's place")
]
GoOnOption = Annotated[
    bool, typer.Option("--continue", help="leave patients that are there with the same images")
]


def console() -> Console:
    """Where tables are printed."""
    from rich.console import Console

    return Console(highlight=False)


def say(text: object) -> None:
    """A line of text, as it is."""
    console().print(text, soft_wrap=True, markup=False)


def say_counts(counts: Counter[str], total: int, output: Path) -> None:
    """How many patients were written, were there already or were refused."""
    words = ("written", "there already", "refused")
    said = [f"{counts[word]} {word}" for word in words if counts[word] or word != "there already"]
    say(f"{total} patients: {', '.join(said)}; in {output}")


# What a bundle that is there has settled.
SETTLED = ("network", "training", "augmentation", "prognosis")


def settings_of(
    config: Path | None, overrides: list[str] | None, settled: Sequence[str] = ()
) -> Settings:
    """Those of a file, and what the command line changes of them.

    Args:
        settled: sections that the command does not read: nobody is to believe that it did.

    Raises:
        RefusedError: the command line changes one of them.
    """
    from hmvnet.settings_file import load_settings

    settings = load_settings(config, overrides or ())
    for override in overrides or ():
        name = override.partition("=")[0].strip()
        if (section := name.partition(".")[0]) in settled:
            raise RefusedError(
                f"setting '{name}': the bundle's {section} is what is scored, and stays; expected "
                "one of data, clinical, preprocessing, postprocessing or inference"
            )
    return settings


def bundle_of(weights: str) -> Path:
    """The folder of the bundle that is meant."""
    from hmvnet.bundle import find_bundle

    return find_bundle(weights or None)


def whole_numbers(option: str, text: str, least: int) -> list[int]:
    """Numbers with commas between.

    Raises:
        RefusedError: another text, or one below ``least``.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) >= least for word in words):
        raise RefusedError(f"{option} {text}: expected whole numbers from {least} on, with commas")
    return [int(word) for word in words]
