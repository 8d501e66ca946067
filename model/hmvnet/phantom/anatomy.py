"""Normal anatomy: a list of tissues, painted in order, each with its HU and its FDG uptake (SUV).

Positions are in the canonical frame of ``shapes``: mm, LPS, origin in the oropharynx at about C3.
Sizes are those of a textbook adult; every patient's are jittered. None of it comes from a person.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.interpolate import PchipInterpolator

from .shapes import Blob, Capsule, Ellipsoid, Point, Profile, Shape, tube

AIR, FAT, MUSCLE, BONE, MARROW = -1000.0, -95.0, 55.0, 900.0, 250.0
SIDES = (1.0, -1.0)

# z, half width, half depth, centre y of the outline
_HEAD_AND_NECK = (
    (152, 6, 8, 8), (148, 26, 34, 6), (138, 48, 62, 4), (122, 65, 83, 3), (100, 75, 96, 2),
    (75, 78, 100, 0), (45, 77, 98, -4), (20, 72, 91, -9), (0, 66, 83, -14), (-15, 61, 76, -18),
    (-28, 61, 68, -11), (-40, 61, 63, 2), (-60, 62, 61, 10), (-90, 66, 62, 14), (-108, 77, 64, 17),
    (-122, 112, 67, 18), (-138, 160, 75, 20), (-160, 192, 86, 19), (-200, 204, 96, 17),
)  # fmt: skip
_TRUNK = (
    (-260, 190, 108, 12), (-330, 172, 115, 10), (-420, 165, 115, 8), (-520, 155, 110, 6),
    (-620, 165, 108, 6), (-720, 182, 108, 10), (-760, 185, 105, 12), (-800, 178, 95, 14),
)  # fmt: skip


@dataclass(frozen=True)
class Tissue:
    """One thing to paint; None leaves that modality untouched.

    ``barrier`` names tissue that a tumour touches before it invades it, such as the mandible.
    """

    shape: Shape
    hu: float | None
    suv: float | None
    barrier: str = ""


@dataclass(frozen=True)
class Body:
    """The outline and its filling: skin and fat outside, ``inner_hu`` deeper than ``fat_mm``."""

    outline: Profile
    limbs: tuple[Shape, ...]
    fat_mm: float


@dataclass(frozen=True)
class Anatomy:
    body: Body
    tissues: tuple[Tissue, ...]
    metal: Point | None

    @property
    def barriers(self) -> tuple[Shape, ...]:
        """What a tumour touches before it invades it."""
        return tuple(tissue.shape for tissue in self.tissues if tissue.barrier)


@dataclass(frozen=True)
class Build:
    """What a patient's normal anatomy depends on beside chance."""

    whole_body: bool
    contrast: bool
    arms_up: bool


def build_anatomy(rng: np.random.Generator, build: Build) -> Anatomy:
    """Draw one patient's normal anatomy."""
    body = _body(rng, build)
    metal = None
    tissues: list[Tissue] = []
    tissues += _chest(rng)
    if build.whole_body:
        tissues += _trunk(rng)
    tissues += _muscles(rng)
    tissues += _head(rng)
    tissues += _spine()
    tissues += _vessels(rng, build.contrast)
    tissues += _glands(rng, build.contrast)
    tissues += _mouth(rng)
    tissues += _airway(rng)
    tissues += _jaws(rng)
    tissues += _benign_uptake(rng)
    if rng.random() < 0.3:
        side = rng.choice(SIDES)
        metal = (side * 27.0, -52.0, float(rng.uniform(-6, 8)))
        tissues.append(Tissue(Ellipsoid(metal, (4, 4, 4)), 2800.0, None))
        halo = Ellipsoid((metal[0] - side * 5, metal[1], metal[2]), (7, 9, 7))
        tissues.append(Tissue(halo, None, float(rng.uniform(2.0, 3.5))))
    return Anatomy(body, tuple(tissues), metal)


@cache
def barriers() -> dict[str, tuple[Shape, ...]]:
    """Where tissues that a tumour invades or spares lie in anyone, by their names."""
    build = Build(whole_body=False, contrast=False, arms_up=False)
    found: dict[str, list[Shape]] = {}
    for tissue in build_anatomy(np.random.default_rng(0), build).tissues:
        if tissue.barrier:
            found.setdefault(tissue.barrier, []).append(tissue.shape)
    return {name: tuple(shapes) for name, shapes in found.items()}


