"""What is said of a patient's T and N."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageEstimate:
    """One axis.

    Attributes:
        stage: ``T1`` to ``T4``, or ``N0`` to ``N3``.
        probabilities: of every stage; empty where the rule decided, which knows none.
        reasons: what it rests on, the weightiest first.
    """

    stage: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "stage": self.stage,
            "probabilities": {name: round(p, 4) for name, p in self.probabilities.items()},
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True)
class Staging:
    """T and N of AJCC's 7th edition.

    Attributes:
        t, n: see ``StageEstimate``.
        by: ``rule`` or ``model``.
        notes: what a person should know before trusting them.
    """

    t: StageEstimate
    n: StageEstimate
    by: str = "rule"
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "edition": "AJCC 7th",
            "by": self.by,
            "t": self.t.to_dict(),
            "n": self.n.to_dict(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return f"{self.t.stage} {self.n.stage}"
