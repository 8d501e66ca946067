"""Case to Prediction: segmentation, lesions, stage, risk, and what to be wary of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from hmvnet.bundle import Bundle, Manifest, find_bundle, load_bundle
from hmvnet.case import CLASSES, GTVN, GTVP, Case, CaseError, Finding, Grid, Verdict
from hmvnet.config import InferenceSettings
from hmvnet.exits import RefusedError
from hmvnet.imaging.resample import labels_onto
from hmvnet.lesions.table import Lesion, numbered_lesions
from hmvnet.prognosis.risk import Prognosis, Risk, describe
from hmvnet.reading.folder import checked_labels
from hmvnet.segmentation.confidence import lesion_confidences
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.segmentation.segmenter import OnStage, Segmentation, Segmenter, Stages
from hmvnet.settings_file import load_settings
from hmvnet.staging.estimate import Staging
from hmvnet.staging.stager import Stager

LOW_CONFIDENCE = 0.5
MOST_OUTSIDE = 0.1  # of a corrected mask's voxels
MOST_DISAGREEMENT = 0.15  # of folds and flips (docs/how-to/predict.md)
# Between one grid and another, of a class: a share of its volume, and mL.
MOST_APART, MOST_APART_ML = 0.1, 0.5
LEAST_SUV_MAX = 1.0  # the mean over a body; a lesion that takes up less was not seen in PET
# Of the settings, when predicting.
READ_SECTIONS = ("preprocessing", "postprocessing", "inference")
READ_SETTINGS = ("data.region", "data.interface")


@dataclass(frozen=True)
class Prediction:
    """What is said of one case.

    Attributes:
        mask: uint8 image on the CT grid: 0, 1 = GTVp, 2 = GTVn.
        lesions: a row a lesion, measured on the working grid.
        risk: None where it was not asked for.
        verdict: ``ok`` or ``review``, with the codes of what was found; the notes say it in words.
        notes: what a person should know before trusting this.
        timings: seconds a stage.
        segmentation: the working-grid arrays, for pictures.
        staging: T and N; None where the region is not the head and neck.
        confidences: for each lesion the mean probability of its class inside it.
    """

    mask: sitk.Image
    lesions: list[Lesion]
    risk: Risk | None
    verdict: Verdict
    notes: tuple[str, ...]
    timings: dict[str, float]
    segmentation: Segmentation = field(repr=False)
    staging: Staging | None = field(default=None, kw_only=True)
    confidences: tuple[float | None, ...] = field(default=(), kw_only=True)

    @cached_property
    def numbers(self) -> np.ndarray:
        """Where each lesion lies: its number in ``lesions``, from 1, uint16 ``[z, y, x]``."""
        volume = self.segmentation.volume
        ct_hu, pet_suv = volume.raw
        spacing = volume.grid.spacing[::-1]
        return numbered_lesions(self.segmentation.labels, ct_hu, pet_suv, spacing)[1]


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
        self.stager = Stager.of(bundle) if bundle.manifest.region == "head-neck" else None
        self.findings = tuple(_unlike_training(bundle))
        elsewhere = bundle.manifest.region != bundle.stored.region
        self.prognosis = Prognosis(bundle) if needs_risk else None
        if needs_risk and elsewhere:
            self.prognosis = None
            self.notes += (f"no risk: the survival model is of {bundle.stored.region} alone",)

    def __call__(
        self,
        case: Case,
        on_stage: OnStage | None = None,
        mask: sitk.Image | None = None,
        *,
        tolerant: bool = False,
    ) -> Prediction:
        """Segment one case, stage it and, where wanted, predict its risk.

        Args:
            on_stage: told the name of every stage as it begins.
            mask: labels on the CT's grid that somebody corrected, in the place of the network's;
                lesions, stage and risk are then those of it.
            tolerant: whether what would be refused is a finding, and a stage or a risk that fails
                a note.

        Raises:
            CaseError: PET and CT do not belong together, or the mask has other labels than 0, 1
                and 2, is not on the CT's grid or leaves the working region.
        """
        stages = Stages(on_stage)
        if mask is not None:
            mask = checked_labels(mask, "the corrected mask")
        segmentation = self.segmenter(case, stages, tolerant=tolerant)
        with stages("mask"):
            if mask is None:
                mask = segmentation.on(Grid.of(case.ct))
            else:
                segmentation = _corrected(segmentation, mask, Grid.of(case.ct))
        with stages("lesions"):
            ct_hu, pet_suv = segmentation.volume.raw
            spacing = segmentation.volume.grid.spacing[::-1]
            lesions, numbers = numbered_lesions(segmentation.labels, ct_hu, pet_suv, spacing)
            sure = lesion_confidences(segmentation, numbers, [one.label for one in lesions])
        failed: list[str] = []
        staging, risk = None, None
        if (stager := self.stager) is not None:
            with stages("stage"), _noted("stage", tolerant, failed):
                staging = stager(segmentation, case.record, lesions)
        if (model := self.prognosis) is not None:
            with stages("risk"), _noted("risk", tolerant, failed):
                seen = describe(segmentation, model.image_spacing_mm, model.wants_crops)
                risk = model(seen, case.record)
        findings = (
            *segmentation.volume.findings,
            *self.findings,
            *_doubtful(lesions, self.manifest, segmentation.disagreement),
            *_cut(segmentation, Grid.of(case.ct)),
            *_apart(segmentation, mask, lesions, numbers),
        )
        return Prediction(
            mask,
            lesions,
            risk,
            Verdict.of((*case.findings, *findings)),
            (*case.notes, *_notes(segmentation, findings, risk), *failed, *self.notes),
            stages.timings,
            segmentation,
            staging=staging,
            confidences=sure,
        )


def load_pipeline(
    weights: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    *,
    needs_risk: bool | None = None,
) -> Pipeline:
    """A bundle's pipeline, with settings in the place of its own.

    Args:
        weights: as for ``hmvnet.bundle.find_bundle``.
        device: as for ``hmvnet.segmentation.ensemble.pick_device``.
        overrides: ``section.name=value``, of ``preprocessing``, ``postprocessing`` and
            ``inference``, or ``data.region`` and ``data.interface``.
        needs_risk: whether the survival model is wanted; None: where the bundle has one.

    Raises:
        RefusedError: no such bundle or device, a damaged bundle, a setting that is unknown, out of
            range or not read here.
    """
    (bundle, notes), settings = adjusted_bundle(weights, overrides), load_settings(None, overrides)
    place = pick_device(device)
    if needs_risk is None:
        needs_risk = bundle.manifest.prognosis is not None
    return Pipeline(bundle, place, settings.inference, needs_risk=needs_risk, notes=notes)


def adjusted_bundle(
    weights: str | Path | None, overrides: Sequence[str]
) -> tuple[Bundle, tuple[str, ...]]:
    """The bundle of :func:`load_pipeline`, no network loaded yet, and notes on what was changed."""
    for override in overrides:
        name = override.partition("=")[0].strip()
        if name.partition(".")[0] not in READ_SECTIONS and name not in READ_SETTINGS:
            raise RefusedError(
                f"setting '{name}': prediction reads {', '.join(READ_SETTINGS)} and the sections "
                f"{', '.join(READ_SECTIONS)}"
            )
    settings = load_settings(None, overrides)
    return load_bundle(find_bundle(weights)).adjusted(settings)


@contextmanager
def _noted(what: str, tolerant: bool, notes: list[str]) -> Iterator[None]:
    """What fails is a note, where that is tolerated."""
    try:
        yield
    except Exception as error:
        if not tolerant:
            raise
        notes.append(f"no {what}: {type(error).__name__}: {error}")


def _corrected(segmentation: Segmentation, mask: sitk.Image, ct: Grid) -> Segmentation:
    """A segmentation with a mask's labels in the place of the network's."""
    if not Grid.of(mask).same_as(ct, tolerance_mm=0.1):
        raise CaseError("the corrected mask is not on the CT's grid, expected its size and place")
    grid, array, place = segmentation.volume.grid, sitk.GetArrayFromImage(mask), Grid.of(mask)
    drawn = np.argwhere(array > 0)[:, ::-1]
    outside = (grid.depth(place.points(drawn)) < 0).mean() if len(drawn) else 0.0
    if outside > MOST_OUTSIDE:
        raise CaseError(
            f"the corrected mask leaves the region that is looked at: {outside:.0%} of it lies "
            f"beyond, expected at most {MOST_OUTSIDE:.0%}"
        )
    labels = labels_onto(array, place, grid)
    notes = [*segmentation.notes, "the mask is a corrected one, not the network's"]
    given, kept = len(drawn) * place.voxel_ml, (labels > 0).sum() * grid.voxel_ml
    if given > 1.1 * kept + 10 * place.voxel_ml:
        notes.append(
            f"of the corrected mask's {given:.2f} mL lesions are measured on "
            f"{kept:.2f} mL: thin parts lie between voxels of {grid.spacing[0]:g} mm"
        )
    on_ct = segmentation.on_ct
    if on_ct:
        on_ct = (on_ct[0], labels_onto(array, place, on_ct[0].grid))
    return replace(segmentation, labels=labels, notes=tuple(notes), disagreement=None, on_ct=on_ct)


def _doubtful(
    lesions: list[Lesion], manifest: Manifest, disagreement: float | None
) -> Iterator[Finding]:
    """What is doubtful about the lesions of a head-and-neck cancer that was scanned for."""
    if not lesions:
        yield Finding("no-lesion", "no lesion found")
    if cold := [lesion for lesion in lesions if lesion.suv_max < LEAST_SUV_MAX]:
        lowest = min(lesion.suv_max for lesion in cold)
        yield Finding(
            "cold-lesion",
            f"{len(cold)} of {len(lesions)} lesions with a SUVmax below {LEAST_SUV_MAX:g} "
            f"(lowest {lowest:.2f})",
        )
    for kind, (least, most) in manifest.volumes_ml.items():
        total = sum(one.volume_ml for one in lesions if CLASSES[one.label] == kind)
        if total and not least <= total <= most:
            yield Finding(
                "volume",
                f"{kind} of {total:.1f} mL in all, the training patients' had {least:.1f} to "
                f"{most:.1f}",
            )
    if disagreement is not None and disagreement > MOST_DISAGREEMENT:
        yield Finding(
            "disagreement",
            f"folds or flips of the network disagree on {disagreement:.0%} of the tumour, expected "
            f"at most {MOST_DISAGREEMENT:.0%}",
        )


def _unlike_training(bundle: Bundle) -> Iterator[Finding]:
    """Whether the networks are shown something else than what they were trained on."""
    if bundle.manifest.other_settings:
        yield Finding(
            "other-settings",
            "the networks were trained with another region or preprocessing than was asked for",
        )


def _cut(segmentation: Segmentation, ct: Grid) -> Iterator[Finding]:
    """Whether a lesion goes on where the CT, or the region that is looked at, has ended."""
    grid = segmentation.volume.grid
    voxels = np.argwhere(segmentation.labels)
    if not len(voxels):
        return
    points = grid.points(voxels[:, ::-1])
    # The last centre inside the CT lies up to a voxel of the working grid from its face; the last
    # slice of a CT that is coarser reaches half of its own.
    from_ct, from_grid = max(*grid.spacing, 0.5 * max(ct.spacing)), 0.5 * max(grid.spacing)
    ends = (("CT", ct, from_ct), ("region that is looked at", grid, from_grid))
    for name, shown, nearest in ends:
        if (shown.depth(points) <= 1.01 * nearest).any():
            yield Finding(
                "lesion-cut",
                f"a lesion reaches the end of the {name}: what is beyond it is not measured",
            )


def _apart(
    segmentation: Segmentation, mask: sitk.Image, lesions: Sequence[Lesion], numbers: np.ndarray
) -> Iterator[Finding]:
    """Whether the mask on the CT's grid shows other volumes than are measured, or lacks lesions."""
    shown, grid, apart = sitk.GetArrayViewFromImage(mask), segmentation.volume.grid, set[int]()
    for kind in (GTVP, GTVN):
        table = np.count_nonzero(segmentation.labels == kind) * grid.voxel_ml
        image = np.count_nonzero(shown == kind) * Grid.of(mask).voxel_ml
        most = max(MOST_APART_ML, MOST_APART * max(table, image))
        if abs(table - image) > most or bool(table) != bool(image):
            apart.add(kind)
            yield Finding(
                "mask-apart",
                f"{CLASSES[kind]}: {image:.1f} mL in the mask on the CT's grid, {table:.1f} mL in "
                "the table of lesions",
            )
    voxels = Grid.of(mask).points(np.argwhere(shown)[:, ::-1])
    at = np.rint(grid.indices(voxels)).astype(int)[:, ::-1]
    at = at[((at >= 0) & (at < grid.shape)).all(axis=1)]
    there = {*numbers[tuple(at.T)].tolist()}
    for number, lesion in enumerate(lesions, start=1):
        if number not in there and lesion.label not in apart:
            yield Finding(
                "mask-apart",
                f"lesion {number} ({CLASSES[lesion.label]}, {lesion.volume_ml:.2f} mL) of the "
                "table is not in the mask: it lies between voxels of the CT's grid",
            )


def _notes(
    segmentation: Segmentation, findings: Sequence[Finding], risk: Risk | None
) -> tuple[str, ...]:
    notes = [finding.text for finding in findings]
    region = segmentation.volume.region
    if region.note and not region.code:
        notes.append(region.note)
    if region.confidence < LOW_CONFIDENCE and region.landmark != "centre":
        notes.append(f"low confidence in the head-and-neck region ({region.confidence:.2f})")
    if risk:
        notes.extend(risk.notes)
    return (*notes, *segmentation.notes)
