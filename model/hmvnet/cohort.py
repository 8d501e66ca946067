"""Many patients, one after the other: a folder each, failures listed, never the end of the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal

from hmvnet.case import Case, Grid, Verdict
from hmvnet.exits import Exit, RefusedError, fault
from hmvnet.files import clear_leftovers, is_name, make_folder
from hmvnet.pipeline import Pipeline, Prediction
from hmvnet.reading.contours import read_mask
from hmvnet.reading.dicom import Scan
from hmvnet.reading.inputs import Source
from hmvnet.writing.cohort import read_report
from hmvnet.writing.folder import (
    LESIONS,
    MASK,
    PAGE,
    PICTURE,
    RTSTRUCT,
    SEG,
    SR,
    is_ours,
    write_folder,
)

Existing = Literal["refuse", "replace", "skip"]
OnRead = Callable[[str, tuple[str, ...]], None]
OnPatient = Callable[[str, Path, Prediction], None]


@dataclass
class CohortResult:
    """How it went.

    Attributes:
        done, skipped: ids of the patients predicted now, and found whole from before.
        refused: by patient id, why the input could not be used.
        failed: by patient id, what went wrong with us.
        incomplete: by patient id, what optional things could not be written.
        review: by patient id, the codes of a verdict of ``review``, of those predicted now or
            before.
        strict: whether such a verdict counts in ``code``.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, list[str]] = field(default_factory=dict)
    review: dict[str, tuple[str, ...]] = field(default_factory=dict)
    strict: bool = False

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
    pipeline: Pipeline,
    output: Path,
    *,
    existing: Existing = "refuse",
    picture: bool = True,
    page: bool = False,
    dicom: bool = False,
    strict: bool = False,
    mask: Path | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_read: OnRead | None = None,
    on_patient: OnPatient | None = None,
    on_failure: Callable[[str, str], None] | None = None,
) -> CohortResult:
    """Predict every patient and write ``<output>/<patient id>/``.

    Args:
        existing: what to do where a patient's folder is there already; ``skip`` leaves what is
            whole and of the same bundle, and makes the rest anew.
        picture: also draw slices and projections.
        page: also write a page to look at, with the images in it.
        dicom: also write DICOM objects, of patients that were read from DICOM.
        strict: a verdict of ``review`` counts in the result's code.
        mask: of one patient, a corrected mask: an image, RTSTRUCT or SEG.
        on_stage: told the stage that runs.
        on_read: told each patient's id and what reading it had to say.
        on_patient: told each patient's id, folder and prediction.
        on_failure: told each patient's id and why there is no result, or not all of it.

    Raises:
        ModuleNotFoundError: with ``dicom``, highdicom is not installed.
        RefusedError: an output folder that cannot be written, two patients of one id, an id that is
            no file name, something in a folder's place that is not of an earlier call, or with
            ``refuse`` a folder that is there already; before any work.
    """
    check_names(sources)
    if mask is not None and len(sources) != 1:
        raise RefusedError(f"a corrected mask goes with one patient, found {len(sources)}")
    if dicom:
        import_module("highdicom")
        if not any(isinstance(source, Scan) for source in sources):
            raise RefusedError("DICOM objects are asked for, and no patient is read from DICOM")
    names = [source.patient_id for source in sources]
    try:
        make_folder(output)
    except OSError as error:
        raise RefusedError(
            f"output folder {output} cannot be made or written: {error.strerror}"
        ) from error
    for folder in (output, *(output / name for name in names)):
        clear_leftovers(folder)
    wanted = [*([PICTURE] if picture else []), *([PAGE] if page else [])]
    whole = {
        source.patient_id
        for source in sources
        if is_whole(output / source.patient_id, pipeline, wanted, dicom, _origin(source))
    }
    done = whole if existing == "skip" else set()
    there = [name for name in names if (output / name).exists() and name not in done]
    if strange := [name for name in there if not is_ours(output / name)]:
        raise RefusedError(f"{output / strange[0]} is there, and not what this command writes")
    if there and existing == "refuse":
        raise RefusedError(
            f"{output / there[0]} is there already ({len(there)} of {len(sources)} patients); "
            "--force writes them again, --continue goes on with the others"
        )
    result = CohortResult(strict=strict)
    reads = _ahead([source for source in sources if source.patient_id not in done])
    for source in sources:
        name, folder = source.patient_id, output / source.patient_id
        if name in done:
            result.skipped.append(name)
            _note_verdict(result, name, _verdict_before(folder))
            continue
        why = ""
        try:
            case = next(reads)()
            if on_read:
                on_read(name, case.notes)
            corrected = read_mask(mask, Grid.of(case.ct)) if mask else None
            prediction = pipeline(case, on_stage, corrected)
            problems = write_folder(
                prediction,
                pipeline.manifest,
                folder,
                device=str(pipeline.device),
                picture=picture,
                page=page,
                origin=_origin(source),
                ct=source.ct if dicom and isinstance(source, Scan) else None,
            )
        except RefusedError as error:
            result.refused[name] = why = str(error).removeprefix(f"patient {name}: ")
        except Exception as error:  # the others are not to be lost
            result.failed[name] = why = fault(error)
        if why:
            if on_failure:
                on_failure(name, why)
            continue
        result.done.append(name)
        _note_verdict(result, name, prediction.verdict)
        if on_patient:
            on_patient(name, folder, prediction)
        if problems:
            result.incomplete[name] = problems
            if on_failure:
                on_failure(name, "; ".join(problems))
    return result