def body_outline(girth: float = 1.0) -> Profile:
    """Trunk, neck and head without limbs; ``girth`` thickens the neck most."""
    rows = np.array(sorted(_HEAD_AND_NECK + _TRUNK), dtype=float)
    neck = np.exp(-(((rows[:, 0] + 65) / 45.0) ** 2))
    rows[:, 1:3] *= 1 + (girth - 1) * (1 + neck[:, None])
    z = np.arange(rows[0, 0], rows[-1, 0] + 1, 3.0)
    columns = [PchipInterpolator(rows[:, 0], rows[:, c])(z) for c in (1, 2, 3)]
    return Profile(tuple(map(tuple, np.stack([z, *columns], 1).tolist())))


def _body(rng: np.random.Generator, build: Build) -> Body:
    outline = body_outline(rng.normal(1.0, 0.05))
    nose = Ellipsoid((0, -101, 26), (13, 16, 20))
    chin = Ellipsoid((0, -82, -20), (24, 16, 16))
    limbs: list[Shape] = [nose, chin]
    limbs += [Ellipsoid((s * 79, 5, 28), (5, 14, 26)) for s in SIDES]
    if build.whole_body:
        limbs += _arms(build.arms_up)
        limbs += [Capsule((s * 92, 14, -790), (s * 88, 10, -1100), 82, 70) for s in SIDES]
    return Body(outline, tuple(limbs), float(np.clip(rng.normal(7, 2), 3.5, 12)))


def _arms(up: bool) -> list[Shape]:
    arms: list[Shape] = []
    for s in SIDES:
        elbow = (s * 205.0, -10.0, 120.0) if up else (s * 235.0, 25.0, -430.0)
        wrist = (s * 90.0, -20.0, 260.0) if up else (s * 225.0, -20.0, -690.0)
        arms += tube([(s * 175.0, 20.0, -165.0), elbow, wrist], [50, 40, 28])
    return arms


def _mirrored(center: Point, radii: Point, hu: float | None, suv: float | None) -> list[Tissue]:
    x, y, z = center
    return [Tissue(Ellipsoid((s * x, y, z), radii), hu, suv) for s in SIDES]


def _tubes(
    points: Iterable[Point],
    radii: Iterable[float],
    hu: float | None,
    suv: float | None,
    barrier: str = "",
) -> list[Tissue]:
    return [Tissue(part, hu, suv, barrier) for part in tube(list(points), list(radii))]


def _head(rng: np.random.Generator) -> list[Tissue]:
    grey = float(rng.uniform(6.5, 11.0))
    tissues = [
        Tissue(Ellipsoid((0, 4, 82), (71, 90, 66), 2.2), BONE, 0.8),
        Tissue(Ellipsoid((0, 5, 82), (65, 84, 60), 2.2), 38.0, grey),
        Tissue(Ellipsoid((0, 5, 88), (46, 62, 34)), 30.0, 0.55 * grey),
        Tissue(Ellipsoid((0, 2, 86), (11, 24, 9)), 12.0, 0.4 * grey),
    ]
    tissues += _mirrored((20, 0, 82), (12, 15, 12), 38.0, grey * 1.05)
    # posterior fossa, petrous bone and the skull base in front of it
    tissues += [
        Tissue(Ellipsoid((0, 48, 36), (50, 38, 24)), BONE, 0.8),
        Tissue(Ellipsoid((0, 47, 38), (45, 33, 21)), 38.0, 0.85 * grey),
        Tissue(Capsule((0, 22, 50), (0, 30, 12), 12, 7), 36.0, 0.5 * grey),
        Tissue(Ellipsoid((0, -6, 44), (36, 26, 5)), 700.0, 0.7, "skull base"),
    ]
    tissues += _mirrored((40, 14, 34), (24, 12, 10), 800.0, 0.8)
    tissues += _mirrored((50, 27, 18), (8, 9, 15), 250.0, 0.7)
    tissues += _mirrored((31, -76, 54), (16, 18, 16), FAT, 0.6)
    tissues += _mirrored((31, -80, 54), (12, 12, 12), 15.0, 1.2)
    tissues += _mirrored((52, -52, 34), (5, 22, 5), 600.0, 0.6)
    return tissues


