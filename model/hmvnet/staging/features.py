"""What the staging model sees: sizes, number and sides of the lesions, signs of invasion, record.

Amounts of what is not there are 0; what describes a lesion that is not there is NaN, and is filled
with the training patients' mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.spatial.distance import pdist

from hmvnet.ajcc import N_LIMITS_MM, N_STAGES, T_LIMITS_MM, T_STAGES
from hmvnet.case import GTVN, GTVP, ClinicalRecord
from hmvnet.imaging.components import bounding_box
from hmvnet.lesions.features import LesionFeatures
from hmvnet.lesions.ibsi import Spacing, morphology
from hmvnet.lesions.midline import Midplane, find_midplane
from hmvnet.lesions.table import Lesion, lesion_table
from hmvnet.reading.records import HECKTOR_2026
from hmvnet.staging.invasion import invasion_features
from hmvnet.staging.masses import avid_mm, beside_mm
from hmvnet.staging.rule import node_sides, primary_side, stage_by_rule

# Columns of the record that are numbers once cleaned. The centre is none: it would teach a model
# where a patient was staged.
RECORD = (
    *("Age", "Tobacco Consumption", "Alcohol Consumption", "Performance Status"),
    *("Treatment", "HPV Status"),
)
# What describes a primary, and is NaN where there is none.
DESCRIBED = (
    *("t_sphericity", "t_flatness", "t_elongation", "t_across_mm", "t_along_mm"),
    *("t_lateral_mm", "t_reach_mm", "t_crosses_mm"),
)
LEAST_NODE_ML = 0.5  # smaller ones are as often false as true


def staging_features(
    mask: np.ndarray,
    ct_hu: np.ndarray,
    pet_suv: np.ndarray,
    spacing_zyx: Spacing,
    lesions: Sequence[Lesion] | None = None,
    midplane: Midplane | None = None,
) -> LesionFeatures:
    """A patient's images as the staging model sees them; always the same names.

    Names start with ``t_`` (of the primary), ``n_`` (of the nodes) or ``invasion_``.
    ``*_over_20_mm`` and the like are 0 up to a limit of AJCC's, and grow by 1 a factor of e beyond.

    Args:
        mask, ct_hu, pet_suv: as for ``lesion_table``.
        spacing_zyx: in mm, the same on all axes.
        lesions, midplane: of these, where they are known already.
    """
    spacing = np.asarray(spacing_zyx, float)
    if lesions is None:
        lesions = lesion_table(mask, ct_hu, pet_suv, spacing_zyx)
    if midplane is None:
        midplane = find_midplane(mask, ct_hu, spacing)
    rule = stage_by_rule(lesions, midplane)
    values = _primary(mask, spacing, [one for one in lesions if one.label == GTVP], midplane)
    values |= {
        f"t_rule_{s}": float(rule.t.stage == s and values["t_present"]) for s in T_STAGES[:3]
    }
    values |= _nodes(lesions, midplane)
    values |= {f"n_rule_{stage}": float(rule.n.stage == stage) for stage in N_STAGES}
    values |= _masses(mask, pet_suv, spacing, lesions, midplane)
    signs = invasion_features(mask, ct_hu, pet_suv, spacing, midplane)
    values |= {f"invasion_{name}": value for name, value in signs.items()}
    return LesionFeatures(tuple(values), np.array(list(values.values()), dtype=np.float32))


def with_record(features: LesionFeatures, record: ClinicalRecord) -> LesionFeatures:
    """The features of the images, and those of the health record, named ``record_*``."""
    values = _record(record)
    return LesionFeatures(
        (*features.names, *values),
        np.concatenate([features.values, np.array(list(values.values()), dtype=np.float32)]),
    )


def is_node_free(features: LesionFeatures) -> bool:
    """Whether there is no node, nor a mass beside the pharynx that may be one.

    Who has neither is N0, whatever a model says.
    """
    return not features.select(["n_present", "n_mass_log_beside"]).values.any()


@cache
def feature_names() -> tuple[str, ...]:
    """The names of ``staging_features`` and of the record's, in order."""
    nothing = np.zeros((1, 1, 1))
    features = staging_features(nothing.astype(np.uint8), nothing, nothing, (1, 1, 1))
    return with_record(features, ClinicalRecord()).names


def t_names(invasion: bool = True) -> tuple[str, ...]:
    """The features that the model of T sees."""
    starts = ("t_", "record_", *(["invasion_"] if invasion else []))
    return tuple(name for name in feature_names() if name.startswith(starts))


def n_names() -> tuple[str, ...]:
    """The features that the model of N sees."""
    return tuple(name for name in feature_names() if name.startswith(("n_", "record_")))


