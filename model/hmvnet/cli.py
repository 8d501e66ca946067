"""The command line: ``hmvnet train | eval | predict | export | phantom | compare | bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from hmvnet.config import load_settings

app = typer.Typer(
    help="Head-and-neck PET/CT tumour segmentation and RFS prediction. Not for clinical use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()

ConfigOption = Annotated[Path, typer.Option("--config", help="settings file")]
RunOption = Annotated[Path, typer.Option("--run", help="folder of this run's files")]
Overrides = Annotated[
    Optional[list[str]], typer.Argument(help="settings, section.name=value", show_default=False)
]
CONFIG = Path(__file__).resolve().parents[1] / "config.xml"


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigOption = CONFIG,
    run: RunOption = Path("runs/train"),
    task: Annotated[int, typer.Option(min=1, max=2, help="1 segmentation, 2 survival")] = 1,
    fold: Annotated[Optional[list[int]], typer.Option(help="fold(s) to train; all if left out")] = None,
) -> None:
    """Train on a data folder; writes checkpoints, logs, curves and a weight bundle under --run."""
    settings = load_settings(config, overrides or ())
    from hmvnet.training.task1 import train_task1

    bundle = train_task1(settings, run, fold)
    console.print(f"bundle: {bundle}")


@app.command()
def phantom(
    root: Annotated[Path, typer.Argument(help="folder to write the cohort to")],
    count: Annotated[int, typer.Option(min=1, help="patients")] = 20,
    seed: Annotated[int, typer.Option(help="the cohort is a function of seed and settings")] = 0,
    whole_body: Annotated[bool, typer.Option(help="vertex to thigh instead of head and neck")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
) -> None:
    """Write SYNTHETIC patients with known truth, in the HECKTOR 2025 layout."""
    from rich.progress import Progress

    from hmvnet.phantom import PhantomSettings, write_cohort

    with Progress(console=console) as progress:
        bar = progress.add_task("phantoms", total=count)
        settings = PhantomSettings(whole_body=whole_body)
        summary = write_cohort(
            root, count, seed, settings, jobs, lambda done, _: progress.update(bar, completed=done)
        )
    console.print(str(summary))


def main() -> None:
    """Run a command; wrong settings and data end in one clear line and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
