"""Case to Prediction: the only place where the stages are put in a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from hmvnet.case import CLASSES, Case, Grid
from hmvnet.config import InferenceSettings, PostprocessingSettings, PreprocessingSettings
from hmvnet.imaging.intensity import normalise
from hmvnet.imaging.postprocess import postprocess
from hmvnet.imaging.resample import labels_onto, resample_pet_ct
from hmvnet.imaging.roi import Region, centre_region, find_region
from hmvnet.lesions.table import Lesion, lesion_table
from hmvnet.prognosis import LesionDescription, Prognosis, Risk, describe
from hmvnet.runtime import Ensemble, Forward, OnnxForward, TorchForward, load_network
from hmvnet.weights import Bundle

LOW_CONFIDENCE = 0.5

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Segmentation:
    """A segmented case on its working grid.

    Attributes:
        region: where the working grid lies and how sure that is.
        raw: float32 ``[2, z, y, x]``, CT in HU and PET in SUV.
        volume: the same, normalised: what the network saw.
        probabilities: float32 ``[3, z, y, x]``.
        labels: uint8 ``[z, y, x]`` after postprocessing.
        encoder_maps: HM-VNet's stages, ``[c, z, y, x]`` each.
    """

    region: Region
    raw: np.ndarray
    volume: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray
    encoder_maps: tuple[np.ndarray, ...]

    def on(self, grid: Grid) -> sitk.Image:
        """The mask on another grid (the CT's), uint8."""
        return grid.image(labels_onto(self.labels, self.region.grid, grid))


@dataclass(frozen=True)
class Prediction:
    """What is said of one case.

    Attributes:
        mask: uint8 image on the CT grid: 0, 1 = GTVp, 2 = GTVn.
        lesions: a row a lesion, measured on the working grid.
        risk: None where Task 2 was not asked for.
        flags: what a person should know before trusting this.
        timings: seconds a stage.
        segmentation: the working-grid arrays, for pictures.
    """

    mask: sitk.Image
    lesions: list[Lesion]
    risk: Risk | None
    flags: tuple[str, ...]
    timings: dict[str, float]
    segmentation: Segmentation = field(repr=False)


class Stages:
    """Names the stage that runs, and times it."""

    def __init__(self, on_stage: OnStage | None = None) -> None:
        self.on_stage = on_stage
        self.timings: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.on_stage:
            self.on_stage(name)
        began = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - began


def segment(
    case: Case,
    ensemble: Ensemble,
    preprocessing: PreprocessingSettings,
    postprocessing: PostprocessingSettings,
    stages: Stages,
    region: str = "head-neck",
) -> tuple[Segmentation, str]:
    """Region, resampling, network and postprocessing; also the network's log line."""
    with stages("region"):
        found = (find_region if region == "head-neck" else centre_region)(case, preprocessing)
    with stages("resample"):
        raw = resample_pet_ct(case, found.grid)
    with stages("normalise"):
        volume = normalise(raw, preprocessing)
    with stages("network"):
        output = ensemble(volume)
    with stages("postprocess"):
        rules = postprocessing.for_region(region)
        labels = postprocess(output.probabilities, volume[0], found.grid, rules)
    segmentation = Segmentation(found, raw, volume, output.probabilities, labels, output.features)
    return segmentation, output.log


def load_ensemble(bundle: Bundle, device: torch.device, settings: InferenceSettings) -> Ensemble:
    """The bundle's segmentation networks, ready to run on a device.

    With the ``onnx`` back end a fold whose ONNX file is not there, or cannot run on the device,
    falls back to torch; the ensemble's log says so.
    """
    part = bundle.manifest.segmentation
    members: list[Forward] = []
    notes = []
    for file in part.files:
        if settings.backend == "onnx":
            try:
                members.append(OnnxForward(bundle.read(Path(file).stem + ".onnx"), device))
                continue
            except (ImportError, RuntimeError) as error:
                notes.append(f"{file}: torch instead of ONNX Runtime ({error})")
        network = load_network(bundle, file)
        members.append(TorchForward(network, device, part.patch_size, settings.precision))
    return Ensemble(members, settings.flips, settings.time_budget_s, tuple(notes))


class Pipeline:
    """A loaded bundle that turns cases into predictions."""

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        inference: InferenceSettings | None = None,
        *,
        needs_risk: bool = True,
    ) -> None:
        self.manifest = bundle.manifest
        self.ensemble = load_ensemble(bundle, device, inference or InferenceSettings())
        self.prognosis = Prognosis(bundle) if needs_risk else None
        assert self.manifest.classes == list(CLASSES)

    def __call__(self, case: Case, on_stage: OnStage | None = None) -> Prediction:
        """Segment one case and, where wanted, predict its risk.

        Args:
            on_stage: told the name of every stage as it begins.
        """
        stages = Stages(on_stage)
        manifest = self.manifest
        segmentation, log = segment(
            case,
            self.ensemble,
            manifest.preprocessing,
            manifest.postprocessing,
            stages,
            manifest.region,
        )
        with stages("mask"):
            mask = segmentation.on(Grid.of(case.ct))
        spacing = segmentation.region.grid.spacing
        with stages("lesions"):
            ct_hu, pet_suv = segmentation.raw
            lesions = lesion_table(segmentation.labels, ct_hu, pet_suv, spacing[::-1])
        risk = None
        if self.prognosis:
            with stages("risk"):
                description = self.describe(segmentation, self.prognosis.image_spacing_mm)
                risk = self.prognosis(description, case.record)
        flags = _flags(case, segmentation, lesions, risk, log)
        return Prediction(mask, lesions, risk, flags, stages.timings, segmentation)

    def describe(self, segmentation: Segmentation, image_spacing_mm: float) -> LesionDescription:
        """What the fusion network is given of a segmented case."""
        return describe(
            segmentation.raw,
            segmentation.volume,
            segmentation.labels,
            segmentation.encoder_maps,
            self.manifest.preprocessing.spacing_mm,
            image_spacing_mm,
        )


def _flags(
    case: Case, segmentation: Segmentation, lesions: list[Lesion], risk: Risk | None, log: str
) -> tuple[str, ...]:
    flags = list(case.warnings)
    region = segmentation.region
    if region.note:
        flags.append(region.note)
    if region.confidence < LOW_CONFIDENCE:
        flags.append(f"low confidence in the head-and-neck region ({region.confidence:.2f})")
    if not lesions:
        flags.append("no lesion found")
    if risk:
        flags.extend(risk.notes)
    return (*flags, log)
