"""Many patients: a folder each, failures listed, never the end of the rest.

Who does the work is a crew: :class:`InTurn` in this process, :mod:`hmvnet.cluster` in several.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, TypeGuard

from hmvnet.bundle import Manifest, state_of
from hmvnet.case import Case, Grid, Verdict
from hmvnet.exits import Exit, RefusedError, fault, leave_where_asked
from hmvnet.files import clear_leftovers, digest, is_name, make_folder, remove
from hmvnet.pipeline import Pipeline, Prediction
from hmvnet.reading.contours import read_mask
from hmvnet.reading.dicom import Scan, Unpaired
from hmvnet.reading.inputs import ChallengeFolder, Source
from hmvnet.reading.series import Series
from hmvnet.segmentation.segmenter import OnStage
from hmvnet.writing.cohort import read_report, reports
from hmvnet.writing.folder import (
    ENTROPY,
    LESIONS,
    MASK,
    PAGE,
    PICTURE,
    REPORT,
    RTSTRUCT,
    SEG,
    SR,
    THUMBNAIL,
    is_ours,
    write_folder,
)
from hmvnet.writing.report import Origin

Existing = Literal["refuse", "replace", "skip"]
NUMBERS_MOVE = (
    "names of DICOM patients are numbers, which move where patients are added or removed; use "
    "--keep-names, or another folder"
)
KEPT = "the result of before is kept"
CORRECTED = f"the mask is a corrected one: {KEPT}, --force makes it anew"


@dataclass(frozen=True)
class Order:
    """What is to be made of each patient beside mask, report and lesion table.

    Attributes:
        output: where the patients' folders go.
        picture: slices and projections.
        page: a page to look at, with the images in it.
        dicom: DICOM objects, of patients that were read from DICOM.
        entropy: a map of how unsure each voxel's class is.
        mask: of one patient, a corrected mask: an image, RTSTRUCT or SEG.
        settings: in the bundle's place, ``section.name=value``, as the pipeline was given them.
    """

    output: Path
    picture: bool = True
    page: bool = False
    dicom: bool = False
    entropy: bool = False
    mask: Path | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of one patient; processes hand it to each other.

    Attributes:
        status: predicted now; found whole from before; the input could not be used; something went
            wrong with us.
        why: there is no result.
        notes: what reading had to say.
        lesions: how many were found.
        problems: what optional things could not be written.
        prediction: itself, where it was made in this process.
    """

    patient_id: str
    status: Literal["done", "skipped", "refused", "failed"]
    why: str = ""
    notes: tuple[str, ...] = ()
    verdict: Verdict = field(default_factory=Verdict)
    lesions: int = 0
    problems: tuple[str, ...] = ()
    prediction: Prediction | None = field(default=None, repr=False)


class Crew(Protocol):
    """Who predicts patients."""

    manifest: Manifest

    def predict(self, sources: Sequence[Source], order: Order) -> Generator[Outcome, None, None]:
        """Each source's outcome, when it is there."""


