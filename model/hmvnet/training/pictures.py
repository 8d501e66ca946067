"""Pictures of trainings and comparisons; a case's are in ``hmvnet.writing.pictures``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from hmvnet.case import DAYS_PER_YEAR, Outcomes
from hmvnet.survival.bootstrap import Interval
from hmvnet.writing.pictures import draw_contours, save

if TYPE_CHECKING:
    from hmvnet.segmentation.metrics import CaseScore
    from hmvnet.survival.metrics import Calibration
    from hmvnet.training.engine import History


def draw_history(history: History, path: Path) -> Path:
    """Losses (with a running mean) and validation figures over the steps."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
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
    return save(figure, path)


def draw_examples(
    examples: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path
) -> Path:
    """The axial slice with most tumour of each patient: CT and PET, truth dashed, prediction solid.

    Args:
        examples: by patient, the normalised volume ``[2, z, y, x]``, the true and the predicted
            labels ``[z, y, x]``.
    """
    figure = Figure(figsize=(4 * len(examples), 8), layout="constrained")
    axes = figure.subplots(2, len(examples), squeeze=False)
    for column, (name, (volume, truth, predicted)) in zip(axes.T, examples.items()):
        z = int(((truth > 0) | (predicted > 0)).sum((1, 2)).argmax())
        column[0].imshow(volume[0, z], cmap="gray", vmin=0, vmax=1)
        column[1].imshow(volume[1, z], cmap="gray_r", vmin=-1, vmax=0)
        for axis in column:
            draw_contours(axis, truth[z], "dashed")
            draw_contours(axis, predicted[z])
            axis.set_axis_off()
        column[0].set_title(name)
    figure.suptitle("GTVp red, GTVn blue; dashed: truth")
    return save(figure, path)


def draw_comparison(scores: Mapping[str, Sequence[CaseScore]], path: Path) -> Path:
    """Dice of every patient, by network: GTVp, and GTVn where any patient has nodes."""
    with_nodes = any(s.gtvn.truth_mm3 for s in next(iter(scores.values())))
    kinds = ("gtvp", "gtvn") if with_nodes else ("gtvp",)
    figure = Figure(figsize=(6 * len(kinds), 1.5 + 0.6 * len(scores)), layout="constrained")
    axes = figure.subplots(1, len(kinds))
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
    return save(figure, path)


def risk_groups(risk: np.ndarray, training_risk: np.ndarray, groups: int = 3) -> np.ndarray:
    """Group 0 (lowest risk) to ``groups - 1`` of each, cut at quantiles of training risks."""
    cuts = np.quantile(training_risk, np.linspace(0, 1, groups + 1)[1:-1])
    return np.searchsorted(cuts, risk, side="left")


def kaplan_meier_figure(
    outcomes: Outcomes, group: np.ndarray, names: Sequence[str] = ("low", "middle", "high")
) -> Figure:
    """Kaplan-Meier curves by risk group, with 95% bands, numbers at risk and log-rank test.

    Args:
        group: number ``[n]`` of each patient's group, an index into ``names``.
    """
    from sksurv.compare import compare_survival  # networks are trained without scikit-survival
    from sksurv.nonparametric import kaplan_meier_estimator

    from hmvnet.survival.metrics import structured

    present = np.unique(group)
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
    years = np.arange(0, np.floor(outcomes.days.max() / DAYS_PER_YEAR) + 1)
    for row, number in enumerate(present):
        part = outcomes[group == number]
        times, survival, (low, high) = kaplan_meier_estimator(
            part.event, part.days, conf_type="log-log"
        )
        x = np.concatenate([[0.0], times / DAYS_PER_YEAR])
        color = f"C{row}"
        axes.step(x, [1.0, *survival], where="post", color=color, label=names[number])
        axes.fill_between(
            x, [1.0, *low], [1.0, *high], step="post", color=color, alpha=0.15, linewidth=0
        )
        for year in years:
            at_risk = int((part.days >= year * DAYS_PER_YEAR).sum())
            below.text(year, -row, str(at_risk), ha="center", va="center", color=color, fontsize=8)
    title = "Kaplan-Meier by risk group"
    if len(present) > 1 and outcomes.event.any():
        title += f" (log-rank p = {compare_survival(structured(outcomes), group)[1]:.2g})"
    axes.set(title=title, ylabel="without event", ylim=(0, 1.02))
    axes.legend(title="risk", frameon=False)
    below.set(xlabel="years", ylim=(-len(present) + 0.4, 0.6), yticks=[])
    below.set_ylabel("at risk", fontsize=8)
    return figure


def forest_figure(
    intervals: Mapping[str, Interval], label: str = "C-index", reference: float = 0.5
) -> Figure:
    """Forest plot: one line per name, estimate and limits, with a dashed line at ``reference``."""
    figure = Figure(figsize=(6.4, 0.8 + 0.4 * len(intervals)), layout="constrained")
    axes = figure.subplots()
    for row, interval in enumerate(intervals.values()):
        axes.plot([interval.low, interval.high], [-row, -row], color="C0")
        axes.plot(interval.estimate, -row, "s", color="C0")
        axes.text(
            1.02, -row, str(interval), transform=axes.get_yaxis_transform(), va="center", fontsize=8
        )
    axes.axvline(reference, color="0.6", linestyle="--", linewidth=1)
    axes.set_yticks([-row for row in range(len(intervals))], list(intervals))
    axes.set_xlabel(label)
    return figure


def calibration_figure(curves: Mapping[str, Calibration]) -> Figure:
    """Observed against predicted chance of an event, one line per model, with 95% limits."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for name, curve in curves.items():
        spread = np.stack([curve.observed - curve.low, curve.high - curve.observed]).clip(0)
        axes.errorbar(curve.predicted, curve.observed, spread, marker="o", capsize=2, label=name)
        axes.set_title(f"Event up to {curve.time / DAYS_PER_YEAR:.3g} years")
    axes.set(xlabel="predicted", ylabel="observed", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return figure
