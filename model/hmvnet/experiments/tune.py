"""Choosing the postprocessing of a bundle on patients that its networks did not see.

The networks run once, of an ensemble those that did not see the patient; each setting is then tried
in turn, the others held (coordinate search), against the figures of 2025 or of 2026. They want
different things: a speck costs Dice nothing and F1 a whole lesion, and where 2026 asks for the mean
Dice of nodes, a false node of a patient without any costs a whole patient.

For that decision, is the class there at all, a logistic model of what was found is fitted, and its
threshold chosen on chances that were cross-fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hmvnet.bundle import Manifest, load_bundle, refuse_loss, write_bundle
from hmvnet.case import Grid
from hmvnet.config import PostprocessingSettings, PreprocessingSettings, Settings
from hmvnet.files import replacing
from hmvnet.imaging.intensity import to_suv
from hmvnet.imaging.resample import labels_onto
from hmvnet.progress import REMARKS, print_lines, print_notes, track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.segmentation import metrics
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.segmentation.presence import NAMES, chance, evidence
from hmvnet.segmentation.segmenter import Segmenter, label_map
from hmvnet.state import claiming_run
from hmvnet.training.descriptions import unseen_members
from hmvnet.training.segmentation_bundle import BUNDLE

CANDIDATES: Mapping[str, Sequence[float]] = {
    "airway_mm": (0.0, 15.0, 20.0, 30.0),
    "threshold_gtvp": (0.2, 0.3, 0.4, 0.5, 0.6),
    "threshold_gtvn": (0.2, 0.3, 0.4, 0.5, 0.6),
    "min_ml_gtvp": (0.1, 0.2, 0.5, 1.0),
    "min_ml_gtvn": (0.05, 0.1, 0.2, 0.3, 0.5),
    "min_suv_peak_gtvp": (0.0, 1.5, 2.0, 2.5, 3.0),
    "min_suv_peak_gtvn": (0.0, 1.5, 2.0, 2.5, 3.0),
}
TUNED = "tuned_on"  # in the metrics of a bundle that was made here
LEAST_PRESENCE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LEAST_WITHOUT = 5  # patients in whom the class was found and is not, to fit its chance
PRESENCE_FOLDS = 5
PRESENCE_ROUNDS = 3
SCORES: Mapping[str, tuple[str, ...]] = {
    "2025": ("gtvp_mean_dice", "gtvn_aggregated_dice", "gtvn_aggregated_f1"),
    "2026": ("gtvp_mean_dice", "gtvn_mean_dice"),
}


@dataclass(frozen=True)
class Kept:
    """One patient's network output; the arrays lie on disk, in single or half precision.

    Attributes:
        scaled: CT and PET as the network sees them, ``[2, z, y, x]``.
    """

    patient_id: str
    grid: Grid
    ct_grid: Grid
    probabilities: np.ndarray
    scaled: np.ndarray
    truth: np.ndarray


@claiming_run
def tune(
    settings: Settings,
    weights: Path,
    run: Path,
    limit: int,
    console: Console,
    score: str = "2025",
) -> Path:
    """Write ``<run>/bundle``: the bundle with the best postprocessing found.

    Args:
        score: whose figures it is to be best by, a year of ``SCORES``.

    Raises:
        ValueError: no data, or (LeakError) a patient that all of the bundle's networks saw.
        RefusedError: the bundle that is there holds other networks.
    """
    bundle, notes = load_bundle(weights).adjusted(settings)
    print_notes(console, notes)
    refuse_loss(run / BUNDLE, bundle, _is_tuned)
    found = find_patients(settings.data.root, settings.clinical.table_names)
    print_lines(found.summary())
    patients = found[: limit or None]
    members = [unseen_members(bundle, p.patient_id) for p in patients]
    segmenter = Segmenter(bundle, pick_device(), settings.inference.without_budget())
    run.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=run) as folder:
        kept = [
            _run(patient, segmenter.only(unseen), Path(folder))
            for patient, unseen in track(list(zip(patients, members)), "segment")
        ]
        manifest = bundle.manifest
        rules = manifest.postprocessing.for_region(manifest.region)
        best = Search(kept, manifest.region, manifest.preprocessing, score, console)(rules)
    if bundle.manifest.prognosis or bundle.manifest.staging:
        console.print("[yellow]note[/] other models were fitted to other masks: left out")
    said = {"patients": len(kept), "score": score, "data": Path(settings.data.root).resolve().name}
    changed = {"postprocessing": best, "metrics": manifest.metrics | {TUNED: said}}
    manifest = manifest.model_copy(update={"prognosis": None, "staging": None, **changed})
    files = {name: bundle.tensors(name) for name in manifest.segmentation.all_files}
    return write_bundle(run / BUNDLE, manifest, files)


def _is_tuned(there: Manifest) -> bool:
    """Whether it is as ``tune`` left it: what is trained on top of that inherits the mark."""
    return TUNED in there.metrics and not (there.prognosis or there.staging)


@dataclass(frozen=True)
class Search:
    """A search for the settings of the highest mean of a year's figures.

    Attributes:
        kept: the patients.
        region, preprocessing: as for ``hmvnet.segmentation.segmenter.label_map``.
        score: a year of ``SCORES``.
    """

    kept: Sequence[Kept]
    region: str
    preprocessing: PreprocessingSettings
    score: str
    console: Console

    def __call__(self, start: PostprocessingSettings) -> PostprocessingSettings:
        """The best settings found, from these on."""
        best, masks = start, self._masks(start)
        highest = self._figure(masks)
        self.console.print(f"{_text(start)}: {highest:.4f}")
        for name, values in CANDIDATES.items():
            if name == "airway_mm" and not start.airway_mm:
                continue
            for value in values:
                if value == getattr(best, name):
                    continue
                other = best.model_copy(update={name: value})
                figure = self._figure(found := self._masks(other))
                if figure > highest:
                    best, masks, highest = other, found, figure
                    self.console.print(f"{_text(best)}: {highest:.4f}")
        for label, name in NAMES.items():
            best, masks = self._presence(best, masks, label, name)
        return best

    def _presence(
        self, best: PostprocessingSettings, masks: list[np.ndarray], label: int, name: str
    ) -> tuple[PostprocessingSettings, list[np.ndarray]]:
        """With the decision whether the class is there at all, where that gains something.

        One that the settings have already stays where no other can be fitted, or none is better.
        """
        start, start_masks = best, masks
        best = best.model_copy(
            update={f"presence_{name}": (0.0,) * 4, f"least_presence_{name}": 0.0}
        )
        if best != start:  # without what it had taken away
            masks = self._masks(best)
        found = {i: e for i, mask in enumerate(masks) if len(e := self._evidence(i, mask, label))}
        there = np.array([(self.kept[i].truth == label).any() for i in found], dtype=bool)
        if there.sum() < LEAST_WITHOUT or (~there).sum() < LEAST_WITHOUT:
            self.console.print(
                f"{name}: found in {len(found)} patients, {int((~there).sum())} of them without: "
                f"too few to fit its chance (at least {LEAST_WITHOUT} with and without)"
            )
            return start, start_masks
        chances = cross_fitted_chances(list(found.values()), there)
        highest, choice = self._figure(masks), 0.0
        for least in LEAST_PRESENCE[1:]:
            gone = {i for i, p in zip(found, chances) if p < least}
            figure = self._figure(without_class(masks, gone, label))
            if figure > highest:
                highest, choice = figure, least
        if best != start and (before := self._figure(start_masks)) >= highest:
            self.console.print(f"{name}: the decision whether it is there stays: {before:.4f}")
            return start, start_masks
        presence = fit_presence(list(found.values()), there)
        self.console.print(f"{name}: absent where its chance is below {choice:g}: {highest:.4f}")
        update = {f"presence_{name}": presence, f"least_presence_{name}": choice}
        gone = {i for i, p in zip(found, chances) if p < choice}
        return best.model_copy(update=update), without_class(masks, gone, label)

    def _evidence(self, index: int, mask: np.ndarray, label: int) -> np.ndarray:
        """Variables of each lesion of a class in one patient, ``[lesions, 3]``."""
        one = self.kept[index]
        window = self.preprocessing.suv_window
        pet_suv = to_suv(np.asarray(one.scaled[1], np.float32), window)
        lesions = evidence(mask, np.asarray(one.probabilities), pet_suv, one.grid, label)
        return np.array([lesion.variables for lesion in lesions])

    def _masks(self, settings: PostprocessingSettings) -> list[np.ndarray]:
        def mask(one: Kept) -> np.ndarray:
            found, seen = (np.asarray(a, np.float32) for a in (one.probabilities, one.scaled))
            rules = (settings, self.region, self.preprocessing)
            return label_map(found, seen, one.grid, *rules, one.ct_grid)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # scipy and cc3d free the GIL
            return list(pool.map(mask, self.kept))

    def _figure(self, masks: Sequence[np.ndarray]) -> float:
        def score(one: Kept, mask: np.ndarray) -> metrics.CaseScore:
            spacing = one.grid.spacing[::-1]
            return metrics.score_case(mask, np.asarray(one.truth), spacing, one.patient_id)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            total = metrics.aggregate(list(pool.map(score, self.kept, masks)))
        return float(np.mean([getattr(total, figure) for figure in SCORES[self.score]]))


def without_class(masks: Sequence[np.ndarray], gone: Set[int], label: int) -> list[np.ndarray]:
    """The masks, those of the patients in ``gone`` less a class."""
    return [np.where(m == label, 0, m) if i in gone else m for i, m in enumerate(masks)]


def fit_presence(lesions: Sequence[np.ndarray], there: np.ndarray) -> tuple[float, ...]:
    """Intercept and weights of the chance that a class is there.

    A logistic regression of the likeliest lesion, as the model itself sees it: fitted to the
    largest of each patient first, then to the one that the fit before finds likeliest.

    Args:
        lesions: variables of each patient's lesions, ``[lesions, 3]`` each.
        there: bool ``[n]``, whether the patient has any.
    """
    chosen = np.stack([one[one[:, 0].argmax()] for one in lesions])
    presence: tuple[float, ...] = ()
    for _ in range(PRESENCE_ROUNDS):
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(chosen, there)
        scaler, logistic = model[0], model[1]
        weights = logistic.coef_[0] / scaler.scale_
        intercept = logistic.intercept_[0] - weights @ scaler.mean_
        presence = (float(intercept), *(float(w) for w in weights))
        chosen = np.stack([one[chance(presence, one).argmax()] for one in lesions])
    return presence


def cross_fitted_chances(lesions: Sequence[np.ndarray], there: np.ndarray) -> np.ndarray:
    """Each patient's chance by a model that was fitted to the others, ``[n]``."""
    folds = min(PRESENCE_FOLDS, int(there.sum()), int((~there).sum()))
    chances = np.empty(len(there))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    for train, test in splitter.split(there, there):
        presence = fit_presence([lesions[i] for i in train], there[train])
        chances[test] = [chance(presence, lesions[i]).max() for i in test]
    return chances


def _run(patient: Patient, segmenter: Segmenter, folder: Path) -> Kept:
    case = patient.read()
    REMARKS.tell(patient.patient_id, case.notes)
    assert case.truth is not None
    found = segmenter(case)
    grid = found.field.grid
    truth = labels_onto(sitk.GetArrayFromImage(case.truth), Grid.of(case.truth), grid)
    scaled = found.field.scaled.astype(np.float16)
    stored = []
    for number, array in enumerate((found.probabilities.astype(np.float16), scaled, truth)):
        path = folder / f"{patient.patient_id}.{number}"
        with replacing(path) as temporary:  # numpy does not say when there was no room for the end
            temporary.write_bytes(np.ascontiguousarray(array).data)
        stored.append(np.memmap(path, array.dtype, "r", shape=array.shape))
    return Kept(patient.patient_id, grid, Grid.of(case.ct), *stored)


def _text(settings: PostprocessingSettings) -> str:
    return ", ".join(f"{name} {getattr(settings, name):g}" for name in CANDIDATES)
