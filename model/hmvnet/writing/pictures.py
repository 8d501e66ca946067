"""A prediction as a picture.

matplotlib is imported here and in ``hmvnet.training.pictures`` only, and these two are imported
only where a picture is made. Figures are drawn without pyplot, so nothing global is touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hmvnet.case import GTVN, GTVP

if TYPE_CHECKING:
    from hmvnet.pipeline import Prediction

GTVP_COLOUR, GTVN_COLOUR = "#ff3b30", "#00b8d4"


def draw_prediction(prediction: Prediction, path: Path) -> Path:
    """Three fused slices through the largest lesion, and two PET MIPs, with the contours.

    Drawn on the working grid; the aspect is isotropic, the patient's right is on the left.
    """
    segmentation = prediction.segmentation
    labels, (ct, pet) = segmentation.labels, segmentation.volume.raw
    z, y, x = _centre_of_interest(labels, pet)
    figure = Figure(figsize=(17, 6), layout="constrained")
    axes = figure.subplots(1, 5)
    slices = (
        ("axial", ct[z], pet[z], labels[z], "upper"),
        ("coronal", ct[:, y], pet[:, y], labels[:, y], "lower"),
        ("sagittal", ct[:, :, x], pet[:, :, x], labels[:, :, x], "lower"),
    )
    for axis, (name, ct_slice, pet_slice, label_slice, origin) in zip(axes, slices):
        axis.imshow(ct_slice, cmap="gray", vmin=-160, vmax=240, origin=origin)
        hot = np.ma.masked_less(pet_slice, 2.0)
        axis.imshow(hot, cmap="hot", vmin=0, vmax=12, alpha=0.5, origin=origin)
        draw_contours(axis, label_slice)
        axis.set_title(f"{name}, CT + PET")
    for axis, (name, direction) in zip(axes[3:], (("coronal", 1), ("sagittal", 2))):
        axis.imshow(pet.max(axis=direction), cmap="gray_r", vmin=0, vmax=8, origin="lower")
        draw_contours(axis, labels.max(axis=direction))
        axis.set_title(f"PET MIP, {name}")
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(_headline(prediction))
    return save(figure, path)


def _centre_of_interest(labels: np.ndarray, pet: np.ndarray) -> tuple[int, int, int]:
    kinds = [k for k in (GTVP, GTVN) if (labels == k).any()]
    if kinds:
        return tuple(np.median(np.argwhere(labels == kinds[0]), axis=0).astype(int).tolist())
    return tuple(n // 2 for n in pet.shape)


def _headline(prediction: Prediction) -> str:
    primaries = sum(one.label == GTVP for one in prediction.lesions)
    nodes = sum(one.label == GTVN for one in prediction.lesions)
    text = f"GTVp (red): {primaries}    GTVn (blue): {nodes}"
    if prediction.risk:
        text += f"    RFS risk {prediction.risk.value:+.2f}"
    return text + "    research only, not for clinical use"


def draw_contours(axes: Axes, labels: np.ndarray, style: str = "solid") -> None:
    """The outlines of both labels on a slice ``[y, x]`` of a label map."""
    for kind, colour in ((GTVP, GTVP_COLOUR), (GTVN, GTVN_COLOUR)):
        if (labels == kind).any():
            axes.contour(labels == kind, [0.5], colors=colour, linewidths=1.2, linestyles=style)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure to ``path``, whose folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
