"""One case's findings as plain data: lesions, risk, what moved it, what to be wary of."""

from __future__ import annotations

from typing import Any

from hmvnet.pipeline import Prediction
from hmvnet.weights import Manifest


def explain(prediction: Prediction, manifest: Manifest) -> dict[str, Any]:
    """A JSON-able report of a prediction. It holds no name and no health record.

    ``risk.variables`` are exact (ICARE's part of the risk is their sum), ``risk.branches`` are the
    change of the risk when a branch of the fusion network gives its training mean.
    """
    report: dict[str, Any] = {
        "notice": "Research software, not for clinical use.",
        "bundle": manifest.name,
        "lesions": [lesion.to_dict() for lesion in prediction.lesions],
        "region_confidence": round(prediction.segmentation.volume.region.confidence, 3),
        "notes": list(prediction.notes),
        "seconds": {name: round(value, 2) for name, value in prediction.timings.items()},
    }
    risk = prediction.risk
    if risk:
        report["risk"] = {
            "value": risk.value,
            "direction": "higher = earlier recurrence",
            "share_of_training_patients_below": round(risk.quantile, 3),
            "expected_recurrence_free_days": risk.expected_days,
            "measured": manifest.metrics.get("task2"),
            "branches": {name: round(value, 4) for name, value in risk.branches.items()},
            "variables": {c.name: round(c.value, 4) for c in risk.contributions},
        }
    return report
