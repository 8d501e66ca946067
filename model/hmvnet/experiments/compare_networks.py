"""``hmvnet segmentation compare``: segmentation networks trained and scored alike, in one table.

Every network gets the same folds, patches, augmentation and loss, and the same budget: of steps,
or of training time. Patients are scored end to
end on their CT grids, as the challenge does, each by the fold that did not see them (or all by the
mean of the folds, in a test folder of their own).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.markup import escape

from hmvnet.bundle import MANIFEST, Bundle, load_bundle
from hmvnet.config import InferenceSettings, NetworkSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments.compare_table import Cost, Scored, comparison, folder_name, peak_mb
from hmvnet.experiments.evaluate import score_patient
from hmvnet.experiments.nnunet_peer import NAME, NNUNet, score_nnunet, until
from hmvnet.files import digest
from hmvnet.networks.registry import NETWORKS, build_network
from hmvnet.pipeline import Pipeline
from hmvnet.progress import print_lines, track
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.segmentation import metrics
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.segmentation.forward import FORWARD_VERSION
from hmvnet.settings_file import load_settings
from hmvnet.state import claiming_run, read_state, write_state
from hmvnet.table_files import print_frame, write_markdown, write_table
from hmvnet.training.engine import make_fabric
from hmvnet.training.segmentation import SAME_COURSE, train_segmentation
from hmvnet.training.segmentation_bundle import (
    BUNDLE,
    Fold,
    all_folds,
    check_network,
    chosen_folds,
    prepare_together,
    task_key,
    train_segmentation_bundle,
)
from hmvnet.training.ways import Ways, wanted

PACE_STEPS = 8
OWN_SECTIONS = ("preprocessing", "training", "augmentation", "postprocessing")


@dataclass(frozen=True)
class Contender:
    """A network with its options, e.g. from ``"hmvnet window=4 training.learning_rate=2e-3"``.

    Attributes:
        overrides: settings of its own, ``section.name=value``, where the others have the shared
            ones. Scores are on the CT's grid whatever they are, so all compare.
        members: networks that share the budget evenly, of seeds one after the other, and whose
            probabilities are averaged (``members=3``).
    """

    label: str
    network: NetworkSettings
    overrides: tuple[str, ...] = ()
    members: int = 1

    @classmethod
    def parse(cls, text: str) -> Contender:
        """From the network's name and, after it, options, and settings with a dot in their name.

        Raises:
            ValueError: the network is unknown or does not take the options, or a setting is
                unknown or not a contender's own.
        """
        name, *words = text.split()
        counts = [word for word in words if word.partition("=")[0] == "members"]
        members = counts[0].partition("=")[2] if len(counts) == 1 else "1"
        if len(counts) > 1 or not members.isdecimal() or not int(members):
            raise RefusedError(
                f"network '{text.strip()}': expected members=2, or another whole number, once"
            )
        own = [word for word in words if "." in word.partition("=")[0]]
        for word in own:
            setting = word.partition("=")[0]
            if setting.partition(".")[0] not in OWN_SECTIONS or setting == "training.steps":
                raise RefusedError(
                    f"network '{text.strip()}': setting {setting} cannot be one network's own, "
                    f"expected one of the sections {', '.join(OWN_SECTIONS)}, and not the steps"
                )
        load_settings(None, own)
        options = " ".join(word for word in words if word not in {*own, *counts})
        network = NetworkSettings.model_validate({"name": name, "options": options})
        build_network(network.name, network.options)
        return cls(text.strip(), network, tuple(own), int(members))

    def settings(self, shared: Settings) -> Settings:
        """The shared settings with this network, and with what it has of its own."""
        own = load_settings(None, self.overrides)
        changed: dict[str, Any] = {"network": self.network}
        for name in OWN_SECTIONS:
            section = getattr(own, name)
            values = {key: getattr(section, key) for key in section.model_fields_set}
            changed[name] = getattr(shared, name).model_copy(update=values)
        # The last weights: the best ones would be chosen on patients that are scored.
        changed["training"] = changed["training"].model_copy(update={"keep_best": 0})
        return shared.model_copy(update=changed)

    @property
    def folder(self) -> str:
        """A file name made of the label."""
        return folder_name(self.label)

    @property
    def single(self) -> str:
        """The label of one of its members alone."""
        return " ".join(w for w in self.label.split() if not w.startswith("members="))


def parse_contender(text: str) -> Contender | NNUNet:
    """A network of this project's registry, or with the name ``nnunet`` nnU-Net itself.

    Raises:
        ValueError: as each of them, or there is no name.
    """
    name, *_ = text.split() or [""]
    if not name:
        raise RefusedError(f"--network '': expected one of {', '.join(NETWORKS)}")
    return NNUNet.parse(text) if name == NAME else Contender.parse(text)


@claiming_run
def compare_networks(
    settings: Settings,
    contenders: Sequence[Contender | NNUNet],
    run: Path,
    folds: Sequence[int] | None,
    console: Console,
    test: Path | None = None,
    minutes: float | None = None,
    train_minutes: float | None = None,
) -> pd.DataFrame:
    """Train and score every contender, print one table, and write it under ``run``.

    Writes ``segmentation.md``, ``segmentation.csv``, ``segmentation.png`` and each contender's
    ``scores.json``. What is there from an earlier call is not computed again, so that a comparison
    can be spread over several calls of ``minutes`` each.

    Args:
        folds: numbers of the folds to train; None: all.
        test: a data folder to score on instead of the folds' validation patients.
        train_minutes: each network takes as many steps a fold as it manages in this time on this
            machine (measured on a few steps before); None: ``training.steps`` of each.

    Raises:
        ValueError: wrong data, fold or network.
        UnfinishedError: time was up; the next call goes on.
    """
    cache = Path(settings.data.cache or run / "cache")  # one for all
    for contender in contenders:
        if isinstance(contender, Contender):
            if contender.members > 1:
                raise RefusedError(f"network '{contender.label}': members go with --budgets only")
            check_network(contender.settings(settings))
    everything = all_folds(settings)
    plan = chosen_folds(everything, settings, folds)
    held_out = find_patients(test, settings.clinical.table_names) if test else None
    if held_out:
        print_lines(held_out.summary())
        refuse_trained_on(plan, held_out)
    inference = settings.inference.without_budget()
    deadline = time.monotonic() + 60 * minutes if minutes else np.inf
    scored: dict[str, Scored] = {}
    for contender in contenders:
        console.rule(escape(contender.label))
        if isinstance(contender, NNUNet):
            scored[contender.label] = score_nnunet(
                contender, settings, run, everything, plan, held_out, until(deadline), train_minutes
            )
            continue
        own = contender.settings(settings)
        folder = run / contender.folder
        refuse_known(own, held_out or [p for fold in plan for p in fold.validation])
        if train_minutes:
            own = timed_budget(own, plan[0], folder, train_minutes, cache)
        bundle = _trained(own, folder, plan, everything) or train_segmentation_bundle(
            own, folder, folds, lambda step: time.monotonic() > deadline, cache, everything
        )
        scored[contender.label] = _score(
            contender, load_bundle(bundle), plan, held_out, inference, folder
        )
    table = comparison(scored)
    write_markdown(table, run / "segmentation.md")
    write_table(table, run / "segmentation.csv")
    from hmvnet.training.pictures import draw_comparison  # matplotlib only here

    draw_comparison({name: s.scores for name, s in scored.items()}, run / "segmentation.png")
    print_frame(table, console)
    written = "segmentation.md, segmentation.csv and segmentation.png"
    console.print(f"wrote {written} to {run}", markup=False)
    return table


def timed_budget(
    settings: Settings, fold: Fold, folder: Path, minutes: float, cache: Path
) -> Settings:
    """The settings with as many steps as fit into ``minutes``.

    The pace is measured once and kept beside the checkpoints: a later call goes on with it.
    """
    path = folder / "pace.json"
    training = settings.training
    # The weights it starts from are of no matter to the pace.
    paced = training.course({"steps", "initial_weights"} | SAME_COURSE)
    sections = settings.model_dump(mode="json", include={"network", "augmentation"})
    key = digest(paced, sections, str(pick_device()), torch.get_num_threads())
    stored = read_state(path, key)
    if stored is None:
        fabric = make_fabric(folder, training.precision)
        seconds = fabric.broadcast(seconds_a_step(settings, fold, cache, fabric))
        stored = {"seconds_a_step": seconds}
        if fabric.global_rank == 0:
            write_state(path, key, stored)
    steps = max(1, int(60 * minutes / stored["seconds_a_step"]))
    warmup = min(training.warmup_steps, max(1, steps // 10))
    training = training.model_copy(update={"steps": steps, "warmup_steps": warmup})
    return settings.model_copy(update={"training": training})


def seconds_a_step(settings: Settings, fold: Fold, cache: Path, fabric: Fabric) -> float:
    """Median of some steps, after two that warm up. The machine should do nothing else."""
    # Norms are not settled on the way: 64 patches more, of no use to the pace.
    steps = {"steps": 2 * PACE_STEPS, "freeze_norms_at": 1.0}
    training = settings.training.model_copy(update=steps)
    short = settings.model_copy(update={"training": training})
    cases = prepare_together(fabric, short, fold.train, cache)
    ends: list[float] = []

    def watch(step: int) -> bool:
        if fabric.device.type == "cuda":  # where a step is launched long before it has ended
            torch.cuda.synchronize(fabric.device)
        ends.append(time.perf_counter())
        return len(ends) == PACE_STEPS + 3

    with tempfile.TemporaryDirectory() as scratch:
        train_segmentation(fabric, short, cases, [], Path(scratch), stop=watch)
    return float(np.median(np.diff(ends)[2:]))


def _trained(
    settings: Settings, folder: Path, plan: Sequence[Fold], everything: Sequence[Fold]
) -> Path | None:
    """The bundle of an earlier call, if it is of these settings and patients and has the folds.

    Training would find that out too, from its checkpoints, but only after reading every image.
    """
    found = folder / BUNDLE
    if not (found / MANIFEST).is_file():
        return None
    manifest = load_bundle(found).manifest
    same = manifest.trained_on.get("key") == task_key(settings, everything)
    whole = {fold.file for fold in plan} <= set(manifest.segmentation.files)
    return found if same and whole else None


def _score(
    contender: Contender,
    bundle: Bundle,
    plan: Sequence[Fold],
    held_out: Sequence[Patient] | None,
    inference: InferenceSettings,
    folder: Path,
) -> Scored:
    """Scores from ``scores.json`` where they are of these very weights and patients.

    Each fold's network is run as the other folds' patients would have it (``Ways``), so that
    nothing is chosen on whom it is scored on: a network that works in windows has no such choice.
    """
    if held_out:
        jobs = [(_only(bundle, plan), list(held_out), inference)]
    else:  # each fold's network alone, with the patients that it did not see
        jobs = [
            (_only(bundle, [fold]), fold.validation, _by_the_others(inference, bundle, fold))
            for fold in plan
        ]
    manifest = bundle.manifest
    key = digest(
        {fold.file: manifest.files[fold.file] for fold in plan},
        *(s.model_dump(mode="json") for s in (manifest.preprocessing, manifest.postprocessing)),
        manifest.region,
        manifest.segmentation.windows,
        [settings.model_dump(mode="json") for *_, settings in jobs],
        [p.state() for _, patients, _ in jobs for p in patients],
        FORWARD_VERSION,
    )
    for one, patients, _ in jobs:
        refuse_seen(one, patients)
    path = folder / "scores.json"
    if stored := read_state(path, key):
        scores = [metrics.CaseScore.from_dict(row) for row in stored["scores"]]
        return Scored(scores, Cost(**stored["cost"]))
    scores, seconds, peaks = [], [], []
    for one, patients, settings in jobs:
        pipeline = Pipeline(one, pick_device(), settings, needs_risk=False)
        for patient in track(patients, contender.label):
            with peak_mb() as peak:
                score, prediction = score_patient(pipeline, patient)
                peaks.append(peak())
            scores.append(score)
            seconds.append(prediction.timings["network"])
    network = build_network(contender.network.name, contender.network.options)
    cost = Cost(
        sum(p.numel() for p in network.parameters()),
        int(bundle.manifest.trained_on["steps"]),
        sum(bundle.manifest.trained_on["minutes_a_fold"][fold.name] for fold in plan),
        float(np.mean(seconds)),
        float(max(peaks)),
    )
    rows = [score.to_dict() for score in scores]
    write_state(path, key, {"cost": asdict(cost), "scores": rows})
    return Scored(scores, cost)


def _by_the_others(inference: InferenceSettings, bundle: Bundle, fold: Fold) -> InferenceSettings:
    """As the other folds' patients would have a fold's network run, where the bundle is to say."""
    if inference.windows != "bundle":
        return inference
    figures = bundle.manifest.metrics.get("ways", {})
    others = [values for name, values in figures.items() if name != fold.name]
    way = wanted([Ways.read(values) for values in others if Ways.is_whole(values)])
    return inference.model_copy(update={"windows": way})


def refuse_seen(bundle: Bundle, patients: Sequence[Patient]) -> None:
    """Raises: ValueError: a patient to be scored was trained on."""
    if known := bundle.seen_among(p.patient_id for p in patients):
        names = ", ".join(known[:5])
        raise ValueError(f"{names}: trained on (perhaps by the initial weights), not to be scored")


def refuse_trained_on(folds: Sequence[Fold], patients: Sequence[Patient]) -> None:
    """As ``refuse_seen``, of what these folds will be trained on: before it rather than after."""
    trained = {p.patient_id for fold in folds for p in (*fold.train, *fold.extra)}
    if both := [p.patient_id for p in patients if p.patient_id in trained]:
        raise ValueError(
            f"{', '.join(both[:5])}: {len(both)} of the {len(patients)} patients to be scored "
            "would be trained on"
        )


def refuse_known(settings: Settings, patients: Sequence[Patient]) -> None:
    """As ``refuse_seen``, of the weights a training starts from: before it rather than after."""
    if settings.training.initial_weights:
        refuse_seen(load_bundle(Path(settings.training.initial_weights)), patients)


def _only(bundle: Bundle, folds: Sequence[Fold]) -> Bundle:
    """The networks of these folds; the bundle may hold those of other calls as well."""
    part = bundle.manifest.segmentation
    places = [part.files.index(fold.file) for fold in folds]
    files, seen = ([these[place] for place in places] for these in (part.files, part.seen))
    alone = part.model_copy(update={"files": files, "seen": seen})
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"segmentation": alone}))
