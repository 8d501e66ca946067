"""From a patient on paper to a CT, a PET and a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from hmvnet.case import SYNTHETIC
from hmvnet.reading.images import FILE_NOTES

from .anatomy import Build, build_anatomy
from .lesions import PlannedLesion
from .patient import PatientPlan, PhantomSettings, draw_patient
from .pattern import Ramp
from .scanner import PaintedLesion, acquire_ct, acquire_pet, draw_mask
from .shapes import Field


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient.

    ct: int16, HU. pet: float32, SUV, on its own grid. mask: uint8 on the CT grid, 1 = GTVp,
    2 = GTVn. record: HECKTOR's column names, None where missing. rfs_days, relapse: the outcome.
    truth: the true linear predictor, its covariates, the list of lesions and, with stages, what
    they are and why.
    """

    patient_id: str
    ct: sitk.Image
    pet: sitk.Image
    mask: sitk.Image
    record: dict[str, float | str | None]
    rfs_days: float
    relapse: int
    truth: dict[str, Any]


def make_phantom(seed: int, settings: PhantomSettings | None = None) -> Phantom:
    """Draw and render one patient; the same seed and settings give the same phantom."""
    return render(draw_patient(seed, settings))


def render(plan: PatientPlan) -> Phantom:
    """Make the images of a plan. Deterministic: all chance comes from ``plan.seed``."""
    scan, compact = plan.scan, plan.settings.compact
    bodies, ct_noise, pet_noise = (np.random.default_rng([plan.seed, k]) for k in (2, 3, 4))
    build = Build(plan.settings.whole_body, scan.contrast, scan.arms_up)
    anatomy = build_anatomy(bodies, build)
    on_ct = [PaintedLesion(one.blob, one.core, one.hu, one.spared) for one in plan.lesions]
    # what is left of an invaded bone is full of tumour, and takes up as it does
    on_pet = [
        PaintedLesion(one.blob, one.core, _uptake(one), float(one.spared >= 1))
        for one in plan.lesions
    ]
    ct = acquire_ct(scan, anatomy, on_ct, ct_noise, compact)
    pet = acquire_pet(scan, anatomy, on_pet, pet_noise, compact)
    shapes = [(lesion.label, lesion.blob, lesion.spared) for lesion in plan.lesions]
    mask = draw_mask(scan, shapes, anatomy.barriers)
    for image in (ct, pet, mask):  # a file made of it says so in its header
        image.SetMetaData(FILE_NOTES, SYNTHETIC)
    return Phantom(
        patient_id=plan.patient_id,
        ct=ct,
        pet=pet,
        mask=mask,
        record=dict(plan.record),
        rfs_days=plan.rfs_days,
        relapse=plan.relapse,
        truth=plan_truth(plan),
    )


def _uptake(lesion: PlannedLesion) -> float | Field:
    if lesion.hot_towards is None:
        return lesion.suv
    return Ramp.through(lesion.blob, lesion.hot_towards, lesion.suv)


def plan_truth(plan: PatientPlan) -> dict[str, Any]:
    """What is known about a patient because we made it, as plain JSON values."""
    truth = {
        "synthetic": True,
        "seed": plan.seed,
        "linear_predictor": plan.linear_predictor,
        "covariates": dict(plan.covariates),
        "center_style": plan.scan.center,
        "lesions": [
            {
                "label": "GTVp" if lesion.label == 1 else "GTVn",
                "site": lesion.site,
                "volume_ml": lesion.volume_ml,
                "necrosis_ml": lesion.necrosis_ml,
                "suv": lesion.suv,
                "hu": lesion.hu,
                **({} if lesion.hot_towards is None else {"hot_towards": lesion.hot_towards}),
            }
            for lesion in plan.lesions
        ],
    }
    if plan.stages is not None:
        truth["stages"] = plan.stages.to_dict()
    return truth
