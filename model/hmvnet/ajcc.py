"""The TNM rules of AJCC's 7th edition (2010) for tumours of the oropharynx, as far as sizes decide.

What the manual's chapter "Pharynx" says of a primary's greatest dimension and of regional nodes;
the substages of N2 and of T4 are merged. T4 is a matter of what a tumour invades, not of its size.
Other sites have other rules for T (a larynx is staged by subsites and cords) and, in the
nasopharynx, for N.
"""

from __future__ import annotations

from collections.abc import Sequence

T_STAGES = ("T1", "T2", "T3", "T4")
N_STAGES = ("N0", "N1", "N2", "N3")
AXES = {"t": T_STAGES, "n": N_STAGES}
T_LIMITS_MM = (20.0, 40.0)  # T1 up to the first, T2 up to the second, T3 beyond
N_LIMITS_MM = (30.0, 60.0)  # a single node is N1 up to the first; any node is N3 beyond the second


def t_by_size(greatest_mm: float) -> str:
    """T1, T2 or T3 of a primary that invades nothing, by its greatest dimension in mm."""
    return T_STAGES[sum(greatest_mm > limit for limit in T_LIMITS_MM)]


def n_by_nodes(greatest_mm: Sequence[float], sides: Sequence[int], primary_side: int) -> str:
    """N0 to N3 of some nodes.

    Args:
        greatest_mm: each node's greatest dimension in mm.
        sides: of each node: 1 left, -1 right, 0 on the midline, which counts as ipsilateral.
        primary_side: likewise; 0 also where it is not known, and then nodes are contralateral only
            where they lie on both sides.
    """
    if not greatest_mm:
        return "N0"
    largest = max(greatest_mm)
    if largest > N_LIMITS_MM[1]:
        return "N3"
    single = len(greatest_mm) == 1 and sides[0] * primary_side >= 0
    return "N1" if single and largest <= N_LIMITS_MM[0] else "N2"