@dataclass(frozen=True)
class CohortResult:
    """How it went, in the order of the sources.

    Attributes:
        strict: whether a verdict of ``review`` counts in ``code``.
    """

    outcomes: tuple[Outcome, ...]
    strict: bool = False

    @property
    def done(self) -> list[str]:
        """Ids of the patients predicted now."""
        return [o.patient_id for o in self.outcomes if o.status == "done"]

    @property
    def skipped(self) -> list[str]:
        """Ids of those found whole from before."""
        return [o.patient_id for o in self.outcomes if o.status == "skipped"]

    @property
    def refused(self) -> dict[str, str]:
        """By patient id, why the input could not be used."""
        return {o.patient_id: o.why for o in self.outcomes if o.status == "refused"}

    @property
    def failed(self) -> dict[str, str]:
        """By patient id, what went wrong with us."""
        return {o.patient_id: o.why for o in self.outcomes if o.status == "failed"}

    @property
    def incomplete(self) -> dict[str, str]:
        """By patient id, what optional things could not be written."""
        return {o.patient_id: "; ".join(o.problems) for o in self.outcomes if o.problems}

    @property
    def failures(self) -> dict[str, str]:
        """By patient id, why there is no result, or not all of it."""
        found = self.refused | self.failed | self.incomplete
        return {o.patient_id: found[o.patient_id] for o in self.outcomes if o.patient_id in found}

    @property
    def review(self) -> dict[str, tuple[str, ...]]:
        """By patient id, the codes of a verdict of ``review``, of now or of before."""
        return {
            o.patient_id: o.verdict.codes for o in self.outcomes if o.verdict.status == "review"
        }

    @property
    def code(self) -> Exit:
        """The worst that happened."""
        if self.failed:
            return Exit.FAULT
        if self.refused:
            return Exit.REFUSED
        if self.incomplete:
            return Exit.INCOMPLETE
        return Exit.REVIEW if self.strict and self.review else Exit.OK


