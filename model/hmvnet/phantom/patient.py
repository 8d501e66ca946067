"""One synthetic patient on paper: lesions, health record, covariates and outcome, no image yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .anatomy import body_outline
from .outcome import WeibullCox
from .scanner import CENTERS, Scan, draw_scan
from .shapes import Blob, Point, Wave

GTVP, GTVN = 1, 2

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
MISSING_SHARE = {
    "Age": 0.01,
    "Gender": 0.01,
    "Tobacco Consumption": 0.45,
    "Alcohol Consumption": 0.5,
    "Performance Status": 0.4,
    "Treatment": 0.03,
    "M-stage": 0.05,
    "HPV Status": 0.35,
    "CenterID": 0.03,
}


@dataclass(frozen=True)
class PhantomSettings:
    """What kind of phantom to make.

    whole_body: vertex to mid-thigh instead of head and neck.
    center: style of scanner, one of ``CENTERS``; None draws one per patient.
    compact: HU in steps of 4, SUV in steps of 1/256 and plain -1000 HU outside the body, so that a
        compressed case is small.
    """

    whole_body: bool = False
    center: str | None = None
    compact: bool = False

    def __post_init__(self) -> None:
        if self.center is not None and self.center not in CENTERS:
            raise ValueError(f"center: found {self.center!r}, expected one of {list(CENTERS)}")


@dataclass(frozen=True)
class PlannedLesion:
    """A GTVp or GTVn. ``blob`` and ``core`` (necrosis, may be None) are in the canonical frame."""

    label: int
    site: str
    blob: Blob
    core: Blob | None
    volume_ml: float
    necrosis_ml: float
    hu: float
    suv: float

    @property
    def viable_ml(self) -> float:
        return self.volume_ml - self.necrosis_ml


@dataclass(frozen=True)
class PatientPlan:
    """Everything that decides a phantom; ``render`` turns it into images."""

    patient_id: str
    seed: int
    settings: PhantomSettings
    scan: Scan
    lesions: tuple[PlannedLesion, ...]
    record: Mapping[str, float | str | None]
    covariates: Mapping[str, float]
    linear_predictor: float
    rfs_days: float
    relapse: int

    def renamed(self, patient_id: str) -> PatientPlan:
        return replace(self, patient_id=patient_id)


def draw_patient(
    seed: int, settings: PhantomSettings | None = None, model: WeibullCox | None = None
) -> PatientPlan:
    """Draw a patient without rendering images (well under a millisecond per lesion).

    The same seed and settings give the same plan, and ``render(plan)`` the same images.
    """
    settings, model = settings or PhantomSettings(), model or WeibullCox()
    rng = np.random.default_rng([seed, 1])
    center = settings.center or str(rng.choice(list(CENTERS)))
    scan = draw_scan(rng, center, settings.whole_body)
    health = _draw_health(rng)
    lesions = _draw_lesions(rng, scan, bool(health["hpv"]))
    covariates = {**lesion_covariates(lesions, scan), **_clinical_covariates(health)}
    eta = model.linear_predictor(covariates)
    days, relapse = model.draw(eta, rng)
    return PatientPlan(
        patient_id=f"SYN-{center}-{seed:04d}",
        seed=seed,
        settings=settings,
        scan=scan,
        lesions=lesions,
        record=_record(rng, health, center),
        covariates=covariates,
        linear_predictor=eta,
        rfs_days=days,
        relapse=relapse,
    )


def lesion_covariates(lesions: tuple[PlannedLesion, ...], scan: Scan) -> dict[str, float]:
    """The image's part of the outcome model, from the geometry of the lesions.

    log volumes are log(1 + mL), TLG is viable mL times SUV, dissemination the largest distance
    between two lesion centres in mm (0 for one lesion), necrosis a fraction of all lesion volume.
    """
    volume = sum(lesion.volume_ml for lesion in lesions)
    primary = sum(lesion.volume_ml for lesion in lesions if lesion.label == GTVP)
    tlg = sum(lesion.viable_ml * lesion.suv for lesion in lesions)
    places = np.array([lesion.blob.center for lesion in lesions]) * scan.scale
    spread = np.linalg.norm(places[:, None] - places[None], axis=-1).max()
    return {
        "log_gtvp_volume": float(np.log1p(primary)),
        "log_total_tlg": float(np.log1p(tlg)),
        "node_count": float(sum(lesion.label == GTVN for lesion in lesions)),
        "dissemination_mm": float(spread),
        "necrosis_fraction": sum(lesion.necrosis_ml for lesion in lesions) / volume,
    }


def _draw_lesions(rng: np.random.Generator, scan: Scan, hpv: bool) -> tuple[PlannedLesion, ...]:
    lesions: list[PlannedLesion] = []
    side = float(rng.choice([1.0, -1.0]))
    if rng.random() < 0.95:
        lesions.append(_draw_primary(rng, scan, side, hpv))
    count = int(rng.choice(len(NODE_COUNT), p=NODE_COUNT))
    if hpv and count == 0 and rng.random() < 0.5:
        count = 1
    if not lesions:
        count = max(count, 1)
    for _ in range(count):
        node = _place_node(rng, scan, side, lesions)
        if node is not None:
            lesions.append(node)
    return tuple(lesions)


def _draw_primary(rng: np.random.Generator, scan: Scan, side: float, hpv: bool) -> PlannedLesion:
    names = list(PRIMARY_SITES)
    weight = np.array([PRIMARY_SITES[name][0] for name in names])
    if hpv:
        weight[:2] *= 3.0
    site = str(rng.choice(names, p=weight / weight.sum()))
    x, y, z = PRIMARY_SITES[site][1]
    volume = float(np.clip(np.exp(rng.normal(np.log(8.0), 0.85)), 1.0, 60.0))
    # a large tumour grows outwards from the mucosa, away from the midline
    push = 0.35 * _radius(volume)
    jitter = rng.normal(0, (2, 3, 4))
    center = (side * (x + push + jitter[0]), y + jitter[1], z + jitter[2])
    return _lesion(rng, scan, GTVP, site, center, volume)


def _place_node(
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
        push = 0.4 * _radius(volume)
        center = (s * (x + push + jitter[0]), y + jitter[1], z + jitter[2])
        node = _lesion(rng, scan, GTVN, f"{level} {'left' if s > 0 else 'right'}", center, volume)
        clear = all(_clear(node.blob, other.blob) for other in others)
        if clear and _under_skin(node.blob):
            return node
    return None


def _clear(a: Blob, b: Blob) -> bool:
    reach = [1.1 * max(blob.radii) for blob in (a, b)]
    gap = float(np.linalg.norm(np.subtract(a.center, b.center)))
    return gap > sum(reach) + 2.0


def _under_skin(blob: Blob) -> bool:
    depth = -float(OUTLINE.distance(*np.array(blob.center, dtype=np.float32)))
    return depth > 0.6 * max(blob.radii)


def _lesion(
    rng: np.random.Generator, scan: Scan, label: int, site: str, center: Point, volume_ml: float
) -> PlannedLesion:
    primary = label == GTVP
    aspect = np.exp(rng.normal(0, 0.16 if primary else 0.12, 3))
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


def _radius(volume_ml: float) -> float:
    return float((3000.0 * volume_ml / (4 * np.pi)) ** (1 / 3))


def _draw_health(rng: np.random.Generator) -> dict[str, float]:
    hpv = rng.random() < 0.6
    age = float(np.clip(round(rng.normal(60 if hpv else 63, 9.5)), 28, 90))
    return {
        "age": age,
        "gender": float(rng.random() < 0.8),
        "hpv": float(hpv),
        "tobacco": float(rng.random() < (0.4 if hpv else 0.7)),
        "alcohol": float(rng.random() < (0.45 if hpv else 0.65)),
        "performance_status": float(rng.choice(5, p=(0.58, 0.30, 0.08, 0.03, 0.01))),
        "treatment": float(rng.random() < 0.85),
        "m1": float(rng.random() < 0.03),
        "m_unknown": float(rng.random() < 0.2),
    }


def _clinical_covariates(health: Mapping[str, float]) -> dict[str, float]:
    return {name: health[name] for name in ("hpv", "tobacco", "performance_status", "age", "m1")}


def _record(
    rng: np.random.Generator, health: Mapping[str, float], center: str
) -> dict[str, float | str | None]:
    """The record as a hospital would hand it over: HECKTOR's names, with fields missing."""
    stage = "Mx" if health["m_unknown"] else ("M1" if health["m1"] else "M0")
    full: dict[str, float | str | None] = {
        "CenterID": float(list(CENTERS).index(center) + 1),
        "Age": health["age"],
        "Gender": health["gender"],
        "Tobacco Consumption": health["tobacco"],
        "Alcohol Consumption": health["alcohol"],
        "Performance Status": health["performance_status"],
        "Treatment": health["treatment"],
        "M-stage": stage,
        "HPV Status": health["hpv"],
    }
    return {name: None if rng.random() < MISSING_SHARE[name] else v for name, v in full.items()}
