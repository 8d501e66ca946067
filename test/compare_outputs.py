#!/usr/bin/env python3
"""Compare what the container wrote for one case with the stored outputs, and with the truth.

Needs SimpleITK and numpy only, so that `test.sh` can run it inside the image and the test suite
in the project's environment. Prints a table; the exit code is 0 where every check passed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

MASK = "output.mha"
RISK = Path("rfs.json")
LABELS = {1: "GTVp", 2: "GTVn"}
STAGES = {"t-stage": ("T1", "T2", "T3", "T4"), "n-stage": ("N0", "N1", "N2", "N3")}
MIN_DICE = 0.99
# Absolute, and of days as a share: a machine's own arithmetic (fp16, bf16) moves a few voxels of
# the mask, and by them the risk, 0.0012 where it was seen most.
RISK_TOLERANCE = 5e-3
# Below the smallest step that a header written with single precision can hide (mm, cosines).
GEOMETRY_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    expected: str
    found: str
    passed: bool


def compare_geometry(expected: sitk.Image, found: sitk.Image) -> list[Check]:
    """Size, spacing, origin (mm), direction cosines of two masks, in SimpleITK's x, y, z order."""
    checks = []
    for name in ("Size", "Spacing", "Origin", "Direction"):
        want, have = getattr(expected, f"Get{name}")(), getattr(found, f"Get{name}")()
        same = len(want) == len(have) and np.allclose(want, have, rtol=0, atol=GEOMETRY_TOLERANCE)
        checks.append(Check(name.lower(), _numbers(want), _numbers(have), same))
    return checks


def compare_labels(expected: np.ndarray, found: np.ndarray, min_dice: float) -> list[Check]:
    """Which labels a label map `[z, y, x]` has, and the Dice of each with the stored one's."""
    values = [int(value) for value in np.unique(found)]
    known = set(values) <= {0, *LABELS}
    labels = Check("labels", "among 0, 1, 2", ", ".join(map(str, values)), known)
    return [labels, *compare_dice(expected, found, min_dice, "Dice")]


def compare_dice(reference: np.ndarray, found: np.ndarray, least: float, what: str) -> list[Check]:
    """Dice of each label of two label maps `[z, y, x]`; a label that neither has is passed over."""
    checks = []
    for label, name in LABELS.items():
        a, b = reference == label, found == label
        total = int(a.sum()) + int(b.sum())
        if total == 0:
            checks.append(Check(f"{name} {what}", "absent", "absent", True))
            continue
        dice = 2 * int((a & b).sum()) / total
        sizes = f"{dice:.4f} ({int(b.sum())} of {int(a.sum())} voxels)"
        checks.append(Check(f"{name} {what}", f">= {least}", sizes, dice >= least))
    return checks


def compare_truth(truth: Path, found: Path, least_dice: float) -> list[Check]:
    """Dice of each label of a mask on disk with the truth's, which lies on the same grid."""
    want, have = sitk.ReadImage(str(truth)), sitk.ReadImage(str(found))
    if want.GetSize() != have.GetSize():
        sizes = _numbers(want.GetSize()), _numbers(have.GetSize())
        return [Check("size of truth", *sizes, False)]
    arrays = sitk.GetArrayFromImage(want), sitk.GetArrayFromImage(have)
    return compare_dice(*arrays, least_dice, "Dice with truth")


def compare_masks(expected: Path, found: Path, min_dice: float) -> list[Check]:
    """Pixel type, geometry and labels of two masks on disk."""
    want, have = sitk.ReadImage(str(expected)), sitk.ReadImage(str(found))
    kinds = want.GetPixelIDTypeAsString(), have.GetPixelIDTypeAsString()
    checks = [Check("pixel type", *kinds, kinds[0] == kinds[1]), *compare_geometry(want, have)]
    if want.GetSize() == have.GetSize():
        arrays = sitk.GetArrayFromImage(want), sitk.GetArrayFromImage(have)
        checks += compare_labels(*arrays, min_dice)
    return checks


