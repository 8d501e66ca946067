"""A prediction as a picture.

matplotlib is imported here and in ``hmvnet.training.pictures`` only, and these two are imported
only where a picture is made. Figures are drawn without pyplot, so nothing global is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from hmvnet.case import SYNTHETIC, Grid
from hmvnet.files import replacing
from hmvnet.writing.views import (
    FUSED_STOPS,
    HU_WINDOW,
    LABELS,
    PLANES,
    SCALE_BARS_MM,
    SUV_WINDOW,
    point_of_interest,
    turned,
)

if TYPE_CHECKING:
    from hmvnet.pipeline import Prediction

DPI = 200

FUSED = LinearSegmentedColormap.from_list(
    "amber, clear at 0", [to_rgba(colour, alpha) for colour, alpha in FUSED_STOPS]
)
PROJECTED = "gray_r"

# Inches.
WIDTH, MARGIN, GAP, TITLE, HEADLINE, NOTE, KEY = 14.0, 0.1, 0.08, 0.28, 0.4, 0.22, 1.6


@dataclass(frozen=True)
class _Panel:
    """One picture.

    Attributes:
        pet: SUV, ``[row, column]``.
        labels: a mask for each of :data:`LABELS`, bool ``[label, row, column]``.
        ends: what lies to the left and to the right.
        spacing: of rows and columns, in mm.
        upwards: whether the first row is the lowest.
        ct: below the PET, in HU; None for a projection.
    """

    title: str
    pet: np.ndarray
    labels: np.ndarray
    ends: str
    spacing: tuple[float, float]
    upwards: bool = True
    ct: np.ndarray | None = None

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.pet.shape
        return rows * self.spacing[0], columns * self.spacing[1]


def draw_prediction(prediction: Prediction, path: Path) -> Path:
    """Write :func:`prediction_figure` as PNG to ``path``."""
    return save(prediction_figure(prediction), path)


def prediction_figure(prediction: Prediction) -> Figure:
    """Three fused slices through the largest lesion, and two PET MIPs, with the contours.

    Drawn on the working grid and at one scale: the aspect is isotropic, the patient's right is on
    the left, the head is up. Without a lesion the slices meet in the hottest voxel. Says SYNTHETIC
    where the notes do.
    """
    panels = _panels(prediction)
    widths = [panel.size_mm[1] for panel in panels]
    scale = (WIDTH - 2 * MARGIN - (len(panels) - 1) * GAP) / sum(widths)  # inches a mm
    axial = panels[0].size_mm[0] * scale
    body = max(*(panel.size_mm[0] * scale for panel in panels[1:]), axial + KEY)
    verdict = prediction.verdict
    said = ["" if verdict.status == "ok" else f"verdict: {verdict}"]
    note = "; ".join(filter(None, [*said, prediction.segmentation.volume.region.note]))
    head = HEADLINE + (NOTE if note else 0.0)
    height = MARGIN + body + TITLE + head
    figure = Figure(figsize=(WIDTH, height))

    def axes_at(left: float, top: float, width: float, tall: float) -> Axes:
        lower = height - top - tall
        return figure.add_axes((left / WIDTH, lower / height, width / WIDTH, tall / height))

    top, left = head + TITLE, MARGIN
    for panel, width in zip(panels, widths):
        _draw_panel(axes_at(left, top, width * scale, panel.size_mm[0] * scale), panel)
        left += width * scale + GAP
    left, width = MARGIN + 0.15, widths[0] * scale - 0.3
    _draw_key(figure, prediction, (left / WIDTH, (height - top - axial - 0.12) / height))
    for cmap, name, below in ((FUSED, "slices, over CT", 0.8), (PROJECTED, "MIP", 1.27)):
        _draw_bar(axes_at(left, top + axial + below, width, 0.1), cmap, name)
    _draw_headline(figure, prediction, 1 - 0.5 * HEADLINE / height)
    figure.text(MARGIN / WIDTH, 1 - HEADLINE / height, note, fontsize=11, va="center")
    return figure


def _panels(prediction: Prediction) -> list[_Panel]:
    """The five pictures, of arrays that are turned."""
    segmentation = prediction.segmentation
    grid, (ct, pet, labels) = turned(
        segmentation.volume.grid, *segmentation.volume.raw, segmentation.labels
    )
    masks = np.stack([labels == kind for kind, _, _ in LABELS])
    at = point_of_interest(labels, pet)
    position = dict(zip("xyz", grid.points(np.array([at[::-1]]))[0]))
    slices = [
        _Panel(
            f"{plane}, {'zyx'[axis]} = {position['zyx'[axis]]:.0f} mm",
            pet.take(at[axis], axis),
            masks.take(at[axis], axis + 1),
            ends,
            _without(axis, grid),
            upwards=axis > 0,
            ct=ct.take(at[axis], axis),
        )
        for axis, (plane, ends) in enumerate(PLANES)
    ]
    projections = [
        _Panel(f"{plane} PET MIP", pet.max(axis), masks.max(axis + 1), ends, _without(axis, grid))
        for axis, (plane, ends) in enumerate(PLANES)
        if axis
    ]
    return [*slices, *projections]


def _without(axis: int, grid: Grid) -> tuple[float, float]:
    """Spacing in mm of the rows and columns that are left where an array axis is cut or gone."""
    rows, columns = (mm for i, mm in enumerate(grid.spacing[::-1]) if i != axis)
    return rows, columns


def _draw_panel(axes: Axes, panel: _Panel) -> None:
    # Voxels as they are: smoothed noise would also make the file more than twice as large.
    show = partial(
        axes.imshow,
        origin="lower" if panel.upwards else "upper",
        aspect=panel.spacing[0] / panel.spacing[1],
        interpolation="nearest",
    )
    if panel.ct is not None:
        show(panel.ct, cmap="gray", vmin=HU_WINDOW[0], vmax=HU_WINDOW[1])
    cmap = PROJECTED if panel.ct is None else FUSED
    show(panel.pet, cmap=cmap, vmin=SUV_WINDOW[0], vmax=SUV_WINDOW[1])
    for mask, (kind, _, _) in zip(panel.labels, LABELS):
        draw_contours(axes, kind * mask)
    axes.set_title(panel.title, fontsize=11, pad=4)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.8", linewidth=0.6)
    ink, paper = ("white", "black") if panel.ct is not None else ("black", "white")
    outline = [withStroke(linewidth=2.5, foreground=paper)]
    mark_ends(axes, panel.ends, color=ink, path_effects=outline)
    _draw_scale_bar(axes, panel.size_mm[1], ink, paper)


def _draw_scale_bar(axes: Axes, width_mm: float, ink: str, paper: str) -> None:
    """A bar of at most a third of the panel, with its length."""
    bar = next((mm for mm in SCALE_BARS_MM if mm <= width_mm / 3), SCALE_BARS_MM[-1])
    start, end = 0.04, 0.04 + bar / width_mm
    axes.plot(
        [start, end],
        [0.03, 0.03],
        transform=axes.transAxes,
        color=ink,
        linewidth=2.5,
        solid_capstyle="butt",
        path_effects=[withStroke(linewidth=4, foreground=paper)],
    )
    axes.text(
        (start + end) / 2,
        0.04,
        f"{bar} mm",
        transform=axes.transAxes,
        ha="center",
        va="bottom",
        color=ink,
        fontsize=9,
        path_effects=[withStroke(linewidth=2.5, foreground=paper)],
    )


def mark_ends(axes: Axes, ends: Sequence[str], **style) -> None:
    """Letters at the left and right edge: where the patient's right and left (or front) are."""
    for x, align, letter in ((0.02, "left", ends[0]), (0.98, "right", ends[1])):
        axes.text(
            x,
            0.5,
            letter,
            transform=axes.transAxes,
            ha=align,
            va="center",
            fontsize=12,
            fontweight="bold",
            **style,
        )


