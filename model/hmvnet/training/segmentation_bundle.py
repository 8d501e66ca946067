"""A segmentation bundle from a data folder: folds, training, the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor

from hmvnet.bundle import (
    Manifest,
    SegmentationPart,
    WeightsError,
    fingerprint,
    load_bundle,
    write_bundle,
)
from hmvnet.case import CLASSES, CaseError
from hmvnet.config import Settings
from hmvnet.exits import RefusedError, UnfinishedError, one_line
from hmvnet.files import digest
from hmvnet.memory import available_memory
from hmvnet.networks.registry import build_network
from hmvnet.progress import REMARKS, print_lines, track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.reading.images import read_geometry
from hmvnet.state import claiming_run
from hmvnet.training.best import Best, fold_file, member_files
from hmvnet.training.cache import Cache, Prepared
from hmvnet.training.checkpoints import is_finished
from hmvnet.training.engine import make_fabric
from hmvnet.training.folds import split_folds
from hmvnet.training.loader import side_by_side
from hmvnet.training.segmentation import (
    SegmentationRun,
    course_of,
    freeze_norms,
    one_network,
    predict_labels,
    run_key,
    score_key,
    train_segmentation,
)
from hmvnet.training.ways import Ways, wanted
from hmvnet.writing.folder import write_optional

BUNDLE = "bundle"
MOST_AT_A_TIME = 8  # patients that are preprocessed
PATIENT_BYTES = 2 * 2**30  # of memory for each, a whole body with room to spare
EXAMPLES, CURVES = 4, "curves.png"


@dataclass(frozen=True)
class Fold:
    """One fold's patients; ``extra``: of ``data.extra_root``, trained on in every fold."""

    number: int
    train: list[Patient]
    validation: list[Patient]
    extra: list[Patient] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its folder, and of its figures in a manifest."""
        return f"fold{self.number}"

    @property
    def file(self) -> str:
        """Of its network in a bundle."""
        return f"{self.name}.safetensors"

    @property
    def seen(self) -> list[Patient]:
        """Everyone whom the fold's network is trained on."""
        return [*self.train, *self.extra]


def all_folds(settings: Settings) -> list[Fold]:
    """Every fold, after every patient's files were looked at.

    Raises:
        ValueError: the data folder or a label is wrong.
    """
    data, names = settings.data, settings.clinical.table_names
    roots = [data.root, *([data.extra_root] if data.extra_root else [])]
    patients, *others = (find_patients(root, names) for root in roots)
    for found in (patients, *others):
        rank_zero_only(print_lines)(found.summary())
    extra = [patient for found in others for patient in found]
    if twice := {p.patient_id for p in patients} & {p.patient_id for p in extra}:
        raise ValueError(f"patient {min(twice)} is both in data.root and in data.extra_root")
    check_label_grids([*patients, *extra])
    dealt = [[[patients[i] for i in part] for part in fold] for fold in split_folds(patients, data)]
    return [Fold(n, known, unseen, extra) for n, (known, unseen) in enumerate(dealt)]


