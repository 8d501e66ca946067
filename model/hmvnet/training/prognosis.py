"""Fitting the survival model: fusion networks with ICARE heads, models on the named variables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hmvnet.case import Outcomes, harrell_c
from hmvnet.config import DataSettings, PrognosisSettings
from hmvnet.files import digest
from hmvnet.lesions.crops import groups_of
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.prognosis.fusion import FusionConfig, FusionNetwork, PatientInputs
from hmvnet.prognosis.icare import BaggedIcare
from hmvnet.prognosis.member import (
    NAMED_MODELS,
    NamedVariables,
    PrognosisMember,
    RiskModel,
    Weighted,
    rest_of,
)
from hmvnet.prognosis.risk import Prognosis
from hmvnet.reading.folder import Patient
from hmvnet.reading.records import HECKTOR, ClinicalSchema
from hmvnet.survival.beside import fit_beside
from hmvnet.survival.calibration import Slopes
from hmvnet.survival.cox import fit_linear_risk
from hmvnet.survival.discrete import fit_mtlr_risk
from hmvnet.survival.forest import fit_forest_risk
from hmvnet.survival.losses import cox_loss, ranking_loss
from hmvnet.training.descriptions import Described, handcrafted_count, outcomes_of
from hmvnet.training.engine import LoopSettings, make_fabric, train
from hmvnet.training.folds import split_folds
from hmvnet.training.shares import judged_shares

EMA_DECAY, CLIP_NORM, WARMUP = 0.98, 5.0, 20
LEAST_PATIENTS = 10
LINEAR = "linear"  # the part that is a Cox model on the named variables


def inputs_of(patients: Sequence[Described], encoder: ClinicalEncoder) -> PatientInputs:
    """The fusion network's inputs of many patients."""
    table = encoder.transform([p.record for p in patients])
    image = np.stack([p.description.image for p in patients])
    lesions = np.stack([p.description.features.values for p in patients])
    crops = np.stack([p.description.crops.values for p in patients])
    return PatientInputs(*(torch.from_numpy(a).float() for a in (image, table, lesions, crops)))


@dataclass(frozen=True)
class Cohort:
    """What is equal for all members of an ensemble, fitted to its patients once.

    Attributes:
        patients: those it is fitted to, and nobody else.
        encoder: of their health records.
        inputs: the fusion network's.
        variables: the named ones.
        named: models on these.
        crops: a model on these and encoder features of the lesions' crops, where wanted.
    """

    patients: Sequence[Described]
    outcomes: Outcomes
    encoder: ClinicalEncoder
    inputs: PatientInputs
    variables: NamedVariables
    named: Mapping[str, Weighted]
    crops: Weighted | None = None

    @classmethod
    def of(
        cls, patients: Sequence[Described], settings: PrognosisSettings, schema: ClinicalSchema
    ) -> Cohort:
        """Of patients with outcomes.

        Raises:
            ValueError: fewer than 10 patients, or no relapse among them.
        """
        outcomes = outcomes_of(patients)
        refuse_few(outcomes)
        encoder = ClinicalEncoder(schema).fit([p.record for p in patients])
        inputs = inputs_of(patients, encoder)
        variables = NamedVariables.of(settings.branches, _named_columns(patients, settings))
        x = variables.values(inputs)
        named = _fit_named(x, outcomes, settings)
        crops = _fit_crops(x, patients, outcomes, settings)
        if crops is not None:
            rest = 1.0 - crops.weight
            named = {k: Weighted(rest * one.weight, one.model) for k, one in named.items()}
        return cls(patients, outcomes, encoder, inputs, variables, named, crops)


def fit_member(
    fabric: Fabric,
    cohort: Cohort,
    settings: PrognosisSettings,
    number: int,
    run: Path,
    title: str = "fusion",
    quiet: bool = False,
) -> PrognosisMember:
    """Fit a fusion network and its ICARE head, on the cohort's patients alone.

    Args:
        number: of the member; its network's seed is so many above the settings'.
    """
    seed = settings.seed + number
    fabric.seed_everything(seed, verbose=False)
    outcomes, inputs = cohort.outcomes, cohort.inputs.to(fabric.device)
    network = FusionNetwork(_config(inputs, settings))
    if network.standardise is not None:
        network.standardise.fit(cohort.inputs.lesions)
    days, event = (torch.from_numpy(a).to(fabric.device) for a in (outcomes.days, outcomes.event))

    def loss_of_step(model: nn.Module, step: int) -> Mapping[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        drawn = _draw_rows(outcomes.event, settings.batch_size, rng)
        rows = torch.from_numpy(drawn).to(fabric.device)
        batch = inputs.rows(rows)
        if rng.random() < 0.5:
            batch = replace(batch, image=batch.image.flip(-1))
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
        number,
        [p.patient_id for p in cohort.patients],
        outcomes.days,
        outcomes.event,
        *(np.asarray(a) for a in (cohort.inputs.table, cohort.inputs.lesions)),
        *([np.asarray(cohort.inputs.image)] if "image" in network.config.branches else []),
    )
    trained, _ = train(fabric, network, loop, loss_of_step, run, key=key, title=title, quiet=quiet)
    assert isinstance(trained, FusionNetwork)
    return _with_head(trained.cpu().eval(), cohort, settings)


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

    The clinical encoder, the lesion statistics, the networks, selection and signs of ICARE, the
    ridge: none of them may have seen a patient that is evaluated later.

    Raises:
        ValueError: as ``Cohort.of``.
    """
    cohort = Cohort.of(patients, settings, schema)
    return [
        fit_member(
            fabric,
            cohort,
            settings,
            number,
            run / f"member{number}",
            f"{title}, network {number + 1}",
            quiet,
        )
        for number in range(settings.members)
    ]


def _config(inputs: PatientInputs, settings: PrognosisSettings) -> FusionConfig:
    return FusionConfig(
        table_features=inputs.table.shape[1],
        lesion_features=inputs.lesions.shape[1],
        branches=settings.network_branches,
        image_width=settings.image_width,
    )


def _draw_rows(event: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A batch with two patients who relapsed, where there are two: without, no gradient."""
    size = min(size, len(event))
    rows = rng.permutation(len(event))
    sure = rows[event[rows]][: min(2, size)]
    others = rows[~np.isin(rows, sure)]
    return np.concatenate([sure, others])[:size]