def _airway(rng: np.random.Generator) -> list[Tissue]:
    width = float(rng.uniform(0.85, 1.2))
    tissues: list[Tissue] = []
    tissues += _mirrored((29, -62, 34), (16, 19, 18), 500.0, 0.7)
    tissues += _mirrored((29, -62, 34), (14, 17, 16), AIR, 0.05)
    tissues.append(Tissue(Ellipsoid((0, -60, 38), (14, 36, 22)), 300.0, 1.0))
    tissues += _mirrored((6, -60, 38), (4.5, 33, 18), AIR, 0.1)
    tissues += _mirrored((9, -62, 30), (2.5, 20, 5), 50.0, 1.5)
    tissues.append(Tissue(Ellipsoid((0, -26, 56), (13, 12, 9)), AIR, 0.1))
    tissues.append(Tissue(Ellipsoid((0, -12, 30), (13 * width, 9, 13)), AIR, 0.1))
    upper = [(0.0, -13.0, 28.0), (0.0, -12.0, 0.0), (0.0, -10.0, -32.0)]
    tissues += _tubes(upper, [7.0 * width, 8.5 * width, 9.0 * width], AIR, 0.1)
    lower = [(0.0, -15.0, -36.0), (0.0, -21.0, -58.0), (0.0, -22.0, -66.0), (0.0, -21.0, -78.0)]
    tissues += _tubes(lower, [8.0, 6.0, 2.5, 8.0], AIR, 0.1)
    trachea = [(0.0, -21.0, -78.0), (0.0, -10.0, -130.0), (0.0, 8.0, -195.0), (0.0, 18.0, -250.0)]
    tissues += _tubes(trachea, [9.0, 9.0, 9.0, 9.0], AIR, 0.1)
    tissues += _mirrored((12, -12, -50), (3.5, 5, 10), AIR, 0.2)
    return tissues


def _mouth(rng: np.random.Generator) -> list[Tissue]:
    """Pharyngeal wall, tongue, tonsils, larynx: the mucosa that takes up FDG in anyone."""
    tonsil, larynx = float(rng.uniform(2.0, 4.2)), float(rng.uniform(1.5, 3.2))
    wall = [(0.0, -10.0, 38.0), (0.0, -9.0, 0.0), (0.0, -10.0, -40.0), (0.0, -16.0, -75.0)]
    tissues = _tubes(wall, [17.0, 18.0, 19.0, 16.0], 48.0, 1.4)
    tissues += [
        Tissue(Ellipsoid((0, -46, -4), (27, 36, 21)), 52.0, 1.5),
        Tissue(Ellipsoid((0, -54, -24), (24, 24, 12)), 48.0, 1.3),
        Tissue(Ellipsoid((0, -50, 19), (20, 34, 2.5)), AIR, 0.2),
        Tissue(Ellipsoid((0, -18, 17), (17, 9, 5)), 48.0, 1.8),
        Tissue(Ellipsoid((0, -24, -19), (15, 6, 8)), 60.0, 0.8 * tonsil),
        Tissue(Ellipsoid((0, 0, 33), (14, 5, 10)), 55.0, float(rng.uniform(1.5, 2.8))),
        Tissue(Ellipsoid((0, -24, -62), (17, 17, 15)), 55.0, 1.4),
        Tissue(Ellipsoid((0, -34, -47), (9, 6, 8)), -70.0, 0.8),
    ]
    tissues += _mirrored((16, -14, -1), (6, 8, 13), 62.0, tonsil)
    tissues += _mirrored((7, -24, -65), (4, 9, 4), 60.0, larynx)
    for s in SIDES:
        plate = [(s * 4.0, -40.0, -58.0), (s * 17.0, -22.0, -58.0), (s * 18.0, -16.0, -64.0)]
        tissues += _tubes(plate, [2.6, 2.6, 2.6], 220.0, 1.0, "larynx")
        hyoid = [(0.0, -43.0, -34.0), (s * 14.0, -36.0, -33.0), (s * 21.0, -20.0, -31.0)]
        tissues += _tubes(hyoid, [3.5, 3.0, 2.2], 500.0, 0.8, "larynx")
    tissues.append(Tissue(Ellipsoid((0, -21, -77), (13, 13, 6)), 200.0, 1.0, "larynx"))
    return tissues


