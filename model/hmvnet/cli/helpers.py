"""``hmvnet settings`` and ``hmvnet phantom``: what helps the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmvnet.cli.options import (
    ConfigOption,
    Overrides,
    say,
    settings_of,
)
from hmvnet.exits import RefusedError


def show_settings(
    overrides: Overrides = None,
    config: ConfigOption = None,
    markdown: Annotated[bool, typer.Option(help="the reference, as a Markdown table")] = False,
) -> None:
    """Print the settings file: every setting, its value and its meaning."""
    from hmvnet.settings_file import settings_markdown, settings_xml

    if markdown and (overrides or config):
        raise RefusedError("--markdown prints the reference of all settings: it takes no others")
    text = settings_markdown() if markdown else settings_xml(settings_of(config, overrides))
    print(text, end="")


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
    say(str(summary))
