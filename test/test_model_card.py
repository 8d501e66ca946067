"""The model card's figures are the shipped bundle's."""

import json
import re

from conftest import ROOT


def test_the_shares_of_the_risk_are_the_bundles():
    bundle = json.loads((ROOT / "weights" / "hmvnet-base" / "manifest.json").read_text())
    weights = bundle["prognosis"]["settings"]
    parts = [weights[f"{name}_weight"] for name in ("direct", "linear", "forest")]
    card = (ROOT / "docs" / "model-card.md").read_text()
    (row,) = (line for line in card.splitlines() if line.startswith("| prognosis | ICARE"))
    said = [float(number) for number in re.findall(r"\((0\.\d\d)\)", row)]
    assert said == [round(part, 2) for part in (*parts, 1 - sum(parts))]
