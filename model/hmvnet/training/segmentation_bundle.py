"""A segmentation bundle from a data folder: folds, training, the manifest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from hmvnet.bundle import Manifest, SegmentationPart, fingerprint, load_bundle, write_bundle
from hmvnet.case import CaseError
from hmvnet.config import Settings
from hmvnet.exits import UnfinishedError
from hmvnet.files import claiming_run, digest
from hmvnet.networks.registry import build_network
from hmvnet.progress import track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.reading.images import read_geometry
from hmvnet.training.cache import Cache, Prepared
from hmvnet.training.engine import make_fabric
from hmvnet.training.folds import split_folds
from hmvnet.training.segmentation import (
    SegmentationRun,
    one_network,
    predict_labels,
    train_segmentation,
)
from hmvnet.writing.folder import write_optional

BUNDLE = "bundle"
EXAMPLES, CURVES = 4, "curves.png"


@dataclass(frozen=True)
class Fold:
    """One fold's patients; ``extra``: of ``data.extra_root``, trained on in every fold."""

    number: int
    train: list[Patient]
    validation: list[Patient]
    extra: list[Patient] = field(default_factory=list)

    @property
    def seen(self) -> list[Patient]:
        """Everyone whom the fold's network is trained on."""
        return [*self.train, *self.extra]


def plan_folds(settings: Settings, folds: Sequence[int] | None) -> list[Fold]:
    """The folds asked for (None: all), after every patient's files were looked at.

    Raises:
        ValueError: the data folder, a label, or a fold number is wrong.
    """
    patients = find_patients(settings.data.root)
    extra = find_patients(settings.data.extra_root) if settings.data.extra_root else []
    if twice := {p.patient_id for p in patients} & {p.patient_id for p in extra}:
        raise ValueError(f"patient {min(twice)} is both in data.root and in data.extra_root")
    check_label_grids([*patients, *extra])
    parts = split_folds(patients, settings.data)
    chosen = range(len(parts)) if folds is None else list(dict.fromkeys(folds))
    bad = [n for n in chosen if not 0 <= n < len(parts)]
    if bad:
        raise ValueError(f"fold {bad[0]} asked for, but there are folds 0 to {len(parts) - 1}")
    pick = lambda indices: [patients[i] for i in indices]  # noqa: E731
    plan = [Fold(n, pick(parts[n][0]), pick(parts[n][1]), extra) for n in chosen]
    if settings.data.fold_by == "leave-one-centre-out":
        for fold in plan:
            if shared := {p.centre for p in fold.validation} & {p.centre for p in extra}:
                raise ValueError(f"data.extra_root has patients of left-out centre {min(shared)}")
    return plan


def check_label_grids(patients: Sequence[Patient]) -> None:
    """Compare every label's header with its CT's, before any work starts.

    Raises:
        ValueError: names the patients whose label lies on another grid.
    """
    wrong = []
    for patient in patients:
        try:
            same = patient.label is None or read_geometry(patient.label).same_as(
                read_geometry(patient.ct), tolerance_mm=0.1
            )
        except CaseError as error:
            raise ValueError(f"patient {patient.patient_id}: {error}") from error
        if not same:
            wrong.append(patient.patient_id)
    if wrong:
        raise ValueError(
            f"{len(wrong)} labels are not on the grid of their CT: {', '.join(wrong[:5])}"
        )


def check_network(settings: Settings) -> None:
    """What would only be found out after every patient was preprocessed.

    Raises:
        ValueError: an unknown network, options it does not take, or initial weights that are no
            bundle.
    """
    build_network(settings.network.name, settings.network.options)
    if settings.training.initial_weights:
        load_bundle(Path(settings.training.initial_weights))


def prepare_together(
    fabric: Fabric, settings: Settings, patients: Sequence[Patient], folder: Path, region: str = ""
) -> list[Prepared]:
    """Every patient preprocessed, on every process; the first fills the cache for the others.

    Args:
        folder: of the cache.
        region: none given: ``data.region``.
    """
    cache = Cache(folder, settings.preprocessing, region or settings.data.region)
    with fabric.rank_zero_first():
        quiet = fabric.global_rank > 0
        return [cache.get(p) for p in track(patients, "preprocess", quiet=quiet)]


def task_key(settings: Settings, plan: Sequence[Fold]) -> str:
    """What a bundle hangs on: settings, patients, and the state of their files."""
    dumped = settings.model_dump(mode="json", exclude={"prognosis", "clinical", "inference"})
    dumped["data"] = settings.data.model_dump(include={"region", "extra_region", "note"})
    return digest(dumped, [p.state() for f in plan for p in [*f.seen, *f.validation]])


