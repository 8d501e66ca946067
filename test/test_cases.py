"""The sample cases with the shipped weights: what is stored of them, and what is true of them."""

from __future__ import annotations

from pathlib import Path

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
    arguments = ["--input", str(case / "input"), "--output", str(tmp_path), "--task", "both"]
    arguments += ["--weights", str(ROOT / "weights" / "hmvnet-base"), "--device", "cpu"]
    assert container.main([*arguments, *words]) == 0
    least = float((case / "least_dice").read_text())
    truth = case / "truth.mha"
    checks = compare_case(case / "expected", tmp_path, truth=truth, least_dice=least)
    assert [check for check in checks if not check.passed] == []
    assert {check.name for check in checks} >= {"GTVp Dice", "GTVp Dice with truth", "risk"}


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_mask_of_a_sample_case_meets_its_truth(name: str):
    """No weights are needed to see that what is stored is worth storing."""
    case, stored = CASES / name, CASES / name / "expected"
    least = float((case / "least_dice").read_text())
    checks = compare_case(stored, stored, truth=case / "truth.mha", least_dice=least)
    assert [check for check in checks if not check.passed] == []
    assert least >= 0.65
