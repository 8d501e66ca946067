"""The picture of a comparison at equal budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hmvnet.writing.pictures import save

if TYPE_CHECKING:
    from hmvnet.experiments.budget_table import Point

# Okabe and Ito's, which the colour-blind tell apart; the lightest of them left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")
MARKERS = "osD^vPX*"
# Line, then how much of a marker is filled: white takes the place of a network's colour.
LOOKS = {
    "one pass": ("-", "full", ""),
    "windows": ("--", "full", "white"),
    "both": (":", "left", ""),
}
DICE = "gtvp_mean_dice"
LABEL_WIDTH = 40  # letters
SPREAD = 1.03  # between neighbours' bars at one budget, as a factor


def draw_budgets(points: Sequence[Point], path: Path) -> Path:
    """Write :func:`budgets_figure` as PNG to ``path``."""
    return save(budgets_figure(points), path)


def budgets_figure(points: Sequence[Point]) -> Figure:
    """Mean Dice of GTVp against the cost of training, and against that of inference.

    A colour a network; solid and filled in one pass over the region, dashed and hollow in sliding
    windows, dotted and half filled as the mean of both. Bars are 95% intervals over patients.
    Seconds are of the device that most points are of; the others have no place on that axis.
    """
    figure = Figure(figsize=(11.5, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    networks = list(dict.fromkeys(point.network for point in points))
    curves = list(dict.fromkeys((point.network, point.way) for point in points))
    device = Counter(point.device for point in points).most_common(1)[0][0]
    handles: list[Line2D] = []
    for place, (network, way) in enumerate(curves):
        mine = [p for p in points if (p.network, p.way) == (network, way)]
        number = networks.index(network)
        line, fill_of, face = LOOKS[way]
        colour = COLOURS[number % len(COLOURS)]
        style: dict[str, Any] = {
            "color": colour,
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": line,
            "fillstyle": fill_of,
            "markerfacecolor": face or colour,
            "markerfacecoloralt": "white",
            "markersize": 7,
            "linewidth": 1.8,
        }
        dice = [p.figures[DICE].estimate for p in mine]
        bars = [
            [max(p.figures[DICE].estimate - p.figures[DICE].low, 0) for p in mine],
            [max(p.figures[DICE].high - p.figures[DICE].estimate, 0) for p in mine],
        ]
        shift = SPREAD ** (place - (len(curves) - 1) / 2)
        bar: dict[str, Any] = {"elinewidth": 1.1, "capsize": 3, "zorder": 3 + place}
        left.errorbar([p.minutes * shift for p in mine], dice, bars, **bar, **style)
        same = [p for p in mine if p.device == device]
        timed = [(p.seconds, p.figures[DICE].estimate) for p in same]
        if timed:
            right.plot(*zip(*timed), zorder=3 + place, **{**style, "linewidth": 0.8})
            _name_ends(right, same, colour)
        label = fill(network, LABEL_WIDTH, break_long_words=False)
        handles.append(Line2D([], [], label=f"{label}\n({way})", **style))
    left.set(
        xlabel="budget, at the minutes charged for training a fold",
        ylabel="GTVp, mean Dice (95% CI)",
    )
    shown = [p for p in points if p.device == device]
    more = "" if len(shown) == len(points) else "; runs on others are left out"
    right.set(xlabel=f"inference, network seconds a patient ({device}{more})")
    _logarithmic(left, [p.minutes for p in points])
    _logarithmic(right, [p.seconds for p in shown])
    budgets = sorted({point.budget for point in points})
    charged = [[p.minutes for p in points if p.budget == budget] for budget in budgets]
    left.set_xticks([sum(some) / len(some) for some in charged], [str(b) for b in budgets])
    left.minorticks_off()
    low, high = right.get_xlim()
    right.set_xlim(low, high * (high / low) ** 0.06)  # room for what is beside the last points
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    counts = sorted({point.patients for point in points})
    of = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    figure.suptitle(f"Accuracy and cost, {of} patients, each scored by a fold that did not see it")
    return figure


def _name_ends(axes: Axes, mine: Sequence[Point], colour: str) -> None:
    """The smallest and the largest budget beside their points."""
    for point in {mine[0].budget: mine[0], mine[-1].budget: mine[-1]}.values():
        axes.annotate(
            str(point.budget),
            (point.seconds, point.figures[DICE].estimate),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, over at least half a decade."""
    low, high = min(values), max(values)
    pad = max(1.35, (10**0.5 / (high / low)) ** 0.5) if low > 0 else 1.35
    axes.set_xscale("log")
    if low > 0:
        axes.set_xlim(low / pad, high * pad)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
