"""The container: one patient in ``/input``, mask and risk in ``/output``, as the platform wants.

On an error the last line on standard error says what is wrong (without patient data), the exit
code is not 0, and no output file is left behind.
"""

from __future__ import annotations

import argparse
import os
import string
from collections.abc import Callable
from pathlib import Path

from hmvnet.exits import Exit, RefusedError, ending, note

TASKS = ("1", "2", "both")
# The environment's variables, and what holds where neither they nor the command line say anything.
PREFIX = "HMVNET_"
DEFAULTS = {"HMVNET_TASK": "both", "HMVNET_DEVICE": "auto"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; its defaults are the platform's."""
    parser = argparse.ArgumentParser(description="Segment GTVp and GTVn, predict RFS risk.")
    parser.add_argument("--input", type=Path, default=Path("/input"), help="input folder")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="output folder")
    parser.add_argument(
        "--weights", help="bundle: folder or URL#sha256=... (default: /opt/ml/model, then weights/)"
    )
    parser.add_argument("--task", choices=TASKS, help="default: HMVNET_TASK, then both")
    parser.add_argument("--device", help="default: HMVNET_DEVICE, then auto")
    parser.add_argument("--flips", action="store_true", help="average with the mirrored volume")
    parser.add_argument("--days", action="store_true", help="rfs.json: expected days (2026)")
    parser.add_argument("--time-budget", help="seconds for the networks (default: 240)")
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
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Exit:
    """Read, predict, write: the required outputs whole or not at all, then the optional ones."""
    from hmvnet.pipeline import load_pipeline
    from hmvnet.reading.challenge import read_case
    from hmvnet.writing.challenge import OutputFolder
    from hmvnet.writing.folder import write_optional, write_picture
    from hmvnet.writing.page import write_page
    from hmvnet.writing.report import write_report
    from hmvnet.writing.summary import Narrator

    _check_places(options)
    say = Narrator()
    with OutputFolder(options.output) as output:
        _read_environment(options)
        wants_risk = options.task in ("2", "both")
        say("load the weights")
        pipeline = load_pipeline(
            options.weights, options.device, _overrides(options), needs_risk=wants_risk
        )
        say("read the case")
        case = read_case(options.input, needs_record=wants_risk)
        prediction = pipeline(case, say)
        say("write")
        if options.task in ("1", "both"):
            output.write_mask(prediction.mask)
        if prediction.risk:
            output.write_json(_risk_value(prediction.risk, options.days))
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


def _read_environment(options: argparse.Namespace) -> None:
    """Fill in what the command line left open; say which variables nothing reads.

    Blanks, quotes and carriage returns are taken off: Docker leaves those of an env file in place.
    """
    from hmvnet.segmentation.ensemble import pick_device

    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in DEFAULTS:
            note(f"{name}: no such variable, expected {' or '.join(DEFAULTS)}: not used")
    found = {
        name: os.environ.get(name, default).strip(string.whitespace + "\"'")
        for name, default in DEFAULTS.items()
    }
    if options.task is None:
        options.task = found["HMVNET_TASK"]
        if options.task not in TASKS:
            raise RefusedError(
                f"HMVNET_TASK is {options.task!r}, expected one of {', '.join(TASKS)}"
            )
    if options.device is None:
        options.device = found["HMVNET_DEVICE"]
        try:
            pick_device(options.device)
        except RefusedError as error:
            raise RefusedError(f"HMVNET_DEVICE: {error}") from error


def _check_places(options: argparse.Namespace) -> None:
    """What is optional must not be written over an input or a required output."""
    from hmvnet.writing.challenge import MASK_PATH, RISK_PATH

    taken = [(options.output / place).resolve() for place in (MASK_PATH, RISK_PATH)]
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


def _overrides(options: argparse.Namespace) -> list[str]:
    """The settings given, the options that have names of their own among them."""
    own = ["inference.flips=true"] if options.flips else []
    if options.time_budget is not None:
        own.append(f"inference.time_budget_s={options.time_budget}")
    return [*options.set, *own]


def _risk_value(risk, as_days: bool) -> float:
    """The number of ``rfs.json``: the risk, or the expected recurrence-free days."""
    if not as_days:
        return risk.value
    if risk.expected_days is None:
        raise RefusedError("this bundle does not know the expected days (--days)")
    return risk.expected_days


def main(arguments: list[str] | None = None) -> int:
    """The exit code; every failure ends in one clear line on standard error."""
    return ending(lambda: run(parse_arguments(arguments)))
