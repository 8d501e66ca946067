"""Training the survival model: lesion descriptions out of sample, fusion network, ICARE head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hmvnet.bundle import Bundle, fingerprint
from hmvnet.case import ClinicalRecord, Outcome, Outcomes
from hmvnet.config import InferenceSettings, PrognosisSettings
from hmvnet.files import digest, write_arrays
from hmvnet.lesions.features import LesionFeatures
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.prognosis.fusion import FusionConfig, FusionNetwork, PatientInputs, signed_log
from hmvnet.prognosis.icare import BaggedIcare
from hmvnet.prognosis.risk import LesionDescription, PrognosisMember, describe
from hmvnet.reading.folder import Patient
from hmvnet.reading.records import HECKTOR, ClinicalSchema
from hmvnet.segmentation.segmenter import Segmenter
from hmvnet.survival.baselines import fit_linear_risk
from hmvnet.survival.losses import cox_loss, ranking_loss
from hmvnet.training.engine import LoopSettings, train

EMA_DECAY, CLIP_NORM, WARMUP = 0.98, 5.0, 20
DESCRIPTION_VERSION = 2  # counts changes to masks and features that no setting shows
ENCODER_PREFIX = "encoder"  # names of pooled encoder features, see pool_encoder_features


class LeakError(ValueError):
    """A patient's lesions would be described by a network that was trained on that patient."""


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

    Descriptions are kept on disk, keyed by the networks' hashes and the patient's files.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        image_spacing_mm: float,
        cache: Path,
        inference: InferenceSettings | None = None,
    ) -> None:
        self.bundle = bundle
        self.image_spacing_mm = image_spacing_mm
        inference = (inference or InferenceSettings()).model_copy(update={"time_budget_s": 1e9})
        self.segmenter = Segmenter(bundle, device, inference)
        manifest = bundle.manifest
        settings = (manifest.preprocessing, manifest.postprocessing, inference)
        key = digest(
            DESCRIPTION_VERSION,
            {file: manifest.files[file] for file in manifest.segmentation.files},
            image_spacing_mm,
            *(s.model_dump(mode="json") for s in settings),
        )
        self.folder = cache / f"lesions-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def unseen_members(self, patient_id: str) -> list[int]:
        """The ensemble's members that were not trained on this patient.

        Raises:
            LeakError: there are none, or the bundle does not say what it was trained on.
        """
        seen = self.bundle.manifest.segmentation.seen
        if len(seen) != len(self.bundle.manifest.segmentation.files):
            raise LeakError(
                f"bundle '{self.bundle.manifest.name}' does not say which patients its networks "
                "were trained on; retrain it with this version"
            )
        mark = fingerprint(patient_id)
        members = [i for i, patients in enumerate(seen) if mark not in patients]
        if not members:
            raise LeakError(
                f"patient {patient_id}: every network of the bundle was trained on this patient; "
                "its lesion features would be better than those of a new patient"
            )
        return members

    def __call__(self, patient: Patient) -> Described:
        """One patient.

        Raises:
            LeakError: see :meth:`unseen_members`.
            ValueError: the patient has no outcome.
        """
        if patient.outcome is None:
            raise ValueError(f"patient {patient.patient_id} has no outcome (RFS, Relapse)")
        members = self.unseen_members(patient.patient_id)
        key = digest(members, patient.state())
        path = self.folder / f"{patient.patient_id}-{key}.npz"
        if not path.exists():
            self._write(self._describe(patient, members), path)
        with np.load(path, allow_pickle=False) as stored:
            features = LesionFeatures(tuple(stored["names"].tolist()), stored["values"])
            description = LesionDescription(stored["image"].astype(np.float32), features)
        return Described(
            patient.patient_id, patient.centre, description, patient.record, patient.outcome
        )

    def _describe(self, patient: Patient, members: Sequence[int]) -> LesionDescription:
        return describe(self.segmenter.only(members)(patient.read()), self.image_spacing_mm)

    @staticmethod
    def _write(description: LesionDescription, path: Path) -> None:
        write_arrays(
            path,
            image=description.image.astype(np.float16),
            names=np.array(description.features.names),
            values=description.features.values,
        )


