"""HM-VNet: head-and-neck PET/CT tumour segmentation and recurrence-free-survival prediction.

    from hmvnet import predict

    result = predict("ct.nii.gz", "pet.nii.gz", {"Age": 62})
    result.mask, result.lesions, result.risk, result.notes
    result.save("out")

The names of ``__all__`` are imported when they are first used: torch takes seconds to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmvnet.api import Result, predict
    from hmvnet.bundle import load_bundle
    from hmvnet.case import Case, ClinicalRecord, Grid
    from hmvnet.exits import RefusedError
    from hmvnet.pipeline import Pipeline, Prediction
    from hmvnet.reading.challenge import read_case
    from hmvnet.reading.checks import checked_case

__version__ = "0.2.0"
__all__ = [
    "Case",
    "ClinicalRecord",
    "Grid",
    "Pipeline",
    "Prediction",
    "RefusedError",
    "Result",
    "checked_case",
    "load_bundle",
    "predict",
    "read_case",
]

_HOMES = {
    "Case": "case",
    "ClinicalRecord": "case",
    "Grid": "case",
    "Pipeline": "pipeline",
    "Prediction": "pipeline",
    "RefusedError": "exits",
    "Result": "api",
    "checked_case": "reading.checks",
    "load_bundle": "bundle",
    "predict": "api",
    "read_case": "reading.challenge",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hmvnet' has no attribute {name!r}")
    return getattr(import_module(f"hmvnet.{_HOMES[name]}"), name)
