"""nnU-Net itself as a contender: its own planner, trainer and predictor on the same folds.

It is given what a hospital would give it: CT and PET as they are, on the CT's grid, and the labels.
Crop, spacing, normalisation, patches, batch, loss and augmentation are what nnU-Net chooses; folds,
budget and scores are those of every other contender. Isensee et al., "nnU-Net: a self-configuring
method for deep learning-based biomedical image segmentation", Nature Methods 18, 2021; presets of
residual encoders: Isensee et al., "nnU-Net revisited", MICCAI 2024 (arXiv 2404.09556).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hmvnet.case import Grid
from hmvnet.config import NetworkSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments.compare_table import Cost, Scored, folder_name
from hmvnet.experiments.nnunet_process import DATASET, NUMBER, Workshop, require_nnunet, run_job
from hmvnet.files import digest, remove, write_text
from hmvnet.progress import REMARKS, print_lines, track
from hmvnet.reading.folder import Patient
from hmvnet.reading.images import read_image
from hmvnet.segmentation import metrics
from hmvnet.state import read_state, write_state
from hmvnet.training.segmentation_bundle import Fold
from hmvnet.writing.nnunet import ENDING, DatasetWriter, write_images

NAME = "nnunet"


class Options(BaseModel):
    """What may be asked of nnU-Net; the rest it plans itself.

    Attributes:
        plan: its planner's preset.
        iterations: of its optimiser, in the place of ``training.steps``.
        gpu_memory_gb: that its planner fits the patch to; None: the preset's.
        spacing_mm: z, y, x; None: as it plans.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Literal["ResEncM", "ResEncL", "ResEncXL", "default"] = "ResEncM"
    configuration: Literal["3d_fullres", "3d_lowres", "2d"] = "3d_fullres"
    iterations: int | None = Field(None, ge=1)
    gpu_memory_gb: float | None = Field(None, gt=0)
    spacing_mm: tuple[float, float, float] | None = None

    @property
    def planned(self) -> dict[str, Any]:
        """What its plans hang on."""
        kept = self.model_dump(mode="json", include={"gpu_memory_gb", "spacing_mm"})
        return {"preset": self.plan, "configuration": self.configuration, **kept}

    @property
    def named(self) -> dict[str, Any]:
        """What every job is told: whose plans."""
        return {"number": NUMBER, "preset": self.plan, "configuration": self.configuration}


@dataclass(frozen=True)
class NNUNet:
    """The contender, e.g. from ``"nnunet plan=ResEncL iterations=1000"``."""

    label: str
    options: Options

    @classmethod
    def parse(cls, text: str) -> NNUNet:
        """From ``nnunet`` and options after it.

        Raises:
            RefusedError: an option is unknown or wrong, or nnU-Net is not installed.
        """
        name, *words = text.split()
        given = NetworkSettings.model_validate({"name": name, "options": " ".join(words)}).options
        try:
            options = Options.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            option = ".".join(map(str, first["loc"]))
            raise RefusedError(
                f"network '{text.strip()}': option {option}: {first['msg']}, expected of "
                f"{', '.join(Options.model_fields)}"
            ) from error
        require_nnunet()
        return cls(text.strip(), options)

    @property
    def folder(self) -> str:
        """A file name made of the label."""
        return folder_name(self.label)


@dataclass(frozen=True)
class Length:
    """How long a fold is trained: steps, or minutes of steps."""

    steps: int | None
    minutes: float | None

    @property
    def folder(self) -> str:
        """Of what is trained with it; trainings of other budgets stay beside it."""
        return f"results-{self.minutes:g}min" if self.minutes else f"results-{self.steps}steps"