def _draw_bar(axes: Axes, cmap: str | Colormap, name: str) -> None:
    low, high = SUV_WINDOW
    axes.set_facecolor("0.3")
    ramp = np.linspace(low, high, 256)[None]
    axes.imshow(ramp, cmap=cmap, aspect="auto", extent=(low, high, 0, 1))
    axes.set_yticks([])
    axes.set_xticks(range(low, high + 1))
    axes.tick_params(length=2, pad=2, labelsize=9)
    axes.set_title(f"SUV {low} to {high}, {name}", fontsize=9, pad=3, loc="left")


def _draw_key(figure: Figure, prediction: Prediction, corner: tuple[float, float]) -> None:
    lines, texts = [], []
    for kind, name, colour in LABELS:
        volumes = [one.volume_ml for one in prediction.lesions if one.label == kind]
        lines.append(Line2D([], [], color=colour, linewidth=2))
        count = f"{len(volumes)} lesion" + "s" * (len(volumes) != 1)
        texts.append(f"{name}: {count}" + (f", {sum(volumes):.1f} mL" if volumes else ""))
    figure.legend(
        lines,
        texts,
        loc="upper left",
        bbox_to_anchor=corner,
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        fontsize=11,
        handlelength=1.5,
    )


def _draw_headline(figure: Figure, prediction: Prediction, height: float) -> None:
    parts = [SYNTHETIC] if any(SYNTHETIC in note for note in prediction.notes) else []
    if prediction.risk:
        parts.append(f"RFS risk {prediction.risk.value:+.2f}")
    left = MARGIN / WIDTH
    figure.text(left, height, "    ".join(parts), fontsize=12, va="center", fontweight="bold")
    figure.text(
        1 - left,
        height,
        "positions in LPS    research only, not for clinical use",
        fontsize=11,
        ha="right",
        va="center",
    )


def draw_contours(axes: Axes, labels: np.ndarray, style: str = "solid") -> None:
    """The outlines of both labels on a slice ``[y, x]`` of a label map."""
    for kind, _, colour in LABELS:
        if (labels == kind).any():
            axes.contour(labels == kind, [0.5], colors=colour, linewidths=1.4, linestyles=style)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
    return path