def _origin(source: Source) -> str:
    """Of a scan that is named by its number: what else may have had that number before."""
    return source.origin if isinstance(source, Scan) else ""


def _ahead(sources: Sequence[Source]) -> Iterator[Callable[[], Case]]:
    """What gives each source's case, or raises as reading it did; the next is read meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        reads = [pool.submit(source.read) for source in sources[:1]]
        for index in range(len(sources)):
            if index + 1 < len(sources):
                reads.append(pool.submit(sources[index + 1].read))
            yield reads.pop(0).result


def part_of(sources: Sequence[Source], part: str) -> list[Source]:
    """The share ``k/n`` of the patients, counted from 1: every n-th of them, as ``3/8``.

    Raises:
        RefusedError: another form, or numbers that make no sense.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", part.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise RefusedError(f"--part {part}: expected k/n with k from 1 to n, as 3/8")
    return list(sources[int(found[1]) - 1 :: int(found[2])])


def is_whole(
    folder: Path,
    pipeline: Pipeline,
    wanted: Sequence[str],
    dicom: bool = False,
    origin: str = "",
) -> bool:
    """Whether an earlier call with the same bundle left all that this one would.

    Args:
        wanted: names of files that are optional and asked for.
        dicom: whether DICOM objects are.
        origin: of the scan, as its report has to say.
    """
    report = read_report(folder)
    needed = [MASK, LESIONS, *wanted]
    if dicom and report.get("lesions"):
        needed += [SEG, SR, RTSTRUCT]
    same = (report.get("bundle"), report.get("origin", "")) == (pipeline.manifest.name, origin)
    return same and all((folder / name).is_file() for name in needed)


def _verdict_before(folder: Path) -> Verdict:
    found = read_report(folder).get("verdict", {})
    return Verdict(found.get("status", "ok"), tuple(found.get("codes", ())))


def _note_verdict(result: CohortResult, name: str, verdict: Verdict) -> None:
    if verdict.status == "review":
        result.review[name] = verdict.codes


def check_names(sources: Sequence[Source]) -> None:
    """Raises: RefusedError, for an id that is there twice, or is no name of a folder."""
    names = [source.patient_id for source in sources]
    times = Counter(name.casefold() for name in names)
    for name in names:
        if (count := times[name.casefold()]) > 1:
            raise RefusedError(f"patient {name} is there {count} times, expected once")
        if not is_name(name):
            raise RefusedError(f"patient id {name!a} cannot be the name of a folder")