def _fit_named(
    x: np.ndarray, outcomes: Outcomes, settings: PrognosisSettings
) -> dict[str, Weighted]:
    """The models on the named variables ``x`` ``[n, p]`` that have a share of the risk."""
    fits: Mapping[str, Callable[..., RiskModel]] = {
        "direct": _icare(settings).fit,
        LINEAR: partial(fit_linear_risk, draws=settings.bags),
        "forest": fit_forest_risk,
        "mtlr": fit_mtlr_risk,
    }
    weights = settings.named_weights
    named = {}
    for name in NAMED_MODELS:
        if weights[name] and x.shape[1]:
            rng = np.random.default_rng(settings.seed)
            named[name] = Weighted(weights[name], fits[name](x, outcomes, rng))
    return named


def _fit_crops(
    x: np.ndarray, patients: Sequence[Described], outcomes: Outcomes, settings: PrognosisSettings
) -> Weighted | None:
    """The model on the named variables ``x`` ``[n, p]`` and the crops, where there are some."""
    names = patients[0].description.crops.names
    if not (settings.wants_crops and settings.crops_weight and names):
        return None
    crops = np.stack([p.description.crops.values for p in patients]).astype(np.float64)
    rng = np.random.default_rng(settings.seed)
    risk = fit_beside(x, crops, groups_of(names), outcomes, rng, settings.bags)
    return Weighted(settings.crops_weight, risk)


@torch.inference_mode()
def _with_head(
    network: FusionNetwork, cohort: Cohort, settings: PrognosisSettings
) -> PrognosisMember:
    outputs = network.branch_outputs(cohort.inputs)
    fused = network.join(outputs).double().numpy()
    # The seed is that of ICARE on the named variables: a bag has the same patients in all parts.
    head = _icare(settings).fit(fused, cohort.outcomes, np.random.default_rng(settings.seed))
    means = {name: values.mean(0) for name, values in outputs.items()}
    named, crops = cohort.named, cohort.crops
    share = Weighted(rest_of(named, crops), head)
    return PrognosisMember(cohort.encoder, network, means, share, named, cohort.variables, crops)


def _named_columns(patients: Sequence[Described], settings: PrognosisSettings) -> tuple[int, ...]:
    """Where the named ones among the lesion features lie.

    Raises:
        ValueError: ``prognosis.direct_features`` names one that is not there.
    """
    names = patients[0].description.features.names[: handcrafted_count(patients)]
    if not names or not settings.direct_features:  # health records alone, or all of them
        return tuple(range(len(names)))
    if unknown := [n for n in settings.direct_features if n not in names]:
        raise ValueError(
            f"prognosis.direct_features: no lesion feature {unknown[:3]}, expected any of "
            f"{', '.join(names[:4])}, ... (hmvnet.lesions.features)"
        )
    return tuple(names.index(n) for n in settings.direct_features)


def _icare(settings: PrognosisSettings) -> BaggedIcare:
    return BaggedIcare(settings.max_correlation, settings.min_concordance, settings.bags)


def predict(members: Sequence[PrognosisMember], patients: Sequence[Described]) -> np.ndarray:
    """Risks ``[n]`` of patients the members have not seen: their mean."""
    return np.mean([m.risk(inputs_of(patients, m.encoder)) for m in members], axis=0)


def predict_as_given(prognosis: Prognosis, patients: Sequence[Described]) -> np.ndarray:
    """The risks ``[n]`` that a bundle gives: without a health record those of its other model."""
    risk, bare = np.zeros(len(patients)), [prognosis.knows_nothing(p.record) for p in patients]
    for rows in (np.flatnonzero(np.equal(bare, one)).tolist() for one in set(bare)):
        some = [patients[i] for i in rows]
        members, shift, scale = prognosis.members_for(some[0].record)
        risk[rows] = shift + scale * predict(members, some)
    return risk