def chosen_folds(
    everything: Sequence[Fold], settings: Settings, folds: Sequence[int] | None
) -> list[Fold]:
    """The folds asked for; None: all.

    Raises:
        ValueError: a fold number is wrong, or ``data.extra_root`` has a left-out centre's patients.
    """
    numbers = range(len(everything)) if folds is None else list(dict.fromkeys(folds))
    if bad := [n for n in numbers if not 0 <= n < len(everything)]:
        raise ValueError(f"fold {bad[0]} asked for, but there are folds 0 to {len(everything) - 1}")
    plan = [everything[n] for n in numbers]
    if settings.data.fold_by == "leave-one-centre-out":
        for fold in plan:
            if shared := {p.centre for p in fold.validation} & {p.centre for p in fold.extra}:
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
        ValueError: an unknown network, options or patches it does not take, or initial weights that
            are no bundle.
    """
    name, training = settings.network.name, settings.training
    network = build_network(name, settings.network.options).train()
    if training.frozen_norms:
        freeze_norms(network)
    patch = training.patch_size
    try:  # sizes without values: it costs nothing
        network.to("meta")(torch.empty(training.batch_size, 2, *patch, device="meta"))
    except (RuntimeError, ValueError) as error:
        size = " x ".join(map(str, patch))
        raise ValueError(
            f"network '{name}' cannot be trained on {training.batch_size} x 2 x {size} voxels "
            f"(training.batch_size, training.patch_size): {one_line(str(error))}"
        ) from error
    if training.initial_weights:
        load_bundle(Path(training.initial_weights))


def prepare_together(
    fabric: Fabric, settings: Settings, patients: Sequence[Patient], folder: Path, region: str = ""
) -> list[Prepared]:
    """Every patient preprocessed, on every process; the first fills the cache for the others.

    Several patients at a time, as many as torch has threads and memory suffices for.

    Args:
        folder: of the cache.
        region: none given: ``data.region``.
    """
    cache = Cache(folder, settings.preprocessing, region or settings.data.region)
    with fabric.rank_zero_first():
        quiet = fabric.global_rank > 0
        with side_by_side(_at_a_time(), "preprocess") as pool:
            done = pool.map(cache.get, patients)
            prepared = list(track(done, "preprocess", len(patients), quiet=quiet))
    for one in () if quiet else prepared:
        REMARKS.tell(one.patient_id, one.notes)
    return prepared


def _at_a_time() -> int:
    room = int(available_memory() / PATIENT_BYTES)
    return max(1, min(torch.get_num_threads(), MOST_AT_A_TIME, room))


def task_key(settings: Settings, everything: Sequence[Fold]) -> str:
    """What a bundle hangs on: settings, patients, and the state of their files."""
    dumped = settings.model_dump(mode="json", exclude={"prognosis", "clinical", "inference"})
    dumped["training"] = course_of(settings)
    dumped["data"] = settings.data.model_dump(include={"region", "extra_region", "note"})
    return digest(dumped, [p.state() for f in everything for p in [*f.seen, *f.validation]])


@claiming_run
def train_segmentation_bundle(
    settings: Settings,
    run: Path,
    folds: Sequence[int] | None,
    stop: Callable[[int], bool] = lambda step: False,
    cache: Path | None = None,
    everything: Sequence[Fold] | None = None,
) -> Path:
    """Train the folds asked for and write ``<run>/bundle``.

    It holds them, and the other folds that earlier calls with the same settings and data finished.

    Args:
        stop: asked after every step; true ends training with a checkpoint.
        cache: of preprocessed volumes; None: ``data.cache``, or a folder under ``run``.
        everything: ``all_folds``, where they are planned already.

    Raises:
        ValueError: as ``all_folds`` and ``chosen_folds``, or an unknown network.
        RefusedError: the bundle that is there holds networks that the new one would lack.
        UnfinishedError: ``stop`` said so before the last step.
    """
    everything = everything or all_folds(settings)
    asked = chosen_folds(everything, settings, folds)
    check_network(settings)
    fabric = make_fabric(run, settings.training.precision)
    cache = cache or Path(settings.data.cache or run / "cache")
    prepared = _prepare(fabric, settings, everything, cache)
    kept = fabric.broadcast(_finished(run, settings, everything, prepared))
    plan = [fold for fold in everything if fold in asked or fold.number in kept]
    _refuse_loss(run / BUNDLE, [fold.file for fold in plan])
    networks: dict[str, Mapping[str, Tensor]] = {}
    figures, minutes, seen = {}, {}, []
    ways: dict[str, Ways] = {}
    results: dict[Path, tuple[SegmentationRun, list[Prepared]]] = {}
    for fold in plan:
        folder = run / fold.name
        fabric = make_fabric(folder, settings.training.precision)
        train, validation = (
            [prepared[p.patient_id] for p in part] for part in (fold.seen, fold.validation)
        )
        result = train_segmentation(fabric, settings, train, validation, folder, stop=stop)
        done = len(result.history.losses)
        if done < settings.training.steps:
            raise UnfinishedError(
                f"{folder}: stopped after step {done} of {settings.training.steps}; "
                "the same command goes on from there"
            )
        key = run_key(settings, train)
        ranked_by = score_key(key, settings, validation)
        members = _members(result, settings, folder, ranked_by)
        networks |= dict(zip(member_files(fold.file, len(members)), members, strict=True))
        seen += seen_marks(settings, fold) * len(members)
        figures[fold.name] = dict(result.figures)
        if found := Ways.of(result.network, validation, settings, fabric.device, key, folder):
            ways[fold.name] = found
        minutes[fold.name] = result.history.seconds / 60
        if fold in asked:
            results[folder] = result, validation
    manifest = Manifest(
        name=run.name,
        region=settings.data.region,
        interface=settings.data.interface,
        preprocessing=settings.preprocessing,
        postprocessing=settings.postprocessing,
        segmentation=SegmentationPart(
            network=settings.network.name,
            options=dict(settings.network.options),
            patch_size=settings.training.patch_size,
            windows=fabric.broadcast(wanted(list(ways.values()))),
            files=list(networks),
            seen=seen,
        ),
        volumes_ml=volumes_seen(
            [prepared[p.patient_id] for f in plan for p in f.seen],
            settings.training.initial_weights,
        ),
        trained_on={
            "data": settings.data.note or _names(settings),
            "initial_weights": Path(settings.training.initial_weights).parent.name,
            "patients": len({p.patient_id for f in plan for p in f.seen}),
            "steps": settings.training.steps,
            "batch_size": settings.training.batch_size,
            "minutes": round(sum(minutes.values()), 1),
            "minutes_a_fold": {name: round(value, 2) for name, value in minutes.items()},
            "device": "GPU" if torch.cuda.is_available() else "CPU",
            "torch": torch.__version__,
            "key": task_key(settings, everything),
        },
        metrics={
            "validation": figures,
            "ways": {name: found.figures() for name, found in ways.items()},
        },
    )
    if fabric.global_rank == 0:
        write_bundle(run / BUNDLE, manifest, networks)
        for folder, (result, validation) in results.items():  # what is optional comes last
            draw = partial(_draw, result, validation, settings, folder)
            for problem in write_optional({folder / CURVES: draw}).values():
                print_lines([f"warning: {problem}"])
        if earlier_folds := [fold.name for fold in plan if fold not in asked]:
            names = ", ".join(earlier_folds)
            print_lines([f"note: of an earlier call, also in the bundle: {names}"])
    fabric.barrier()
    return run / BUNDLE


def _members(
    result: SegmentationRun, settings: Settings, folder: Path, key: str
) -> Sequence[Mapping[str, Tensor]]:
    """A fold's networks: the last, or those of its best validations."""
    validations = len(result.history.validations)
    if not settings.training.keep_best or not validations:
        return [result.network.state_dict()]
    return Best(folder, key, settings.training.keep_best).networks(validations)


