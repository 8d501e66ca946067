"""The container: one patient in ``/input``, mask, stages and risk in ``/output``, for a platform.

On an error the last line on standard error says what is wrong (without patient data), the exit
code is not 0, and no output file is left behind; or, with ``--on-error answer``, the exit code is 0
and there is a valid answer, the best that could be had (``hmvnet.answering``).
"""

from __future__ import annotations

import argparse
import os
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hmvnet.answering.supervisor import (
    PLAIN,
    WAYS,
    WHOLE,
    last_resort,
    python_command,
    supervise,
)
from hmvnet.exits import Exit, RefusedError, ending, note
from hmvnet.reading.challenge import YEARS, read_case, recognised_year
from hmvnet.writing.challenge import ALL_PATHS, INTERFACES, Interface, OutputFolder

if TYPE_CHECKING:
    from hmvnet.pipeline import Pipeline, Prediction
    from hmvnet.writing.summary import Narrator

TASKS = ("1", "2", "both")
ON_ERROR = ("refuse", "answer")
# What the environment's variables, and where they are not set, stand for.
PREFIX = "HMVNET_"
DEFAULTS = {
    "HMVNET_TASK": "both",
    "HMVNET_DEVICE": "auto",
    "HMVNET_INTERFACE": "auto",
    "HMVNET_ON_ERROR": "refuse",
}
CHOICES: Mapping[str, Sequence[str]] = {
    "HMVNET_TASK": TASKS,
    "HMVNET_INTERFACE": ("auto", *YEARS),
    "HMVNET_ON_ERROR": ON_ERROR,
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; its defaults are the platform's."""
    parser = argparse.ArgumentParser(
        prog="process.py", description="Segment GTVp and GTVn, stage, predict RFS risk."
    )
    parser.add_argument("--input", type=Path, default=Path("/input"), help="input folder")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="output folder")
    parser.add_argument(
        "--weights", help="bundle: folder or URL#sha256=... (default: /opt/ml/model, then weights/)"
    )
    parser.add_argument(
        "--interface",
        choices=("auto", *YEARS),
        help="which year's platform to write for; default: HMVNET_INTERFACE, then auto (the "
        "bundle's, then by the input)",
    )
    parser.add_argument(
        "--on-error",
        choices=ON_ERROR,
        help="refuse what cannot be trusted, or answer all the same (challenges alone); default: "
        "HMVNET_ON_ERROR, then refuse",
    )
    parser.add_argument("--task", choices=TASKS, help="of 2025; default: HMVNET_TASK, then both")
    parser.add_argument("--device", help="default: HMVNET_DEVICE, then auto")
    parser.add_argument("--flips", action="store_true", help="average with the mirrored volume")
    parser.add_argument("--time-budget", help="seconds for the networks (default: 240)")
    parser.add_argument(
        "--time-limit", type=float, help="seconds for a run that answers (default: the platform's)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit code 4 where the verdict is review"
    )
    parser.add_argument("--report", type=Path, help="also write lesions and reasons to this JSON")
    parser.add_argument("--picture", type=Path, help="also draw slices and MIPs to this PNG")
    parser.add_argument("--page", type=Path, help="also write a page to look at to this HTML")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help="a setting in the place of the bundle's, e.g. data.region=centre; repeatable",
    )
    names = [way.name for way in WAYS]
    parser.add_argument("--attempt", choices=names, help=argparse.SUPPRESS)  # by supervise
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Exit:
    """Read, predict, write: the required outputs whole or not at all, then the optional ones."""
    from hmvnet.writing.summary import Narrator

    _check_places(options)
    _clear_optional(options)
    say = Narrator()
    with OutputFolder(options.output) as output:
        _read_environment(options, ("task", "device", "interface"))
        wants_risk = options.task in ("2", "both")
        say("load the weights")
        pipeline = _load(options)
        if wants_risk and pipeline.prognosis is None:
            raise RefusedError(
                f"data.region={pipeline.manifest.region}: task 2 wants a risk, and the survival "
                "model holds in the bundle's own region alone; expected that, or --task 1"
            )
        output.interface = _interface(options, pipeline)
        say("read the case")
        case = read_case(options.input, needs_record=wants_risk)
        prediction = pipeline(case, say)
        say("write")
        if options.task in ("1", "both"):
            output.write_mask(prediction.mask)
        if output.interface.stages:
            if prediction.staging is None:
                raise RefusedError(
                    f"the interface of {output.interface.year} wants T and N, which are known of "
                    "the head and neck alone: expected data.region=head-neck"
                )
            output.write_stages(prediction.staging.t.stage, prediction.staging.n.stage)
        if prediction.risk:
            output.write_rfs(output.interface.rfs(prediction.risk))
    return _finish(options, pipeline, prediction, output, say)