@claiming_run
def train_segmentation_bundle(
    settings: Settings,
    run: Path,
    folds: Sequence[int] | None,
    stop: Callable[[int], bool] = lambda step: False,
    cache: Path | None = None,
) -> Path:
    """Train the folds asked for and write ``<run>/bundle``.

    Args:
        stop: asked after every step; true ends training with a checkpoint.
        cache: of preprocessed volumes; None: ``data.cache``, or a folder under ``run``.

    Raises:
        ValueError: as ``plan_folds``, or an unknown network.
        UnfinishedError: ``stop`` said so before the last step.
    """
    plan = plan_folds(settings, folds)
    check_network(settings)
    cache = cache or Path(settings.data.cache or run / "cache")
    networks, figures, minutes = {}, {}, 0.0
    results: dict[Path, tuple[SegmentationRun, list[Prepared]]] = {}
    for fold in plan:
        folder = run / f"fold{fold.number}"
        fabric = make_fabric(folder, settings.training.precision)
        cases = prepare_together(fabric, settings, [*fold.train, *fold.validation], cache)
        train, validation = cases[: len(fold.train)], cases[len(fold.train) :]
        train += prepare_together(fabric, settings, fold.extra, cache, settings.data.extra_region)
        result = train_segmentation(fabric, settings, train, validation, folder, stop=stop)
        done = len(result.history.losses)
        if done < settings.training.steps:
            raise UnfinishedError(
                f"{folder}: stopped after step {done} of {settings.training.steps}; "
                "the same command goes on from there"
            )
        networks[f"fold{fold.number}.safetensors"] = result.network.state_dict()
        figures[f"fold{fold.number}"] = dict(result.figures)
        minutes += result.history.seconds / 60
        results[folder] = result, validation
    # What the initial weights were trained on, these networks have seen too.
    earlier = _seen_by(settings.training.initial_weights)
    manifest = Manifest(
        name=run.name,
        region=settings.data.region,
        preprocessing=settings.preprocessing,
        postprocessing=settings.postprocessing,
        segmentation=SegmentationPart(
            network=settings.network.name,
            options=dict(settings.network.options),
            patch_size=settings.training.patch_size,
            files=list(networks),
            seen=[sorted({*earlier, *(fingerprint(p.patient_id) for p in f.seen)}) for f in plan],
        ),
        trained_on={
            "data": settings.data.note or _names(settings),
            "initial_weights": Path(settings.training.initial_weights).parent.name,
            "patients": len({p.patient_id for f in plan for p in f.seen}),
            "steps": settings.training.steps,
            "batch_size": settings.training.batch_size,
            "minutes": round(minutes, 1),
            "device": "GPU" if torch.cuda.is_available() else "CPU",
            "torch": torch.__version__,
            "key": task_key(settings, plan),
        },
        metrics={"validation": figures},
    )
    if fabric.global_rank == 0:
        write_bundle(run / BUNDLE, manifest, networks)
        for folder, (result, validation) in results.items():  # what is optional comes last
            draw = partial(_draw, result, validation, settings, folder)
            for problem in write_optional({folder / CURVES: draw}).values():
                print(f"warning: {problem}", file=sys.stderr)
    fabric.barrier()
    return run / BUNDLE


def _names(settings: Settings) -> str:
    folders = (settings.data.root, settings.data.extra_root)
    return " and ".join(Path(folder).name for folder in folders if folder)


def _seen_by(folder: str) -> set[str]:
    """Fingerprints of the patients that a bundle's first network, the one taken over, has seen."""
    seen = load_bundle(Path(folder)).manifest.segmentation.seen if folder else []
    return set(seen[0]) if seen else set()


def _draw(
    result: SegmentationRun, validation: Sequence[Prepared], settings: Settings, folder: Path
) -> None:
    """Curves of the training, and how the network does on a few validation patients."""
    from hmvnet.training.pictures import draw_examples, draw_history  # matplotlib only here

    draw_history(result.history, folder / CURVES)
    ensemble = one_network(result.network, settings, next(result.network.parameters()).device)
    examples = {
        case.patient_id: (
            np.asarray(case.volume[:], np.float32),
            np.asarray(case.label[:]),
            predict_labels(ensemble, case, settings),
        )
        for case in validation[:EXAMPLES]
    }
    if examples:
        draw_examples(examples, folder / "examples.png")