def _prepare(
    fabric: Fabric, settings: Settings, everything: Sequence[Fold], cache: Path
) -> dict[str, Prepared]:
    """Everyone preprocessed, by patient id; every fold has all of them, known or unseen."""
    first = everything[0]
    own = prepare_together(fabric, settings, [*first.train, *first.validation], cache)
    extra = prepare_together(fabric, settings, first.extra, cache, settings.data.extra_region)
    if not any(len(found) for case in [*own, *extra] for found in case.voxels.values()):
        raise ValueError(
            f"no patient has a voxel of GTVp or GTVn in the region '{settings.data.region}': "
            "expected labels of 1 and 2 that lie there (data.region)"
        )
    return {case.patient_id: case for case in [*own, *extra]}


def _finished(
    run: Path,
    settings: Settings,
    everything: Sequence[Fold],
    prepared: Mapping[str, Prepared],
) -> list[int]:
    """Numbers of the folds that were trained to their end on these settings and data."""
    keys = (run_key(settings, [prepared[p.patient_id] for p in fold.seen]) for fold in everything)
    return [
        fold.number
        for fold, key in zip(everything, keys)
        if is_finished(run / fold.name, key, settings.training.steps)
    ]


def _refuse_loss(target: Path, files: Sequence[str]) -> None:
    """A bundle never takes the place of one that holds more; a damaged one holds nothing.

    Raises:
        RefusedError: networks would be lost.
    """
    try:
        present = load_bundle(target).manifest.files
    except WeightsError:
        return
    networks = [name for name in present if name.endswith(".safetensors")]
    if lost := [name for name in networks if fold_file(name) not in files]:
        raise RefusedError(
            f"{target}: holds {', '.join(lost)}, which the new bundle would lack (of other "
            "settings or data, or without a finished checkpoint); use another --run, or remove it"
        )


def _names(settings: Settings) -> str:
    folders = (settings.data.root, settings.data.extra_root)
    return " and ".join(Path(folder).name for folder in folders if folder)


def seen_marks(settings: Settings, fold: Fold) -> list[list[str]]:
    """Fingerprints of whom the fold's network, or what it started from, has seen: a list of one.

    None where it is not known of the bundle that it started from.
    """
    earlier: list[str] = []
    if folder := settings.training.initial_weights:
        seen = load_bundle(Path(folder)).manifest.segmentation.seen  # the first network's is first
        if not seen:
            return []
        earlier = seen[0]
    return [sorted({*earlier, *(fingerprint(p.patient_id) for p in fold.seen)})]


def volumes_seen(cases: Sequence[Prepared], initial: str = "") -> dict[str, tuple[float, float]]:
    """By class, the smallest and the largest volume in mL of a case that has any.

    Args:
        initial: a bundle that was trained on other patients before, whose volumes count too.
    """
    known = load_bundle(Path(initial)).manifest.volumes_ml if initial else {}
    found = {name: list(ends) for name, ends in known.items()}
    for case in cases:
        voxels = np.bincount(np.asarray(case.label[:]).ravel(), minlength=len(CLASSES))
        for label, name in enumerate(CLASSES):
            if label and voxels[label]:
                found.setdefault(name, []).append(float(voxels[label] * case.grid.voxel_ml))
    return {name: (round(min(ml), 2), round(max(ml), 2)) for name, ml in sorted(found.items())}


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