def score_nnunet(
    contender: NNUNet,
    settings: Settings,
    run: Path,
    everything: Sequence[Fold],
    plan: Sequence[Fold],
    held_out: Sequence[Patient] | None,
    deadline: float | None = None,
    train_minutes: float | None = None,
) -> Scored:
    """Train nnU-Net on the folds of ``plan``, and score its masks.

    What an earlier call finished is not done again; a fold that was stopped goes on from nnU-Net's
    own checkpoint.

    Args:
        run: the comparison's folder; the contender's lies in it.
        held_out: patients of a folder of their own, predicted by all folds of ``plan`` together.
        deadline: seconds since the epoch.

    Raises:
        RefusedError: ``run`` holds what nnU-Net made of other data or plans, a patient cannot be
            read, or a patient to be scored was trained on.
        UnfinishedError: the deadline came.
        RuntimeError: nnU-Net failed; names its log.
    """
    own = contender.options
    length = Length(own.iterations or settings.training.steps, train_minutes)
    shop = Workshop(run / contender.folder, length.folder)
    mirroring = settings.inference.flips != "none"  # nnU-Net's own, along all axes
    key = digest(
        own.planned, [p.state() for fold in everything for p in (*fold.seen, *fold.validation)]
    )
    if held_out is not None:
        _refuse_seen(held_out, plan)
    asked = digest(
        key,
        length.folder,
        [fold.number for fold in plan],
        mirroring,
        None if held_out is None else [p.state() for p in held_out],
    )
    stored = shop.folder / "scores.json"
    if kept := read_state(stored, asked):
        scores = [metrics.CaseScore.from_dict(row) for row in kept["scores"]]
        return Scored(scores, Cost(**kept["cost"]))
    _refuse_ranks(contender)
    _prepare(shop, own, everything, key)
    trained = {fold.number: _train(shop, own, fold, length, key, deadline) for fold in plan}
    if held_out is None:
        jobs = [([fold], list(fold.validation)) for fold in plan]
    else:
        jobs = [(list(plan), list(held_out))]
    scores = []
    figures: list[Mapping[str, float]] = []
    for folds, patients in jobs:
        about = [key, length.folder, [fold.number for fold in folds], mirroring]
        model = shop.trained / DATASET / trained[folds[0].number]["model"]
        masks = _predict(shop, model, folds, patients, about, held_out is not None, deadline)
        for patient in track(patients, contender.label):
            mask, figure = masks[patient.patient_id]
            scores.append(_score(patient, mask))
            figures.append(figure)
    cost = Cost(
        int(trained[plan[0].number]["parameters"]),
        round(float(np.mean([one["steps"] for one in trained.values()]))),
        sum(one["seconds"] for one in trained.values()) / 60,
        float(np.mean([figure["seconds"] for figure in figures])),
        max(figure["peak_mb"] for figure in figures),
    )
    rows = [score.to_dict() for score in scores]
    write_state(stored, asked, {"cost": asdict(cost), "scores": rows})
    return Scored(scores, cost)


def _prepare(shop: Workshop, own: Options, everything: Sequence[Fold], key: str) -> None:
    """Its raw data, the folds, its plans, its preprocessed images."""
    data, planned = shop.folder / "data.json", shop.folder / "planned.json"
    if data.exists() and read_state(data, key) is None:
        raise RefusedError(
            f"{shop.folder}: nnU-Net's of other patients or plans; use another --run, or remove it"
        )
    write_state(data, key, {})
    first = everything[0]
    patients = [*first.seen, *first.validation]
    if not (shop.raw / "dataset.json").is_file():  # written last
        remove(shop.raw)
        writer = DatasetWriter(shop.raw)
        for patient in track(patients, "nnU-Net's raw data"):
            case = patient.read()
            REMARKS.tell(patient.patient_id, case.notes)
            writer.write(case)
        writer.close()
    if read_state(planned, key) is None:
        order = {"number": NUMBER, **own.planned}
        made = run_job(shop, "plan", order, "nnU-Net's plans")
        splits = [
            {"train": _names(fold.seen), "val": _names(fold.validation)} for fold in everything
        ]
        path = shop.folder / "preprocessed" / DATASET / "splits_final.json"
        write_text(json.dumps(splits, indent=2) + "\n", path)
        write_state(planned, key, made)
    made = read_state(planned, key) or {}
    spacing, patch = (" x ".join(f"{n:g}" for n in made[k]) for k in ("spacing", "patch_size"))
    batch = made["batch_size"]
    print_lines([f"nnU-Net plans {spacing} mm, patches of {patch} voxels, batches of {batch}"])


