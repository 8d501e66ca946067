"""What is written is read by each platform as the model meant it."""

import json

import numpy as np
import pytest
from conftest import tiny_ct

from hmvnet.bundle import load_bundle
from hmvnet.case import TIED_RISK, Outcomes, harrell_c
from hmvnet.prognosis.risk import Prognosis, Risk
from hmvnet.writing.challenge import INTERFACES, N_PATH, RISK_PATH, T_PATH, OutputFolder

# How each platform orders patients by the number of rfs.json: by risk, or by time.
READ_AS_RISK = {"2025": 1.0, "2026": -1.0}


def written(root, year: str, risk: Risk) -> float:
    """The number that a platform finds."""
    interface = INTERFACES[year]
    OutputFolder(root, interface).write_rfs(interface.rfs(risk))
    return json.loads((root / RISK_PATH).read_text())


@pytest.fixture(params=["curve", "knots", "nothing"])
def days(request, tiny_bundle):
    """Risk to expected days: of a bundle with survival curves, of one with three knots, of none."""
    if request.param == "nothing":
        return lambda value: None
    bundle = load_bundle(tiny_bundle)
    part = bundle.manifest.prognosis
    assert part is not None
    if request.param == "knots":
        knots = [[-1.0, 2000.0], [0.0, 1500.0], [1.0, 500.0]]
        part = part.model_copy(update={"curve": None, "expected_days": knots})
        manifest = bundle.manifest.model_copy(update={"prognosis": part})
        return Prognosis(type(bundle)(bundle.folder, manifest)).expected_days
    return Prognosis(bundle).expected_days


@pytest.mark.parametrize("year", INTERFACES)
def test_the_c_index_of_what_is_written_is_the_model_s(tmp_path, year, days):
    """Of a good model it is not 1 - C, which a team once had; and no pair is tied by the way."""
    rng = np.random.default_rng(3)
    value = np.concatenate([rng.normal(0, 1, 60), rng.normal(0, 6, 20), [-40.0, 40.0]])
    time = np.exp(-0.5 * value + rng.normal(0, 1, len(value))).clip(1e-6, 1e6)
    outcomes = Outcomes(1000 * time, rng.random(len(value)) < 0.6)
    right = harrell_c(outcomes, value)
    assert right > 0.7
    found = [written(tmp_path, year, Risk(float(v), 0.5, days(float(v)), {})) for v in value]
    as_risk = READ_AS_RISK[year] * np.array(found)
    assert harrell_c(outcomes, as_risk) == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("year", INTERFACES)
def test_what_is_written_falls_or_rises_strictly(tmp_path, year, days):
    """Far beyond any risk that was seen, and between risks that are barely apart."""
    apart = np.concatenate([np.linspace(-60, 60, 400), 0.3 + 100 * TIED_RISK * np.arange(5)])
    value = np.unique(apart)
    found = [written(tmp_path, year, Risk(float(v), 0.5, days(float(v)), {})) for v in value]
    assert (np.diff(READ_AS_RISK[year] * np.array(found)) > 0).all()
    assert np.isfinite(found).all()


def test_stages_are_bare_strings(tmp_path):
    OutputFolder(tmp_path, INTERFACES["2026"]).write_stages("T3", "N2")
    assert (tmp_path / T_PATH).read_text() == '"T3"'
    assert (tmp_path / N_PATH).read_text() == '"N2"'


@pytest.mark.parametrize(("year", "count"), [("2025", 2), ("2026", 4)])
def test_an_output_of_another_year_is_not_left_behind(tmp_path, year, count):
    for interface in INTERFACES.values():
        for path in interface.paths("both"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("stale")
    with OutputFolder(tmp_path, INTERFACES[year]) as output:
        output.write_mask(tiny_ct())
        output.write_rfs(0.5)
        if output.interface.stages:
            output.write_stages("T1", "N0")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == count and not any(p.read_bytes() == b"stale" for p in files)
