"""T and N by AJCC's 7th edition from the lesions alone: size, number and side.

It needs no bundle. The tumour's site is not known, so the oropharynx's rules are taken. T4 is
invasion and not size: the rule never gives it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hmvnet.ajcc import n_by_nodes, t_by_size
from hmvnet.case import GTVN, GTVP
from hmvnet.lesions.midline import Midplane
from hmvnet.lesions.table import Lesion
from hmvnet.staging.estimate import StageEstimate, Staging

MIDLINE_MM = 5.0  # what is centred closer to it is on neither side
NO_PRIMARY_STAGE = "T1"  # of the stages that are asked for, that of what is too small to be found
NO_PRIMARY = f"no primary found: {NO_PRIMARY_STAGE} is given where AJCC has T0"
SITE_UNKNOWN = "stages by the oropharynx's rules (AJCC 7th edition): the tumour's site is not known"
NO_T4 = "T4 is invasion, which a size does not show"


def stage_by_rule(lesions: Sequence[Lesion], midplane: Midplane) -> Staging:
    """T and N of a patient with these lesions.

    T by the greatest dimension of the largest primary, N by that of the nodes, their number and
    their sides; a node within 5 mm of the midline counts as ipsilateral.

    Args:
        lesions: as of ``hmvnet.lesions.table.lesion_table``.
        midplane: on the same grid.
    """
    primary = [one for one in lesions if one.label == GTVP]
    nodes = [one for one in lesions if one.label == GTVN]
    notes = [SITE_UNKNOWN]
    if primary:
        size = max(one.diameter_mm for one in primary)
        t = StageEstimate(t_by_size(size), reasons=(f"greatest dimension {size:.0f} mm", NO_T4))
    else:
        t = StageEstimate(NO_PRIMARY_STAGE, reasons=("no primary",))
        notes.append(NO_PRIMARY)
    of, sides = primary_side(primary, midplane), node_sides(nodes, midplane)
    n = n_by_nodes([one.diameter_mm for one in nodes], sides, of)
    return Staging(t, StageEstimate(n, reasons=_told(nodes, sides, of)), "rule", tuple(notes))


def primary_side(primary: Sequence[Lesion], midplane: Midplane) -> int:
    """1 left, -1 right, 0 on the midline or none: of the primaries' common centre."""
    if not primary:
        return 0
    weights = [one.volume_ml for one in primary]
    centre = np.average([one.centroid_mm for one in primary], axis=0, weights=weights)
    return _side(float(midplane.lateral_mm(centre[None])[0]))


def node_sides(nodes: Sequence[Lesion], midplane: Midplane) -> list[int]:
    """1 left, -1 right, 0 on the midline, of each node."""
    if not nodes:
        return []
    lateral = midplane.lateral_mm(np.array([one.centroid_mm for one in nodes]))
    return [_side(mm) for mm in lateral.tolist()]


def _side(lateral_mm: float) -> int:
    return 0 if abs(lateral_mm) < MIDLINE_MM else (1 if lateral_mm > 0 else -1)


def _told(nodes: Sequence[Lesion], sides: Sequence[int], of: int) -> tuple[str, ...]:
    """Why N is what it is."""
    if not nodes:
        return ("no nodes",)
    largest = max(one.diameter_mm for one in nodes)
    number = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    told = [f"{number}, the largest {largest:.0f} mm"]
    if {1, -1} <= set(sides):
        told.append("on both sides")
    elif -of in sides and of:
        told.append("on the other side than the primary")
    elif of:
        told.append("on the primary's side")
    return tuple(told)