def _primary(
    mask: np.ndarray, spacing: np.ndarray, primary: Sequence[Lesion], midplane: Midplane
) -> dict[str, float]:
    size = max((one.diameter_mm for one in primary), default=0.0)
    values = {
        "t_present": float(bool(primary)),
        "t_log_diameter": math.log1p(size),
        **{f"t_over_{limit:.0f}_mm": _beyond(size, limit) for limit in T_LIMITS_MM},
        "t_log_volume": math.log1p(sum(one.volume_ml for one in primary)),
        "t_parts": float(len(primary)),
        "t_suv_max": _log(max((one.suv_max for one in primary), default=math.nan)),
        "t_necrosis": math.log1p(sum(one.necrosis_ml for one in primary)),
    }
    if not primary:
        return values | dict.fromkeys(DESCRIBED, math.nan)
    region = mask == GTVP
    shape = morphology(region, spacing)
    box = bounding_box(region)
    points = (np.argwhere(region[box]) + [s.start for s in box]) * spacing
    lateral = midplane.lateral_mm(points[:, ::-1])
    side = 1.0 if np.mean(lateral) >= 0 else -1.0
    return values | {
        "t_sphericity": shape.sphericity,
        "t_flatness": shape.flatness,
        "t_elongation": shape.elongation,
        "t_across_mm": float(np.ptp(lateral)),
        "t_along_mm": float(np.ptp(points[:, 0])),
        "t_lateral_mm": abs(float(lateral.mean())),
        "t_reach_mm": float((side * lateral).max()),
        "t_crosses_mm": max(0.0, -float((side * lateral).min())),
    }


def _nodes(lesions: Sequence[Lesion], midplane: Midplane) -> dict[str, float]:
    primary = [one for one in lesions if one.label == GTVP]
    nodes = [one for one in lesions if one.label == GTVN]
    sizes = sorted((one.diameter_mm for one in nodes), reverse=True)
    largest, second = [*sizes, 0.0, 0.0][:2]
    sides, of = node_sides(nodes, midplane), primary_side(primary, midplane)
    volumes = np.array([one.volume_ml for one in nodes])
    left, right = (float(volumes[np.array(sides, int) == s].sum()) for s in (1, -1))
    sure = [one for one in nodes if one.volume_ml >= LEAST_NODE_ML]
    at = np.array([one.centroid_mm for one in nodes])
    return {
        "n_present": float(bool(nodes)),
        "n_several": float(len(nodes) > 1),
        "n_log_count": math.log1p(len(nodes)),
        "n_log_sure": math.log1p(len(sure)),
        "n_several_sure": float(len(sure) > 1),
        "n_log_diameter": math.log1p(largest),
        "n_log_second": math.log1p(second),
        **{f"n_over_{limit:.0f}_mm": _beyond(largest, limit) for limit in N_LIMITS_MM},
        "n_log_volume": math.log1p(float(volumes.sum())),
        "n_log_largest": math.log1p(max((one.volume_ml for one in nodes), default=0.0)),
        "n_bilateral": float(left > 0 and right > 0),
        "n_log_minor_side": math.log1p(min(left, right)),
        "n_contralateral": float(of != 0 and (right if of > 0 else left) > 0),
        "n_log_contralateral": math.log1p((right if of > 0 else left) if of else min(left, right)),
        "n_spread": math.log1p(float(pdist(at).max()) if len(nodes) > 1 else 0.0),
        "n_sphericity": max(nodes, key=lambda one: one.volume_ml).sphericity if nodes else math.nan,
        "n_primary": float(bool(primary)),
    }


def _masses(
    mask: np.ndarray,
    pet_suv: np.ndarray,
    spacing: np.ndarray,
    lesions: Sequence[Lesion],
    midplane: Midplane,
) -> dict[str, float]:
    """The largest mass of nodes that there may be, where the label map has it wrong."""
    labelled = max((one.diameter_mm for one in lesions if one.label == GTVN), default=0.0)
    beside, avid = beside_mm(mask, spacing, midplane), avid_mm(mask, pet_suv, spacing)
    largest = max(labelled, beside, avid)
    return {
        "n_mass_log_beside": math.log1p(beside),
        "n_mass_log_beyond": math.log1p(max(0.0, largest - labelled)),
        **{f"n_mass_over_{limit:.0f}_mm": _beyond(largest, limit) for limit in N_LIMITS_MM},
    }


def _record(record: ClinicalRecord) -> dict[str, float]:
    cleaned, _ = HECKTOR_2026.clean([record])
    values = {}
    for name in RECORD:
        value = cleaned[name][0]
        key = f"record_{name.lower().replace(' ', '_')}"
        values[key] = math.nan if value is None else float(value)
    return values


def _beyond(mm: float, limit: float) -> float:
    return max(0.0, math.log(mm / limit)) if mm > 0 else 0.0


def _log(value: float) -> float:
    return math.log1p(value) if math.isfinite(value) else math.nan
