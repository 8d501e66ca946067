"""An nnU-Net v2 model as a weight bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from hmvnet.bundle import (
    Bundle,
    Manifest,
    SegmentationPart,
    check_other,
    fingerprint,
    load_bundle,
    write_bundle,
)
from hmvnet.case import CLASSES
from hmvnet.config import PostprocessingSettings, PreprocessingSettings
from hmvnet.exits import RefusedError, one_line, shown
from hmvnet.networks.registry import build_network
from hmvnet.networks.unet import ALIASES
from hmvnet.reading.records import read_json
from hmvnet.training.nnunet_model import FOLD, PLANS, NNUNetModel, read_model
from hmvnet.training.nnunet_settings import network_input, network_of

FieldName = Literal["auto", "region", "ct"]
# Of what nnU-Net does behind its network: nothing but the likeliest class.
AS_NNUNET = PostprocessingSettings(
    threshold_gtvp=0.0,
    threshold_gtvn=0.0,
    min_ml_gtvp=0.0,
    min_ml_gtvn=0.0,
    one_primary=False,
    airway_mm=0.0,
    cleanup=False,
)
ALIKE = 0.05  # by what share images trained on may differ from the working region in size


@dataclass(frozen=True)
class Imported:
    """What came of it: where the bundle is, and what a person should know, in lines."""

    folder: Path
    notes: tuple[str, ...]


def import_nnunet(
    source: Path,
    out: Path,
    folds: Sequence[str] = (),
    kind: Literal["final", "best"] = "final",
    field: FieldName = "auto",
    beside: Path | None = None,
    splits: Path | None = None,
    unseen: bool = False,
) -> Imported:
    """Write a bundle of a trained nnU-Net's networks; nothing but tensors and plain values is read.

    Args:
        source, folds, kind: as ``read_model``.
        out: the bundle's folder.
        field: what the networks see: the working region, the whole CT, or what the images that
            they were trained on were, by their size.
        beside: a bundle whose networks are taken too; region and postprocessing are then its.
        splits: nnU-Net's ``splits_final.json``, which says what each fold was trained on.
        unseen: that none of the user's patients was trained on.

    Raises:
        RefusedError: as ``read_model``; a network, preprocessing or setting that is not read.
    """
    model = read_model(source, folds, kind)
    if field == "auto":
        field = "region" if _trained_on_regions(model) else "ct"
    try:
        own = network_input(model, field)
        network, options = network_of(model)
    except RefusedError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # pydantic's is a ValueError
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RefusedError(
            f"{source / PLANS}: not readable as nnU-Net's plans: {shown(one_line(said), 160)}"
        ) from error
    taken = load_bundle(beside).manifest.segmentation.all_files if beside else []
    files = _file_names(list(model.checkpoints), taken)
    states = {
        files[fold]: _weights(checkpoint.network_weights, network, options, f"{FOLD}{fold}")
        for fold, checkpoint in model.checkpoints.items()
    }
    part = SegmentationPart(
        network=network,
        options=options,
        patch_size=model.configuration.patch_size,
        files=list(files.values()),
        input=own,
        seen=[[] for _ in files] if unseen else _seen(splits, list(files)) if splits else [],
    )
    manifest = Manifest(
        name=out.name,
        preprocessing=PreprocessingSettings(),
        postprocessing=AS_NNUNET,
        segmentation=part,
        trained_on=_origin(model, list(files), kind),
    )
    if beside:
        check_other(out, beside)
        manifest, others = _joined(load_bundle(beside), manifest)
        states = others | states
    write_bundle(out, manifest, states)
    return Imported(out, tuple(_notes(model, part, beside is not None)))


def _file_names(folds: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Each fold's file; several models beside each other are told apart by a number."""
    for number in count(1):
        model = f"nnunet{number if number > 1 else ''}"
        files = {fold: f"{model}-fold{fold}.safetensors" for fold in folds}
        if not set(files.values()) & set(taken):
            return files
    raise AssertionError("there are numbers enough")


