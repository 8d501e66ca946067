"""From an input folder to the best answer that can be had: a ladder, each rung less than the last.

1. What ``hmvnet predict`` gives, where it does not refuse the case.
2. The same of what could be salvaged, refusals turned into findings.
3. Without networks: what takes up FDG as a tumour does, and the anatomy's rules on it.
4. Without images: the risk of the health record alone, or the training patients' median.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from hmvnet.answering.salvage import Salvaged, in_usual_suv, salvage
from hmvnet.case import Case, ClinicalRecord, Finding, Grid, Verdict
from hmvnet.config import PostprocessingSettings, PreprocessingSettings
from hmvnet.exits import note
from hmvnet.imaging.components import lesions_of
from hmvnet.lesions.features import LesionFeatures
from hmvnet.lesions.table import lesion_table
from hmvnet.pipeline import Pipeline, Prediction
from hmvnet.prognosis.member import LesionDescription
from hmvnet.prognosis.risk import Prognosis, Risk
from hmvnet.segmentation.segmenter import OnStage, Segmentation, Stages, label_map, prepare
from hmvnet.staging.stager import Stager

T = TypeVar("T")
TUMOUR_SUV = 4.0  # the fixed threshold of metabolic tumour volume
MOST_ML = 150.0  # of one piece; more is the brain
BY_UPTAKE = "by-uptake"  # the finding's code


@dataclass(frozen=True)
class Answer:
    """What can be said of a case.

    Attributes:
        prediction: None where there is no image; without a risk where that failed.
        mask: of it, on the grid that is asked for.
        risk: None where there is no survival model.
    """

    prediction: Prediction | None
    mask: sitk.Image | None
    risk: Risk | None


def best_answer(
    input_dir: Path, pipeline: Pipeline | None, on_stage: OnStage, *, networks: bool = True
) -> Answer:
    """The first rung of the ladder that holds; what went wrong is said on standard error.

    Args:
        pipeline: None where it could not be loaded.
        networks: whether the segmentation networks may run.

    Raises:
        Exception: what the networks raised; not without them.
    """
    on_stage("read the case")
    found = salvage(input_dir)
    if found.refusal:
        note(f"refused, and answered all the same: {found.refusal}")
    prediction = _prediction(found, pipeline if networks else None, on_stage)
    risk = prediction.risk if prediction else None
    if risk is None and pipeline is not None and (model := pipeline.prognosis) is not None:
        for work in (partial(risk_of_record, model, found.record), model.usual):
            risk = risk or _tried("no risk", work)
    mask = None
    if prediction:
        mask = prediction.mask
        if not Grid.of(mask).same_as(found.grid):  # the CT's, whose voxels cannot be read
            mask = prediction.segmentation.on(found.grid)
    return Answer(prediction, mask, risk)


def _prediction(found: Salvaged, pipeline: Pipeline | None, on_stage: OnStage) -> Prediction | None:
    case = found.case
    if case is None:
        return None
    if pipeline is None or found.is_without_ct:  # networks see tumours in water
        return _tried("no mask", lambda: by_uptake(in_usual_suv(case), on_stage))
    # Beforehand: of several reasons for a refusal the pipeline names the first it comes to.
    usual = in_usual_suv(case)
    if usual is not case:
        note(f"refused, and answered all the same: {usual.findings[-1].text}")
    return pipeline(usual, on_stage, tolerant=True)


def by_uptake(case: Case, on_stage: OnStage | None = None) -> Prediction:
    """What takes up more than ``TUMOUR_SUV`` in the head and neck, sorted by the anatomy's rules.

    As primary and node are told apart by where they lie, this is a last resort and no method.
    """
    stages, region = Stages(on_stage), "head-neck"
    volume = prepare(case, PreprocessingSettings(), region, stages, tolerant=True)
    avid = (volume.raw[1] >= TUMOUR_SUV).astype(np.float32)
    for box, piece in lesions_of(avid > 0):
        if piece.sum() * volume.grid.voxel_ml > MOST_ML:
            avid[box][piece] = 0
    probabilities = np.stack([1 - avid, 0.5 * avid, 0.5 * avid])
    with stages("postprocess"):
        rules, windows = PostprocessingSettings(), PreprocessingSettings()
        labels = label_map(
            probabilities, volume.scaled, volume.grid, rules, region, windows, Grid.of(case.ct)
        )
    segmentation = Segmentation(volume, probabilities, labels)
    spacing = volume.grid.spacing[::-1]
    lesions = lesion_table(labels, volume.raw[0], volume.raw[1], spacing)
    text = f"no network: what takes up more than {TUMOUR_SUV:g} SUV is shown as tumour"
    findings = (*case.findings, *volume.findings, Finding(BY_UPTAKE, text))
    return Prediction(
        segmentation.on(Grid.of(case.ct)),
        lesions,
        None,
        Verdict.of(findings),
        (*case.notes, text),
        stages.timings,
        segmentation,
        staging=Stager()(segmentation, case.record, lesions),
    )


def risk_of_record(model: Prognosis, record: ClinicalRecord) -> Risk:
    """The risk where nothing is known of images and lesions: their part is the training mean's."""
    if model.knows_nothing(record):
        return model.usual()
    names = tuple(model.part.lesion_features)
    step = round(model.image_spacing_mm)
    x, y, z = (round(mm) // step for mm in PreprocessingSettings().size_mm)
    image = np.zeros((4, z, y, x), np.float32)
    image[1] = -1.0  # no uptake
    features, crops = (
        LesionFeatures(some, np.full(len(some), np.nan, np.float32))
        for some in (names, tuple(model.part.crop_features))
    )
    return model(LesionDescription(image, features, crops), record)


def _tried(what: str, work: Callable[[], T]) -> T | None:
    """What the work gives; None, and a word on it, where it fails."""
    try:
        return work()
    except Exception as error:
        note(f"{what}: {type(error).__name__}: {error}")
        return None
