"""One synthetic patient on paper: lesions, health record, covariates and outcome, no image yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hmvnet.case import GTVN, GTVP

from .centres import EFFECTS, CentreEffect
from .lesions import PlannedLesion, draw_lesions
from .outcome import CENTRE_HAZARD, HIDDEN_PATTERN, WeibullCox
from .pattern import draw_direction
from .scanner import CENTERS, Scan, draw_scan
from .stages import StageTruth, draw_staged_lesions, draw_stages

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
    stages: lesions of all T and N stages, primaries that invade, and the stages as truth; see
        ``hmvnet.phantom.stages``.
    hidden_pattern: the outcome hangs on how the uptake lies within the primary too; see
        ``hmvnet.phantom.pattern``.
    centre_effects: centres differ in images, records and baseline hazard; see
        ``hmvnet.phantom.centres``.

    With the last three off, patients are those of versions without them, bit by bit.
    """

    whole_body: bool = False
    center: str | None = None
    compact: bool = False
    stages: bool = False
    hidden_pattern: bool = False
    centre_effects: bool = False

    def __post_init__(self) -> None:
        if self.center is not None and self.center not in CENTERS:
            raise ValueError(f"center: found {self.center!r}, expected one of {list(CENTERS)}")

    @property
    def outcome_model(self) -> WeibullCox:
        """What draws the outcomes: the usual model with a term for each of the last two."""
        usual = WeibullCox()
        pattern = HIDDEN_PATTERN if self.hidden_pattern else {}
        centre = CENTRE_HAZARD if self.centre_effects else {}
        if not (pattern or centre):
            return usual
        return replace(usual, terms={**usual.terms, **pattern, **centre})


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
    stages: StageTruth | None = None

    def renamed(self, patient_id: str) -> PatientPlan:
        return replace(self, patient_id=patient_id)


def draw_patient(
    seed: int, settings: PhantomSettings | None = None, model: WeibullCox | None = None
) -> PatientPlan:
    """Draw a patient without rendering images (well under a millisecond per lesion).

    The same seed and settings give the same plan, and ``render(plan)`` the same images.
    """
    settings = settings or PhantomSettings()
    model = model or settings.outcome_model
    rng = np.random.default_rng([seed, 1])
    center = settings.center or str(rng.choice(list(CENTERS)))
    effect = EFFECTS[center] if settings.centre_effects else CentreEffect()
    scan = draw_scan(rng, center, settings.whole_body, effect.style(CENTERS[center]))
    health = _draw_health(rng)
    truth = None
    if settings.stages:
        staging = np.random.default_rng([seed, 5])
        lesions, side = draw_staged_lesions(staging, scan, bool(health["hpv"]))
        truth = draw_stages(staging, scan, lesions, side)
    else:
        lesions = draw_lesions(rng, scan, bool(health["hpv"]))
    covariates = {**lesion_covariates(lesions, scan), **_clinical_covariates(health)}
    if settings.hidden_pattern:
        lesions, covariates["uptake_pole"] = _with_pattern(lesions, seed)
    if settings.centre_effects:
        covariates["centre_log_hazard"] = effect.log_hazard
    eta = model.linear_predictor(covariates)
    days, relapse = model.draw(eta, rng)
    return PatientPlan(
        patient_id=f"SYN-{center}-{seed:04d}",
        seed=seed,
        settings=settings,
        scan=scan,
        lesions=lesions,
        record=effect.written(_record(rng, health, center, effect)),
        covariates=covariates,
        linear_predictor=eta,
        rfs_days=days,
        relapse=relapse,
        stages=truth,
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


def _with_pattern(
    lesions: tuple[PlannedLesion, ...], seed: int
) -> tuple[tuple[PlannedLesion, ...], float]:
    """Lesions whose primary's uptake grows along a line, and how far that points to the head."""
    direction = draw_direction(np.random.default_rng([seed, 6]))
    grown = tuple(
        replace(one, hot_towards=direction) if one.label == GTVP else one for one in lesions
    )
    return grown, direction[2] if grown != lesions else 0.0


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
    rng: np.random.Generator, health: Mapping[str, float], center: str, effect: CentreEffect
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
    share = {**MISSING_SHARE, **effect.missing}
    return {name: None if rng.random() < share[name] else v for name, v in full.items()}
