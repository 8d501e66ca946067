"""Phantoms of all T and N stages: their lesions, and the stages an observer gives them.

Off by default (``PhantomSettings.stages``). ``RULES`` says how they are drawn, and nothing else
draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from hmvnet.ajcc import N_STAGES, T_STAGES, n_by_nodes, t_by_size
from hmvnet.case import GTVN, GTVP

from .anatomy import barriers
from .lesions import (
    NODE_COUNT,
    NODE_LEVELS,
    PRIMARY_SITES,
    PlannedLesion,
    draw_site,
    plan_lesion,
    radius,
    under_skin,
    with_nodes,
)
from .scanner import Scan
from .shapes import Blob, Shape

RULES = """\
**Primaries.** One in twenty patients has none (T0). Volumes are log-normal, median 7.5 mL, sigma
1.3 in the logarithm, 0.4 to 90 mL. All are moved out of bone, cartilage, carotid, pterygoid muscle
and spine, as far as there is room. A primary invades with probability 0.06 + 0.44 / (1 + (14 mL /
V)^2): 0.06 for a small one, 0.28 at 14 mL, 0.5 at most; it grows into one structure of its site
(TARGETS in `hmvnet.phantom.stages`) until 0.12 V, times a factor of 0.6 to 1.6, at least 0.15 mL
and at most 1.5 mL of it is inside. There 60 to 100 % of the CT number and all of the uptake are the
tumour's, and it is part of the mask. Of those that invade nothing half are moved until they touch a
structure of their site; what overlaps even so stays bone (or cartilage, ...) in both images and is
no part of the mask.

**Nodes.** As in any phantom. One patient in eighteen has matted nodes beside: one lesion of 28 to
60 mL along the jugular vein, on the primary's side.

**Truth.** AJCC's 7th edition (`hmvnet.ajcc`), the oropharynx's rules for every site: T4 where the
primary invades, else by its greatest dimension; N by the nodes' number, greatest dimension and side
(a primary within 5 mm of the midline is on neither).

**Observer**, whose stages the data's tables have. Every dimension is read with a factor
exp(N(0, 0.1)), so that a node near 3 cm is called either way; then one T in twenty, and one N in
twenty, is one stage off; one in fifty is missing.
"""

# What primaries of each site invade, and how often.
TARGETS: Mapping[str, Mapping[str, float]] = {
    "tonsil": {"mandible": 0.4, "pterygoid muscle": 0.3, "carotid": 0.3},
    "base of tongue": {"larynx": 0.6, "mandible": 0.4},
    "oral tongue": {"mandible": 0.7, "maxilla": 0.3},
    "floor of mouth": {"mandible": 1.0},
    "nasopharynx": {"skull base": 0.7, "carotid": 0.3},
    "supraglottic larynx": {"larynx": 0.8, "carotid": 0.2},
    "glottic larynx": {"larynx": 1.0},
    "hypopharynx": {"larynx": 0.5, "carotid": 0.3, "spine": 0.2},
}
PRIMARY_SHARE, TOUCHING_SHARE, MATTED_SHARE = 0.95, 0.5, 0.055
MIDLINE_MM = 5.0  # a primary's centre closer to it is on neither side
SIZE_NOISE, SHIFTED_SHARE, MISSING_SHARE = 0.1, 0.05, 0.02
STEP_MM, MOST_STEPS = 0.75, 80
PLACES = 6  # tried for a primary that is to invade nothing


@dataclass(frozen=True)
class StageTruth:
    """T and N of a phantom.

    Attributes:
        t, n: by the rules, without noise; T0 where there is no primary.
        observed_t, observed_n: as an observer wrote them down; None: not at all.
        invades: what the primary grew into; empty: nothing.
        primary_mm: greatest dimension of the primary, 0 where there is none.
        nodes_mm: of the nodes.
    """

    t: str
    n: str
    observed_t: str | None
    observed_n: str | None
    invades: str
    primary_mm: float
    nodes_mm: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"nodes_mm": list(self.nodes_mm)}

    def to_row(self) -> dict[str, float | str | None]:
        """What a table of truth has of it."""
        return {
            "T-stage": self.t,
            "N-stage": self.n,
            "observed_T": self.observed_t,
            "observed_N": self.observed_n,
            "invades": self.invades,
            "primary_mm": self.primary_mm,
        }


def draw_staged_lesions(
    rng: np.random.Generator, scan: Scan, hpv: bool
) -> tuple[tuple[PlannedLesion, ...], int]:
    """Lesions by the rules above, and the primary's side: 1 left, -1 right."""
    lesions: list[PlannedLesion] = []
    side = int(rng.choice([1, -1]))
    if rng.random() < PRIMARY_SHARE:
        lesions.append(_draw_primary(rng, scan, side, hpv))
    matted = _draw_matted(rng, scan, side) if rng.random() < MATTED_SHARE else None
    if matted is not None:
        lesions.append(matted)
    count = int(rng.choice(len(NODE_COUNT), p=NODE_COUNT))
    return with_nodes(rng, scan, side, lesions, count), side