def outcomes_of(patients: Sequence[Described]) -> Outcomes:
    """The patients' follow-up."""
    return Outcomes.of(p.outcome for p in patients)


def inputs_of(patients: Sequence[Described], encoder: ClinicalEncoder) -> PatientInputs:
    """The fusion network's inputs of many patients."""
    table = encoder.transform([p.record for p in patients])
    image = np.stack([p.description.image for p in patients])
    lesions = np.stack([p.description.features.values for p in patients])
    return PatientInputs(*(torch.from_numpy(a).float() for a in (image, table, lesions)))


def fit_member(
    fabric: Fabric,
    patients: Sequence[Described],
    settings: PrognosisSettings,
    run: Path,
    schema: ClinicalSchema = HECKTOR,
    title: str = "fusion",
    quiet: bool = False,
) -> PrognosisMember:
    """Fit everything that is learnt from outcomes, on these patients alone.

    The clinical encoder, the lesion statistics, the network, the ICARE head's selection and signs:
    none of them may have seen a patient that is evaluated later.

    Raises:
        ValueError: fewer than 10 patients, or no relapse among them.
    """
    outcomes = outcomes_of(patients)
    if len(outcomes) < 10 or not outcomes.event.any():
        raise ValueError(
            f"{len(outcomes)} patients with {int(outcomes.event.sum())} relapses, expected at "
            "least 10 patients and a relapse"
        )
    fabric.seed_everything(settings.seed, verbose=False)
    encoder = ClinicalEncoder(schema).fit([p.record for p in patients])
    inputs = inputs_of(patients, encoder).to(fabric.device)
    network = FusionNetwork(_config(inputs, settings))
    if "lesions" in settings.branches:
        network.standardise.fit(inputs.lesions.cpu())
    days, event = (torch.from_numpy(a).to(fabric.device) for a in (outcomes.days, outcomes.event))

    def loss_of_step(model: nn.Module, step: int) -> Mapping[str, Tensor]:
        rng = np.random.default_rng([settings.seed, step])
        drawn = _draw_rows(outcomes.event, settings.batch_size, rng)
        rows = torch.from_numpy(drawn).to(fabric.device)
        batch = inputs.rows(rows)
        if rng.random() < 0.5:
            batch = PatientInputs(batch.image.flip(-1), batch.table, batch.lesions)
        risk = model(batch)
        cox = cox_loss(risk, days[rows], event[rows])
        ranking = ranking_loss(risk, days[rows], event[rows])
        return {"total": cox + settings.ranking_weight * ranking, "cox": cox, "ranking": ranking}

    loop = LoopSettings(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=min(WARMUP, settings.steps // 2),
        clip_norm=CLIP_NORM,
        ema_decay=EMA_DECAY,
        checkpoint_every=settings.steps,
        validate_every=settings.steps,
    )
    key = digest(
        settings.model_dump(mode="json"),
        [p.patient_id for p in patients],
        outcomes.days,
        outcomes.event,
        *(np.asarray(a) for a in (inputs.table.cpu(), inputs.lesions.cpu())),
    )
    trained, _ = train(fabric, network, loop, loss_of_step, run, key=key, title=title, quiet=quiet)
    assert isinstance(trained, FusionNetwork)
    inputs = inputs.to(torch.device("cpu"))
    member = _with_head(trained.cpu().eval(), encoder, inputs, outcomes, settings)
    if set(settings.branches) & {"table", "lesions"}:
        member.direct_columns = _direct_columns(patients, settings)
        variables = member.direct_variables(inputs)
        rng = np.random.default_rng(settings.seed)
        if settings.direct_weight:
            member.direct = _icare(settings).fit(variables, outcomes, rng)
            member.direct_weight = settings.direct_weight
        if settings.linear_weight:
            member.linear = fit_linear_risk(variables, outcomes, rng)
            member.linear_weight = settings.linear_weight
    return member


def fit_members(
    fabric: Fabric,
    patients: Sequence[Described],
    settings: PrognosisSettings,
    run: Path,
    schema: ClinicalSchema = HECKTOR,
    title: str = "fusion",
    quiet: bool = False,
) -> list[PrognosisMember]:
    """``settings.members`` fits of different seeds; their mean risk is steadier than any of them.

    Raises:
        ValueError: as :func:`fit_member`.
    """
    return [
        fit_member(
            fabric,
            patients,
            settings.model_copy(update={"seed": settings.seed + number}),
            run / f"member{number}",
            schema,
            f"{title}, network {number + 1}",
            quiet,
        )
        for number in range(settings.members)
    ]


def _config(inputs: PatientInputs, settings: PrognosisSettings) -> FusionConfig:
    return FusionConfig(
        table_features=inputs.table.shape[1],
        lesion_features=inputs.lesions.shape[1],
        branches=settings.branches,
        image_width=settings.image_width,
    )


def _draw_rows(event: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A batch with two patients who relapsed, where there are two: without, no gradient."""
    size = min(size, len(event))
    rows = rng.permutation(len(event))
    sure = rows[event[rows]][: min(2, size)]
    others = rows[~np.isin(rows, sure)]
    return np.concatenate([sure, others])[:size]


@torch.inference_mode()
def _with_head(
    network: FusionNetwork,
    encoder: ClinicalEncoder,
    inputs: PatientInputs,
    outcomes: Outcomes,
    settings: PrognosisSettings,
) -> PrognosisMember:
    outputs = network.branch_outputs(inputs)
    fused = network.join(outputs).double().numpy()
    head = _icare(settings).fit(fused, outcomes, np.random.default_rng(settings.seed))
    means = {name: values.mean(0) for name, values in outputs.items()}
    return PrognosisMember(encoder, network, head, means)


def handcrafted(patients: Sequence[Described]) -> np.ndarray:
    """The patients' hand-crafted lesion features, signed logarithm, ``[n, p]``; NaN = missing."""
    values = np.stack([p.description.features.values for p in patients])
    return signed_log(torch.from_numpy(values[:, : _handcrafted_count(patients)])).double().numpy()


def _handcrafted_count(patients: Sequence[Described]) -> int:
    """They come first; the encoder's follow."""
    names = patients[0].description.features.names
    return sum(not name.startswith(ENCODER_PREFIX) for name in names)


def _direct_columns(patients: Sequence[Described], settings: PrognosisSettings) -> tuple[int, ...]:
    """Where the features that the direct ICARE sees lie among the lesion features.

    Raises:
        ValueError: ``prognosis.direct_features`` names one that is not there.
    """
    names = patients[0].description.features.names[: _handcrafted_count(patients)]
    if not names or not settings.direct_features:  # health records alone, or all of them
        return tuple(range(len(names)))
    if unknown := [n for n in settings.direct_features if n not in names]:
        raise ValueError(
            f"prognosis.direct_features: no lesion feature {unknown[:3]}, expected any of "
            f"{', '.join(names[:4])}, ... (hmvnet.lesions)"
        )
    return tuple(names.index(n) for n in settings.direct_features)


def _icare(settings: PrognosisSettings) -> BaggedIcare:
    return BaggedIcare(settings.max_correlation, settings.min_concordance, settings.bags)


def predict(members: Sequence[PrognosisMember], patients: Sequence[Described]) -> np.ndarray:
    """Risks ``[n]`` of patients the members have not seen: their mean."""
    return np.mean([m.risk(inputs_of(patients, m.encoder)) for m in members], axis=0)


def describe_all(
    describer: LesionDescriber,
    patients: Sequence[Patient],
    progress: Callable[[Sequence[Patient]], Iterable[Patient]] = lambda x: x,
) -> list[Described]:
    """Every patient that has an outcome; leaks are found before the first is described."""
    with_outcome = [p for p in patients if p.outcome is not None]
    for patient in with_outcome:
        describer.unseen_members(patient.patient_id)
    return [describer(p) for p in progress(with_outcome)]
