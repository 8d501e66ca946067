"""The challenge's own segmentation metrics (HECKTOR 2025, Task 1).

* GTVp: Dice of each patient, averaged over all patients.
* GTVn: aggregated Dice, ``2 * sum(intersections) / sum(volumes)``, sums over all patients, in mm3.
* GTVn detection: aggregated F1, ``2 TP / (2 TP + FP + FN)``, counts summed over all patients; a
  lesion is found when its IoU with a predicted lesion is above 0.30.
* HECKTOR 2026: Dice of GTVp and of GTVn, each the mean over patients.
* HD95 in mm of both labels, as MONAI defines it, beside the challenge's.

The rules are from the challenge's page (hecktor25.grand-challenge.org, "Tasks & Evaluation");
aggregated Dice is from Andrearczyk et al., HECKTOR 2022 (doi 10.1007/978-3-031-27420-6_1). Its
evaluation code is not public, so what the page leaves open is decided here:

* A lesion is a 26-connected component: voxels that share a face, an edge or a corner.
* A predicted lesion may find one true lesion only and the reverse. TP is the size of a largest
  one-to-one matching among the pairs with IoU > 0.30, a number that depends on no order. One
  prediction over two nodes: 1 TP, 1 FN. Two predictions in one node: 1 TP, 1 FP. An IoU of 0.30
  exactly is a miss (compared in whole numbers, so without rounding).
* Label empty in truth and prediction: Dice 1, for "the mean is over all patients". Empty in one of
  the two: Dice 0. Sums that are zero over all patients: aggregated Dice and F1 are 1.
* HD95 has no value where truth or prediction is empty: it is NaN, is left out of the mean, and
  ``hd95_patients`` says over how many patients the mean is. Dice already pays for the miss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from grand_challenge_metrics.stats import (
    calculate_confusion_matrix,
    dice_from_confusion_matrix,
    jaccard_from_confusion_matrix,
    relative_absolute_volume_difference,
)
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from hmvnet.case import GTVN, GTVP
from hmvnet.imaging.components import bounding_box, label_pieces

IOU_PERCENT = 30  # a whole number: 100 * intersection > 30 * union holds or not, without rounding

METRICS = (
    "gtvp_mean_dice",
    "gtvn_aggregated_dice",
    "gtvn_aggregated_f1",
    "gtvn_mean_dice",
    "gtvp_mean_hd95_mm",
    "gtvn_mean_hd95_mm",
)
HD95 = slice(4, None)  # those of METRICS that a patient with a label in one mask alone lacks


@dataclass(frozen=True)
class LabelScore:
    """Overlap of one label in one patient; volumes in mm3, ``hd95_mm`` NaN where undefined."""

    intersection_mm3: float
    prediction_mm3: float
    truth_mm3: float
    hd95_mm: float

    @property
    def volume_sum_mm3(self) -> float:
        return self.prediction_mm3 + self.truth_mm3

    @property
    def dice(self) -> float:
        """1 where the label is empty in both masks, 0 where it is empty in one of the two."""
        total = self.volume_sum_mm3
        return 2 * self.intersection_mm3 / total if total else 1.0


@dataclass(frozen=True)
class LesionCount:
    """True-positive, false-positive and false-negative GTVn lesions of one patient."""

    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class CaseScore:
    """All that the aggregated metrics need to know of one patient."""

    gtvp: LabelScore
    gtvn: LabelScore
    nodes: LesionCount
    patient_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Nested values for JSON, Dice included, NaN as None."""
        values = asdict(self)
        values["gtvp"]["dice"] = self.gtvp.dice
        values["gtvn"]["dice"] = self.gtvn.dice
        return _json_safe(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CaseScore:
        """The reverse of ``to_dict``."""
        return cls(
            gtvp=_label_score(values["gtvp"]),
            gtvn=_label_score(values["gtvn"]),
            nodes=LesionCount(**values["nodes"]),
            patient_id=values["patient_id"],
        )


@dataclass(frozen=True)
class Table1Scores:
    """The row of one method: metrics over ``patients`` patients, and the same for each centre.

    Mean HD95 is over ``*_hd95_patients`` patients only: those with the label in both masks.
    """

    patients: int
    gtvp_mean_dice: float
    gtvn_aggregated_dice: float
    gtvn_aggregated_f1: float
    gtvn_mean_dice: float
    gtvp_mean_hd95_mm: float
    gtvn_mean_hd95_mm: float
    gtvp_hd95_patients: int
    gtvn_hd95_patients: int
    gtvn_tp: int
    gtvn_fp: int
    gtvn_fn: int
    per_centre: Mapping[str, Table1Scores] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Nested values for JSON, NaN as None."""
        return _json_safe(asdict(self))


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_zyx: Sequence[float],
    patient_id: str = "",
) -> CaseScore:
    """Scores one patient's label map (0, 1 = GTVp, 2 = GTVn) against the truth.

    Args:
        prediction, truth: whole-number arrays ``[z, y, x]`` on the same grid.
        spacing_zyx: voxel size in mm, in the arrays' axis order.
        patient_id: named in errors and exports.

    Raises:
        ValueError: shapes differ, an array is not three-dimensional or not of whole numbers, a
            value other than 0, 1, 2, or a spacing that is not three positive finite numbers.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    spacing = _checked_spacing(spacing_zyx, patient_id)
    _check_label_map("prediction", prediction, patient_id)
    _check_label_map("truth", truth, patient_id)
    if prediction.shape != truth.shape:
        raise ValueError(
            f"{_who(patient_id)}prediction has shape {prediction.shape}, "
            f"expected the truth's {truth.shape}"
        )
    box = bounding_box((prediction > 0) | (truth > 0))
    prediction, truth = prediction[box], truth[box]
    return CaseScore(
        gtvp=_score_label(prediction == GTVP, truth == GTVP, spacing),
        gtvn=_score_label(prediction == GTVN, truth == GTVN, spacing),
        nodes=count_lesions(prediction == GTVN, truth == GTVN),
        patient_id=patient_id,
    )


def count_lesions(prediction: np.ndarray, truth: np.ndarray) -> LesionCount:
    """Matches predicted and true lesions of one label, one to one, at IoU > 0.30.

    Args:
        prediction, truth: boolean masks ``[z, y, x]`` of the same shape.
    """
    predicted, n_predicted = label_pieces(prediction)
    true, n_true = label_pieces(truth)
    if n_predicted == 0 or n_true == 0:
        return LesionCount(tp=0, fp=n_predicted, fn=n_true)
    # Contingency table of component numbers, row and column 0 being the background.
    pairs = true.ravel().astype(np.int64) * (n_predicted + 1) + predicted.ravel()
    table = np.bincount(pairs, minlength=(n_true + 1) * (n_predicted + 1))
    table = table.reshape(n_true + 1, n_predicted + 1)
    intersection = table[1:, 1:]
    union = table.sum(axis=1)[1:, None] + table.sum(axis=0)[None, 1:] - intersection
    hits = 100 * intersection > IOU_PERCENT * union
    tp = int((maximum_bipartite_matching(csr_array(hits), perm_type="column") >= 0).sum())
    return LesionCount(tp=tp, fp=n_predicted - tp, fn=n_true - tp)


def platform_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Overlap of each label as the platform's own library, grand-challenge-metrics, measures it.

    A second opinion on ``score_case``, in single precision and with the library's rules: where
    a label is empty in truth and prediction there is no value (NaN; our Dice is 1), and where only
    the truth is empty the volume difference is infinite. All else agrees.

    Args:
        prediction, truth: label maps as for ``score_case``.

    Returns:
        ``<label>_platform_dice``, ``<label>_platform_jaccard`` and
        ``<label>_platform_volume_difference`` (absolute, as a share of the truth's volume), label
        being ``gtvp`` and ``gtvn``.
    """
    box = bounding_box((prediction > 0) | (truth > 0))
    prediction, truth = prediction[box], truth[box]
    counts = calculate_confusion_matrix(truth, prediction, [0, GTVP, GTVN])
    scores = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        dice, jaccard = dice_from_confusion_matrix(counts), jaccard_from_confusion_matrix(counts)
        for name, label in (("gtvp", GTVP), ("gtvn", GTVN)):
            difference = relative_absolute_volume_difference(truth == label, prediction == label)
            scores[f"{name}_platform_dice"] = float(dice[label])
            scores[f"{name}_platform_jaccard"] = float(jaccard[label])
            scores[f"{name}_platform_volume_difference"] = float(difference)
    return scores


def hd95_mm(prediction: np.ndarray, truth: np.ndarray, spacing_zyx: Sequence[float]) -> float:
    """95th percentile of the Hausdorff distance between surfaces (the larger of both directions).

    The same number as ``monai.metrics.compute_hausdorff_distance(..., percentile=95)``, with which
    the tests compare it. MONAI's distance map over the whole box takes 15 s on a full CT when one
    false voxel lies far away; a k-d tree of the surface voxels takes a fraction of a second.

    Boolean masks ``[z, y, x]``, spacing in mm in the same order; NaN where one of them is empty.
    """
    surfaces = [_surface(mask) * np.asarray(spacing_zyx) for mask in (prediction, truth)]
    if not all(map(len, surfaces)):
        return math.nan
    trees = [KDTree(points) for points in surfaces]
    there, back = trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices ``[n, 3]`` (z, y, x) of the mask's voxels with a face-neighbour outside the mask."""
    padded = np.pad(mask, 1)
    flat = padded.ravel()
    inside = np.flatnonzero(flat)
    steps = (padded.shape[1] * padded.shape[2], padded.shape[2], 1)
    core = np.logical_and.reduce([flat[inside + sign * s] for s in steps for sign in (-1, 1)])
    return np.stack(np.unravel_index(inside[~core], padded.shape), axis=1) - 1


def aggregate(scores: Sequence[CaseScore], centres: Sequence[str] | None = None) -> Table1Scores:
    """The challenge's table row over all patients and, given each patient's centre, per centre.

    Raises:
        ValueError: no scores, or not one centre for each score.
    """
    if not scores:
        raise ValueError("aggregate: no patients, expected at least one score")
    if centres is not None and len(centres) != len(scores):
        raise ValueError(
            f"aggregate: {len(centres)} centres, expected one for each of {len(scores)} scores"
        )
    per_centre = {
        centre: aggregate([s for s, c in zip(scores, centres or (), strict=True) if c == centre])
        for centre in sorted(set(centres or ()))
    }
    parts = terms(scores)
    values = dict(zip(METRICS, ratios(parts.sum(axis=0)).tolist(), strict=True))
    hd95_patients = parts[:, HD95, 1].sum(axis=0).astype(int).tolist()
    return Table1Scores(
        patients=len(scores),
        **values,
        gtvp_hd95_patients=hd95_patients[0],
        gtvn_hd95_patients=hd95_patients[1],
        gtvn_tp=sum(s.nodes.tp for s in scores),
        gtvn_fp=sum(s.nodes.fp for s in scores),
        gtvn_fn=sum(s.nodes.fn for s in scores),
        per_centre=per_centre,
    )


def terms(scores: Sequence[CaseScore]) -> np.ndarray:
    """``[patient, metric, 2]``: numerator and denominator; a metric is a ratio of their sums."""
    rows = []
    for s in scores:
        hits = 2 * s.nodes.tp
        rows.append(
            [
                (s.gtvp.dice, 1),
                (2 * s.gtvn.intersection_mm3, s.gtvn.volume_sum_mm3),
                (hits, hits + s.nodes.fp + s.nodes.fn),
                (s.gtvn.dice, 1),
                *((0, 0) if math.isnan(d) else (d, 1) for d in (s.gtvp.hd95_mm, s.gtvn.hd95_mm)),
            ]
        )
    return np.array(rows, dtype=float)


def ratios(sums: np.ndarray) -> np.ndarray:
    """``[..., metric, 2]`` sums to ``[..., metric]`` values, with the empty cases' own values."""
    empty = np.array([1, 1, 1, 1, math.nan, math.nan])
    numerator, denominator = sums[..., 0], sums[..., 1]
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1), empty)


