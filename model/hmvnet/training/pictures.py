"""Pictures of trainings and comparisons; a case's are in ``hmvnet.writing.pictures``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hmvnet.case import DAYS_PER_YEAR, Outcomes
from hmvnet.survival.bootstrap import Interval
from hmvnet.writing.pictures import draw_contours, mark_ends, save
from hmvnet.writing.views import GTVN_COLOUR, GTVP_COLOUR, LABELS

if TYPE_CHECKING:
    from hmvnet.segmentation.metrics import CaseScore
    from hmvnet.survival.decision import DecisionCurve
    from hmvnet.survival.metrics import Calibration
    from hmvnet.training.checkpoints import History


# Okabe and Ito's colours, which the colour-blind tell apart; low, middle and high risk.
GROUP_COLOURS = ("#0072b2", "#7f7f7f", "#d55e00")
LABEL_WIDTH = 22  # of a network with its options, in letters
INK = "#0072b2"
FIGURES = {
    "gtvp_mean_dice": ("GTVp, mean Dice", GTVP_COLOUR, "-"),
    "gtvn_aggregated_dice": ("GTVn, aggregated Dice", GTVN_COLOUR, "-"),
    "gtvn_aggregated_f1": ("GTVn, aggregated F1", GTVN_COLOUR, ":"),
}


def draw_history(history: History, path: Path) -> Path:
    """Write :func:`history_figure` as PNG to ``path``."""
    return save(history_figure(history), path)


def history_figure(history: History) -> Figure:
    """Losses (with a running mean) and validation figures over the steps."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for column, (name, steps, values) in enumerate(_columns(history.losses)):
        colour = f"C{column}"
        axes[0].plot(steps, values, alpha=0.2, color=colour)
        width = max(1, min(50, len(values) // 5))
        mean = np.convolve(values, np.ones(width) / width, "valid")
        axes[0].plot(steps[width - 1 :], mean, color=colour, label=f"{name}, mean of {width} steps")
    axes[0].set(xlabel="step", ylabel="loss", title="training")
    shown: list[np.ndarray] = []
    for name, steps, values in _columns(history.validations):
        label, colour, style = FIGURES.get(name, (name, f"C{len(shown)}", "-"))
        axes[1].plot(steps, values, style, marker="o", markersize=4, color=colour, label=label)
        shown.append(values)
    axes[1].set(xlabel="step", ylabel="validation figure", title="validation patients")
    if shown and np.isfinite(shown).any():
        axes[1].set_ylim(*_limits(np.concatenate(shown)))
    for each in axes:
        each.grid(alpha=0.3)
        if each.lines:
            each.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    return figure


def _columns(rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, steps and values of every figure in the rows of a history."""
    steps = np.array([row["step"] for row in rows])
    for name in [n for n in (rows[0] if rows else {}) if n != "step"]:
        yield name, steps, np.array([row[name] for row in rows])


def _limits(values: np.ndarray) -> tuple[float, float]:
    """What shows all values, and no more than 0 to 1 where they are shares."""
    low, high = np.nanmin(values), np.nanmax(values)
    pad = max(0.05, 0.1 * (high - low))
    if low >= 0 and high <= 1:
        return max(-0.02, low - pad), min(1.02, high + pad)
    return low - pad, high + pad


def draw_examples(
    examples: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path
) -> Path:
    """The axial slice with most tumour of each patient: CT and PET, truth dashed, prediction solid.

    Args:
        examples: by patient, the normalised volume ``[2, z, y, x]``, the true and the predicted
            labels ``[z, y, x]``, on a working grid (x runs to the patient's left).
    """
    figure = Figure(figsize=(max(3.2 * len(examples), 6.4), 6.9), layout="constrained")
    axes = figure.subplots(2, len(examples), squeeze=False)
    for column, (name, (volume, truth, predicted)) in zip(axes.T, examples.items()):
        z = int(((truth > 0) | (predicted > 0)).sum((1, 2)).argmax())
        column[0].imshow(volume[0, z], cmap="gray", vmin=0, vmax=1)
        column[1].imshow(volume[1, z], cmap="gray_r", vmin=-1, vmax=0)
        for axis, ink in zip(column, ("white", "black")):
            draw_contours(axis, truth[z], "dashed")
            draw_contours(axis, predicted[z])
            mark_ends(axis, "RL", color=ink)
            axis.set(xticks=[], yticks=[])
        column[0].set_title(name, parse_math=False)
    axes[0, 0].set_ylabel("CT")
    axes[1, 0].set_ylabel("PET")
    lines = [Line2D([], [], color=colour) for _, _, colour in LABELS]
    lines += [Line2D([], [], color="0.4"), Line2D([], [], color="0.4", linestyle="dashed")]
    names = [*(name for _, name, _ in LABELS), "prediction", "truth"]
    figure.legend(lines, names, loc="outside lower center", ncols=4, frameon=False)
    return save(figure, path)


def draw_comparison(scores: Mapping[str, Sequence[CaseScore]], path: Path) -> Path:
    """Write :func:`comparison_figure` as PNG to ``path``."""
    return save(comparison_figure(scores), path)


def comparison_figure(scores: Mapping[str, Sequence[CaseScore]]) -> Figure:
    """Dice of every patient, by network: GTVp, and GTVn where any patient has nodes."""
    with_nodes = any(s.gtvn.truth_mm3 for s in next(iter(scores.values())))
    kinds = ("gtvp", "gtvn") if with_nodes else ("gtvp",)
    names = [fill(name, LABEL_WIDTH, break_long_words=False) for name in scores]
    height = 1.5 + sum(0.35 + 0.17 * (1 + name.count("\n")) for name in names)
    figure = Figure(figsize=(2.2 + 4.4 * len(kinds), height), layout="constrained")
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, kind, (_, title, colour) in zip(axes, kinds, LABELS):
        values = [
            [getattr(s, kind).dice for s in one if getattr(s, kind).truth_mm3]
            for one in scores.values()
        ]
        for row, points in enumerate(values, 1):
            spread = np.random.default_rng(row).uniform(-0.2, 0.2, len(points))
            axis.plot(points, row + spread, "o", color=colour, alpha=0.45, markersize=4, mew=0)
        axis.boxplot(
            values,
            orientation="horizontal",
            widths=0.6,
            showfliers=False,  # every patient is a dot
            showmeans=True,
            meanprops={"marker": "D", "mfc": "white", "mec": "black", "markersize": 5},
            medianprops={"color": "black", "linewidth": 2},
        )
        axis.set(title=f"{title}, n = {len(values[0])} patients", xlim=(-0.02, 1.02))
        axis.set_xlabel("Dice, one dot a patient")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(1, len(scores) + 1), names)
    axes[0].set_ylim(len(scores) + 0.6, 0.4)
    figure.supxlabel(
        "line: median; diamond: mean; box: quartiles; whiskers: to 1.5 times the box", fontsize=8
    )
    return figure


def risk_groups(risk: np.ndarray, training_risk: np.ndarray, groups: int = 3) -> np.ndarray:
    """Group 0 (lowest risk) to ``groups - 1`` of each, cut at quantiles of training risks."""
    cuts = np.quantile(training_risk, np.linspace(0, 1, groups + 1)[1:-1])
    return np.searchsorted(cuts, risk, side="left")


def kaplan_meier_figure(
    outcomes: Outcomes,
    group: np.ndarray,
    names: Sequence[str] = ("low", "middle", "high"),
    model: str = "",
) -> Figure:
    """Kaplan-Meier curves by risk group, with 95% bands, numbers at risk and log-rank test.

    Args:
        group: number ``[n]`` of each patient's group, an index into ``names``.
        model: whose risk it is, for the title.
    """
    from sksurv.compare import compare_survival  # networks are trained without scikit-survival
    from sksurv.nonparametric import kaplan_meier_estimator

    from hmvnet.survival.metrics import structured

    present = np.unique(group)
    rows = len(present)
    figure = Figure(figsize=(6.8, 5.4), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(5, 0.4 * rows), sharex=True)
    years = np.arange(0, np.floor(outcomes.days.max() / DAYS_PER_YEAR) + 1)
    labels = []
    for row, number in enumerate(present):
        part = outcomes[group == number]
        times, survival, (low, high) = kaplan_meier_estimator(
            part.event, part.days, conf_type="log-log"
        )
        x = np.concatenate([[0.0], times / DAYS_PER_YEAR])
        color = GROUP_COLOURS[number % len(GROUP_COLOURS)]
        axes.step(x, [1.0, *survival], where="post", color=color, label=names[number])
        axes.fill_between(
            x, [1.0, *low], [1.0, *high], step="post", color=color, alpha=0.15, linewidth=0
        )
        labels.append(f"{names[number]} ({part.event.sum()} events)")
        for year in years:
            at_risk = int((part.days >= year * DAYS_PER_YEAR).sum())
            below.text(year, -row, str(at_risk), ha="center", va="center", color=color, fontsize=9)
    title = f"{model or 'Kaplan-Meier'}, by risk group\n{counted(outcomes)}"
    if rows > 1 and outcomes.event.any():
        title += f", log-rank p = {compare_survival(structured(outcomes), group)[1]:.2g}"
    axes.set_title(title, fontsize=11)
    axes.set(ylabel="share without event (band: 95% CI)", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(title="risk", loc="best", edgecolor="none")
    below.set(xlabel="follow-up (years)", xticks=years, ylim=(-rows + 0.4, 0.6))
    below.set_yticks([-row for row in range(rows)], labels, fontsize=9)
    below.set_title("patients at risk", fontsize=9, loc="left")
    below.tick_params(left=False)
    below.spines[["top", "right", "left"]].set_visible(False)
    return figure


def counted(outcomes: Outcomes) -> str:
    """How many patients and events, for a title."""
    return f"{len(outcomes)} patients, {outcomes.event.sum()} events"


def forest_figure(
    intervals: Mapping[str, Interval],
    label: str = "C-index",
    reference: float = 0.5,
    title: str = "",
) -> Figure:
    """Forest plot: one line per name, estimate and limits, with a dashed line at ``reference``."""
    figure = Figure(figsize=(8.4, 1.2 + 0.32 * len(intervals)), layout="constrained")
    axes = figure.subplots()
    for row, interval in enumerate(intervals.values()):
        axes.plot([interval.low, interval.high], [-row, -row], color=INK, linewidth=1.6)
        axes.plot(interval.estimate, -row, "s", color=INK, markersize=6)
        axes.text(
            1.02, -row, str(interval), transform=axes.get_yaxis_transform(), va="center", fontsize=9
        )
    axes.axvline(reference, color="0.6", linestyle="--", linewidth=1)
    axes.set_yticks([-row for row in range(len(intervals))], list(intervals))
    axes.set_ylim(-len(intervals) + 0.4, 0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"{label}, 95% CI (dashed: {reference:g})")
    axes.set_title(title, fontsize=11)
    return figure


def calibration_figure(curves: Mapping[str, Calibration], title: str = "") -> Figure:
    """Observed against predicted chance of an event, a panel a model, with 95% limits."""
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(max(3.0 * columns, 4.6), 3.1 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, curve) in zip(panels, curves.items()):
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        spread = np.stack([curve.observed - curve.low, curve.high - curve.observed]).clip(0)
        axes.errorbar(
            curve.predicted, curve.observed, spread, marker="o", markersize=5, capsize=2, color=INK
        )
        axes.set_title(f"{name}\nmean error {curve.error:.3f}", fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.grid(alpha=0.3)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    for axes in panels[max(len(curves) - columns, 0) : len(curves)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    years = next(iter(curves.values())).time / DAYS_PER_YEAR
    figure.suptitle(", ".join(filter(None, (f"Event up to {years:.3g} years", title))), fontsize=11)
    figure.supxlabel("predicted chance of an event (groups of equal size)", fontsize=10)
    figure.supylabel("observed chance (Kaplan-Meier), 95% CI", fontsize=10)
    return figure


def decision_figure(curves: Mapping[str, DecisionCurve], title: str, years: float) -> Figure:
    """Net benefit against the chance from which on one acts, a line a model."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    first = next(iter(curves.values()))
    for name, curve in curves.items():
        axes.plot(curve.thresholds, curve.model, linewidth=1.6, label=name)
    axes.plot(first.thresholds, first.everyone, color="0.6", linestyle="--", label="everyone")
    axes.axhline(0, color="0.3", linewidth=1, label="nobody")
    axes.set(
        xlabel=f"chance of an event up to {years:g} years from which on one acts",
        ylabel="net benefit",
        ylim=(-0.05, max(float(first.everyone.max()), 0.0) * 1.2 + 0.02),
        title=title,
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    return figure