def predict_parts(
    members: Sequence[PrognosisMember], patients: Sequence[Described]
) -> dict[str, np.ndarray]:
    """``predict`` by each part of the risk alone, ``[n]`` by its name."""
    inputs = inputs_of(patients, members[0].encoder)  # one is equal to another
    parts = [member.part_risks(inputs) for member in members]
    return {name: np.mean([p[name] for p in parts], axis=0) for name in parts[0]}


@dataclass(frozen=True)
class Validated:
    """What a cross-validation says of a model that is then fitted on everyone.

    Attributes:
        risk: ``[n]`` out of fold, of the weights below, for the curve.
        concordance: mean over the folds, each of weights that were judged on the other folds.
        weights: of the parts of the risk, judged on all folds, for the fit on everyone.
        steeper: by what factor its slope is above that of the risks; see ``Slopes``.
    """

    risk: np.ndarray
    concordance: float
    weights: Mapping[str, float]
    steeper: float = 1.0


def refuse_few(outcomes: Outcomes) -> None:
    """Refuse patients that no model can be fitted to.

    Raises:
        ValueError: fewer than 10 of them, or no relapse.
    """
    if len(outcomes) < LEAST_PATIENTS or not outcomes.event.any():
        raise ValueError(
            f"{len(outcomes)} patients with {int(outcomes.event.sum())} relapses, expected at "
            f"least {LEAST_PATIENTS} patients and a relapse"
        )


def refuse_few_in_folds(patients: Sequence[Patient | Described], data: DataSettings) -> None:
    """Refuse what ``cross_validate`` would, before any network has run.

    Raises:
        ValueError: patients that cannot be parted, or too few of them in a fold's training part.
    """
    for known, _ in _folds_of(patients, data):
        refuse_few(outcomes_of(patients[i] for i in known))


def _folds_of(
    patients: Sequence[Patient | Described], data: DataSettings
) -> list[tuple[list[int], list[int]]]:
    fewer = data.model_copy(update={"folds": min(data.folds, len(patients))})
    return split_folds(patients, fewer)


def cross_validate(
    described: Sequence[Described],
    data: DataSettings,
    settings: PrognosisSettings,
    schema: ClinicalSchema,
    run: Path,
    quiet: bool = False,
) -> Validated:
    """Fit in each fold, predict the patients left out.

    Everything that is fitted is fitted inside the training part of a fold. Parts are judged on the
    folds themselves, so that no inner ones are needed.
    """
    outcomes, number_of = outcomes_of(described), np.zeros(len(described), int)
    risks: dict[str, np.ndarray] = {}
    given: dict[str, float] = {}
    slopes, shares = Slopes(), list[float]()
    for number, (known, unseen) in enumerate(_folds_of(described, data)):
        some, place = [described[i] for i in known], run / f"fold{number}"
        fabric = quiet_fabric(place)
        members = fit_members(fabric, some, settings, place, schema, place.name, quiet)
        given = members[0].weights
        number_of[unseen] = number
        parts = predict_parts(members, [described[i] for i in unseen])
        for name, risk in parts.items():
            risks.setdefault(name, np.zeros(len(described)))[unseen] = risk
        add_slopes(slopes, members, some, parts, outcomes[unseen])
        shares.append(len(some) / len(described))

    def weights_without(fold: int) -> Mapping[str, float]:
        rows = number_of != fold
        if not settings.inner_folds:
            return given
        others = {name: risk[rows] for name, risk in risks.items()}
        return judged_shares(others, outcomes[rows], number_of[rows], given)

    concordances = []
    for number in range(number_of.max() + 1):
        rows, weights = number_of == number, weights_without(number)
        risk = np.sum([weights[name] * risk[rows] for name, risk in risks.items()], axis=0)
        concordances.append(harrell_c(outcomes[rows], risk))
    weights = weights_without(-1)
    whole = np.sum([weights[name] * risk for name, risk in risks.items()], axis=0)
    steeper = slopes.steeper(float(np.mean(shares)))
    return Validated(whole, float(np.nanmean(concordances)), weights, steeper)


def add_slopes(
    slopes: Slopes,
    members: Sequence[PrognosisMember],
    known: Sequence[Described],
    unseen: Mapping[str, np.ndarray],
    outcomes: Outcomes,
) -> None:
    """Those of the linear part, the one whose fit is a likelihood's; nothing where there is none.

    Args:
        members: fitted to ``known``.
        unseen: risks ``[n]`` by part of other patients.
        outcomes: theirs.
    """
    if LINEAR in unseen:
        inside = predict_parts(members, known)[LINEAR]
        slopes.add((inside, outcomes_of(known)), (unseen[LINEAR], outcomes))


def quiet_fabric(folder: Path) -> Fabric:
    """Fabric announces its seed and its devices at every fold."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    return make_fabric(folder, "32-true")
