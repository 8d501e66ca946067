"""One call for the pipeline: a segmented patient to T and N."""

from __future__ import annotations

from collections.abc import Sequence

from hmvnet.bundle import Bundle
from hmvnet.case import ClinicalRecord
from hmvnet.lesions.midline import find_midplane
from hmvnet.lesions.table import Lesion, lesion_table
from hmvnet.segmentation.segmenter import Segmentation
from hmvnet.staging.estimate import Staging
from hmvnet.staging.rule import stage_by_rule


class Stager:
    """Stages patients: by a bundle's model where it has one, else by AJCC's rule."""

    def __init__(self) -> None:
        """By the rule."""

    @classmethod
    def of(cls, bundle: Bundle) -> Stager:
        """With the bundle's model, where it has one."""
        return cls()

    def __call__(
        self,
        segmentation: Segmentation,
        record: ClinicalRecord,
        lesions: Sequence[Lesion] | None = None,
    ) -> Staging:
        """T and N of a patient.

        Args:
            lesions: of ``lesion_table`` on the segmentation, where they are known already.
        """
        labels, (ct_hu, pet_suv) = segmentation.labels, segmentation.volume.raw
        spacing = segmentation.volume.grid.spacing[::-1]
        if lesions is None:
            lesions = lesion_table(labels, ct_hu, pet_suv, spacing)
        return stage_by_rule(lesions, find_midplane(labels, ct_hu, spacing))
