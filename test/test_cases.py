"""The sample cases with the shipped weights: what is stored of them, and what is true of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from compare_outputs import compare_case
from conftest import ROOT

from hmvnet import container

CASES = ROOT / "test" / "cases"
NAMES = sorted(path.parent.name for path in CASES.glob("*/input"))
FAST = {"phantom-2"}  # the smallest; the others take some 15 s each on one thread


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMES]
)
def test_a_sample_case_gives_its_stored_outputs_and_meets_its_truth(name: str, tmp_path: Path):
    case = CASES / name
    settings = case / "settings"
    words = settings.read_text().split() if settings.is_file() else []
    # Cases share images by links, which may not lead out of an input folder.
    inputs, output = shutil.copytree(case / "input", tmp_path / "input"), tmp_path / "output"
    arguments = ["--input", str(inputs), "--output", str(output), "--task", "both"]
    arguments += ["--weights", str(ROOT / "weights" / "hmvnet-base"), "--device", "cpu"]
    assert container.main([*arguments, *words]) == 0
    checks = compare_case(case / "expected", output, **truth_of(case))
    assert [check for check in checks if not check.passed] == []
    assert {check.name for check in checks} >= {
        "GTVp Dice",
        *([] if "--task" in words else ["risk"]),
    }
    assert ("GTVp Dice with truth" in {check.name for check in checks}) == (name != "damaged-2026")


def truth_of(case: Path) -> dict[str, Any]:
    """What the case's mask is compared with; nothing where no truth is known."""
    if not (case / "truth.mha").exists():
        return {}
    return {"truth": case / "truth.mha", "least_dice": float((case / "least_dice").read_text())}


@pytest.mark.parametrize("name", [name for name in NAMES if truth_of(CASES / name)])
def test_the_stored_mask_of_a_sample_case_meets_its_truth(name: str):
    """No weights are needed to see that what is stored is worth storing."""
    case, stored = CASES / name, CASES / name / "expected"
    checks = compare_case(stored, stored, **truth_of(case))
    assert [check for check in checks if not check.passed] == []
    assert truth_of(case)["least_dice"] >= 0.65