def compare_risks(expected: Path, found: Path, tolerance: float) -> list[Check]:
    """The one number of two `rfs.json` files: a risk, or days."""
    want = json.loads(expected.read_text())
    have = json.loads(found.read_text())
    number = isinstance(have, (int, float)) and not isinstance(have, bool) and math.isfinite(have)
    tolerance *= max(1.0, abs(want))
    passed = number and abs(have - want) <= tolerance
    return [Check("risk", f"{want:.6f} +- {tolerance:g}", f"{have}", passed)]


def compare_stages(expected: Path, found: Path, form: bool = False) -> list[Check]:
    """A stage, a JSON string of its own file; with ``form`` any stage of its kind."""
    want, have = json.loads(expected.read_text()), json.loads(found.read_text())
    if form:
        allowed = STAGES[found.stem]
        return [Check(found.stem, f"one of {', '.join(allowed)}", f"{have}", have in allowed)]
    return [Check(found.stem, f"{want}", f"{have}", want == have)]


def compare_case(
    expected: Path,
    found: Path,
    task: str = "both",
    min_dice: float = MIN_DICE,
    risk_tolerance: float = RISK_TOLERANCE,
    truth: Path | None = None,
    least_dice: float = 0.0,
    form: bool = False,
) -> list[Check]:
    """Compare two output folders, and the mask with the truth where that is given.

    Args:
        expected: folder with the stored outputs; they say which year's the case is.
        found: folder that the container wrote.
        task: "1" (mask), "2" (risk) or "both": the files that have to be there, and no others.
        min_dice: least Dice of each label with the stored mask's.
        risk_tolerance: largest absolute difference of the risk.
        truth: the reference mask on the CT grid.
        least_dice: least Dice of each label with the truth's.
        form: of weights of one's own: what values there may be, and not which.
    """
    if form:
        min_dice, risk_tolerance, truth = 0.0, math.inf, None
    stored = sorted(p.relative_to(expected) for p in expected.rglob("*") if p.is_file())
    leave_out = {"1": lambda p: p == RISK, "2": lambda p: p.name == MASK, "both": lambda p: False}
    sockets = [path for path in stored if not leave_out[task](path)]
    checks = []
    for socket in sockets:
        if not (found / socket).is_file():
            checks.append(Check("file", str(socket), "missing", False))
        elif socket.name == MASK:
            checks += compare_masks(expected / socket, found / socket, min_dice)
            if truth:
                checks += compare_truth(truth, found / socket, least_dice)
        elif socket == RISK:
            checks += compare_risks(expected / socket, found / socket, risk_tolerance)
        else:
            checks += compare_stages(expected / socket, found / socket, form)
    files = sorted(p.relative_to(found) for p in found.rglob("*") if p.is_file())
    extra = [str(p) for p in files if p not in sockets]
    checks.append(Check("other files", "none", ", ".join(extra) or "none", not extra))
    return checks


def print_table(checks: list[Check]) -> None:
    """Print one row a check, columns aligned."""
    rows = [("check", "expected", "found", "")]
    rows += [(c.name, c.expected, c.found, "ok" if c.passed else "FAILED") for c in checks]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("   " + "  ".join([*cells, row[3]]).rstrip())


def main(arguments: list[str] | None = None) -> int:
    """Command line: `compare_outputs.py EXPECTED FOUND`; 0 where every check passed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("expected", type=Path, help="folder with the stored outputs")
    parser.add_argument("found", type=Path, help="folder that the container wrote")
    parser.add_argument("--task", choices=("1", "2", "both"), default="both")
    parser.add_argument("--min-dice", type=float, default=MIN_DICE)
    parser.add_argument("--risk-tolerance", type=float, default=RISK_TOLERANCE)
    parser.add_argument("--truth", type=Path, help="the reference mask, on the CT grid")
    parser.add_argument("--least-dice", type=float, default=0.0, help="least Dice with the truth")
    parser.add_argument("--form", action="store_true", help="any values, as of other weights")
    options = parser.parse_args(arguments)
    checks = compare_case(**vars(options))
    print_table(checks)
    return 0 if all(check.passed for check in checks) else 1


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