def _glands(rng: np.random.Generator, contrast: bool) -> list[Tissue]:
    bright = 130.0 if contrast else 85.0
    parotid, salivary = float(rng.uniform(1.5, 2.6)), float(rng.uniform(1.6, 3.0))
    fat = float(rng.uniform(-45, 15))
    tissues = _mirrored((53, -4, 8), (11, 19, 24), fat, parotid)
    tissues += _mirrored((32, -34, -24), (10, 16, 12), 35.0, salivary)
    tissues += _mirrored((17, -64, -16), (5, 13, 6), 30.0, 0.9 * salivary)
    thyroid = float(rng.uniform(1.2, 2.0)) if rng.random() < 0.93 else float(rng.uniform(4, 7))
    tissues += _mirrored((17, -20, -98), (8, 9, 21), bright, thyroid)
    tissues.append(Tissue(Ellipsoid((0, -30, -104), (10, 4, 7)), bright, thyroid))
    return tissues


def _jaws(rng: np.random.Generator) -> list[Tissue]:
    tissues: list[Tissue] = []
    dentate = rng.random() < 0.85
    for s in SIDES:
        ramus = [(s * 47.0, -12.0, 36.0), (s * 46.0, -18.0, -6.0)]
        arch = [(s * 46.0, -20.0, -10.0), (s * 33.0, -52.0, -18.0), (s * 17.0, -77.0, -22.0),
                (0.0, -84.0, -22.0)]  # fmt: skip
        tissues += _tubes(ramus, [5.5, 6.5], BONE, 0.8, "mandible")
        tissues += _tubes(arch, [6.5, 7.0, 7.5, 8.0], BONE, 0.8, "mandible")
        tissues += _tubes(arch, [3.0, 3.2, 3.5, 3.5], MARROW, 0.8)
        upper = [(s * 31.0, -40.0, 15.0), (s * 26.0, -64.0, 15.0), (s * 13.0, -81.0, 15.0),
                 (0.0, -85.0, 15.0)]  # fmt: skip
        tissues += _tubes(upper, [6.0, 6.0, 6.0, 6.0], 600.0, 0.8, "maxilla")
        if dentate:
            for (x, y, _), (_, _, z) in zip(arch[1:], upper[1:], strict=True):
                tissues.append(Tissue(Capsule((x, y, -14), (x, y, -3), 3.6, 4.0), 1600.0, 0.4))
                tissues.append(Tissue(Capsule((x, y + 2, 2), (x, y, z), 3.8, 3.6), 1600.0, 0.4))
            molar = (s * 38.0, -38.0)
            tissues.append(Tissue(Ellipsoid((*molar, -6), (5, 8, 7)), 1600.0, 0.4))
            tissues.append(Tissue(Ellipsoid((s * 30.0, -48.0, 6), (5, 8, 6)), 1600.0, 0.4))
    return tissues


def _muscles(rng: np.random.Generator) -> list[Tissue]:
    suv = float(rng.uniform(0.6, 1.0))
    lopsided = rng.random() < 0.1
    tissues: list[Tissue] = []
    for s in SIDES:
        tense = float(rng.uniform(2.2, 3.8)) if lopsided and s > 0 else suv
        back = [(s * 20.0, 50.0, 22.0), (s * 20.0, 46.0, -60.0), (s * 34.0, 68.0, -160.0),
                (s * 40.0, 78.0, -260.0)]  # fmt: skip
        tissues += _tubes(back, [17.0, 19.0, 20.0, 20.0], MUSCLE, suv)
        deep = [(s * 14.0, 12.0, 20.0), (s * 18.0, 14.0, -60.0), (s * 30.0, 18.0, -130.0)]
        tissues += _tubes(deep, [8.0, 10.0, 12.0], MUSCLE, suv)
        trapezius = [(s * 30.0, 62.0, -70.0), (s * 70.0, 55.0, -120.0), (s * 140.0, 40.0, -150.0)]
        tissues += _tubes(trapezius, [7.0, 13.0, 18.0], MUSCLE, suv)
        deltoid = [(s * 170.0, 15.0, -160.0), (s * 175.0, 15.0, -230.0)]
        tissues += _tubes(deltoid, [36.0, 36.0], MUSCLE, suv)
        sternomastoid = [(s * 51.0, 24.0, 8.0), (s * 44.0, 2.0, -50.0), (s * 17.0, -30.0, -138.0)]
        tissues += _tubes(sternomastoid, [8.0, 10.5, 7.0], MUSCLE + 5, tense)
        strap = [(s * 9.0, -42.0, -38.0), (s * 11.0, -40.0, -80.0), (s * 12.0, -32.0, -138.0)]
        tissues += _tubes(strap, [4.5, 5.0, 5.0], MUSCLE, suv)
        masseter = [(s * 56.0, -32.0, 26.0), (s * 53.0, -25.0, -8.0)]
        tissues += _tubes(masseter, [8.0, 8.0], MUSCLE + 5, suv)
        pterygoid = [(s * 24.0, -34.0, 30.0), (s * 38.0, -22.0, -4.0)]
        tissues += _tubes(pterygoid, [8.0, 7.0], MUSCLE, suv, "pterygoid muscle")
        pectoral = [(s * 40.0, -55.0, -195.0), (s * 140.0, -35.0, -180.0)]
        tissues += _tubes(pectoral, [15.0, 18.0], MUSCLE, suv)
    return tissues