def draw_stages(
    rng: np.random.Generator, scan: Scan, lesions: Sequence[PlannedLesion], side: int
) -> StageTruth:
    """The stages of these lesions, and what an observer writes down."""
    primary = next((one for one in lesions if one.label == GTVP), None)
    nodes = [one for one in lesions if one.label == GTVN]
    sides = [1 if one.blob.center[0] > 0 else -1 for one in nodes]
    size = greatest_mm(primary.blob, scan) if primary else 0.0
    sizes = [greatest_mm(one.blob, scan) for one in nodes]
    central = primary is not None and abs(primary.blob.center[0]) < MIDLINE_MM
    of = 0 if central else side

    def stages(noise: Sequence[float]) -> tuple[str, str]:
        t = "T0"
        if primary is not None:
            t = "T4" if primary.invades else t_by_size(size * noise[0])
        return t, n_by_nodes([mm * f for mm, f in zip(sizes, noise[1:], strict=True)], sides, of)

    t, n = stages([1.0] * (1 + len(nodes)))
    seen_t, seen_n = stages(np.exp(rng.normal(0, SIZE_NOISE, 1 + len(nodes))).tolist())
    return StageTruth(
        t,
        n,
        _written(rng, seen_t, T_STAGES),
        _written(rng, seen_n, N_STAGES),
        primary.invades if primary else "",
        size,
        tuple(sizes),
    )


def greatest_mm(blob: Blob, scan: Scan) -> float:
    """The greatest dimension of a lesion in the patient, in mm."""
    points = (_inside(blob, 28) - blob.center) * scan.scale
    return float(pdist(points[ConvexHull(points).vertices]).max())


def _written(rng: np.random.Generator, stage: str, stages: Sequence[str]) -> str | None:
    """A stage as it is written down: now and then the one beside it, or nothing."""
    shifted, up, missing = rng.random() < SHIFTED_SHARE, rng.random() < 0.5, rng.random()
    if missing < MISSING_SHARE:
        return None
    if shifted and stage in stages:
        place = stages.index(stage) + (1 if up else -1)
        place = place if 0 <= place < len(stages) else stages.index(stage) + (-1 if up else 1)
        return stages[place]
    return stage


def _draw_primary(rng: np.random.Generator, scan: Scan, side: int, hpv: bool) -> PlannedLesion:
    volume = float(np.clip(np.exp(rng.normal(np.log(7.5), 1.3)), 0.4, 90.0))
    invades = rng.random() < 0.06 + 0.44 / (1 + (14.0 / volume) ** 2)
    if invades:
        lesion, target = _at_a_site(rng, scan, side, hpv, volume)
        grown = _moved_into(_moved_out(lesion.blob), target, _wanted_ml(rng, volume))
        return _moved(lesion, grown, spared=float(rng.uniform(0.0, 0.4)), invades=target)
    places: list[tuple[float, PlannedLesion]] = []
    for _ in range(PLACES):
        lesion, target = _at_a_site(rng, scan, side, hpv, volume)
        blob = lesion.blob
        if rng.random() < TOUCHING_SHARE:
            blob = _moved_into(blob, target, 0.0)
        blob = _moved_out(blob)
        places.append((_overlap_ml(blob, _every()), _moved(lesion, blob, spared=1.0)))
        if places[-1][0] < 0.02 * volume:
            break
    return min(places, key=lambda place: place[0])[1]


def _at_a_site(
    rng: np.random.Generator, scan: Scan, side: int, hpv: bool, volume: float
) -> tuple[PlannedLesion, str]:
    """A primary where its site is, and a structure that may be invaded from there."""
    site = draw_site(rng, hpv)
    x, y, z = PRIMARY_SITES[site][1]
    jitter = rng.normal(0, (2, 3, 4))
    center = (side * (x + 0.2 * radius(volume) + jitter[0]), y + jitter[1], z + jitter[2])
    lesion = plan_lesion(rng, scan, GTVP, site, center, volume)
    names, weights = zip(*TARGETS[site].items(), strict=True)
    return lesion, str(rng.choice(names, p=weights))


