"""The staging model's features in words, for reasons that a person reads."""

from __future__ import annotations

import math
from collections.abc import Callable

from hmvnet.reading.records import HECKTOR_2026

Number = Callable[[float], float]


def _plain(value: float) -> float:
    return value


def _ml20(value: float) -> float:
    """Of volumes that are kept as log(1 + 20 mL)."""
    return math.expm1(value) / 20.0


def _percent(value: float) -> float:
    return 100.0 * value


# By feature: a sentence's form, and what makes the number of the feature's value.
FORMS: dict[str, tuple[str, Number]] = {
    "t_present": ("primary found: {:.0f}", _plain),
    "t_log_diameter": ("primary {:.0f} mm in its greatest dimension", math.expm1),
    "t_over_20_mm": ("primary {:.1f} times 20 mm or less", math.exp),
    "t_over_40_mm": ("primary {:.1f} times 40 mm or less", math.exp),
    "t_log_volume": ("primary of {:.1f} mL", math.expm1),
    "t_parts": ("primary in {:.0f} parts", _plain),
    "t_suv_max": ("SUVmax of the primary {:.1f}", math.expm1),
    "t_necrosis": ("{:.1f} mL of necrosis", math.expm1),
    "t_sphericity": ("sphericity of the primary {:.2f}", _plain),
    "t_flatness": ("flatness of the primary {:.2f}", _plain),
    "t_elongation": ("elongation of the primary {:.2f}", _plain),
    "t_across_mm": ("primary {:.0f} mm from side to side", _plain),
    "t_along_mm": ("primary {:.0f} mm from head to feet", _plain),
    "t_lateral_mm": ("primary's centre {:.0f} mm off the midline", _plain),
    "t_reach_mm": ("primary reaches {:.0f} mm to its side", _plain),
    "t_crosses_mm": ("primary {:.0f} mm across the midline", _plain),
    "invasion_shell_hard_share": ("{:.0f}% of its surface on bone or cartilage", _percent),
    "invasion_shell_air_share": ("{:.0f}% of its surface on air", _percent),
    "invasion_shell_hu_p95": ("up to {:.0f} HU around the primary", _plain),
    "invasion_inside_hard_log_ml": ("{:.2f} mL of bone or cartilage inside the primary", _ml20),
    "invasion_inside_dense_share": ("{:.0f}% of the primary dense", _percent),
    "invasion_inside_hu_p99": ("up to {:.0f} HU inside the primary", _plain),
    "invasion_rim_hu_mean": ("{:.0f} HU at the primary's rim", _plain),
    "invasion_inside_lost_log_ml": ("{:.2f} mL of bone lost inside the primary", _ml20),
    "invasion_near_lost_log_ml": ("{:.2f} mL of bone lost in and around it", _ml20),
    "invasion_near_kept_log_ml": ("{:.2f} mL of bone kept in and around it", _ml20),
    "invasion_near_gained_log_ml": ("{:.2f} mL of bone on its side alone", _ml20),
    "invasion_inside_edge_lost_log_ml": ("{:.2f} mL of vessel or edge of bone lost", _ml20),
    "invasion_inside_asymmetry_log_hu": ("{:.0f} HU less than on the other side", math.expm1),
    "invasion_bone_suv_ratio": ("uptake of the bone around, {:.2f} of the primary's", _plain),
    "invasion_near_lost_share": ("{:.0f}% of the bone in and around it lost", _percent),
    "n_present": ("nodes found: {:.0f}", _plain),
    "n_several": ("several nodes: {:.0f}", _plain),
    "n_log_count": ("nodes: {:.0f}", math.expm1),
    "n_log_sure": ("nodes of half a mL and more: {:.0f}", math.expm1),
    "n_several_sure": ("several nodes of half a mL and more: {:.0f}", _plain),
    "n_log_diameter": ("largest node {:.0f} mm", math.expm1),
    "n_log_second": ("second node {:.0f} mm", math.expm1),
    "n_over_30_mm": ("largest node {:.1f} times 30 mm or less", math.exp),
    "n_over_60_mm": ("largest node {:.1f} times 60 mm or less", math.exp),
    "n_log_volume": ("nodes of {:.1f} mL in all", math.expm1),
    "n_log_largest": ("largest node of {:.1f} mL", math.expm1),
    "n_bilateral": ("nodes on both sides: {:.0f}", _plain),
    "n_log_minor_side": ("{:.1f} mL of nodes on the side with less", math.expm1),
    "n_contralateral": ("nodes on the other side than the primary: {:.0f}", _plain),
    "n_log_contralateral": ("{:.1f} mL of nodes on the other side", math.expm1),
    "n_spread": ("nodes {:.0f} mm apart", math.expm1),
    "n_sphericity": ("sphericity of the largest node {:.2f}", _plain),
    "n_mass_log_beside": ("{:.0f} mm of the primary beside the pharynx", math.expm1),
    "n_mass_log_beyond": ("a mass {:.0f} mm larger than the largest node", math.expm1),
    "n_mass_over_30_mm": ("mass of nodes {:.1f} times 30 mm or less", math.exp),
    "n_mass_over_60_mm": ("mass of nodes {:.1f} times 60 mm or less", math.exp),
    "n_primary": ("primary found: {:.0f}", _plain),
}
RECORD = "record_"


def in_words(name: str, value: float) -> str:
    """A feature of ``hmvnet.staging.features`` and its value, for a person."""
    if name.startswith(RECORD):
        names = (column.name for column in HECKTOR_2026.columns)
        columns = {column.lower().replace(" ", "_"): column for column in names}
        key = name.removeprefix(RECORD)
        return f"{columns.get(key, key)} {value:g}"
    form, number = FORMS[name]
    return form.format(number(value))
