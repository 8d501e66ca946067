"""Training a segmentation network: patches, losses, validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from monai.losses import DiceLoss, FocalLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from hmvnet import metrics
from hmvnet.case import CLASSES, GTVN, GTVP
from hmvnet.config import Settings
from hmvnet.dataset import Prepared
from hmvnet.imaging.augment import MARGIN, draw_patch
from hmvnet.imaging.intensity import AIR
from hmvnet.imaging.postprocess import postprocess
from hmvnet.networks.registry import build_network
from hmvnet.runtime import Ensemble, TorchForward, channels_last
from hmvnet.training.engine import History, LoopSettings, bare, digest, train
from hmvnet.weights import load_bundle

SETTLING_PATCHES = 64
SCALE_WEIGHTS = (1.0, 0.5, 0.25, 0.125)


class PatchSampler:
    """Sample number -> augmented patch; the same number gives the same patch, anywhere.

    A share of the patches is centred near a tumour voxel, of GTVp and GTVn with equal chance where
    the patient has both; the others lie anywhere in the region.
    """

    def __init__(self, cases: Sequence[Prepared], settings: Settings) -> None:
        if not cases:
            raise ValueError("no training cases")
        self.cases = cases
        self.settings = settings
        self.patch = settings.training.patch_size

    def __call__(self, number: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Image ``[2, z, y, x]`` and label ``[z, y, x]``."""
        rng = np.random.default_rng([self.settings.training.seed, number])
        # Every patient is seen once before any is seen twice.
        epoch, place = divmod(number, len(self.cases))
        order = np.random.default_rng([self.settings.training.seed, epoch]).permutation(
            len(self.cases)
        )
        case = self.cases[order[place]]
        start = self._start(case, rng)
        size = [n + 2 * MARGIN for n in self.patch]
        volume = np.stack([_crop(case.volume, c, start, size, fill) for c, fill in enumerate(AIR)])
        label = _crop(case.label, None, start, size, 0)
        return draw_patch(volume, label, self.patch, self.settings.augmentation, rng, device)

    def _start(self, case: Prepared, rng: np.random.Generator) -> np.ndarray:
        """First voxel (z, y, x) of the crop with its margin; may lie outside the volume."""
        patch = np.array(self.patch)
        kinds = [k for k in (GTVP, GTVN) if len(case.voxels[k])]
        if kinds and rng.random() < self.settings.training.tumour_fraction:
            voxels = case.voxels[kinds[rng.integers(len(kinds))]]
            centre = voxels[rng.integers(len(voxels))] + rng.uniform(-0.3, 0.3, 3) * patch
            start = np.round(centre - patch / 2).astype(int)
        else:
            room = np.maximum(np.array(case.grid.shape) - patch, 0)
            start = rng.integers(room + 1)
        return start - MARGIN


def _crop(array, channel: int | None, start: np.ndarray, size: Sequence[int], fill: float):
    """A box of a stored array, padded with ``fill`` where it reaches outside."""
    shape = array.shape[-3:]
    low = np.clip(start, 0, shape)
    high = np.clip(start + np.array(size), low, shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high))
    where = box if channel is None else (channel, *box)
    inner = np.asarray(array[where])
    inner = inner.reshape([b.stop - b.start for b in box])
    before, after = low - start, start + np.array(size) - high
    return np.pad(inner, list(zip(before, after)), constant_values=fill)