def _spine() -> list[Tissue]:
    def middle(z: float) -> float:
        return float(np.interp(z, (-330, -160, -60, 20), (52, 44, 21, 16)))

    tissues: list[Tissue] = []
    height = 17.0
    for z in np.arange(18.0, -340.0, -height):
        y, r = middle(z), float(np.interp(z, (-300, -60, 20), (18, 12, 10)))
        tissues.append(
            Tissue(Ellipsoid((0, y, z), (r * 1.15, r * 0.85, 8.6), 4.0), 420.0, 1.3, "spine")
        )
        tissues.append(Tissue(Ellipsoid((0, y, z - height / 2), (r, r * 0.8, 2.5)), 80.0, 0.8))
        tissues.append(Tissue(Ellipsoid((0, y + r + 8, z), (r + 9, 9, 5.5)), 450.0, 1.0))
        spinous = Capsule((0, y + r + 14, z), (0, y + r + 27, z - 7), 3.5, 4.0)
        tissues.append(Tissue(spinous, 450.0, 1.0))
    canal = [(0.0, middle(z) + 17, z) for z in (30.0, -20.0, -60.0, -160.0, -330.0)]
    tissues += _tubes(canal, [8.0, 8.0, 8.5, 8.5, 8.5], 18.0, 1.0)
    tissues += _tubes(canal, [5.0, 5.0, 5.0, 4.5, 4.5], 38.0, 1.6)
    return tissues


def _vessels(rng: np.random.Generator, contrast: bool) -> list[Tissue]:
    hu = float(rng.uniform(140, 210)) if contrast else 42.0
    tissues: list[Tissue] = []
    for s in SIDES:
        wide = float(rng.uniform(4.5, 7.5))
        jugular = [(s * 30.0, 8.0, 30.0), (s * 31.0, 4.0, -30.0), (s * 26.0, -3.0, -130.0),
                   (s * 18.0, -16.0, -165.0)]  # fmt: skip
        carotid = [(s * 25.0, 1.0, 30.0), (s * 25.0, -4.0, -35.0), (s * 19.0, -8.0, -130.0),
                   (s * 12.0, -4.0, -180.0)]  # fmt: skip
        tissues += _tubes(jugular, [wide * 0.8, wide, wide, wide], hu * 0.9, 1.5)
        tissues += _tubes(carotid, [3.0, 3.8, 3.8, 5.0], hu, 1.5, "carotid")
    tissues.append(Tissue(Capsule((18, 0, -200), (-18, -18, -205), 11, 12), hu, 1.6))
    return tissues


def _chest(rng: np.random.Generator) -> list[Tissue]:
    tissues: list[Tissue] = []
    for s in SIDES:
        tissues.append(Tissue(Ellipsoid((s * 78, 14, -270), (72, 88, 140), 2.4), MUSCLE, 0.9))
        for height in np.arange(-150.0, -400.0, -26.0):
            tissues += _rib(s, height)
        lung = Ellipsoid((s * 72, 16, -275), (56, 74, 132), 2.3)
        tissues.append(Tissue(lung, -840.0, 0.45))
        clavicle = [(s * 12.0, -40.0, -150.0), (s * 75.0, -18.0, -138.0), (s * 150.0, 8.0, -138.0)]
        tissues += _tubes(clavicle, [7.0, 5.5, 6.0], 600.0, 0.9)
        tissues.append(Tissue(Ellipsoid((s * 165, 18, -165), (23, 23, 24)), 350.0, 1.0))
        scapula = [(s * 150.0, 40.0, -150.0), (s * 95.0, 82.0, -200.0), (s * 90.0, 92.0, -290.0)]
        tissues += _tubes(scapula, [7.0, 6.0, 5.0], 350.0, 0.9)
    tissues.append(Tissue(Ellipsoid((0, 0, -230), (34, 46, 70)), 0.0, 1.0))
    tissues.append(Tissue(Ellipsoid((0, -58, -200), (18, 8, 48)), 250.0, 1.2))
    tissues.append(Tissue(Capsule((0, 8, -80), (0, 30, -330), 6, 6), 40.0, 1.6))
    return tissues


