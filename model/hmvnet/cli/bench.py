"""``hmvnet bench``: this project and its baselines, measured side by side."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from hmvnet.cli.options import (
    ConfigOption,
    DeviceOption,
    Overrides,
    RunOption,
    SetOption,
    WeightsOption,
    bundle_of,
    commands,
    console,
    settings_of,
    whole_numbers,
)
from hmvnet.exits import RefusedError

bench = commands("Measure this project and its baselines side by side.")


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

    shown = console()
    if against is not None:
        shown.print(bench_against(bundle_of(weights), folder, against, repeats, shown))
        return
    compare_case(bundle_of(weights), folder, shown, windows)


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
    shown = console()
    many = re.split(r",(?=\s*[A-Za-z][\w-]*(?:[\s,]|$))", names)  # not those of depths=2,2
    shown.print(network_table(many, patch, repeats, shown, where, precision, batch))


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

    bench_loader(settings_of(config, overrides), run, console(), samples, turns, patients)


@bench.command("verdict")
def bench_verdicts(
    weights: WeightsOption = "",
    run: RunOption = Path("runs/verdict"),
    count: Annotated[int, typer.Option(min=1, help="phantoms")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of the cohort")] = 3,
    set_: SetOption = None,
    only: Annotated[list[str] | None, typer.Option(help="a perturbation; default: all")] = None,
) -> None:
    """Phantoms as they are and perturbed: their verdicts against the Dice of their masks."""
    from hmvnet.experiments.bench_verdict import bench_verdict

    bench_verdict(bundle_of(weights), run, count, seed, set_ or (), console(), only or ())


@bench.command("cohort")
def bench_cohorts(
    weights: WeightsOption = "",
    run: RunOption = Path("runs/cohort"),
    counts: Annotated[str, typer.Option(help="numbers of patients, comma-separated")] = "10,50,200",
    workers: Annotated[
        str, typer.Option(help="numbers of processes, comma-separated; 0: no other process")
    ] = "0,2",
    set_: SetOption = None,
) -> None:
    """Cost per patient of small and large cohorts, in one process and in several."""
    from hmvnet.experiments.bench_cohort import bench_cohort

    many = whole_numbers("--counts", counts, 2)
    bench_cohort(
        bundle_of(weights), run, many, whole_numbers("--workers", workers, 0), set_ or (), console()
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

    bench_survival(run, console(), _sizes(sizes), icare)


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

    bench_parts(settings_of(config, overrides), data, run, _sizes(sizes), draws, seed, console())


def _sizes(text: str) -> list[int]:
    return sorted(set(whole_numbers("--sizes", text, 100)))
