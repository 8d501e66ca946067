"""``hmvnet export`` and ``hmvnet import``: what other programs read or have trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from hmvnet.cli.options import (
    GoOnOption,
    WeightsOption,
    bundle_of,
    commands,
    say,
    say_counts,
)
from hmvnet.exits import Exit, RefusedError
from hmvnet.progress import print_lines

export = commands("Write the bundle's ONNX files, or data for nnU-Net.", alone=True)
import_ = commands("Take over models that other programs trained.")


@export.callback(invoke_without_command=True)
def export_onnx(
    context: typer.Context,
    weights: WeightsOption = "",
    size: Annotated[
        str, typer.Option(help="z,y,x voxels of graphs that see the region; default: the bundle's")
    ] = "",
) -> None:
    """Write the bundle's ONNX files beside its weights, and check them against torch."""
    from hmvnet.segmentation.onnx_export import export_bundle

    if context.invoked_subcommand:
        return
    words = size.split(",") if size else []
    if size and (len(words) != 3 or not all(w.strip().isdigit() and int(w) > 1 for w in words)):
        raise RefusedError(f"--size {size}: expected three whole numbers above 1, z,y,x")
    shape = (int(words[0]), int(words[1]), int(words[2])) if words else None
    for path, difference in export_bundle(bundle_of(weights), shape):
        say(f"wrote {path}; largest difference in probability {difference:.1e}")


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
    say_counts(counts, len(found), out)
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
        bundle_of(beside) if beside else None,
        splits,
        unseen,
    )
    print_lines(found.notes)
    say(f"bundle: {found.folder}")