def _rib(side: float, height: float) -> list[Tissue]:
    """A rib as four capsules that slope down towards the front."""
    angle = np.linspace(0.15, 0.85, 5) * np.pi
    x = side * (40.0 + 92.0 * np.sin(angle) * np.interp(height, (-260, -150), (1.0, 0.62)))
    y = 14.0 + 80.0 * np.cos(angle)
    z = height - 36.0 * (1.0 - np.cos(angle)) / 2.0
    points = [tuple(point) for point in np.stack([x, y, z], 1).tolist()]
    return _tubes(points, [4.5] * len(points), 400.0, 0.9)


def _trunk(rng: np.random.Generator) -> list[Tissue]:
    heart = float(rng.choice([1.8, 4.0, 9.0]))
    liver = float(rng.uniform(1.9, 2.8))
    bladder = float(rng.uniform(30, 60))
    tissues = [
        Tissue(Ellipsoid((0, 6, -560), (130, 88, 190), 3.0), 20.0, 1.0),
        Tissue(Ellipsoid((30, -30, -345), (48, 42, 48)), 45.0, heart),
        Tissue(Ellipsoid((28, -30, -345), (28, 24, 30)), 45.0, 1.8),
        Tissue(Ellipsoid((-58, 0, -425), (78, 70, 58)), 90.0, liver),
        Tissue(Ellipsoid((88, 35, -425), (28, 38, 42)), 95.0, 1.9),
        Tissue(Ellipsoid((60, -25, -425), (34, 26, 30)), 15.0, 1.7),
        Tissue(Ellipsoid((0, -35, -745), (38, 34, 32)), 8.0, bladder),
    ]
    tissues += _mirrored((66, 52, -505), (26, 24, 48), 110.0, 3.5)
    tissues += _mirrored((58, 50, -505), (9, 10, 22), 15.0, float(rng.uniform(8, 25)))
    for s in SIDES:
        femur = [(s * 92.0, 14.0, -790.0), (s * 90.0, 10.0, -1100.0)]
        tissues += _tubes(femur, [55.0, 48.0], MUSCLE, 0.7)
        tissues += _tubes(femur, [15.0, 14.0], BONE, 0.7)
        ilium = [(s * 30.0, 62.0, -640.0), (s * 105.0, 30.0, -640.0), (s * 95.0, 14.0, -770.0)]
        tissues += _tubes(ilium, [12.0, 9.0, 22.0], 350.0, 1.2)
    for _ in range(6):
        x, y, z = rng.uniform((-90, -60, -690), (90, 20, -520))
        bowel = Ellipsoid((x, y, z), tuple(rng.uniform(12, 26, 3)))
        tissues.append(Tissue(bowel, 20.0, float(rng.uniform(1.2, 4.0))))
    for z in np.arange(-345.0, -700.0, -34.0):
        body = Ellipsoid((0, 50, z), (23, 17, 14), 4.0)
        tissues.append(Tissue(body, 380.0, 1.5))
    return tissues


def _benign_uptake(rng: np.random.Generator) -> list[Tissue]:
    """Small reactive nodes and, in a few patients, brown fat: uptake that is not a lesion."""
    tissues: list[Tissue] = []
    for _ in range(rng.integers(0, 5)):
        s, z = rng.choice(SIDES), rng.uniform(-110, 0)
        center = (s * rng.uniform(28, 44), rng.uniform(-6, 26), z)
        radii = tuple(rng.uniform(2.2, 4.0, 3))
        tissues.append(Tissue(Ellipsoid(center, radii), 60.0, float(rng.uniform(1.5, 2.5))))
    if rng.random() < 0.05:
        suv = float(rng.uniform(3, 7))
        for s in SIDES:
            for _ in range(3):
                x, y, z = s * rng.uniform(45, 90), rng.uniform(15, 45), rng.uniform(-135, -95)
                radii = tuple(rng.uniform(6, 11, 3))
                tissues.append(Tissue(Blob((x, y, z), radii), FAT, suv))
    return tissues
