"""Pictures. matplotlib is imported here and nowhere else, and only when a picture is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from hmvnet.case import GTVN, GTVP

if TYPE_CHECKING:
    from hmvnet.metrics import CaseScore
    from hmvnet.pipeline import Prediction
    from hmvnet.training.engine import History

GTVP_COLOUR, GTVN_COLOUR = "#ff3b30", "#00b8d4"


def draw_history(history: History, path: Path) -> Path:
    """Losses (with a running mean) and validation figures over the steps."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps = [row["step"] for row in history.losses]
    for name in [n for n in (history.losses[0] if history.losses else {}) if n != "step"]:
        values = np.array([row[name] for row in history.losses])
        axes[0].plot(steps, values, alpha=0.2)
        width = max(1, min(50, len(values) // 5))
        mean = np.convolve(values, np.ones(width) / width, "valid")
        axes[0].plot(steps[width - 1 :], mean, label=f"{name}, mean of {width}")
    axes[0].set(xlabel="step", title="training loss")
    axes[0].legend()
    for name in [n for n in (history.validations[0] if history.validations else {}) if n != "step"]:
        rows = history.validations
        axes[1].plot([r["step"] for r in rows], [r[name] for r in rows], marker="o", label=name)
    axes[1].set(xlabel="step", title="validation", ylim=(0, 1))
    if history.validations:
        axes[1].legend()
    return _save(figure, path)


def draw_prediction(prediction: Prediction, path: Path) -> Path:
    """Three fused slices through the largest lesion, and two PET MIPs, with the contours.

    Drawn on the working grid; the aspect is isotropic, the patient's right is on the left.
    """
    segmentation = prediction.segmentation
    labels, (ct, pet) = segmentation.labels, segmentation.volume.raw
    z, y, x = _centre_of_interest(labels, pet)
    figure, axes = plt.subplots(1, 5, figsize=(17, 6), layout="constrained")
    slices = (
        ("axial", ct[z], pet[z], labels[z], "upper"),
        ("coronal", ct[:, y], pet[:, y], labels[:, y], "lower"),
        ("sagittal", ct[:, :, x], pet[:, :, x], labels[:, :, x], "lower"),
    )
    for axis, (name, ct_slice, pet_slice, label_slice, origin) in zip(axes, slices):
        axis.imshow(ct_slice, cmap="gray", vmin=-160, vmax=240, origin=origin)
        hot = np.ma.masked_less(pet_slice, 2.0)
        axis.imshow(hot, cmap="hot", vmin=0, vmax=12, alpha=0.5, origin=origin)
        _contours(axis, label_slice)
        axis.set_title(f"{name}, CT + PET")
    for axis, (name, direction) in zip(axes[3:], (("coronal", 1), ("sagittal", 2))):
        axis.imshow(pet.max(axis=direction), cmap="gray_r", vmin=0, vmax=8, origin="lower")
        _contours(axis, labels.max(axis=direction))
        axis.set_title(f"PET MIP, {name}")
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(_headline(prediction))
    return _save(figure, path)


def draw_examples(
    examples: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path
) -> Path:
    """The axial slice with most tumour of each patient: CT and PET, truth dashed, prediction solid.

    Args:
        examples: by patient, the normalised volume ``[2, z, y, x]``, the true and the predicted
            labels ``[z, y, x]``.
    """
    figure, axes = plt.subplots(
        2, len(examples), figsize=(4 * len(examples), 8), layout="constrained", squeeze=False
    )
    for column, (name, (volume, truth, predicted)) in zip(axes.T, examples.items()):
        z = int(((truth > 0) | (predicted > 0)).sum((1, 2)).argmax())
        column[0].imshow(volume[0, z], cmap="gray", vmin=0, vmax=1)
        column[1].imshow(volume[1, z], cmap="gray_r", vmin=-1, vmax=0)
        for axis in column:
            _contours(axis, truth[z], "dashed")
            _contours(axis, predicted[z])
            axis.set_axis_off()
        column[0].set_title(name)
    figure.suptitle("GTVp red, GTVn blue; dashed: truth")
    return _save(figure, path)


def draw_comparison(scores: Mapping[str, Sequence[CaseScore]], path: Path) -> Path:
    """Dice of every patient, by network: GTVp, and GTVn where any patient has nodes."""
    with_nodes = any(s.gtvn.truth_mm3 for s in next(iter(scores.values())))
    kinds = ("gtvp", "gtvn") if with_nodes else ("gtvp",)
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(6 * len(kinds), 1.5 + 0.6 * len(scores)), layout="constrained"
    )
    for axis, kind in zip(np.atleast_1d(axes), kinds):
        values = [
            [getattr(s, kind).dice for s in one if getattr(s, kind).truth_mm3]
            for one in scores.values()
        ]
        axis.boxplot(values, orientation="horizontal", showmeans=True, widths=0.6)
        for row, points in enumerate(values, 1):
            spread = np.random.default_rng(row).uniform(-0.15, 0.15, len(points))
            axis.plot(points, row + spread, ".", alpha=0.4)
        axis.set_yticks(range(1, len(scores) + 1), list(scores))
        axis.invert_yaxis()
        axis.set(title=f"{kind[:3].upper()}{kind[3:]} Dice, one dot a patient", xlim=(0, 1))
    return _save(figure, path)


def _centre_of_interest(labels: np.ndarray, pet: np.ndarray) -> tuple[int, int, int]:
    kinds = [k for k in (GTVP, GTVN) if (labels == k).any()]
    if kinds:
        return tuple(np.median(np.argwhere(labels == kinds[0]), axis=0).astype(int).tolist())
    return tuple(n // 2 for n in pet.shape)


def _contours(axis, labels: np.ndarray, style: str = "solid") -> None:
    for kind, colour in ((GTVP, GTVP_COLOUR), (GTVN, GTVN_COLOUR)):
        if (labels == kind).any():
            axis.contour(labels == kind, [0.5], colors=colour, linewidths=1.2, linestyles=style)


def _headline(prediction: Prediction) -> str:
    primaries = sum(one.label == GTVP for one in prediction.lesions)
    nodes = sum(one.label == GTVN for one in prediction.lesions)
    text = f"GTVp (red): {primaries}    GTVn (blue): {nodes}"
    if prediction.risk:
        text += f"    RFS risk {prediction.risk.value:+.2f}"
    return text + "    research only, not for clinical use"


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
