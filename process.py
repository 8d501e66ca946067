"""Container entry point: one patient in ``/input``, mask and risk in ``/output``.

    python process.py --input DIR --output DIR --weights DIR --task {1,2,both}

The defaults are grand-challenge's paths. On an error, the last line on standard error says what is
wrong (without patient data), the exit code is not 0, and no output file is left behind.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if str(ROOT / "model") not in sys.path:  # a checkout or the container, with nothing installed
    sys.path.insert(0, str(ROOT / "model"))

STRONGEST = 5  # contributions to the risk that the summary names
EXIT_BAD_INPUT, EXIT_FAILED, EXIT_TERMINATED = 2, 1, 143


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; its defaults are the platform's."""
    parser = argparse.ArgumentParser(description="Segment GTVp and GTVn, predict RFS risk.")
    parser.add_argument("--input", type=Path, default=Path("/input"), help="input folder")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="output folder")
    parser.add_argument(
        "--weights", type=Path, help="bundle (default: /opt/ml/model, then weights/)"
    )
    parser.add_argument(
        "--task", choices=("1", "2", "both"), default=os.environ.get("HMVNET_TASK", "both")
    )
    parser.add_argument("--device", default=os.environ.get("HMVNET_DEVICE", "auto"))
    parser.add_argument("--flips", action="store_true", help="average with the mirrored volume")
    parser.add_argument("--days", action="store_true", help="rfs.json: expected days (2026)")
    parser.add_argument("--time-budget", type=float, default=240.0, help="seconds for the networks")
    parser.add_argument("--report", type=Path, help="also write lesions and reasons to this JSON")
    parser.add_argument("--picture", type=Path, help="also draw slices and MIPs to this PNG")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Read, predict, write."""
    from hmvnet.challenge import OutputFolder, read_case
    from hmvnet.config import InferenceSettings
    from hmvnet.pipeline import Pipeline
    from hmvnet.runtime import pick_device
    from hmvnet.weights import find_bundle, load_bundle

    say = Narrator()
    with OutputFolder(options.output) as output:
        say("read the case")
        wants_risk = options.task in ("2", "both")
        case = read_case(options.input, needs_record=wants_risk)
        say("load the weights")
        bundle = load_bundle(find_bundle(options.weights, ROOT / "weights"))
        device = pick_device(options.device)
        settings = InferenceSettings(flips=options.flips, time_budget_s=options.time_budget)
        pipeline = Pipeline(bundle, device, settings, needs_risk=wants_risk)
        prediction = pipeline(case, say)
        say("write")
        written = []
        if options.task in ("1", "both"):
            written.append(output.write_mask(prediction.mask))
        if prediction.risk:
            written.append(output.write_json(risk_value(prediction.risk, options.days)))
        if options.report:
            written.append(write_report(prediction, bundle.manifest, options.report))
        if options.picture:
            from hmvnet.report import draw_prediction

            written.append(draw_prediction(prediction, options.picture))
    say.summary(prediction, bundle.manifest.name, str(device), written)


def write_report(prediction, manifest, path: Path) -> Path:
    """Lesions, risk and what moved it, as JSON."""
    import json

    from hmvnet.explanation import explain
    from hmvnet.files import write_text

    write_text(json.dumps(explain(prediction, manifest), indent=2) + "\n", path)
    return path


def risk_value(risk, as_days: bool) -> float:
    """The number of ``rfs.json``: the risk, or the expected recurrence-free days."""
    if not as_days:
        return risk.value
    if risk.expected_days is None:
        raise ValueError("this bundle does not know the expected days (--days)")
    return risk.expected_days


class Narrator:
    """Says on standard output which stage runs, and ends with a summary."""

    def __init__(self) -> None:
        from rich.console import Console

        # The platform's log is no terminal and has no width.
        self.console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
        self.start = time.monotonic()

    def __call__(self, stage: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.start:6.1f} s[/]  {stage}")

    def summary(self, prediction, bundle: str, device: str, written: list[Path]) -> None:
        """Lesion table, risk, warnings, timings, and where the outputs are."""
        if prediction.lesions:
            self.console.print(_lesion_table(prediction.lesions))
        if prediction.risk:
            risk = prediction.risk
            by_branch = ", ".join(f"{name} {value:+.2f}" for name, value in risk.branches.items())
            self.console.print(
                f"RFS risk {risk.value:+.3f} (higher = earlier recurrence), above "
                f"{risk.quantile:.0%} of the training patients; by branch: {by_branch}"
            )
            if strongest := risk.contributions[:STRONGEST]:
                moved = ", ".join(f"{c.name} {c.value:+.3f}" for c in strongest)
                self.console.print(f"moved most by: {moved}")
        for note in prediction.notes:
            self.console.print(f"[yellow]note[/] {note}")
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in prediction.timings.items())
        self.console.print(f"[dim]bundle {bundle} on {device}; seconds: {stages}[/]")
        for path in written:
            self.console.print(f"wrote {path}", soft_wrap=True)
        self.console.print("[dim]Research software, not for clinical use.[/]")


def _lesion_table(lesions):
    from rich.table import Table

    from hmvnet.case import CLASSES

    columns = {
        "lesion": lambda row: CLASSES[row.label],
        "mL": lambda row: f"{row.volume_ml:.1f}",
        "diameter mm": lambda row: f"{row.diameter_mm:.0f}",
        "SUVmax": lambda row: f"{row.suv_max:.1f}",
        "SUVmean": lambda row: f"{row.suv_mean:.1f}",
        "TLG": lambda row: f"{row.tlg:.0f}",
    }
    table = Table(title="Lesions")
    for name in columns:
        table.add_column(name, justify="left" if name == "lesion" else "right")
    for row in lesions:
        table.add_row(*(text(row) for text in columns.values()))
    return table


def _terminate(signum, frame) -> None:
    # SIGTERM comes 5 s before SIGKILL; leaving by an exception removes half-written files.
    raise SystemExit(EXIT_TERMINATED)


def main(arguments: list[str] | None = None) -> int:
    """The exit code; every failure ends in one clear line on standard error."""
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    from hmvnet.case import CaseError

    try:
        run(options)
    except CaseError as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except MemoryError:
        return _fail("out of memory: the scan needs more than this machine allows", EXIT_FAILED)
    except Exception as error:  # the last line is all a user of the platform sees
        import traceback

        traceback.print_exc()
        return _fail(f"{type(error).__name__}: {error}", EXIT_FAILED)
    return 0


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
