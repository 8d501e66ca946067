"""Training a segmentation network on patches, and validating it on whole regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from hmvnet.bundle import load_bundle
from hmvnet.config import Settings
from hmvnet.files import digest
from hmvnet.imaging.augment import compile_loops
from hmvnet.networks.registry import build_network
from hmvnet.progress import print_lines
from hmvnet.segmentation import metrics
from hmvnet.segmentation.ensemble import Ensemble
from hmvnet.segmentation.forward import FORWARD_VERSION, TorchForward, channels_last
from hmvnet.segmentation.segmenter import label_map
from hmvnet.state import read_state, write_state
from hmvnet.training.best import Best
from hmvnet.training.cache import Prepared
from hmvnet.training.checkpoints import History
from hmvnet.training.engine import LoopSettings, train
from hmvnet.training.graphed import GraphedLoss, can_be_graphed
from hmvnet.training.loader import (
    Ahead,
    Arrays,
    Batch,
    Processes,
    in_processes,
    ready,
    stacked,
    to_device,
    worker_count,
)
from hmvnet.training.losses import SegmentationLoss
from hmvnet.training.patches import PATCHES_VERSION, PatchSampler
from hmvnet.training.recompute import recompute_activations
from hmvnet.training.schedule import Decay, Trunk

SETTLING_PATCHES = 64
FIGURES = "figures.json"  # of the last validation
# Settings that change nothing of what is learnt: they may differ between calls.
SAME_COURSE = frozenset({"checkpoint_every", "validate_every", "keep_best"})


@dataclass(frozen=True)
class SegmentationRun:
    """A trained network, how it went, and the last validation figures."""

    network: nn.Module
    history: History
    figures: Mapping[str, float]


def train_segmentation(
    fabric: Fabric,
    settings: Settings,
    cases: Sequence[Prepared],
    validation: Sequence[Prepared],
    run: Path,
    *,
    stop: Callable[[int], bool] = lambda step: False,
    course: Trunk | Decay | None = None,
    history: History | None = None,
    clock: Callable[[], float] | None = None,
    title: str = "",
    quiet: bool = False,
) -> SegmentationRun:
    """Train the network named in the settings on preprocessed cases.

    Args:
        stop, history, clock, quiet: as for ``hmvnet.training.engine.train``.
        course: in the place of the settings' steps, cosine and ``freeze_norms_at``; the average
            of the weights is then warmed up.
        title: names the training where its progress is shown; empty: the network's name.

    Raises:
        ValueError: the network is unknown, the batch does not divide over the processes, or norms
            are to be frozen without weights to start from.
    """
    options = settings.training
    if options.batch_size % fabric.world_size:
        raise ValueError(
            f"batch_size {options.batch_size} does not divide over {fabric.world_size} processes"
        )
    if options.frozen_norms and not options.initial_weights:
        raise ValueError("frozen_norms needs initial_weights, whose statistics are kept")
    if options.checkpoint_activations and options.compile != "none":
        raise ValueError("checkpoint_activations and compile do not go together")
    share = options.batch_size // fabric.world_size
    fabric.seed_everything(options.seed, verbose=False)
    network = channels_last(build_network(settings.network.name, settings.network.options))
    if options.initial_weights:
        own = network.state_dict()
        taken = take_over(network, Path(options.initial_weights))
        if fabric.is_global_zero:
            print_lines([f"initial_weights: {len(taken)} of {len(own)} tensors taken over"])
        statistics = {name for name in own if name.endswith(STATISTICS)}
        if options.frozen_norms and (lacking := sorted(statistics - taken)):
            raise ValueError(
                f"frozen_norms keeps the statistics of initial_weights, but of {len(lacking)} of "
                f"{len(statistics)} there are none that fit ({lacking[0]}, ...): expected a bundle "
                "of this network and these options"
            )
    if options.checkpoint_activations:
        recompute_activations(network, settings.network.name)
    sampler = PatchSampler(cases, settings)
    loss = SegmentationLoss(options.focal_weight, options.absent_weight)

    workers = worker_count(options.workers, fabric.device, fabric.world_size)

    def batch(number: int) -> Batch:
        return to_device(ahead(number), fabric.device)

    steps = course.steps if course else options.steps
    frozen_from = max(1, round(options.freeze_norms_at * options.steps))
    if course:
        frozen_from = course.frozen_from
    if options.frozen_norms:
        frozen_from = 0

    def settle(model: nn.Module) -> None:
        settle_norms(model, batch, settling_batches(options.batch_size), fabric)

    plain = network  # without Fabric's wrapper, which gives all processes the first one's norms

    graphed = None
    if can_be_graphed(fabric, options):
        graphed = GraphedLoss(network, loss, str(fabric.strategy.precision.precision))

    def before_step(model: nn.Module, step: int) -> None:
        if step == frozen_from:
            if not options.frozen_norms:
                settle(plain)
            if graphed:
                graphed.forget()
        if step >= frozen_from:
            freeze_norms(model)

    def loss_of_batch(model: nn.Module, number: int) -> Mapping[str, Tensor]:
        images, labels = batch(number)
        if graphed:
            return {"total": graphed(images, labels)}
        out = model(images, scales=True)
        return {"total": loss([out.logits, *out.scales], labels)}

    def validate(model: nn.Module, step: int) -> Mapping[str, float]:
        if step <= frozen_from:
            settle(model)
        figures = scored(model, step)
        if fabric.global_rank == 0:
            best.offer(model, step, mean_dice(figures))
        return figures

    def scored(model: nn.Module, step: int) -> Mapping[str, float]:
        figures = figures_of(evaluate(model, validation, settings, fabric.device))
        if fabric.global_rank == 0:
            write_state(run / FIGURES, judged_by, {"step": step, **figures})
        return figures

    key = course_key(settings, cases, course) if course else run_key(settings, cases)
    judged_by = score_key(key, settings, validation)
    best = Best(run, judged_by, options.keep_best)
    values = {k: getattr(options, k) for k in LoopSettings.__dataclass_fields__}
    loop = LoopSettings(**{**values, "steps": steps})
    apart = bool(workers) and in_processes(options.workers_are, fabric.device)
    if not apart:
        compile_loops()  # here, not in the first step, which is charged
    with ExitStack() as stack:
        drawn: Callable[[int], Arrays] = Draw(
            sampler, options.batch_size, fabric.global_rank * share, share
        )
        if apart:
            drawn = stack.enter_context(Processes(drawn, workers))
        ahead = stack.enter_context(
            Ahead(lambda number: ready(drawn(number), fabric.device), workers)
        )
        network, history = train(
            fabric,
            network,
            loop,
            loss_of_batch,
            run,
            key=key,
            before_step=before_step,
            validate=validate if validation else None,
            title=title or settings.network.name,
            quiet=quiet,
            stop=stop,
            rate=course.rate if course else None,
            ema_warmup=course is not None,
            clock=clock,
            history=history,
            compiler=options.compile,
            seed=options.seed,
        )
        if not validation and len(history.losses) == steps <= frozen_from:
            settle(network)  # the last validation has done it otherwise
    figures = dict(history.validations[-1]) if history.validations else {}
    if figures and len(history.losses) == steps:  # else of an earlier call, under other rules
        figures.update(read_state(run / FIGURES, judged_by) or scored(network, steps))
    return SegmentationRun(network, history, figures)


@dataclass(frozen=True)
class Draw:
    """A process's share of a batch of that number: ``count`` samples from ``first`` on."""

    sampler: PatchSampler
    batch_size: int
    first: int
    count: int

    def __call__(self, number: int) -> Arrays:
        """Image ``[count, z, y, x, 2]`` and label ``[count, z, y, x]``."""
        first = number * self.batch_size + self.first
        return stacked(self.sampler(first + i) for i in range(self.count))


