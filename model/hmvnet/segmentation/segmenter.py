"""A case to its segmentation: region, resampling, normalisation, networks, postprocessing.

The stages stand in a row here and nowhere else. ``prepare`` and ``label_map`` are what lies
before and behind the networks; the training cache, validation and tuning call the same two.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
import torch

from hmvnet.bundle import Bundle
from hmvnet.case import Case, CaseError, Finding, Grid
from hmvnet.config import InferenceSettings, PostprocessingSettings, PreprocessingSettings
from hmvnet.imaging.agreement import check_agreement, check_covered
from hmvnet.imaging.coarse import Coarse
from hmvnet.imaging.intensity import normalise, to_suv, with_usual_ct
from hmvnet.imaging.postprocess import postprocess
from hmvnet.imaging.resample import labels_onto, resample_pet_ct
from hmvnet.imaging.roi import centre_region, find_region
from hmvnet.segmentation.ensemble import load_ensemble
from hmvnet.segmentation.presence import asks_presence, without_doubtful
from hmvnet.segmentation.scan import Scan, Volume

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Segmentation:
    """A segmented case.

    Attributes:
        volume: the case on its working grid.
        probabilities: float32 ``[3, z, y, x]``, on ``field``'s grid.
        labels: uint8 ``[z, y, x]`` after postprocessing, on the working grid.
        encoder_maps: the encoder's stages, ``[c, z, y, x]`` each, over the working grid; empty for
            networks that give none and for bundles of several, whose channels have nothing in
            common.
        notes: what ran, what the time budget left out, and what ran otherwise than asked for.
        disagreement: of folds and flips, as ``NetworkOutput``'s.
        on_ct: where networks see the whole CT: the working region on the CT's own grid, and the
            labels there.
    """

    volume: Volume
    probabilities: np.ndarray
    labels: np.ndarray
    encoder_maps: tuple[np.ndarray, ...] = ()
    notes: tuple[str, ...] = ()
    on_ct: tuple[Volume, np.ndarray] | None = None
    disagreement: float | None = None

    @property
    def field(self) -> Volume:
        """What the probabilities were postprocessed with, on their grid."""
        return self.on_ct[0] if self.on_ct else self.volume

    def on(self, grid: Grid) -> sitk.Image:
        """The mask on another grid (the CT's), uint8."""
        volume, labels = self.on_ct or (self.volume, self.labels)
        return grid.image(labels_onto(labels, volume.grid, grid))


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


def prepare(
    case: Case,
    settings: PreprocessingSettings,
    region: str,
    stages: Stages | None = None,
    *,
    tolerant: bool = False,
) -> Volume:
    """What lies before the network: check, find the region, resample it once, normalise.

    Args:
        region: ``head-neck``, or ``centre`` for scans that hold no head.
        tolerant: whether what would be refused is a finding.

    Raises:
        CaseError: PET and CT do not belong together, or the PET is not in SUV.
    """
    stages = stages or Stages()
    with stages("check"):
        coarse = Coarse.of(case)
        try:
            findings = check_agreement(case, coarse)
        except CaseError as error:
            if not tolerant:
                raise
            findings = (Finding(error.code, str(error)),)
    with stages("region"):
        found = (find_region if region == "head-neck" else centre_region)(coarse, settings)
        if found.code:
            findings = (*findings, Finding(found.code, found.note))
        findings = (*findings, *check_covered(case, coarse, found.grid))
    with stages("resample"):
        raw = resample_pet_ct(case, found.grid)
    with stages("normalise"):
        return Volume(found, raw, normalise(raw, settings), findings)


def label_map(
    probabilities: np.ndarray,
    scaled: np.ndarray,
    grid: Grid,
    settings: PostprocessingSettings,
    region: str,
    preprocessing: PreprocessingSettings,
    ct_grid: Grid,
) -> np.ndarray:
    """What lies behind the network: probabilities ``[3, z, y, x]`` to labels, uint8 ``[z, y, x]``.

    Args:
        scaled: CT and PET as the network sees them, ``[2, z, y, x]``.
        grid: the working grid.
        region: as for ``prepare``; the rules on the head and neck's anatomy hold there only.
        preprocessing: by whose windows they were scaled.
        ct_grid: the CT's own grid, which may end inside the working grid.
    """
    rules, suv_window = settings.for_region(region), preprocessing.suv_window
    seen = with_usual_ct(scaled, preprocessing)
    labels = postprocess(probabilities, seen, grid, rules, suv_window, ct_grid)
    if not asks_presence(settings):
        return labels
    pet_suv = to_suv(scaled[1], suv_window)
    return without_doubtful(labels, probabilities, pet_suv, grid, settings)


class Segmenter:
    """A bundle's networks, loaded, with the pre- and postprocessing that belong to them."""

    def __init__(
        self, bundle: Bundle, device: torch.device, inference: InferenceSettings | None = None
    ) -> None:
        manifest = bundle.manifest
        self.preprocessing = manifest.preprocessing
        self.postprocessing = manifest.postprocessing
        self.region = manifest.region
        self.ensemble = load_ensemble(bundle, device, inference or InferenceSettings())
        self.is_single = len(self.ensemble.members) == 1

    def only(self, members: Sequence[int]) -> Segmenter:
        """With these of the ensemble's members alone, counted from 0."""
        other = copy.copy(self)
        other.ensemble = replace(self.ensemble, members=[self.ensemble.members[i] for i in members])
        return other

    def __call__(
        self, case: Case, stages: Stages | None = None, *, tolerant: bool = False
    ) -> Segmentation:
        """Segment one case.

        Args:
            stages: times the stages, and says which one runs.
            tolerant: as for ``prepare``.
        """
        stages = stages or Stages()
        volume = prepare(case, self.preprocessing, self.region, stages, tolerant=tolerant)
        scan = Scan(case, volume, self.ensemble.on_ct)
        with stages("network"):
            output = self.ensemble(scan)
        with stages("postprocess"):
            seen = self._on_ct(scan) if scan.on_ct else volume
            labels = label_map(
                output.probabilities,
                seen.scaled,
                seen.grid,
                self.postprocessing,
                self.region,
                self.preprocessing,
                Grid.of(case.ct),
            )
            on_ct = (seen, labels) if scan.on_ct else None
            if on_ct:
                labels = labels_onto(labels, seen.grid, volume.grid)
        maps = output.features if self.is_single else ()
        apart = output.disagreement
        return Segmentation(volume, output.probabilities, labels, maps, output.notes, on_ct, apart)

    def _on_ct(self, scan: Scan) -> Volume:
        """The working region on the CT's own grid."""
        z, y, x = scan.box
        raw = np.ascontiguousarray(scan.whole[:, z, y, x])
        region = replace(scan.volume.region, grid=scan.grid)
        return Volume(region, raw, normalise(raw, self.preprocessing), scan.volume.findings)
