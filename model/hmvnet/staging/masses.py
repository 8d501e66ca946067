"""Masses of nodes that a label map took for a primary, or of which it holds a part.

Two faults of networks cost N3. A mass of matted nodes is taken for a primary: it lies beside the
pharynx, along the jugular vein, where no primary reaches. And of a mass with little uptake a part
alone is labelled: what takes up FDG around it goes on.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from hmvnet.case import GTVN, GTVP
from hmvnet.imaging.components import Box, bounding_box, label_pieces, lesions_of, widened, within
from hmvnet.lesions.ibsi import greatest_dimension
from hmvnet.lesions.midline import Midplane

BESIDE_MM = 25.0  # from the midplane; the pharynx lies within, the jugular chain beyond
AVID_SHARE, LEAST_SUV = 0.4, 2.5  # of the node's SUVmax, and no less than this
BRIDGE_MM = 2.0  # half the width of what does not join two regions
MARGIN_MM = 45.0
# Larger ones run into brain, muscles or vessels: a jugular chain is some 90 mm long.
MOST_MM, MOST_ML = 90.0, 150.0


def beside_mm(mask: np.ndarray, spacing_zyx: np.ndarray, midplane: Midplane) -> float:
    """Greatest dimension in mm of what is labelled GTVp and lies beside the pharynx; 0: none does.

    Args:
        mask: label map ``[z, y, x]``.
    """
    primary = mask == GTVP
    box = bounding_box(primary)
    index = np.argwhere(primary[box])
    points = (index + [s.start for s in box]) * spacing_zyx
    lateral = midplane.lateral_mm(points[:, ::-1])
    found = 0.0
    for side in (1.0, -1.0):
        beside = np.zeros(primary[box].shape, bool)
        beside[tuple(index[side * lateral > BESIDE_MM].T)] = True
        parts = (greatest_dimension(where, spacing_zyx) for _, where in lesions_of(beside))
        found = max([found, *parts])
    return found


def avid_mm(mask: np.ndarray, pet_suv: np.ndarray, spacing_zyx: np.ndarray) -> float:
    """Greatest dimension in mm of a node together with what takes up FDG around it; 0: no node.

    That is what is connected to it at 40% of its SUVmax, and at least at an SUV of 2.5, without
    bridges of less than 4 mm. Where it is larger than masses of nodes are, the node alone counts.

    Args:
        mask: label map ``[z, y, x]``; what is labelled GTVp is left out.
        pet_suv: ``[z, y, x]``.
    """
    spacing = np.asarray(spacing_zyx, float)
    found = 0.0
    for box, where in lesions_of(mask == GTVN):
        alone = greatest_dimension(where, spacing)
        around = _around(box, where, mask, pet_suv, spacing)
        ml = float(around.sum() * spacing.prod()) / 1000.0
        size = greatest_dimension(around, spacing) if ml <= MOST_ML else np.inf
        found = max(found, alone, size if size <= MOST_MM else 0.0)
    return found


def _around(
    box: Box, where: np.ndarray, mask: np.ndarray, pet_suv: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    """A node and the avid region that it belongs to, in a box around it."""
    wide = widened(box, np.ceil(MARGIN_MM / spacing).astype(int), mask.shape)
    node = within(where, box, wide)
    suv = pet_suv[wide]
    least = max(LEAST_SUV, AVID_SHARE * float(suv[node].max()))
    avid = ((suv >= least) & (mask[wide] != GTVP)) | node
    core = distance_transform_edt(avid, sampling=spacing) > BRIDGE_MM
    pieces, _ = label_pieces(core | node)
    own = np.isin(pieces, np.unique(pieces[node]))
    return avid & (distance_transform_edt(~own, sampling=spacing) <= BRIDGE_MM)