def answer(options: argparse.Namespace, arguments: Sequence[str]) -> Exit:
    """An answer in any case: the least one at once, then better ones by other processes.

    Args:
        arguments: of this run's command line, which the attempts get too.

    Raises:
        RefusedError: the output folder cannot be written: there is no place for an answer.
    """
    _read_environment(options, ("task", "interface"), forgiving=True)
    interface = _interface(options, forgiving=True)
    output = OutputFolder(options.output, interface)
    output.clear()
    with suppress(RefusedError):  # said by the attempt
        _check_places(options)
        _clear_optional(options)
    last_resort(options.input, output, options.task)
    # What was found out here is not to be found out otherwise there.
    given = [*arguments, "--task", options.task, "--interface", options.interface]
    budget_s = options.time_limit or interface.budget_s(options.task)
    return supervise(
        lambda way: python_command(__name__, *given, "--attempt", way.name), output, budget_s
    )


def attempt(options: argparse.Namespace) -> Exit:
    """One attempt at a better answer, which takes the place of what is in the output folder."""
    from hmvnet.answering.fallback import best_answer
    from hmvnet.writing.summary import Narrator

    _read_environment(options, ("device",), forgiving=True)
    if options.attempt != WHOLE:
        options.device, options.flips, options.time_budget = "cpu", False, "0.001"
    say = Narrator()
    say(f"load the weights (attempt '{options.attempt}')")
    try:
        pipeline = _load_for_answer(options)
    except RefusedError as error:
        if options.attempt != PLAIN:
            raise
        pipeline = None
        note(f"no networks: {error}")
    if pipeline and pipeline.prognosis is None and options.task in ("2", "both"):
        name = pipeline.manifest.name
        note("; ".join([f"no risk but the least: of bundle {name} there is none", *pipeline.notes]))
    output = OutputFolder(options.output, _interface(options, forgiving=True))
    interface = _interface(options, pipeline, forgiving=True)
    if interface != output.interface:  # the bundle's own
        output.clear()
        output.interface = interface
        last_resort(options.input, output, options.task)
    found = best_answer(options.input, pipeline, say, networks=options.attempt != PLAIN)
    say("write")
    if found.mask and options.task in ("1", "both"):
        output.write_mask(found.mask)
    if output.interface.stages and found.prediction and (staging := found.prediction.staging):
        output.write_stages(staging.t.stage, staging.n.stage)
    if found.risk and options.task in ("2", "both"):
        output.write_rfs(output.interface.rfs(found.risk))
    if found.prediction and pipeline:
        try:
            _check_places(options)
            _finish(options, pipeline, found.prediction, output, say)
        except RefusedError as error:
            note(f"nothing but the answer: {error}")
    return Exit.OK


def _load(options: argparse.Namespace, *, forgiving: bool = False) -> Pipeline:
    """The bundle's pipeline.

    Args:
        forgiving: whether a bundle without a survival model serves where a risk is wanted.
    """
    from hmvnet.pipeline import load_pipeline

    wants_risk = options.task in ("2", "both")
    needs_risk = None if wants_risk and forgiving else wants_risk
    return load_pipeline(
        options.weights, options.device, _overrides(options), needs_risk=needs_risk
    )


def _load_for_answer(options: argparse.Namespace) -> Pipeline:
    """The pipeline, by the image's own weights where those that were uploaded are none."""
    from hmvnet.bundle import WeightsError, find_bundle

    try:
        return _load(options, forgiving=True)
    except WeightsError as error:
        if options.weights:
            raise
        note(f"{error}: the image's own weights are used")
        options.weights = find_bundle(uploaded=False)
        return _load(options, forgiving=True)


def _interface(
    options: argparse.Namespace, pipeline: Pipeline | None = None, *, forgiving: bool = False
) -> Interface:
    """Which platform to write for: as given, else as the bundle says, else by the input.

    Args:
        forgiving: whether both tasks are done where one alone cannot be.

    Raises:
        RefusedError: a task alone, of a platform that wants everything.
    """
    year, why = options.interface, "as given"
    if year == "auto" and pipeline is not None:
        year, why = pipeline.manifest.interface, "the bundle says so"
    if year == "auto":
        year, why = recognised_year(options.input)
    interface = INTERFACES[year]
    if options.task not in interface.limits_s:
        text = f"task {options.task} alone, and the interface of {year} ({why}) has no tasks"
        if not forgiving:
            raise RefusedError(f"{text}: expected HMVNET_TASK=both, or HMVNET_INTERFACE=2025")
        note(f"{text}: all of it is done")
        options.task = "both"
    return interface