def settling_batches(batch_size: int) -> int:
    """How many batches ``settle_norms`` is given."""
    return max(1, SETTLING_PATCHES // batch_size)


def settle_norms(
    network: nn.Module, batch: Callable[[int], tuple[Tensor, Tensor]], batches: int, fabric: Fabric
) -> None:
    """Give the BatchNorms of averaged weights the statistics those weights have, on batches.

    The averages kept during training are of the weights of the last few steps, not of their
    exponential moving average. Networks without BatchNorm are left alone. Several processes settle
    on the whole batches: each on its part, and the mean of theirs is what all of them get.

    Args:
        network: not wrapped for several processes.
        batch: this process's images and labels of the batch of that number.
    """
    mode = network.training
    with fabric.autocast():
        update_bn((batch(number)[0] for number in range(batches)), network)
    network.train(mode)
    if fabric.world_size > 1:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                for mine in (module.running_mean, module.running_var):
                    mine.copy_(fabric.all_reduce(mine, reduce_op="mean"))  # type: ignore[union-attr, arg-type]


def freeze_norms(network: nn.Module) -> None:
    """Let the BatchNorms use their kept statistics, as inference does, until ``train()`` is called.

    A batch of one patch is normalised by its own statistics in training; the brain, say, then looks
    no brighter than a muscle does. A last part of the training without that closes the gap.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()


def course_of(settings: Settings, without: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """``TrainingSettings.course``, with what the initial weights are in the place of where.

    Whom they have seen is a part of it: another bundle put into the same folder is other weights.
    """
    course = settings.training.course(without)
    if folder := settings.training.initial_weights:
        manifest = load_bundle(Path(folder)).manifest
        part = manifest.segmentation
        first, seen = part.files[0], part.all_seen
        course["initial_weights"] = [manifest.files[first], sorted(seen[0]) if seen else []]
    return course


def run_key(settings: Settings, cases: Sequence[Prepared]) -> str:
    """What the course of a training hangs on."""
    sections = settings.model_dump(
        mode="json", include={"preprocessing", "network", "augmentation"}
    )
    sections["training"] = course_of(settings, SAME_COURSE)
    if settings.network.name.startswith("hmvnet") and any(
        n % 32 for n in settings.training.patch_size
    ):
        sections["padded"] = False  # such patches were, once: those trainings do not go on
    moves = settings.augmentation
    if moves.affine or moves.elastic or moves.misalignment:
        sections["patches"] = PATCHES_VERSION
    regions = [settings.data.region]
    if settings.data.extra_root:
        regions.append(settings.data.extra_region)
    return digest(sections, regions, [[case.patient_id, case.source] for case in cases])


def score_key(key: str, settings: Settings, cases: Sequence[Prepared]) -> str:
    """What the scores of a training's network on cases hang on: ``key`` is the training's."""
    rules = settings.postprocessing.model_dump(mode="json")
    return digest(key, rules, [[case.patient_id, case.source] for case in cases], FORWARD_VERSION)


def course_key(settings: Settings, cases: Sequence[Prepared], course: Trunk | Decay) -> str:
    """As ``run_key``, of a training whose course is not the settings'."""
    free = {"steps": 1, "freeze_norms_at": 1.0}
    training = settings.training.model_copy(update=free)
    return digest(run_key(settings.model_copy(update={"training": training}), cases), course.key)


# Of a BatchNorm.
STATISTICS = ("running_mean", "running_var")


def take_over(network: nn.Module, folder: Path) -> set[str]:
    """Start from a bundle's first network: every tensor of the same name and shape is copied.

    Returns:
        The names of the tensors that were taken over.

    Raises:
        ValueError: none fits.
    """
    bundle = load_bundle(folder)
    stored = bundle.tensors(bundle.manifest.segmentation.files[0])
    own = network.state_dict()
    fitting = {k: v for k, v in stored.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise ValueError(f"initial_weights: nothing in bundle '{folder}' fits this network")
    network.load_state_dict(fitting, strict=False)
    return set(fitting)


def one_network(network: nn.Module, settings: Settings, device: torch.device) -> Ensemble:
    """A network as inference runs it, in one pass where it may see the whole region."""
    return Ensemble([TorchForward(network, device, settings.training.patch_size)])


def predict_labels(ensemble: Ensemble, case: Prepared, settings: Settings) -> np.ndarray:
    """The postprocessed label map of a preprocessed case, on the working grid."""
    volume = np.asarray(case.volume[:], dtype=np.float32)
    probabilities = ensemble(volume).probabilities
    rules, region = settings.postprocessing, settings.data.region
    windows = settings.preprocessing
    return label_map(probabilities, volume, case.grid, rules, region, windows, case.ct_grid)


def score(ensemble: Ensemble, case: Prepared, settings: Settings) -> metrics.CaseScore:
    """The challenge's scores of a preprocessed case, on the working grid."""
    mask, truth = predict_labels(ensemble, case, settings), np.asarray(case.label[:])
    return metrics.score_case(mask, truth, case.grid.spacing[::-1], case.patient_id)


def evaluate(
    network: nn.Module,
    cases: Sequence[Prepared],
    settings: Settings,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> list[metrics.CaseScore]:
    """The challenge's scores of a network on preprocessed cases, on the working grid."""
    ensemble = one_network(network, settings, device)
    scores = []
    for case in cases:
        scores.append(score(ensemble, case, settings))
        if progress:
            progress(len(scores))
    return scores


def figures_of(scores: Sequence[metrics.CaseScore]) -> dict[str, float]:
    """The three figures of Task 1 that training watches."""
    table = metrics.aggregate(scores)
    return {
        "gtvp_mean_dice": table.gtvp_mean_dice,
        "gtvn_aggregated_dice": table.gtvn_aggregated_dice,
        "gtvn_aggregated_f1": table.gtvn_aggregated_f1,
    }


def mean_dice(figures: Mapping[str, float]) -> float:
    """By which networks are ranked: the mean of GTVp's mean and GTVn's aggregated Dice."""
    return float(np.nanmean([figures["gtvp_mean_dice"], figures["gtvn_aggregated_dice"]]))