def _draw_matted(rng: np.random.Generator, scan: Scan, side: int) -> PlannedLesion | None:
    """Nodes grown together along the jugular vein; None where twenty tries found no room."""
    for _ in range(20):
        x, y, z = NODE_LEVELS["IIa"][1]
        volume = float(rng.uniform(28.0, 60.0))
        jitter = rng.normal(0, (2.0, 3.0, 6.0))
        center = (side * (x + jitter[0]), y + jitter[1], z - 16.0 + jitter[2])
        name = f"IIa to III {'left' if side > 0 else 'right'}, matted"
        node = plan_lesion(rng, scan, GTVN, name, center, volume, stretch=(0.8, 0.9, 1.6))
        if under_skin(node.blob, node.blob.radii[0]):
            return node
    return None


def _moved(lesion: PlannedLesion, blob: Blob, spared: float, invades: str = "") -> PlannedLesion:
    core = lesion.core and Blob(blob.center, lesion.core.radii, lesion.core.waves)
    return replace(lesion, blob=blob, core=core, spared=spared, invades=invades)


def _wanted_ml(rng: np.random.Generator, volume: float) -> float:
    return float(np.clip(0.12 * volume * rng.uniform(0.6, 1.6), 0.15, 1.5))


def _every() -> tuple[Shape, ...]:
    return tuple(shape for shapes in barriers().values() for shape in shapes)


def _moved_into(blob: Blob, target: str, wanted_ml: float) -> Blob:
    """Step by step towards the nearest of a structure, until ``wanted_ml`` of it is inside."""
    shapes = barriers()[target]
    for _ in range(MOST_STEPS):
        points = _inside(blob)
        distance = _distances(shapes, points)
        if _ml(blob, points) * (distance < 0).mean() > wanted_ml:
            break
        nearest = points[distance.argmin()]
        blob = _shifted(blob, -STEP_MM * _uphill(shapes, nearest))
    return blob


def _moved_out(blob: Blob) -> Blob:
    """Step by step away from all that is hard, until nothing of it is inside or room is short."""
    shapes = _every()
    for _ in range(MOST_STEPS):
        points = _inside(blob)
        distance = _distances(shapes, points)
        if distance.min() > 0:
            break
        blob = _shifted(blob, STEP_MM * _uphill(shapes, points[distance.argmin()]))
    return blob


def _shifted(blob: Blob, step: np.ndarray) -> Blob:
    x, y, z = (np.asarray(blob.center) + step).tolist()
    return Blob((x, y, z), blob.radii, blob.waves)


def _overlap_ml(blob: Blob, shapes: Sequence[Shape]) -> float:
    points = _inside(blob)
    return _ml(blob, points) * float((_distances(shapes, points) < 0).mean())


def _inside(blob: Blob, count: int = 14) -> np.ndarray:
    """Points ``[n, 3]`` (x, y, z; canonical mm) of an even lattice that are inside a blob."""
    reach = 1.0 + sum(abs(wave[4]) for wave in blob.waves)
    axis = (np.arange(count, dtype=np.float32) + 0.5) * (2 * reach / count) - reach
    u, v, w = np.meshgrid(axis, axis, axis, indexing="ij")
    unit = np.stack([u, v, w], -1)[blob.level(u, v, w) < 0]
    return np.asarray(blob.center) + unit * blob.radii


def _ml(blob: Blob, points: np.ndarray, count: int = 14) -> float:
    """Volume of a blob by its lattice points, canonical mL."""
    reach = 1.0 + sum(abs(wave[4]) for wave in blob.waves)
    return len(points) * float(np.prod(blob.radii)) * (2 * reach / count) ** 3 / 1000.0


def _distances(shapes: Sequence[Shape], points: np.ndarray) -> np.ndarray:
    """Signed distance in mm of each point ``[n, 3]`` to the nearest of some shapes, ``[n]``."""
    x, y, z = np.asarray(points, dtype=np.float32).T
    return np.min([shape.distance(x, y, z) for shape in shapes], axis=0)


def _uphill(shapes: Sequence[Shape], point: np.ndarray) -> np.ndarray:
    """Unit vector ``[3]`` along which the distance to some shapes grows."""
    steps = np.concatenate([np.eye(3), -np.eye(3)]) * 0.5
    values = _distances(shapes, point + steps)
    slope = values[:3] - values[3:]
    return slope / max(float(np.linalg.norm(slope)), 1e-6)
