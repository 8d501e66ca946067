"""Digital head-and-neck FDG-PET/CT phantoms with known truth.

Everything here is invented: no voxel, record or outcome comes from a person. Use the phantoms for
tests, teaching and controlled experiments, never as evidence about patients.

    draw_patient(seed)  ->  PatientPlan   lesions, record, covariates, outcome; no images
    render(plan)        ->  Phantom       CT, PET and mask
    make_phantom(seed)                    both
    write_cohort(root, count, seed)       a data set in the HECKTOR 2025 layout
"""

from .cohort import CohortSummary, draw_cohort, write_cohort
from .lesions import PlannedLesion
from .outcome import LESION_TERMS, TABLE_TERMS, Term, WeibullCox, best_c_index
from .patient import PatientPlan, PhantomSettings, draw_patient
from .render import Phantom, make_phantom, render
from .scanner import CENTERS
from .stages import StageTruth

__all__ = [
    "CENTERS",
    "LESION_TERMS",
    "TABLE_TERMS",
    "CohortSummary",
    "PatientPlan",
    "Phantom",
    "PhantomSettings",
    "PlannedLesion",
    "StageTruth",
    "Term",
    "WeibullCox",
    "best_c_index",
    "draw_cohort",
    "draw_patient",
    "make_phantom",
    "render",
    "write_cohort",
]
