"""A prediction as one HTML file: linked planes, lesions, risk; it opens anywhere, with no network.

The file is ``page.html`` with ``page.js`` and the patient's data put in. The data are JSON in which
no text can end its element, the script shows texts as texts only, and the page's policy lets a
browser run that script alone and load nothing.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json
from scipy.ndimage import find_objects

from hmvnet.bundle import Manifest
from hmvnet.case import SYNTHETIC
from hmvnet.files import write_text
from hmvnet.pipeline import Prediction
from hmvnet.prognosis.risk import Risk
from hmvnet.writing.report import report
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

MOST_BYTES = 15_000_000
HU_WINDOWS = {"soft tissue": HU_WINDOW, "bone": (-450, 1050)}
# Codes and HU: steps of 40 HU in air, 4 in soft tissue, 14 in bone, 63 in teeth and metal.
HU_STEPS = ((0, -1000), (20, -200), (145, 300), (230, 1500), (255, 3071))
CODES = np.arange(256)
LEVELS = 1 << 15  # in which values are told apart before they have their codes
DEFLATE_LEVEL = 4  # a tenth more bytes than level 6, in a quarter of its time


def write_page(prediction: Prediction, manifest: Manifest, path: Path, device: str = "") -> Path:
    """Write a prediction's page: CT, PET and lesions on the working grid, report and settings.

    It holds no name and no health record, as the report does. Where it would have more than
    ``MOST_BYTES``, every second voxel along each axis is shown, or every third, and so on.
    """
    found = report(prediction, manifest, device)
    for step in range(1, min(prediction.segmentation.labels.shape) + 1):
        page = filled(Path(__file__), page_data(prediction, manifest, found, step))
        if len(page.encode()) <= MOST_BYTES:
            break
    write_text(page, path)
    return path


def filled(module: Path, data: dict[str, Any]) -> str:
    """The template beside a module with the script beside it, and data.

    Of a text in the data, "</script>" would end them.
    """
    template, script = (module.with_suffix(kind).read_text("utf-8") for kind in (".html", ".js"))
    parts = {
        "hash": b64encode(sha256(script.encode()).digest()).decode(),
        "script": script,
        "data": to_json(data, inf_nan_mode="null").decode().replace("<", "\\u003c"),
    }
    for name, part in parts.items():
        template = template.replace(f"[[{name}]]", part)
    return template


def page_data(
    prediction: Prediction, manifest: Manifest, found: dict[str, Any], step: int = 1
) -> dict[str, Any]:
    """What the page's script reads, JSON-able.

    Arrays are turned as in pictures and then ``[z, y, x]``; voxels are ``[x, y, z]`` indices.

    Args:
        found: the report.
        step: voxels from one that is taken to the next, along each axis.
    """
    volume = prediction.segmentation.volume
    labels, (ct, pet) = prediction.segmentation.labels, volume.raw
    grid, arrays = turned(volume.grid, ct, pet, labels, prediction.numbers)
    ct, pet, labels, numbers = (array[::step, ::step, ::step] for array in arrays)
    affine = grid.affine @ np.diag([step, step, step, 1])
    return {
        "report": found,
        "curve": _curve(prediction.risk),
        "synthetic": any(SYNTHETIC in note for note in prediction.notes),
        "settings": {
            "region": manifest.region,
            "preprocessing": manifest.preprocessing.model_dump(),
            "postprocessing": manifest.postprocessing.model_dump(),
        },
        "labels": [{"label": label, "name": name, "colour": c} for label, name, c in LABELS],
        "planes": PLANES,
        "hu_windows": HU_WINDOWS,
        "suv_window": SUV_WINDOW,
        "pet_colours": _colours(),
        "scale_bars_mm": SCALE_BARS_MM,
        "size": ct.shape[::-1],
        "spacing": [step * mm for mm in grid.spacing],
        "affine": affine.tolist(),  # of voxel (x, y, z, 1) to LPS mm
        "start": point_of_interest(labels, pet)[::-1],
        "places": _places(numbers, len(prediction.lesions)),
        "ct": coded(ct, HU_STEPS),
        "pet": coded(pet, suv_steps(float(pet.max()))),
        "numbers": _packed(numbers.astype("<u2")),
    }


def _curve(risk: Risk | None) -> dict[str, Any] | None:
    """The patient's chance of no recurrence by time, and what was observed in risk groups.

    Each list begins at day 0 and ends at the horizon; values hold from their day on.
    """
    if risk is None or risk.curve is None:
        return None
    model = risk.curve.model
    inside = [day for day in model.days if day < model.horizon_days]

    def steps(values: Sequence[float]) -> list[float]:
        shown = [1.0, *(round(value, 4) for value in values[: len(inside)])]
        return [*shown, shown[-1]]

    return {
        "days": [0.0, *inside, model.horizon_days],
        "patient": steps(risk.curve.survival.tolist()),
        "groups": [{"patients": g.patients, "survival": steps(g.survival)} for g in model.groups],
    }


def _colours() -> list[list[float]]:
    """The PET's colours over the CT, from the lowest SUV of the window to the highest.

    Red, green, blue (0 to 255) and opacity (0 to 1) in 256 even steps.
    """
    stops = [[*bytes.fromhex(colour[1:]), opacity] for colour, opacity in FUSED_STOPS]
    places = np.linspace(0, CODES[-1], len(stops))
    channels = [np.interp(CODES, places, channel) for channel in zip(*stops)]
    return np.transpose(channels).round(3).tolist()


def _places(numbers: np.ndarray, count: int) -> list[list[int] | None]:
    """A voxel of each lesion, the nearest to its centroid; None where a coarse step misses it."""
    boxes = find_objects(numbers, count)
    places: list[list[int] | None] = []
    for number, box in enumerate(boxes, start=1):
        if box is None:
            places.append(None)
            continue
        inside = np.argwhere(numbers[box] == number)
        nearest = inside[((inside - inside.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        places.append([int(s.start + i) for s, i in zip(box, nearest)][::-1])
    return places


def coded(values: np.ndarray, steps: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """A volume as a byte a voxel.

    Args:
        values: ``[z, y, x]``; what lies beyond the first and the last step's value is cut off.
        steps: code and value; codes between two of them stand for values evenly between.

    Returns:
        The values of the 256 codes, and the codes, packed.
    """
    codes, levels = zip(*steps)
    low, high = levels[0], levels[-1]
    code_of = np.interp(np.linspace(low, high, LEVELS), levels, codes).round().astype(np.uint8)
    place = (np.clip(values, low, high) - low) * ((LEVELS - 1) / (high - low))
    table = np.interp(CODES, codes, levels).round(3)
    found = code_of[place.round().astype(np.uint16)]
    return {"table": table.tolist(), "deflated": _packed(_differences(found))}


def suv_steps(hottest: float) -> tuple[tuple[int, float], ...]:
    """Even steps up to the hottest voxel; where they were wider than 0.1, these up to SUV 20."""
    hottest = max(hottest, 1.0)
    return (0, 0.0), (200, min(20.0, hottest * 200 / 255)), (255, hottest)


def _differences(codes: np.ndarray) -> np.ndarray:
    """From each slice to the next, modulo 256: fewer bytes once deflated."""
    return np.diff(codes, axis=0, prepend=np.zeros_like(codes[:1]))


def _packed(array: np.ndarray) -> str:
    return b64encode(zlib.compress(array.tobytes(), DEFLATE_LEVEL)).decode()
