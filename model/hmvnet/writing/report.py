"""One case's findings as plain data: lesions, stage, risk, what moved it, what to be wary of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hmvnet import __version__
from hmvnet.bundle import Manifest
from hmvnet.case import CLASSES, DAYS_PER_YEAR, Grid
from hmvnet.files import write_text
from hmvnet.lesions.table import Lesion
from hmvnet.pipeline import Prediction
from hmvnet.prognosis.risk import Risk
from hmvnet.table_files import write_table

DIGITS = 4  # behind the point, of what is measured of a lesion


@dataclass(frozen=True)
class Origin:
    """What a result is of, for those who go on later; it names nobody.

    Attributes:
        made: a digest of all that the result hangs on.
        scan: a digest of the DICOM examination, which tells it from others of its number.
        corrected: whether the mask is one that somebody corrected.
    """

    made: str = ""
    scan: str = ""
    corrected: bool = False


UNSAID = Origin()


def report(
    prediction: Prediction, manifest: Manifest, device: str = "", origin: Origin = UNSAID
) -> dict[str, Any]:
    """A JSON-able report of a prediction. It holds no name and no health record.

    ``risk.variables`` are exact (they sum to the part of the risk that is not the network's),
    ``risk.branches`` are the change of the risk when a branch of the fusion network gives its
    training mean; none where the network has no share of the risk. Of a patient without a health
    record, what is missing is in neither.
    """
    grid = prediction.segmentation.volume.grid
    found: dict[str, Any] = {
        "notice": "Research software, not for clinical use.",
        "version": __version__,
        "bundle": manifest.name,
        "device": device,
        **asdict(origin),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "verdict": {"status": prediction.verdict.status, "codes": list(prediction.verdict.codes)},
        "lesions": [
            lesion_row(lesion, grid, sure)
            for lesion, sure in zip_longest(prediction.lesions, prediction.confidences)
        ],
        "disagreement": prediction.segmentation.disagreement,
        "region_confidence": round(prediction.segmentation.volume.region.confidence, 3),
        "notes": list(prediction.notes),
        "seconds": {name: round(value, 2) for name, value in prediction.timings.items()},
    }
    if staging := prediction.staging:
        found["stage"] = staging.to_dict() | {"measured": manifest.metrics.get("staging")}
    if risk := prediction.risk:
        found["risk"] = {
            "value": risk.value,
            "direction": "higher = earlier recurrence",
            "share_of_training_patients_below": round(risk.quantile, 3),
            "interval_95": None if risk.interval is None else [round(v, 4) for v in risk.interval],
            "expected_recurrence_free_days": risk.expected_days,
            **_by_year(risk),
            "measured": manifest.metrics.get("task2"),
            "branches": {name: round(value, 4) for name, value in risk.branches.items()},
            "variables": {c.name: round(c.value, 4) for c in risk.contributions},
        }
    return found


def _by_year(risk: Risk) -> dict[str, Any]:
    """The chance of no recurrence after whole years, up to the horizon of the days expected."""
    if risk.curve is None:
        return {}
    horizon = risk.curve.model.horizon_days
    years = range(1, int(horizon / DAYS_PER_YEAR) + 1)
    chances = {str(year): round(risk.curve.at(year * DAYS_PER_YEAR), 3) for year in years}
    return {"horizon_days": horizon, "chance_without_recurrence_by_year": chances}


def lesion_row(lesion: Lesion, grid: Grid, confidence: float | None) -> dict[str, Any]:
    """One lesion's measurements, with its class's name and its centroid in LPS mm.

    Args:
        grid: the working grid on which the lesion was measured.
        confidence: the mean probability of its class inside it.
    """
    values = lesion.to_dict()
    label, centroid = values.pop("label"), values.pop("centroid_mm")
    values = {name: round(value, DIGITS) for name, value in values.items()}
    at = grid.points(np.array([centroid]) / grid.spacing)[0]
    place = [round(float(v), 1) for v in at]
    sure = None if confidence is None else round(confidence, 3)
    about = {"class": CLASSES[label], "label": label, "centroid_lps_mm": place}
    return about | values | {"confidence": sure}


def write_report(
    prediction: Prediction,
    manifest: Manifest,
    path: Path,
    device: str = "",
    origin: Origin = UNSAID,
) -> Path:
    """``report`` as JSON."""
    write_text(json.dumps(report(prediction, manifest, device, origin), indent=2) + "\n", path)
    return path


def write_lesions(prediction: Prediction, path: Path) -> Path:
    """The lesion table as CSV, a row a lesion."""
    grid = prediction.segmentation.volume.grid
    rows = []
    known = zip_longest(prediction.lesions, prediction.confidences)
    for number, (lesion, sure) in enumerate(known, start=1):
        row = lesion_row(lesion, grid, sure)
        x, y, z = row.pop("centroid_lps_mm")
        rows.append({"lesion": number, "x_lps_mm": x, "y_lps_mm": y, "z_lps_mm": z, **row})
    measured = [f.name for f in fields(Lesion) if f.name not in ("label", "centroid_mm")]
    columns = [
        "lesion",
        "class",
        "label",
        "x_lps_mm",
        "y_lps_mm",
        "z_lps_mm",
        *measured,
        "confidence",
    ]
    write_table(pd.DataFrame(rows, columns=columns), path)
    return path
