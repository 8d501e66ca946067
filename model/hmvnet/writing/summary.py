"""What a person reads while a case runs and when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hmvnet.case import CLASSES
from hmvnet.exits import one_line
from hmvnet.lesions.table import Lesion
from hmvnet.pipeline import Prediction

STRONGEST = 5  # contributions to the risk that the summary names


class Narrator:
    """Says on standard output which stage runs, and ends with a summary."""

    def __init__(self) -> None:
        # The platform's log is no terminal and has no width.
        self.console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
        self._print = self.console.print
        self.start = time.monotonic()

    def __call__(self, stage: str) -> None:
        self._print(f"[dim]{time.monotonic() - self.start:6.1f} s[/]  {escape(one_line(stage))}")

    def problem(self, text: str) -> None:
        """Why there is no result, or not all of it; on standard error: results go the other way."""
        print(f"error: {one_line(text)}", file=sys.stderr, flush=True)

    def summary(
        self, prediction: Prediction, bundle: str, device: str, written: Iterable[Path]
    ) -> None:
        """Lesion table, stage, risk, notes, verdict, timings, and where the outputs are."""
        if prediction.lesions:
            self._print(_table(prediction.lesions))
        if staging := prediction.staging:
            told = [f"{one.stage}: {', '.join(one.reasons[:2])}" for one in (staging.t, staging.n)]
            self._print(f"stage {staging} (AJCC 7th, by {staging.by}; {escape('; '.join(told))})")
            for note in staging.notes:
                self._print(f"[yellow]note[/] stage: {escape(one_line(note))}")
        if risk := prediction.risk:
            moved = ", ".join(f"{name} {value:+.2f}" for name, value in risk.branches.items())
            self._print(
                f"RFS risk {risk.value:+.3f} (higher = earlier recurrence), above "
                f"{risk.quantile:.0%} of the training patients"
                + (f"; by branch: {moved}" if moved else "")
            )
            if strongest := risk.contributions[:STRONGEST]:
                moved = ", ".join(f"{c.name} {c.value:+.3f}" for c in strongest)
                self._print(f"moved most by: {moved}")
        for note in prediction.notes:
            self._print(f"[yellow]note[/] {escape(one_line(note))}")
        colour = "green" if prediction.verdict.status == "ok" else "bold yellow"
        self._print(f"[{colour}]verdict[/] {escape(str(prediction.verdict))}")
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in prediction.timings.items())
        self._print(f"[dim]bundle {escape(one_line(bundle))} on {device}; seconds: {stages}[/]")
        for path in written:
            self._print(f"wrote {escape(one_line(str(path)))}", soft_wrap=True)
        self._print("[dim]Research software, not for clinical use.[/]")


def _table(lesions: Sequence[Lesion]) -> Table:
    """A row a lesion."""
    columns = {
        "lesion": lambda row: CLASSES[row.label],
        "mL": lambda row: f"{row.volume_ml:.1f}",
        "diameter mm": lambda row: f"{row.diameter_mm:.0f}",
        "SUVmax": lambda row: f"{row.suv_max:.1f}",
        "SUVmean": lambda row: f"{row.suv_mean:.1f}",
        "TLG": lambda row: f"{row.tlg:.0f}",
    }
    table = Table(title="Lesions")
    for name in columns:
        table.add_column(name, justify="left" if name == "lesion" else "right")
    for row in lesions:
        table.add_row(*(text(row) for text in columns.values()))
    return table