def _finish(
    options: argparse.Namespace,
    pipeline: Pipeline,
    prediction: Prediction,
    output: OutputFolder,
    say: Narrator,
) -> Exit:
    """What is optional, and the summary."""
    from hmvnet.writing.folder import write_optional, write_picture
    from hmvnet.writing.page import write_page
    from hmvnet.writing.report import write_report

    manifest, device = pipeline.manifest, str(pipeline.device)
    optional: dict[Path, Callable[[], object]] = {}
    if options.report:
        optional[options.report] = lambda: write_report(
            prediction, manifest, options.report, device
        )
    if options.picture:
        optional[options.picture] = lambda: write_picture(prediction, options.picture)
    if options.page:
        optional[options.page] = lambda: write_page(prediction, manifest, options.page, device)
    problems = write_optional(optional)
    written = [*output.written, *(path for path in optional if path not in problems)]
    say.summary(prediction, manifest.name, device, written)
    for problem in problems.values():
        say.problem(problem)
    if problems:
        return Exit.INCOMPLETE
    return Exit.REVIEW if options.strict and prediction.verdict.status == "review" else Exit.OK


def _from_environment(name: str) -> str:
    """A variable without the blanks, quotes and carriage returns that an env file leaves in it.

    Raises:
        RefusedError: it is none of what it can be.
    """
    value = os.environ.get(name, DEFAULTS[name]).strip(string.whitespace + "\"'")
    if value not in CHOICES.get(name, (value,)):
        raise RefusedError(f"{name} is {value!r}, expected one of {', '.join(CHOICES[name])}")
    return value


def _read_environment(
    options: argparse.Namespace, fields: Sequence[str], *, forgiving: bool = False
) -> None:
    """Fill in what the command line left open; say which variables nothing reads.

    Args:
        fields: of the options.
        forgiving: whether a value that is none is said, and its default used.

    Raises:
        RefusedError: a variable is none of what it can be.
    """
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in DEFAULTS and not options.attempt:
            note(f"{name}: no such variable, expected {' or '.join(DEFAULTS)}: not used")
    for field in fields:
        if getattr(options, field) is not None:
            continue
        name = PREFIX + field.upper()
        try:
            value = _from_environment(name)
            if field == "device":
                _check_device(value)
        except RefusedError as error:
            if not forgiving:
                raise
            value = DEFAULTS[name]
            note(f"{error}: {value} is used")
        setattr(options, field, value)


def _check_device(value: str) -> None:
    from hmvnet.segmentation.ensemble import pick_device

    try:
        pick_device(value)
    except RefusedError as error:
        raise RefusedError(f"HMVNET_DEVICE: {error}") from error


def _check_places(options: argparse.Namespace) -> None:
    """What is optional must not be written over an input or a required output."""
    taken = [(options.output / place).resolve() for place in ALL_PATHS]
    for path in (options.report, options.picture, options.page):
        if path is None:
            continue
        place = path.resolve()
        # A folder, a device or a link to what is one, like /dev/stdout: it would be removed first.
        special = path.is_symlink() or (place.exists() and not place.is_file())
        if special or place in taken or place.is_relative_to(options.input.resolve()):
            raise RefusedError(
                f"{path} is an input, a required output, named twice or no plain file: expected a "
                "new file"
            )
        taken.append(place)


def _clear_optional(options: argparse.Namespace) -> None:
    """What an earlier run left is not to be taken for this one's, whatever becomes of it."""
    for path in filter(None, (options.report, options.picture, options.page)):
        with suppress(OSError):  # what is optional costs nothing
            path.unlink(missing_ok=True)


def _overrides(options: argparse.Namespace) -> list[str]:
    """The settings given, the options that have names of their own among them."""
    own = ["inference.flips=true"] if options.flips else []
    if options.time_budget is not None:
        own.append(f"inference.time_budget_s={options.time_budget}")
    return [*options.set, *own]


def main(arguments: list[str] | None = None) -> int:
    """The exit code; every failure ends in one clear line on standard error."""

    def work() -> Exit:
        options = parse_arguments(arguments)
        if options.attempt:
            return attempt(options)
        if (options.on_error or _from_environment("HMVNET_ON_ERROR")) == "answer":
            return answer(options, sys.argv[1:] if arguments is None else arguments)
        return run(options)

    return ending(work)


if __name__ == "__main__":
    sys.exit(main())
