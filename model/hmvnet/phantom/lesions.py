"""The lesions of one synthetic patient on paper: where they lie, how large and how hot they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hmvnet.case import GTVN, GTVP

from .anatomy import body_outline
from .scanner import Scan
from .shapes import Blob, Point, Wave

# probability, canonical position on the right-hand side of the picture (x > 0 is the left side)
PRIMARY_SITES: Mapping[str, tuple[float, Point]] = {
    "tonsil": (0.32, (19, -14, -3)),
    "base of tongue": (0.24, (8, -29, -17)),
    "oral tongue": (0.09, (15, -48, 2)),
    "floor of mouth": (0.06, (12, -58, -17)),
    "nasopharynx": (0.08, (9, -2, 31)),
    "supraglottic larynx": (0.08, (7, -25, -46)),
    "glottic larynx": (0.06, (8, -25, -64)),
    "hypopharynx": (0.07, (15, -10, -54)),
}
NODE_LEVELS: Mapping[str, tuple[float, Point]] = {
    "Ib": (0.08, (29, -44, -37)),
    "IIa": (0.34, (38, -2, -16)),
    "IIb": (0.12, (42, 16, -14)),
    "III": (0.22, (36, -4, -52)),
    "IV": (0.10, (31, -2, -92)),
    "V": (0.08, (43, 28, -60)),
    "retropharyngeal": (0.06, (19, 3, 16)),
}
OUTLINE = body_outline()
NODE_COUNT = (0.18, 0.30, 0.22, 0.13, 0.09, 0.05, 0.03)


@dataclass(frozen=True)
class PlannedLesion:
    """A GTVp or GTVn. ``blob`` and ``core`` (necrosis, may be None) are in the canonical frame.

    ``spared`` is the share of hard tissue (bone, cartilage, carotid, pterygoid muscle) that is left
    where the blob overlaps it: 0 none, 1 all, and then it is not part of the lesion either.
    ``invades`` names the structure that a primary was made to grow into; empty: none.
    ``hot_towards`` is the direction in which the uptake grows, of mean ``suv``; None: it is even.
    """

    label: int
    site: str
    blob: Blob
    core: Blob | None
    volume_ml: float
    necrosis_ml: float
    hu: float
    suv: float
    spared: float = 0.0
    invades: str = ""
    hot_towards: Point | None = None

    @property
    def viable_ml(self) -> float:
        return self.volume_ml - self.necrosis_ml


def draw_lesions(rng: np.random.Generator, scan: Scan, hpv: bool) -> tuple[PlannedLesion, ...]:
    lesions: list[PlannedLesion] = []
    side = float(rng.choice([1.0, -1.0]))
    if rng.random() < 0.95:
        lesions.append(draw_primary(rng, scan, side, hpv))
    count = int(rng.choice(len(NODE_COUNT), p=NODE_COUNT))
    if hpv and count == 0 and rng.random() < 0.5:
        count = 1
    return with_nodes(rng, scan, side, lesions, count)


def with_nodes(
    rng: np.random.Generator, scan: Scan, side: float, lesions: list[PlannedLesion], count: int
) -> tuple[PlannedLesion, ...]:
    """Lesions and so many nodes, as far as there is room; one at least where there is no lesion."""
    found = list(lesions)
    for _ in range(count if found else max(count, 1)):
        node = place_node(rng, scan, side, found)
        if node is not None:
            found.append(node)
    return tuple(found)


def draw_site(rng: np.random.Generator, hpv: bool) -> str:
    """The primary's site; with HPV the oropharynx's are three times as likely."""
    names = list(PRIMARY_SITES)
    weight = np.array([PRIMARY_SITES[name][0] for name in names])
    if hpv:
        weight[:2] *= 3.0
    return str(rng.choice(names, p=weight / weight.sum()))


def draw_primary(rng: np.random.Generator, scan: Scan, side: float, hpv: bool) -> PlannedLesion:
    site = draw_site(rng, hpv)
    x, y, z = PRIMARY_SITES[site][1]
    volume = float(np.clip(np.exp(rng.normal(np.log(8.0), 0.85)), 1.0, 60.0))
    # a large tumour grows outwards from the mucosa, away from the midline
    push = 0.35 * radius(volume)
    jitter = rng.normal(0, (2, 3, 4))
    center = (side * (x + push + jitter[0]), y + jitter[1], z + jitter[2])
    return plan_lesion(rng, scan, GTVP, site, center, volume)


def place_node(
    rng: np.random.Generator, scan: Scan, side: float, others: list[PlannedLesion]
) -> PlannedLesion | None:
    """A node clear of the other lesions; None when twenty tries found no room."""
    names = list(NODE_LEVELS)
    weight = np.array([NODE_LEVELS[name][0] for name in names])
    for _ in range(20):
        level = str(rng.choice(names, p=weight / weight.sum()))
        x, y, z = NODE_LEVELS[level][1]
        s = side if rng.random() < 0.75 else -side
        volume = float(np.clip(np.exp(rng.normal(np.log(2.5), 1.0)), 0.3, 25.0))
        jitter = rng.normal(0, (2.5, 4, 8))
        push = 0.4 * radius(volume)
        center = (s * (x + push + jitter[0]), y + jitter[1], z + jitter[2])
        node = plan_lesion(
            rng, scan, GTVN, f"{level} {'left' if s > 0 else 'right'}", center, volume
        )
        clear = all(clear_of(node.blob, other.blob) for other in others)
        if clear and under_skin(node.blob):
            return node
    return None


def clear_of(a: Blob, b: Blob) -> bool:
    reach = [1.1 * max(blob.radii) for blob in (a, b)]
    gap = float(np.linalg.norm(np.subtract(a.center, b.center)))
    return gap > sum(reach) + 2.0


def under_skin(blob: Blob, outwards_mm: float | None = None) -> bool:
    """Whether most of a lesion is inside the body; ``outwards_mm``: its radius towards the skin."""
    depth = -float(OUTLINE.distance(*np.array(blob.center, dtype=np.float32)))
    return depth > 0.6 * (outwards_mm or max(blob.radii))


def plan_lesion(
    rng: np.random.Generator,
    scan: Scan,
    label: int,
    site: str,
    center: Point,
    volume_ml: float,
    stretch: Point = (1.0, 1.0, 1.0),
) -> PlannedLesion:
    """A lesion of this volume; ``stretch`` are factors of its radii to each other."""
    primary = label == GTVP
    aspect = np.exp(rng.normal(0, 0.16 if primary else 0.12, 3)) * stretch
    aspect[2] *= 1.15
    waves = tuple(_wave(rng) for _ in range(4 if primary else 2))
    blob = Blob(center, tuple(aspect), waves)
    unit_ml = blob.unit_volume() * float(np.prod(aspect) * np.prod(scan.scale)) / 1000.0
    blob = blob.scaled((volume_ml / unit_ml) ** (1 / 3))
    share = 0.0
    if volume_ml > (6.0 if primary else 3.0) and rng.random() < 0.3:
        share = float(rng.uniform(0.08, 0.45))
    dim = rng.random() < 0.08
    uptake = rng.normal(np.log(9.0 if primary else 7.0), 0.38)
    suv = float(np.clip(np.exp(uptake), 4.0 if primary else 3.0, 18.0))
    if dim:
        suv = float(rng.uniform(2.0, 3.0))
    hu = 55.0 + float(rng.uniform(35, 60) if dim else rng.uniform(20, 55))
    core = blob.scaled(share ** (1 / 3)) if share else None
    return PlannedLesion(label, site, blob, core, volume_ml, share * volume_ml, hu, suv)


def _wave(rng: np.random.Generator) -> Wave:
    kx, ky, kz = map(float, rng.normal(0, 1.7, 3))
    return kx, ky, kz, float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.03, 0.1))


def radius(volume_ml: float) -> float:
    return float((3000.0 * volume_ml / (4 * np.pi)) ** (1 / 3))