def predict_cohort(
    sources: Sequence[Source],
    crew: Crew,
    order: Order,
    *,
    existing: Existing = "refuse",
    strict: bool = False,
    on_begin: Callable[[int], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> CohortResult:
    """Predict every patient and write ``<order.output>/<patient id>/``.

    Args:
        existing: what to do where a patient's folder is there already; ``skip`` leaves what is
            whole and of the same bundle, settings and files, and what somebody corrected, and makes
            the rest anew. Where that fails, what was there is removed: it is not to be taken for
            the result. It stays where files of the patient are not there, which a disk that is not
            mounted does as well.
        strict: a verdict of ``review`` counts in the result's code.
        on_begin: told how many patients are there already, before work begins.
        on_outcome: told what became of each of the others, as soon as it is known.

    Raises:
        ModuleNotFoundError: DICOM objects are asked for, highdicom is not installed.
        RefusedError: an output folder that cannot be written, two patients of one id, an id that is
            no file name, something in a folder's place that is not of an earlier call, with
            ``refuse`` a folder that is there already, or but for ``replace`` a number that was
            another DICOM examination's; before any work.
    """
    check_names(sources)
    _check_order(order, sources)
    output = order.output
    try:
        make_folder(output)
    except OSError as error:
        raise RefusedError(
            f"output folder {output} cannot be made or written: {error.strerror}"
        ) from error
    folders = {source.patient_id: output / source.patient_id for source in sources}
    for folder in (output, *folders.values()):
        clear_leftovers(folder)
    if existing != "replace":
        _check_numbers(sources, output)
    there = set[str]()
    if existing == "skip":
        state = state_of(crew.manifest)
        there = {s.patient_id for s in sources if is_whole(s, state, order)}
    in_the_way = [path for name, path in folders.items() if path.exists() and name not in there]
    before = {path: _state(path / REPORT) for path in in_the_way}
    if strange := [path for path in in_the_way if not is_ours(path)]:
        raise RefusedError(f"{strange[0]} is there, and not what this command writes")
    if in_the_way and existing == "refuse":
        raise RefusedError(
            f"{in_the_way[0]} is there already ({len(in_the_way)} of {len(sources)} patients); "
            "--force writes all again, --continue what is missing, and those whose files, settings "
            "or weights are others now"
        )
    found = {name: _from_before(folders[name]) for name in there}
    if on_begin:
        on_begin(len(there))
    by_name = {source.patient_id: source for source in sources}
    todo = [source for source in sources if source.patient_id not in there]
    try:
        with closing(crew.predict(todo, order)) as outcomes:
            for outcome in outcomes:
                folder = folders[outcome.patient_id]
                ended = outcome.status in ("refused", "failed")
                if ended and is_ours(folder) and before.get(folder) == _state(folder / REPORT):
                    if all(path.exists() for path in by_name[outcome.patient_id].files):
                        remove(folder)  # but not what another call on this folder made meanwhile
                    else:
                        outcome = replace(outcome, why=f"{outcome.why}; {KEPT}")
                found[outcome.patient_id] = replace(outcome, prediction=None)
                if on_outcome:
                    on_outcome(outcome)
    finally:  # of workers that were killed
        for folder in (output, *folders.values()):
            clear_leftovers(folder)
    return CohortResult(tuple(found[name] for name in folders), strict)


def _check_numbers(sources: Sequence[Source], output: Path) -> None:
    """Refuse numbers that another examination has in the folder, and those that had another."""
    numbers = {one.examination: one.patient_id for one in sources if _is_numbered(one)}
    if not numbers:
        return
    there = {path.name: str(found.get("scan") or "") for path, found in reports(output)}
    for examination, name in numbers.items():
        if there.get(name) not in (None, "", examination):
            raise RefusedError(f"{output / name} is of another examination: {NUMBERS_MOVE}")
        for other, scan in there.items():
            if scan == examination and other != name:
                raise RefusedError(f"{output / other} is of {name}'s examination: {NUMBERS_MOVE}")


def _is_numbered(source: Source) -> TypeGuard[Scan]:
    return isinstance(source, Scan) and source.numbered


def _check_order(order: Order, sources: Sequence[Source]) -> None:
    if order.mask is not None and len(sources) != 1:
        raise RefusedError(f"a corrected mask goes with one patient, found {len(sources)}")
    if order.dicom:
        import_module("highdicom")
        # A share of the patients may have none.
        if sources and not any(isinstance(source, Scan | Unpaired) for source in sources):
            raise RefusedError("DICOM objects are asked for, and no patient is read from DICOM")


# --- one patient ---------------------------------------------------------------------------------


Read = tuple[Case, str]  # and ``made_of``


def predict_patient(
    source: Source,
    pipeline: Pipeline,
    order: Order,
    read: Callable[[], Read] | None = None,
    on_stage: OnStage | None = None,
) -> Outcome:
    """Predict one patient and write its folder; whatever fails is the outcome, and no error.

    Args:
        read: in the place of ``read_source``: what was read before.
    """
    name = source.patient_id
    notes: tuple[str, ...] = ()
    try:
        case, made = (read or partial(read_source, source, pipeline.manifest, order))()
        notes = case.notes
        series = source.ct if isinstance(source, Scan) else None
        corrected = None
        if order.mask:
            corrected, told = read_mask(order.mask, Grid.of(case.ct), series)
            case = replace(case, notes=(*notes, *told))
        prediction = pipeline(case, on_stage, corrected)
        problems = write_folder(
            prediction,
            pipeline.manifest,
            order.output / name,
            device=str(pipeline.device),
            picture=order.picture,
            page=order.page,
            entropy=order.entropy,
            origin=Origin(
                made,
                source.examination if isinstance(source, Scan) else "",
                corrected is not None,
            ),
            ct=series if order.dicom else None,
        )
    except RefusedError as error:
        return Outcome(name, "refused", str(error).removeprefix(f"patient {name}: "), notes)
    except Exception as error:  # the others are not to be lost
        leave_where_asked()
        return Outcome(name, "failed", fault(error), notes)
    verdict, lesions = prediction.verdict, len(prediction.lesions)
    return Outcome(name, "done", "", notes, verdict, lesions, tuple(problems), prediction)


def read_source(source: Source, manifest: Manifest, order: Order) -> Read:
    """A patient's images, and ``made_of``, of the files as they were before these were read."""
    made = made_of(source, state_of(manifest), order)
    return source.read(), made


class InTurn:
    """One patient after the other in this process; the next is read meanwhile."""

    def __init__(self, pipeline: Pipeline, on_stage: OnStage | None = None) -> None:
        self.pipeline, self.manifest, self.on_stage = pipeline, pipeline.manifest, on_stage

    def predict(self, sources: Sequence[Source], order: Order) -> Generator[Outcome, None, None]:
        with closing(_ahead(sources, self.manifest, order)) as reads:
            for source, read in zip(sources, reads):
                yield predict_patient(source, self.pipeline, order, read, self.on_stage)


def _ahead(
    sources: Sequence[Source], manifest: Manifest, order: Order
) -> Generator[Callable[[], Read], None, None]:
    """What gives each source's case, or raises as reading it did; the next is read meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        reads = [pool.submit(read_source, source, manifest, order) for source in sources[:1]]
        for index in range(len(sources)):
            if index + 1 < len(sources):
                reads.append(pool.submit(read_source, sources[index + 1], manifest, order))
            yield reads.pop(0).result


# --- which patients ------------------------------------------------------------------------------


def part_of(sources: Sequence[Source], part: str) -> list[Source]:
    """The share ``k/n`` of the patients, counted from 1: every n-th of them, as ``3/8``.

    Raises:
        RefusedError: another form, or numbers that make no sense.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", part.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise RefusedError(f"--part {part}: expected k/n with k from 1 to n, as 3/8")
    return list(sources[int(found[1]) - 1 :: int(found[2])])


def is_whole(source: Source, bundle: str, order: Order) -> bool:
    """Whether an earlier call left all that this one would, of the same files and settings.

    What somebody corrected is whole whatever it is of: the network's is not to replace it.

    Args:
        bundle: ``hmvnet.bundle.state_of`` it.
    """
    folder = order.output / source.patient_id
    report = read_report(folder)
    if report.get("corrected") and not order.mask:
        return all((folder / name).is_file() for name in (MASK, LESIONS))
    optional = {PICTURE: order.picture, PAGE: order.page, ENTROPY: order.entropy}
    needed = [MASK, LESIONS, THUMBNAIL, *(name for name, wanted in optional.items() if wanted)]
    if order.dicom and isinstance(source, Scan) and report.get("lesions"):
        needed += [SEG, SR, RTSTRUCT]
    same = report.get("made") == made_of(source, bundle, order)
    return same and all((folder / name).is_file() for name in needed)


def made_of(source: Source, bundle: str, order: Order) -> str:
    """What a result hangs on, as a digest that names nobody.

    That is this version, the bundle with what was put in its place, the patient's files by size and
    time, and what else is said of the patient.

    Args:
        bundle: as for ``is_whole``.
    """
    inference = sorted(text for text in order.settings if text.startswith("inference."))
    what: list[object] = [source.origin if isinstance(source, Scan) else "", inference]
    if isinstance(source, ChallengeFolder):
        what.append([_state(path) for path in sorted(source.folder.rglob("*")) if path.is_file()])
    for name in ("ct", "pet", "record", "known", "suv_factor"):
        value = getattr(source, name, None)
        if isinstance(value, Series):
            what.append(sorted(_state(one.path) for one in value.slices))
        else:
            what.append(_state(value) if isinstance(value, Path) else repr(value))
    what.append(_state(order.mask) if order.mask else None)
    return digest(bundle, what)


def _state(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:  # reading it will say so
        return []
    return [found.st_size, found.st_mtime_ns]


def _from_before(folder: Path) -> Outcome:
    report = read_report(folder)
    found = report.get("verdict", {})
    verdict = Verdict(found.get("status", "ok"), tuple(found.get("codes", ())))
    notes = (CORRECTED,) if report.get("corrected") else ()
    count = len(report.get("lesions", ()))
    return Outcome(folder.name, "skipped", notes=notes, verdict=verdict, lesions=count)


def check_names(sources: Sequence[Source]) -> None:
    """Raises: RefusedError, for an id that is there twice, or is no name of a folder."""
    names = [source.patient_id for source in sources]
    times = Counter(name.casefold() for name in names)
    for name in names:
        if (count := times[name.casefold()]) > 1:
            raise RefusedError(f"patient {name} is there {count} times, expected once")
        if not is_name(name):
            raise RefusedError(f"patient id {name!a} cannot be the name of a folder")
