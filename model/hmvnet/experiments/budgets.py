"""One training of a comparison at equal budgets: a network, a budget, a fold.

Every network has one trunk a fold (``hmvnet.training.schedule``), which goes on from budget to
budget; at each a branch decays from it within that budget, is scored, and leaves one small file of
results. Whatever is killed goes on from its last checkpoint, bit for bit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hmvnet import __version__
from hmvnet.bundle import MANIFEST, Bundle, Manifest, SegmentationPart, load_bundle, write_bundle
from hmvnet.config import Settings, Windows
from hmvnet.exits import RefusedError, UnfinishedError
from hmvnet.experiments.compare_networks import Contender, refuse_known, refuse_seen
from hmvnet.experiments.evaluate import score_patient
from hmvnet.files import digest, remove
from hmvnet.networks.registry import build_network, sees_region
from hmvnet.pipeline import Pipeline
from hmvnet.progress import track
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.state import claimed, read_state, write_state
from hmvnet.training.best import member_files
from hmvnet.training.cache import Prepared
from hmvnet.training.checkpoints import CHECKPOINT, History, costs_so_far, fork
from hmvnet.training.engine import make_fabric
from hmvnet.training.schedule import DECAY_SHARE, Decay, Trunk
from hmvnet.training.segmentation import course_key, settling_batches, train_segmentation
from hmvnet.training.segmentation_bundle import BUNDLE, Fold, prepare_together, seen_marks
from hmvnet.training.ways import PARTS, EachWay

FORWARD_SHARE = 1 / 3  # of a training step, the other two being the way back
# How a network sees the region, and inference.windows for it.
WAYS: dict[str, Windows] = {"one pass": "never", "windows": "always", "both": "both"}


@dataclass(frozen=True, order=True)
class Budget:
    """What a training may cost: minutes of computation, or steps where runs are to be repeatable.

    Minutes are of ``hmvnet.training.engine.work_clock``: CPU time of the process, all its threads,
    the preparation of patches included, validation and checkpoints not; on a GPU the wall's.
    """

    amount: float
    unit: Literal["min", "steps"] = "min"

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"

    @property
    def folder(self) -> str:
        """As the name of a folder."""
        return f"{self.amount:g}{self.unit}"

    def is_spent(self, spent: Sequence[float], settling: float) -> bool:
        """Whether the trunk has to be cut after these steps, so that settling and decay fit.

        Args:
            spent: seconds after each step so far.
            settling: of BatchNorm's statistics, in steps.
        """
        if self.unit == "steps":
            return len(spent) >= self.amount - self.decay_steps(spent)
        if not spent:
            return False
        cost = spent[-1] * (1 + settling / len(spent))
        return cost >= (1 - DECAY_SHARE) * 60 * self.amount

    def decay_steps(self, spent: Sequence[float]) -> int:
        """How many steps the decay has, at the trunk's pace."""
        steps = DECAY_SHARE * self.amount
        if self.unit == "min":
            steps *= 60 * len(spent) / spent[-1]
        return max(1, round(steps))


def parse_budgets(text: str) -> list[Budget]:
    """``3,10,30`` (minutes) or ``100steps,300steps``, smallest first.

    Raises:
        RefusedError: anything else, or minutes and steps together.
    """
    budgets = set()
    for word in text.split(","):
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+) *(min|steps)?", word.strip())
        unit: Literal["min", "steps"] = "steps" if found and found[2] == "steps" else "min"
        amount = float(found[1]) if found else 0.0
        if amount <= 0 or (unit == "steps" and (amount < 2 or amount % 1)):
            raise RefusedError(
                f"--budgets {text}: '{word}' is no budget, expected minutes such as 3 or 0.5, or a "
                "whole number of steps from 2 on such as 300steps"
            )
        budgets.add(Budget(amount, unit))
    if len({budget.unit for budget in budgets}) > 1:
        raise RefusedError(f"--budgets {text}: expected either minutes or steps, not both")
    return sorted(budgets)