def _weights(
    found: Mapping[str, Tensor], network: str, options: dict[str, Any], where: str
) -> dict[str, Tensor]:
    """A checkpoint's tensors, each once, tried on the network.

    Raises:
        RefusedError: they are another network's.
    """
    kept = {k: v for k, v in found.items() if not any(alias in k for alias in ALIASES)}
    try:
        with torch.device("meta"):
            empty = build_network(network, options)
        empty.load_state_dict(kept, assign=True)
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RefusedError(
            f"{where}: the weights are not those of the network in {PLANS}: "
            f"{shown(lines[-1] if lines else type(error).__name__, 200)}"
        ) from error
    return kept


def _trained_on_regions(model: NNUNetModel) -> bool:
    """Whether the images that it was trained on were as large as the working region."""
    plans = model.plans
    sizes = [
        mm * n
        for mm, n in zip(
            plans.original_median_spacing_after_transp, plans.original_median_shape_after_transp
        )
    ]
    if len(sizes) != 3:
        return False
    ours = PreprocessingSettings().size_mm[::-1]
    mine = [ours[axis] for axis in plans.transpose_forward]
    return all(abs(size / mm - 1) <= ALIKE for size, mm in zip(sizes, mine))


def _seen(splits: Path, folds: Sequence[str]) -> list[list[str]]:
    """Fingerprints of the patients that each fold was trained on."""
    content, _ = read_json(splits)
    try:
        return [
            sorted(fingerprint(str(patient)) for patient in content[int(fold)]["train"])  # type: ignore[index]
            for fold in folds
        ]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise RefusedError(
            f"{splits}: not nnU-Net's splits_final.json of folds {', '.join(folds)}, expected a "
            "list with train and val a fold"
        ) from error


def _origin(model: NNUNetModel, folds: Sequence[str], kind: str) -> dict[str, Any]:
    """For the manifest: what is known of where the networks come from."""
    return {
        "imported": "nnU-Net v2",
        "trainer": shown(model.first.trainer_name),
        "configuration": shown(model.configuration_name),
        "data": shown(model.plans.dataset_name),
        "plans": shown(model.plans.plans_name),
        "folds": list(folds),
        "checkpoint": kind,
    }


def _joined(bundle: Bundle, manifest: Manifest) -> tuple[Manifest, dict[str, dict[str, Tensor]]]:
    """The networks of two bundles in one, and the tensors of the first; the rest is the first's."""
    part = bundle.manifest.segmentation
    both = part.model_copy(update={"beside": [*part.beside, manifest.segmentation]})
    before = bundle.manifest.trained_on.get("beside", [])
    before = before if isinstance(before, list) else [before]
    trained_on = bundle.manifest.trained_on | {"beside": [*before, manifest.trained_on]}
    joined = bundle.manifest.model_copy(
        update={
            "name": manifest.name,
            "segmentation": both,
            "prognosis": None,
            "staging": None,
            "trained_on": json.loads(json.dumps(trained_on)),
            "metrics": {},
        }
    )
    return joined, {name: bundle.tensors(name) for name in part.all_files}


def _notes(model: NNUNetModel, part: SegmentationPart, joined: bool) -> list[str]:
    own = part.input
    assert own is not None
    where = {"region": "the working region", "ct": "the whole CT on its own grid"}[own.field]
    spacing = " x ".join(f"{mm:g}" for mm in own.spacing_mm)
    patch = " x ".join(map(str, part.patch_size))
    first, second = ("PET", "CT") if own.pet_first else ("CT", "PET")
    lines = [
        f"{part.network} ({model.first.trainer_name or 'unknown trainer'}), "
        f"{len(part.files)} of its folds, windows of {patch} voxels of {spacing} mm",
        f"channels {first} ({own.channels[own.pet_first].scheme}), "
        f"{second} ({own.channels[not own.pet_first].scheme}); it sees {where}",
    ]
    if model.others:
        lines.append(
            f"labels {', '.join(map(shown, model.others))} count as background, expected "
            f"{', '.join(CLASSES)}"
        )
    if own.mirror_axes:
        passes = 2 ** len(own.mirror_axes)
        lines.append(f"mirroring is off; --set inference.flips=true does it, in {passes} passes")
    if not part.seen:
        lines.append(
            "what it was trained on is not known, and survival training refuses it: --splits, or "
            "--unseen where none of your patients was"
        )
    if joined:
        lines.append(
            "models of risk and stage in the other bundle were fitted to other masks: left out"
        )
    return lines
