"""Patients as the survival model sees them, described by networks that did not see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmvnet.bundle import Bundle, Manifest, fingerprint
from hmvnet.case import ClinicalRecord, Outcome, Outcomes
from hmvnet.config import InferenceSettings, Settings
from hmvnet.files import digest
from hmvnet.lesions.features import LesionFeatures
from hmvnet.prognosis.fusion import signed_log
from hmvnet.prognosis.member import NO_FEATURES, LesionDescription
from hmvnet.prognosis.risk import describe
from hmvnet.progress import REMARKS, print_lines, track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.segmentation.segmenter import Segmenter
from hmvnet.state import made_once, read_arrays, write_arrays
from hmvnet.training.cache import files_hash

CROPS_VERSION = 1  # alike, to features of crops
DESCRIPTION_VERSION = 8  # counts changes to masks and features that no setting shows
ENCODER_PREFIX = "encoder"  # names of pooled encoder features, see pool_encoder_features


class LeakError(ValueError):
    """A patient's lesions would be described by a network that was trained on that patient."""


def unseen_members(bundle: Bundle, patient_id: str) -> list[int]:
    """The members of a bundle's ensemble that were not trained on this patient.

    Raises:
        LeakError: there are none, or the bundle does not say what it was trained on.
    """
    seen = bundle.manifest.segmentation.all_seen
    if not bundle.says_whom_it_saw:
        raise LeakError(
            f"bundle '{bundle.manifest.name}' does not say which patients its networks, or what "
            "they started from, were trained on; train it with this version, or import it with "
            "--splits or --unseen"
        )
    mark = fingerprint(patient_id)
    members = [i for i, patients in enumerate(seen) if mark not in patients]
    if not members:
        raise LeakError(
            f"patient {patient_id}: every network of the bundle was trained on this patient; "
            "what it says of this one would be better than of a new patient"
        )
    return members


def networks_of(manifest: Manifest) -> tuple[dict[str, str], list[Any]]:
    """What masks hang on of a bundle's networks: their files' hashes, inputs and windows."""
    part = manifest.segmentation
    hashes = {file: manifest.files[file] for file in part.all_files}
    own = [(p.input and p.input.model_dump(mode="json"), p.windows) for p in part.parts]
    return hashes, own


@dataclass(frozen=True)
class Described:
    """A patient as the survival model sees them."""

    patient_id: str
    centre: str
    description: LesionDescription
    record: ClinicalRecord
    outcome: Outcome


class LesionDescriber:
    """Describes patients' lesions with the networks of a bundle that did not see them.

    Descriptions are kept on disk, keyed by the networks' hashes and the content of the patient's
    files. One that is gone or not what was written is made anew; processes may share them.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        image_spacing_mm: float,
        cache: Path,
        inference: InferenceSettings | None = None,
        crops: bool = False,
    ) -> None:
        self.bundle = bundle
        self.image_spacing_mm = image_spacing_mm
        self.crops = crops
        inference = (inference or InferenceSettings()).without_budget()
        self.segmenter = Segmenter(bundle, device, inference)
        manifest = bundle.manifest
        settings = (manifest.preprocessing, manifest.postprocessing, inference)
        key = digest(
            DESCRIPTION_VERSION,
            manifest.region,
            *networks_of(manifest),
            image_spacing_mm,
            *(s.model_dump(mode="json") for s in settings),
            *(["crops", CROPS_VERSION] if crops else []),
        )
        self.folder = cache / f"lesions-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, patient: Patient) -> Described:
        """One patient.

        Raises:
            LeakError: see ``unseen_members``.
            ValueError: the patient has no outcome.
        """
        if patient.outcome is None:
            raise ValueError(f"patient {patient.patient_id} has no outcome (RFS, Relapse)")
        members = unseen_members(self.bundle, patient.patient_id)
        key = digest(members, files_hash(patient))
        path = self.folder / f"{patient.patient_id}-{key}.npz"

        def make() -> dict[str, np.ndarray]:
            arrays = _arrays(self._describe(patient, members))
            write_arrays(path, **arrays)
            return arrays

        stored = made_once(path, lambda: read_arrays(path), make)
        features = LesionFeatures(tuple(stored["names"].tolist()), stored["values"])
        crops = NO_FEATURES
        if self.crops:
            crops = LesionFeatures(tuple(stored["crop_names"].tolist()), stored["crop_values"])
        description = LesionDescription(stored["image"].astype(np.float32), features, crops)
        return Described(
            patient.patient_id, patient.centre, description, patient.record, patient.outcome
        )

    def _describe(self, patient: Patient, members: Sequence[int]) -> LesionDescription:
        case = patient.read()
        REMARKS.tell(patient.patient_id, case.notes)
        return describe(self.segmenter.only(members)(case), self.image_spacing_mm, self.crops)


def _arrays(description: LesionDescription) -> dict[str, np.ndarray]:
    """What is kept on disk."""
    return {
        "image": description.image.astype(np.float16),
        "names": np.array(description.features.names, dtype=str),
        "values": description.features.values,
        "crop_names": np.array(description.crops.names, dtype=str),
        "crop_values": description.crops.values,
    }


def outcomes_of(patients: Iterable[Patient | Described]) -> Outcomes:
    """The follow-up of patients who have one."""
    return Outcomes.of(p.outcome for p in patients if p.outcome)


def handcrafted(patients: Sequence[Described]) -> np.ndarray:
    """The patients' hand-crafted lesion features, signed logarithm, ``[n, p]``; NaN = missing."""
    values = np.stack([p.description.features.values for p in patients])
    return signed_log(torch.from_numpy(values[:, : handcrafted_count(patients)])).double().numpy()


def handcrafted_count(patients: Sequence[Described]) -> int:
    """They come first; the encoder's follow."""
    names = patients[0].description.features.names
    return sum(not name.startswith(ENCODER_PREFIX) for name in names)


def load_described(
    bundle: Bundle,
    settings: Settings,
    image_spacing_mm: float,
    run: Path,
    crops: bool = False,
    check: Callable[[Sequence[Patient]], object] = lambda patients: None,
) -> list[Described]:
    """Every patient with an outcome, described by networks that did not see them.

    Args:
        settings: where the data is, what its tables are called, how networks run.
        image_spacing_mm: of the images that the fusion network sees.
        run: where the descriptions are kept, unless ``data.cache`` says another place.
        crops: whether encoder features of the lesions' crops are wanted.
        check: told whom it is about before the networks run, so that it can refuse them.

    Raises:
        ValueError: as ``check``, no data, no outcomes, or (LeakError) a patient whom every network
            saw.
    """
    data, names = settings.data, settings.clinical.table_names
    if tables := settings.clinical.tables:
        raise ValueError(
            f"clinical.tables={' '.join(tables)}: a bundle's survival model sees lesions and wants "
            "images; expected no such setting (survival compare fits models to tables alone)"
        )
    patients = find_patients(data.root, names, need_labels=False)
    print_lines(patients.summary())
    followed = [p for p in patients if p.outcome is not None]
    if not followed:
        wanted = ", ".join(names.outcome)
        raise ValueError(f"no patient in '{data.root}' has an outcome ({wanted})")
    check(followed)
    cache = Path(data.cache or run / "cache")
    describer = LesionDescriber(
        bundle, pick_device(), image_spacing_mm, cache, settings.inference, crops
    )
    for patient in followed:
        unseen_members(bundle, patient.patient_id)  # leaks are found before the first is described
    return [describer(patient) for patient in track(followed, "segment and describe")]