def to_frame(scores: Sequence[CaseScore]) -> pd.DataFrame:
    """One row for each patient, columns such as ``gtvp_dice`` and ``nodes_tp``; for CSV export."""
    frame = pd.json_normalize([score.to_dict() for score in scores], sep="_")
    columns = ["patient_id", *(c for c in frame.columns if c != "patient_id")]
    return frame[columns].astype({c: float for c in columns if c.endswith("hd95_mm")})


def _score_label(prediction: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> LabelScore:
    voxel_mm3 = float(spacing.prod())
    return LabelScore(
        intersection_mm3=int(np.count_nonzero(prediction & truth)) * voxel_mm3,
        prediction_mm3=int(np.count_nonzero(prediction)) * voxel_mm3,
        truth_mm3=int(np.count_nonzero(truth)) * voxel_mm3,
        hd95_mm=hd95_mm(prediction, truth, spacing.tolist()),
    )


def _check_label_map(name: str, mask: np.ndarray, patient_id: str) -> None:
    if mask.ndim != 3 or mask.size == 0:
        raise ValueError(f"{_who(patient_id)}{name} has shape {mask.shape}, expected [z, y, x]")
    if mask.dtype.kind not in "biu":
        raise ValueError(f"{_who(patient_id)}{name} is of {mask.dtype}, expected whole numbers")
    if mask.min() < 0 or mask.max() > GTVN:
        raise ValueError(
            f"{_who(patient_id)}{name} holds values from {mask.min()} to {mask.max()}, "
            "expected 0 (background), 1 (GTVp), 2 (GTVn)"
        )


def _checked_spacing(spacing_zyx: Sequence[float], patient_id: str) -> np.ndarray:
    spacing = np.asarray(spacing_zyx, dtype=float)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise ValueError(
            f"{_who(patient_id)}spacing is {spacing_zyx}, expected three positive numbers (mm)"
        )
    return spacing


def _who(patient_id: str) -> str:
    return f"{patient_id}: " if patient_id else ""


def _label_score(values: Mapping[str, Any]) -> LabelScore:
    hd95 = values["hd95_mm"]
    return LabelScore(
        intersection_mm3=values["intersection_mm3"],
        prediction_mm3=values["prediction_mm3"],
        truth_mm3=values["truth_mm3"],
        hd95_mm=math.nan if hd95 is None else hd95,
    )


def _json_safe(value: Any) -> Any:
    """NaN is no JSON: None stands for it."""
    if isinstance(value, Mapping):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