class SegmentationLoss(nn.Module):
    """Dice of the lesion classes + cross-entropy (+ focal), over all scales.

    Classes that a patch has no voxel of count with ``absent_weight``. Their Dice loss is
    ``sum / (sum + 1)`` of the predicted probabilities: it presses on false positives, but an empty
    prediction earns 0 there, at which networks that start from nothing can collapse to background.
    Cross-entropy sees every voxel either way.
    """

    def __init__(self, focal_weight: float = 0.0, absent_weight: float = 0.0) -> None:
        super().__init__()
        # Sample by sample and class by class: the mean over a batch is then the mean over the
        # processes that share it, so that several GPUs compute what one does.
        self.dice = DiceLoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            reduction="none",
            smooth_nr=1.0,
            smooth_dr=1.0,
        )
        self.focal = FocalLoss(to_onehot_y=True, use_softmax=True) if focal_weight else None
        self.focal_weight = focal_weight
        self.absent_weight = absent_weight

    def forward(self, scales: Sequence[Tensor], label: Tensor) -> Tensor:
        """Logits ``[b, c, z, y, x]`` at falling resolutions; label ``[b, z, y, x]``."""
        total = label.new_zeros((), dtype=torch.float32)
        weight_sum = 0.0
        for logits, weight in zip(scales, SCALE_WEIGHTS):
            target = _shrink(label, logits.shape[2:])[:, None]
            logits = logits.float()
            loss = self._dice(logits, target) + F.cross_entropy(logits, target[:, 0].long())
            if self.focal is not None:
                loss = loss + self.focal_weight * self.focal(logits, target)
            total, weight_sum = total + weight * loss, weight_sum + weight
        return total / weight_sum

    def _dice(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the samples: of the classes held, and weighted, of those that are not."""
        losses = self.dice(logits, target).flatten(1)  # (b, c)
        classes = torch.arange(1, losses.shape[1] + 1, device=target.device)
        held = (target.flatten(2) == classes[:, None]).any(-1).float()  # (b, c)
        mean = lambda share: (losses * share).sum(1) / share.sum(1).clamp(min=1)  # noqa: E731
        return (mean(held) + self.absent_weight * mean(1 - held)).mean()


def _shrink(label: Tensor, size: Sequence[int]) -> Tensor:
    """A label map on the lattice of coarser logits: the commonest class of each block."""
    step = max(1, round(label.shape[-1] / size[-1]))
    pad = [m * step - n for n, m in zip(label.shape[1:], size)]
    label = F.pad(label, (0, pad[2], 0, pad[1], 0, pad[0]))
    if step == 1:
        return label
    share = F.avg_pool3d(one_hot(label[:, None].float(), len(CLASSES)), step)
    return share.argmax(1)


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
) -> SegmentationRun:
    """Train the network named in the settings on preprocessed cases.

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
    share = options.batch_size // fabric.world_size
    fabric.seed_everything(options.seed, verbose=False)
    network = channels_last(build_network(settings.network.name, settings.network.options))
    if options.initial_weights:
        take_over(network, Path(options.initial_weights))
    sampler = PatchSampler(cases, settings)
    loss = SegmentationLoss(options.focal_weight, options.absent_weight)

    def batch(number: int) -> tuple[Tensor, Tensor]:
        """This process's share."""
        first = number * options.batch_size + fabric.global_rank * share
        samples = [sampler(first + i, fabric.device) for i in range(share)]
        images = torch.stack([image for image, _ in samples])
        labels = torch.stack([label for _, label in samples])
        return images.contiguous(memory_format=torch.channels_last_3d), labels

    frozen_from = max(1, round(options.freeze_norms_at * options.steps))
    if options.frozen_norms:
        frozen_from = 0

    def settle(model: nn.Module) -> None:
        settle_norms(model, batch, max(1, SETTLING_PATCHES // options.batch_size), fabric)

    def loss_of_step(model: nn.Module, step: int) -> Mapping[str, Tensor]:
        if step >= frozen_from:
            if step == frozen_from and not options.frozen_norms:
                settle(model)
            freeze_norms(bare(model))
        images, labels = batch(step)
        out = model(images, scales=True)
        return {"total": loss([out.logits, *out.scales], labels)}

    def validate(model: nn.Module, step: int) -> Mapping[str, float]:
        if step <= frozen_from:
            settle(model)
        return figures_of(evaluate(model, validation, settings, fabric.device))

    loop = LoopSettings(**{k: getattr(options, k) for k in LoopSettings.__dataclass_fields__})
    network, history = train(
        fabric,
        network,
        loop,
        loss_of_step,
        run,
        key=_run_key(settings, cases),
        validate=validate if validation else None,
        title=settings.network.name,
        stop=stop,
    )
    if not validation and len(history.losses) == options.steps <= frozen_from:
        settle(network)  # the last validation has done it otherwise
    figures = dict(history.validations[-1]) if history.validations else {}
    return SegmentationRun(network, history, figures)


def settle_norms(
    network: nn.Module, batch: Callable[[int], tuple[Tensor, Tensor]], batches: int, fabric: Fabric
) -> None:
    """Give the BatchNorms of averaged weights the statistics those weights have, on batches.

    The averages kept during training are of the weights of the last few steps, not of their
    exponential moving average. Networks without BatchNorm are left alone.

    Args:
        batch: this process's images and labels of the batch of that number.
    """
    mode = network.training
    with fabric.autocast():
        update_bn((batch(number)[0] for number in range(batches)), network)
    network.train(mode)


def freeze_norms(network: nn.Module) -> None:
    """Let the BatchNorms use their kept statistics, as inference does, until ``train()`` is called.

    A batch of one patch is normalised by its own statistics in training; the brain, say, then looks
    no brighter than a muscle does. A last part of the training without that closes the gap.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()


def _run_key(settings: Settings, cases: Sequence[Prepared]) -> str:
    """What the course of a training hangs on."""
    often = {"checkpoint_every", "validate_every"}  # these may change between calls
    sections = settings.model_dump(
        mode="json", include={"preprocessing", "network", "training", "augmentation"}
    )
    sections["training"] = {k: v for k, v in sections["training"].items() if k not in often}
    regions = [settings.data.region]
    if settings.data.extra_root:
        regions.append(settings.data.extra_region)
    return digest(sections, regions, [case.patient_id for case in cases])


def take_over(network: nn.Module, folder: Path) -> int:
    """Start from a bundle's first network: every tensor of the same name and shape is copied.

    Returns:
        How many tensors were taken over.

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
    return len(fitting)


def one_network(network: nn.Module, settings: Settings, device: torch.device) -> Ensemble:
    """A network as inference runs it."""
    return Ensemble([TorchForward(network, device, settings.training.patch_size)])


def predict_labels(ensemble: Ensemble, case: Prepared, settings: Settings) -> np.ndarray:
    """The postprocessed label map of a preprocessed case, on the working grid."""
    volume = np.asarray(case.volume[:], dtype=np.float32)
    probabilities = ensemble(volume).probabilities
    rules = settings.postprocessing.for_region(settings.data.region)
    return postprocess(probabilities, volume[0], case.grid, rules)


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
        mask = predict_labels(ensemble, case, settings)
        truth = np.asarray(case.label[:])
        scores.append(metrics.score_case(mask, truth, case.grid.spacing[::-1], case.patient_id))
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