def _names(patients: Sequence[Patient]) -> list[str]:
    return sorted(p.patient_id for p in patients)


def _train(
    shop: Workshop, own: Options, fold: Fold, length: Length, key: str, deadline: float | None
) -> dict[str, Any]:
    """What a training that is finished left, or of one that is done now."""
    path = shop.trained / f"{fold.name}.json"
    if (done := read_state(path, key)) is None:
        order = {
            **own.named,
            "fold": fold.number,
            "steps": None if length.minutes else length.steps,
            "seconds": 60 * length.minutes if length.minutes else None,
            "deadline": deadline,
        }
        done = run_job(shop, "train", order, f"nnU-Net, fold {fold.number}")
        write_state(path, key, done)
    return done


def _predict(
    shop: Workshop,
    model: Path,
    folds: Sequence[Fold],
    patients: Sequence[Patient],
    about: Sequence[Any],
    elsewhere: bool,
    deadline: float | None,
) -> dict[str, tuple[Path, dict[str, float]]]:
    """Its mask of each patient, by name, with the seconds of the network and the peak MB."""
    *_, numbers, mirroring = about
    name = "-".join(map(str, ["predicted", *numbers, *(["mirrored"] if mirroring else [])]))
    images = shop.folder / "raw" / "test" if elsewhere else shop.raw / "imagesTr"
    out = shop.trained / (f"{name}-test" if elsewhere else name)
    keys = {p.patient_id: digest(*about, p.state()) for p in patients}
    masks = {name: out / f"{name}{ENDING}" for name in keys}
    states = {name: out / f"{name}.json" for name in keys}
    waiting = [p for p in patients if read_state(states[p.patient_id], keys[p.patient_id]) is None]
    if elsewhere:
        for patient in track(waiting, "nnU-Net's test data"):
            write_images(patient.read(), images)
    cases = [
        {
            "images": [str(images / f"{p.patient_id}_{n:04d}{ENDING}") for n in (0, 1)],
            "out": str(out / p.patient_id),
            "key": keys[p.patient_id],
        }
        for p in waiting
    ]
    if cases:
        order = {
            "model": str(model.absolute()),
            "folds": [fold.number for fold in folds],
            "cases": cases,
            "mirroring": mirroring,
            "deadline": deadline,
        }
        run_job(shop, "predict", order, "nnU-Net predicts")
    return {name: (masks[name], read_state(states[name], keys[name]) or {}) for name in keys}


def _score(patient: Patient, mask: Path) -> metrics.CaseScore:
    """On the CT's grid, as every contender is scored."""
    case = patient.read()
    predicted, _ = read_image(mask)
    grid = Grid.of(case.ct)
    if not Grid.of(predicted).same_as(grid, tolerance_mm=0.1):
        raise RuntimeError(f"{mask}: is not on the grid of the CT of {patient.patient_id}")
    assert case.truth is not None
    labels, truth = (sitk.GetArrayFromImage(image) for image in (predicted, case.truth))
    return metrics.score_case(
        labels.astype(np.uint8), truth, grid.spacing[::-1], patient.patient_id
    )


def _refuse_ranks(contender: NNUNet) -> None:
    """Each process of a distributed training would start nnU-Net."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RefusedError(
            f"network '{contender.label}': nnU-Net is trained on one device here, expected a call "
            "of its own on one (CUDA_VISIBLE_DEVICES=0), whose row later calls take over"
        )


def _refuse_seen(patients: Sequence[Patient], folds: Sequence[Fold]) -> None:
    known = {p.patient_id for fold in folds for p in fold.seen}
    if both := sorted(known & {p.patient_id for p in patients}):
        raise ValueError(f"{', '.join(both[:5])}: trained on, not to be scored")


def until(deadline: float) -> float | None:
    """A deadline of ``time.monotonic``'s, as seconds since the epoch for another process."""
    left = deadline - time.monotonic()
    return time.time() + left if np.isfinite(left) else None
