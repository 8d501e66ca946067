"""The report: positions where a viewer shows them, classes by name, nothing of the patient."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import nothing_found

from hmvnet.bundle import Manifest, SegmentationPart
from hmvnet.case import Grid, Verdict
from hmvnet.config import PostprocessingSettings, PreprocessingSettings
from hmvnet.imaging.roi import Region
from hmvnet.lesions.table import lesion_table
from hmvnet.pipeline import Prediction
from hmvnet.staging.estimate import StageEstimate, Staging
from hmvnet.writing.report import report, write_lesions, write_report

MANIFEST = Manifest(
    name="some",
    preprocessing=PreprocessingSettings(),
    postprocessing=PostprocessingSettings(),
    segmentation=SegmentationPart(
        network="hmvnet", patch_size=(32, 32, 32), files=["fold0.safetensors"]
    ),
)
UP, DOWN = (1, 0, 0, 0, 1, 0, 0, 0, 1), (1, 0, 0, 0, 1, 0, 0, 0, -1)


def prediction_with(voxels: dict[int, tuple[int, int, int]], grid: Grid) -> Prediction:
    """A prediction whose lesions are cubes of 3 voxels around voxels (z, y, x), by label."""
    found = nothing_found(grid.shape)
    labels = np.zeros(grid.shape, np.uint8)
    for label, (z, y, x) in voxels.items():
        labels[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = label
    volume = replace(found.volume, region=Region(grid, "centre", 0.1))
    segmentation = replace(found, volume=volume, labels=labels)
    lesions = lesion_table(labels, *volume.raw, grid.spacing[::-1])
    notes = ("no lesion found",) if not lesions else ()
    return Prediction(
        None,
        lesions,
        None,
        Verdict("review", ("no-head",)),
        notes,
        {"network": 1.234},
        segmentation,
    )


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_positions_are_lps_millimetres_whatever_the_grid(direction):
    """Centroids once counted from the corner of a grid whose origin is in no file."""
    grid = Grid((20, 24, 28), (2.0, 2.0, 2.0), (-50.0, 30.0, -700.0), direction)
    found = report(prediction_with({1: (5, 6, 7), 2: (20, 12, 15)}, grid), MANIFEST, "cpu")
    expected = [grid.points(np.array([xyz]))[0].tolist() for xyz in ((7, 6, 5), (15, 12, 20))]
    assert [row["centroid_lps_mm"] for row in found["lesions"]] == expected
    assert [row["class"] for row in found["lesions"]] == ["GTVp", "GTVn"]


def test_the_report_says_how_it_was_made():
    found = report(prediction_with({}, Grid((20, 20, 20), (2.0, 2.0, 2.0))), MANIFEST, "cuda:0")
    assert found["bundle"] == "some" and found["device"] == "cuda:0" and found["version"]
    assert found["time"].endswith("+00:00") and found["seconds"] == {"network": 1.23}
    assert found["lesions"] == [] and found["notes"] == ["no lesion found"]
    assert found["verdict"] == {"status": "review", "codes": ["no-head"]}
    assert "risk" not in found and "clinical use" in found["notice"]


def test_stage_and_why_are_in_the_report():
    t = StageEstimate("T4", {"T3": 0.25, "T4": 0.75}, ("on bone",))
    staging = Staging(t, StageEstimate("N0", reasons=("no nodes",)), "model", ("site unknown",))
    bare = prediction_with({}, Grid((20, 20, 20), (2.0, 2.0, 2.0)))
    assert "stage" not in report(bare, MANIFEST)
    found = report(replace(bare, staging=staging), MANIFEST)["stage"]
    assert found["t"] == {
        "stage": "T4",
        "probabilities": {"T3": 0.25, "T4": 0.75},
        "reasons": ["on bone"],
    }
    assert (found["by"], found["n"]["stage"], found["notes"]) == ("model", "N0", ["site unknown"])


def test_files_hold_what_the_report_holds(tmp_path):
    prediction = prediction_with({1: (5, 6, 7)}, Grid((20, 20, 20), (2.0, 2.0, 2.0)))
    stored = json.loads(write_report(prediction, MANIFEST, tmp_path / "a.json").read_text())
    table = pd.read_csv(write_lesions(prediction, tmp_path / "a.csv"))
    assert table.loc[0, "class"] == "GTVp" and len(table) == 1
    position = table.loc[0, ["x_lps_mm", "y_lps_mm", "z_lps_mm"]].tolist()
    assert position == stored["lesions"][0]["centroid_lps_mm"] == [14.0, 12.0, 10.0]
    assert table.loc[0, "volume_ml"] == pytest.approx(stored["lesions"][0]["volume_ml"])


def test_a_table_without_lesions_keeps_its_columns(tmp_path):
    empty = prediction_with({}, Grid((20, 20, 20), (2.0, 2.0, 2.0)))
    some = prediction_with({1: (5, 6, 7)}, Grid((20, 20, 20), (2.0, 2.0, 2.0)))
    tables = [
        pd.read_csv(write_lesions(p, tmp_path / f"{i}.csv")) for i, p in enumerate((empty, some))
    ]
    assert len(tables[0]) == 0 and list(tables[0].columns) == list(tables[1].columns)