@dataclass(frozen=True)
class Unit:
    """One training to do, and all that it hangs on.

    Attributes:
        settings: the contender's own.
        run: of the comparison; checkpoints and bundles lie below.
        results: folder of the files of results.
        cache: of preprocessed volumes.
        protocol: digest of what all contenders share; results of one protocol make one table.
        key: digest of all that the result hangs on.
        windows: whether a network that sees the region in one pass is scored in windows and as the
            mean of the two, too.
        pace: seconds that a step is charged, settling included; 0: those it takes.
        deadline: of ``time.time``; then training stops with a checkpoint.
    """

    contender: Contender
    budget: Budget
    fold: Fold
    settings: Settings
    run: Path
    results: Path
    cache: Path
    protocol: str
    key: str
    windows: bool = True
    pace: float = 0.0
    deadline: float = float("inf")
    quiet: bool = False

    def __str__(self) -> str:
        return f"{self.contender.label}, {self.fold.name}, {self.budget}"

    @property
    def members(self) -> list[Unit]:
        """The trainings of its networks, each of an even part of the budget."""
        count, training = self.contender.members, self.settings.training
        if count == 1:
            return [self]
        label, amount = self.contender.label, self.budget.amount / count
        if self.budget.unit == "steps":
            amount = float(amount // 1)
        return [
            replace(
                self,
                contender=replace(self.contender, label=f"{label} ({place + 1})", members=1),
                budget=replace(self.budget, amount=amount),
                settings=self.settings.model_copy(
                    update={"training": training.model_copy(update={"seed": training.seed + place})}
                ),
                run=self.run / self.contender.folder,
                key=digest(self.key, place),
            )
            for place in range(count)
        ]

    @property
    def chain(self) -> tuple[str, int]:
        """Whose trunk it needs: one unit of a chain at a time, the smallest budget first."""
        return self.contender.label, self.fold.number

    @property
    def trunk(self) -> Path:
        """Folder of the trunk; one clock charges all of it."""
        clock = (f"paced-{self.pace:g}",) if self.pace else ()
        return Path(self.run, self.contender.folder, self.fold.name, *clock, "trunk")

    @property
    def branch(self) -> Path:
        """Folder of the decay and of its bundle."""
        return self.trunk.with_name(self.budget.folder)

    @property
    def bundle_name(self) -> str:
        """What the bundle calls itself."""
        return f"{self.contender.folder}-{self.budget.folder}-{self.fold.name}"

    @property
    def result(self) -> Path:
        """The file of results."""
        parts = [self.contender.folder, self.budget.folder, self.fold.name, self.key]
        return self.results / ("--".join(parts) + ".json")

    @property
    def ways(self) -> list[str]:
        """How it is to be scored."""
        network = self.contender.network
        if not sees_region(network.name, network.options):
            return ["windows"]
        return list(WAYS) if self.windows else ["one pass"]

    @property
    def paced_otherwise(self) -> bool:
        """Whether its stored result was charged by another pace, or by a clock."""
        if not (stored := read_state(self.result, self.key)):
            return False
        return stored["training"].get("seconds_a_step_from_elsewhere", "") != (self.pace or "")

    def missing(self) -> list[str]:
        """The ways in which it was not scored yet; none: it is done."""
        stored = read_state(self.result, self.key)
        return [way for way in self.ways if not stored or way not in stored["ways"]]


def run_unit(unit: Unit, clock: Callable[[], float] | None = None) -> None:
    """Train, score and write the result; what is there already is not done again.

    Args:
        clock: by which steps are charged; None: the device's.

    Raises:
        UnfinishedError: the deadline came; the same call goes on.
        ValueError: a checkpoint of other settings or data is in the way.
    """
    if unit.pace and clock is None:
        clock = Paced(unit.pace)
    with claimed(unit.trunk.parent):
        stored = read_state(unit.result, unit.key)
        refuse_known(unit.settings, unit.fold.validation)
        bundles = [_trained(member, clock) for member in unit.members]
        bundle = bundles[0] if len(bundles) == 1 else _together(unit, bundles)
        refuse_seen(bundle, unit.fold.validation)
        ways: dict[str, Any] = {}
        # Where it had to be trained again, what is there is another network's.
        if stored and stored["training"] == bundle.manifest.trained_on:
            ways = dict(stored["ways"])
        if missing := [way for way in unit.ways if way not in ways]:
            ways |= _scored(unit, bundle, missing)
        values = {
            "protocol": unit.protocol,
            "network": unit.contender.label,
            "budget": asdict(unit.budget),
            "fold": unit.fold.number,
            "training": bundle.manifest.trained_on,
            "ways": ways,
        }
        write_state(unit.result, unit.key, values)


class Paced:
    """A clock by which every step takes the same time, as it was measured elsewhere.

    So a curve over minutes of a slow processor can be drawn where steps are fast. The loop reads
    its clock when a step begins and when it has ended.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.read = 0

    def __call__(self) -> float:
        """Seconds."""
        self.read += 1
        return self.seconds * (self.read // 2)


# --- training ------------------------------------------------------------------------------------


def _trained(unit: Unit, clock: Callable[[], float] | None) -> Bundle:
    """The branch's bundle, of now or of an earlier call."""
    folder = unit.branch / BUNDLE
    if (folder / MANIFEST).is_file():
        bundle = load_bundle(folder)
        if bundle.manifest.trained_on.get("key") == unit.key:
            return bundle
    settings, fold = unit.settings, unit.fold
    fabric = make_fabric(unit.branch, settings.training.precision, devices=1)
    cases = prepare_together(fabric, settings, fold.train, unit.cache)
    region = settings.data.extra_region
    cases += prepare_together(fabric, settings, fold.extra, unit.cache, region)
    decay = _planned(unit, cases, clock)
    title = f"{unit} (decay)"
    done = train_segmentation(
        fabric,
        settings,
        cases,
        [],
        unit.branch,
        course=decay,
        stop=lambda step: time.time() > unit.deadline,
        clock=clock,
        title=title,
        quiet=unit.quiet,
    )
    if len(done.history.losses) < decay.steps:
        raise UnfinishedError(f"{unit}: stopped in the decay; the same command goes on from there")
    part = SegmentationPart(
        network=settings.network.name,
        options=dict(settings.network.options),
        patch_size=settings.training.patch_size,
        files=[fold.file],
        seen=seen_marks(settings, fold),
    )
    manifest = Manifest(
        name=unit.bundle_name,
        region=settings.data.region,
        interface=settings.data.interface,
        preprocessing=settings.preprocessing,
        postprocessing=settings.postprocessing,
        segmentation=part,
        trained_on=_said(unit, decay, done.network, done.history) | {"key": unit.key},
    )
    write_bundle(folder, manifest, {fold.file: done.network.state_dict()})
    remove(unit.branch / CHECKPOINT)
    return load_bundle(folder)


def _together(unit: Unit, bundles: Sequence[Bundle]) -> Bundle:
    """One bundle of several networks, whose costs add up."""
    first, parts = bundles[0].manifest, [one.manifest.trained_on for one in bundles]
    sums = ("steps", "decay_steps", "minutes_charged", "minutes_on_the_wall", "parameters")
    said = first.trained_on | {name: round(sum(part[name] for part in parts), 4) for name in sums}
    files = member_files(unit.fold.file, len(bundles))
    seen = [one.manifest.segmentation.seen[0] for one in bundles]
    part = first.segmentation.model_copy(update={"files": files, "seen": seen})
    changed = {
        "name": unit.bundle_name,
        "segmentation": part,
        "trained_on": said | {"key": unit.key},
    }
    tensors = [one.tensors(one.manifest.segmentation.files[0]) for one in bundles]
    folder = unit.branch / BUNDLE
    write_bundle(folder, first.model_copy(update=changed), dict(zip(files, tensors, strict=True)))
    return load_bundle(folder)


def _said(unit: Unit, decay: Decay, network: nn.Module, history: History) -> dict[str, Any]:
    """What the row says of a training."""
    return {
        "steps": decay.steps,
        "decay_steps": decay.length,
        "warmup_steps": decay.trunk.warmup,
        "learning_rate": decay.trunk.peak,
        "batch_size": unit.settings.training.batch_size,
        "patch_size": list(unit.settings.training.patch_size),
        "spacing_mm": unit.settings.preprocessing.spacing_mm,
        "minutes_charged": round(history.spent[-1] / 60, 4),
        "minutes_on_the_wall": round(history.seconds / 60, 4),
        "seconds_a_step_from_elsewhere": unit.pace or "",
        "parameters": sum(p.numel() for p in network.parameters()),
        "patients_trained_on": len(unit.fold.seen),
        "device": "GPU" if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hmvnet": __version__,
    }


def _planned(unit: Unit, cases: Sequence[Prepared], clock: Callable[[], float] | None) -> Decay:
    """The branch's course, and a checkpoint in its folder from which it goes on.

    The trunk is trained up to where it has to be cut. Where it is beyond already, since this budget
    was asked for later than larger ones, another trunk is trained in the branch's folder.
    """
    options = unit.settings.training
    trunk = Trunk(options.learning_rate, options.warmup_steps)
    plan = unit.branch / "plan.json"
    if stored := read_state(plan, unit.key):
        decay = Decay(trunk, stored["first"], stored["length"])
        if costs_so_far(unit.branch, course_key(unit.settings, cases, decay)):
            return decay
    key = course_key(unit.settings, cases, trunk)
    # A pace is the mean over trainings that had their settling in it.
    settling = 0.0 if unit.pace else _settling(unit.settings)
    is_cut = partial(unit.budget.is_spent, settling=settling)
    folder = unit.trunk
    if is_cut(costs_so_far(folder, key)[:-1]):
        folder = unit.branch / "trunk"
    spent = costs_so_far(folder, key)
    if not is_cut(spent):
        history = History()
        train_segmentation(
            make_fabric(folder, options.precision, devices=1),
            unit.settings,
            cases,
            [],
            folder,
            course=trunk,
            stop=lambda step: is_cut(history.spent) or time.time() > unit.deadline,
            history=history,
            clock=clock,
            title=str(unit),
            quiet=unit.quiet,
        )
        spent = history.spent
        if not is_cut(spent):
            raise UnfinishedError(
                f"{unit}: stopped after step {len(spent)}; the same command goes on from there"
            )
    decay = Decay(trunk, len(spent), unit.budget.decay_steps(spent))
    fork(folder, key, unit.branch, course_key(unit.settings, cases, decay))
    write_state(plan, unit.key, {"first": decay.first, "length": decay.length})
    return decay


def _settling(settings: Settings) -> float:
    """What it costs to settle BatchNorm's statistics, in steps; 0 where there is none to settle."""
    network = build_network(settings.network.name, settings.network.options)
    has = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    if settings.training.frozen_norms or not has:
        return 0.0
    return FORWARD_SHARE * settling_batches(settings.training.batch_size)


# --- scoring -------------------------------------------------------------------------------------


def _scored(unit: Unit, bundle: Bundle, ways: Sequence[str]) -> dict[str, Any]:
    """Scores of the fold's validation patients on their CT grids, and seconds of the network."""
    device = pick_device()
    asked = {WAYS[way]: way for way in ways}
    parts = dict.fromkeys(part for way in asked for part in PARTS[way])
    pipelines = {part: _pipeline(unit, bundle, part, device) for part in parts}
    pipeline = next(iter(pipelines.values()))
    ensemble = pipeline.segmenter.ensemble
    members = zip(*(one.segmenter.ensemble.members for one in pipelines.values()))
    each = [EachWay(dict(zip(pipelines, forwards)), device) for forwards in members]
    pipeline.segmenter.ensemble = replace(ensemble, members=each)
    found: dict[str, Any] = {way: {"network_seconds": [], "scores": []} for way in ways}
    title = f"{unit} ({', '.join(ways)})"
    for patient in track(unit.fold.validation, title, quiet=unit.quiet):
        for way, *_ in zip(*(one.of_next_patient(asked) for one in each)):
            scores = score_patient(pipeline, patient)[0].to_dict()
            if notes := [note for one in each for note in one.notes]:
                # It would be said to be of a way that it is not of.
                raise RefusedError(f"{unit}: {asked[way]}: {'; '.join(notes)}")
            found[asked[way]]["scores"].append(scores)
            seconds = sum(one.seconds for one in each)
            found[asked[way]]["network_seconds"].append(round(seconds, 4))
    return found


def _pipeline(unit: Unit, bundle: Bundle, windows: Windows, device: torch.device) -> Pipeline:
    inference = unit.settings.inference.without_budget()
    inference = inference.model_copy(update={"windows": windows})
    return Pipeline(bundle, device, inference, needs_risk=False)
