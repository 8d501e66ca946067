"""Pictures. matplotlib is imported here and nowhere else, and only when a picture is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
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


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
