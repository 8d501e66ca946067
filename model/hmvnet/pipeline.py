"""Case to Prediction: segmentation, lesions, risk, and what to be wary of."""

from __future__ import annotations

from dataclasses import dataclass, field

import SimpleITK as sitk
import torch

from hmvnet.bundle import Bundle
from hmvnet.case import Case, Grid
from hmvnet.config import InferenceSettings
from hmvnet.lesions.table import Lesion, lesion_table
from hmvnet.prognosis.risk import Prognosis, Risk, describe
from hmvnet.segmentation.segmenter import OnStage, Segmentation, Segmenter, Stages

LOW_CONFIDENCE = 0.5


@dataclass(frozen=True)
class Prediction:
    """What is said of one case.

    Attributes:
        mask: uint8 image on the CT grid: 0, 1 = GTVp, 2 = GTVn.
        lesions: a row a lesion, measured on the working grid.
        risk: None where it was not asked for.
        notes: what a person should know before trusting this.
        timings: seconds a stage.
        segmentation: the working-grid arrays, for pictures.
    """

    mask: sitk.Image
    lesions: list[Lesion]
    risk: Risk | None
    notes: tuple[str, ...]
    timings: dict[str, float]
    segmentation: Segmentation = field(repr=False)


class Pipeline:
    """A loaded bundle that turns cases into predictions."""

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        inference: InferenceSettings | None = None,
        *,
        needs_risk: bool = True,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Load the networks.

        Args:
            needs_risk: whether to load the survival model as well.
            notes: to be said of every case, as of settings that are not the bundle's own.
        """
        self.manifest = bundle.manifest
        self.device = device
        self.notes = notes
        self.segmenter = Segmenter(bundle, device, inference)
        self.prognosis = Prognosis(bundle) if needs_risk else None

    def __call__(self, case: Case, on_stage: OnStage | None = None) -> Prediction:
        """Segment one case and, where wanted, predict its risk.

        Args:
            on_stage: told the name of every stage as it begins.
        """
        stages = Stages(on_stage)
        segmentation = self.segmenter(case, stages)
        with stages("mask"):
            mask = segmentation.on(Grid.of(case.ct))
        with stages("lesions"):
            ct_hu, pet_suv = segmentation.volume.raw
            spacing = segmentation.volume.grid.spacing[::-1]
            lesions = lesion_table(segmentation.labels, ct_hu, pet_suv, spacing)
        risk = None
        if self.prognosis:
            with stages("risk"):
                description = describe(segmentation, self.prognosis.image_spacing_mm)
                risk = self.prognosis(description, case.record)
        notes = (*_notes(case, segmentation, lesions, risk), *self.notes)
        return Prediction(mask, lesions, risk, notes, stages.timings, segmentation)


def _notes(
    case: Case, segmentation: Segmentation, lesions: list[Lesion], risk: Risk | None
) -> tuple[str, ...]:
    notes = list(case.notes)
    region = segmentation.volume.region
    if region.note:
        notes.append(region.note)
    if region.confidence < LOW_CONFIDENCE:
        notes.append(f"low confidence in the head-and-neck region ({region.confidence:.2f})")
    if not lesions:
        notes.append("no lesion found")
    if risk:
        notes.extend(risk.notes)
    return (*notes, *segmentation.notes)
