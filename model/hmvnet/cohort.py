"""Many patients, one after the other: a folder each, failures listed, never the end of the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hmvnet.exits import Exit, RefusedError
from hmvnet.files import clear_leftovers
from hmvnet.pipeline import Pipeline, Prediction
from hmvnet.reading.inputs import Source
from hmvnet.writing.folder import LESIONS, MASK, PICTURE, REPORT, is_ours, write_folder

Existing = Literal["refuse", "replace", "skip"]
OnPatient = Callable[[str, Path, Prediction], None]


@dataclass
class CohortResult:
    """How it went.

    Attributes:
        done, skipped: ids of the patients predicted now, and found whole from before.
        refused: by patient id, why the input could not be used.
        failed: by patient id, what went wrong with us.
        incomplete: by patient id, what optional things could not be written.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, list[str]] = field(default_factory=dict)

    @property
    def code(self) -> Exit:
        """The worst that happened."""
        if self.failed:
            return Exit.FAULT
        if self.refused:
            return Exit.REFUSED
        return Exit.INCOMPLETE if self.incomplete else Exit.OK


def predict_cohort(
    sources: Sequence[Source],
    pipeline: Pipeline,
    output: Path,
    *,
    existing: Existing = "refuse",
    picture: bool = True,
    on_stage: Callable[[str], None] | None = None,
    on_patient: OnPatient | None = None,
    on_failure: Callable[[str, str], None] | None = None,
) -> CohortResult:
    """Predict every patient and write ``<output>/<patient id>/``.

    Args:
        existing: what to do where a patient's folder is there already; ``skip`` leaves what is
            whole and of the same bundle, and makes the rest anew.
        picture: also draw slices and projections.
        on_stage: told the stage that runs.
        on_patient: told each patient's id, folder and prediction.
        on_failure: told each patient's id and why there is no result, or not all of it.

    Raises:
        RefusedError: an output folder that cannot be made, two patients of one id, an id that is no
            file name, something in a folder's place that is not of an earlier call, or with
            ``refuse`` a folder that is there already; before any work.
    """
    _check_names(sources)
    names = [source.patient_id for source in sources]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"output folder {output} cannot be made: {error.strerror}") from error
    for folder in (output, *(output / name for name in names)):
        clear_leftovers(folder)
    whole = {name for name in names if is_whole(output / name, pipeline, picture)}
    done = whole if existing == "skip" else set()
    there = [name for name in names if (output / name).exists() and name not in done]
    if strange := [name for name in there if not is_ours(output / name)]:
        raise RefusedError(f"{output / strange[0]} is there, and not what this command writes")
    if there and existing == "refuse":
        raise RefusedError(
            f"{output / there[0]} is there already ({len(there)} of {len(sources)} patients); "
            "--force writes them again, --continue goes on with the others"
        )
    result = CohortResult()
    for source in sources:
        name, folder = source.patient_id, output / source.patient_id
        if name in done:
            result.skipped.append(name)
            continue
        why = ""
        try:
            prediction = pipeline(source.read(), on_stage)
            problems = write_folder(
                prediction, pipeline.manifest, folder, device=str(pipeline.device), picture=picture
            )
        except RefusedError as error:
            result.refused[name] = why = str(error).removeprefix(f"patient {name}: ")
        except Exception as error:  # the others are not to be lost
            result.failed[name] = why = f"{type(error).__name__}: {error}"
        if why:
            if on_failure:
                on_failure(name, why)
            continue
        result.done.append(name)
        if on_patient:
            on_patient(name, folder, prediction)
        if problems:
            result.incomplete[name] = problems
            if on_failure:
                on_failure(name, "; ".join(problems))
    return result


def is_whole(folder: Path, pipeline: Pipeline, picture: bool) -> bool:
    """Whether an earlier call with the same bundle left all that this one would."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    needed = (MASK, LESIONS, PICTURE) if picture else (MASK, LESIONS)
    same = isinstance(report, dict) and report.get("bundle") == pipeline.manifest.name
    return same and all((folder / name).is_file() for name in needed)


def _check_names(sources: Sequence[Source]) -> None:
    names = [source.patient_id for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise RefusedError(f"patient {name} is there {names.count(name)} times, expected once")
        if not name or Path(name).name != name or name in (".", ".."):
            raise RefusedError(f"patient id {name!r} cannot be the name of a folder")
