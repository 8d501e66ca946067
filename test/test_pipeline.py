"""What makes a result doubtful beyond its images: what is known of training, and of the passes."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import predicted
from test_writing_page import TWO, bundle

from hmvnet.bundle import Bundle, load_bundle, write_bundle
from hmvnet.case import Finding, Grid
from hmvnet.pipeline import (
    MOST_DISAGREEMENT,
    Prediction,
    _apart,
    _cut,
    _doubtful,
    load_pipeline,
)
from hmvnet.settings_file import load_settings


def codes(volumes: dict, disagreement: float | None = None) -> list[str]:
    manifest = bundle().model_copy(update={"volumes_ml": volumes})
    return [found.code for found in _doubtful(predicted(*TWO).lesions, manifest, disagreement)]


def test_a_lesion_that_hardly_takes_up_is_to_be_reviewed():
    warm = [replace(one, suv_max=1.0) for one in predicted(*TWO).lesions]
    assert list(_doubtful(warm, bundle(), None)) == []
    (said,) = _doubtful([warm[0], replace(warm[1], suv_max=0.99)], bundle(), None)
    assert said.code == "cold-lesion"
    assert said.text == "1 of 2 lesions with a SUVmax below 1 (lowest 0.99)"


def test_volumes_are_held_against_those_that_were_trained_on():
    primary, node = (lesion.volume_ml for lesion in predicted(*TWO).lesions)
    assert codes({}) == []
    fits = {"GTVp": (primary - 0.1, primary + 0.1), "GTVn": (node - 0.1, node + 0.1)}
    assert codes(fits) == []
    for kind, ends in (("GTVp", (0.0, primary - 0.1)), ("GTVn", (node + 0.1, 99.0))):
        assert codes(fits | {kind: ends}) == ["volume"]
    manifest = bundle().model_copy(update={"volumes_ml": {"GTVn": (5.0, 9.0)}})
    only_primary = predicted(TWO[0]).lesions  # a class that is not there is of no size
    assert list(_doubtful(only_primary, manifest, None)) == []


def test_several_lesions_of_a_class_count_together():
    two = predicted(*TWO, (2, (60, 20, 70), 6))
    nodes = [lesion.volume_ml for lesion in two.lesions if lesion.label == 2]
    assert len(nodes) == 2
    manifest = bundle().model_copy(update={"volumes_ml": {"GTVn": (0.1, max(nodes) + 0.1)}})
    (found,) = _doubtful(two.lesions, manifest, None)
    assert found.code == "volume" and f"GTVn of {sum(nodes):.1f} mL in all" in found.text


@pytest.mark.parametrize(
    ("apart", "found"),
    [(None, []), (MOST_DISAGREEMENT, []), (MOST_DISAGREEMENT + 0.01, ["disagreement"])],
)
def test_passes_that_disagree_are_to_be_reviewed(apart, found):
    assert codes({}, apart) == found


def test_volumes_hold_in_the_bundles_own_region_only(tmp_path):
    manifest = bundle().model_copy(update={"volumes_ml": {"GTVp": (1.0, 60.0)}})
    known = Bundle(tmp_path, manifest)
    for region, kept in (("head-neck", True), ("centre", False)):
        other, _ = known.adjusted(load_settings(None, [f"data.region={region}"]))
        assert bool(other.manifest.volumes_ml) is kept


@pytest.mark.parametrize(
    ("centre", "first", "ends"),
    [((40, 30, 40), 0, []), ((40, 30, 40), 29, []), ((40, 30, 40), 38, ["CT"])]
    + [((40, 30, 8), 0, ["CT", "region"]), ((40, 30, 8), -20, ["region"])],
)
def test_a_lesion_that_is_cut_off_is_to_be_reviewed(centre, first, ends):
    """The face of a cut was measured as the tumour's own, and the verdict was ok."""
    grid = Grid((60, 80, 90 - first), (1.0, 1.0, 1.0), (10.0 + first, 20.0, 300.0))
    found = predicted((1, centre, 10))
    whole = found.segmentation.volume.grid
    said = list(_cut(found.segmentation, Grid(whole.size, whole.spacing, grid.origin)))
    assert [one.code for one in said] == ["lesion-cut"] * len(ends)
    assert all(end in one.text for end, one in zip(ends, said, strict=True))


@pytest.mark.parametrize("ct_mm", [0.98, 1.5, 3.27])
@pytest.mark.parametrize("mm", [1, 2, 4])
@pytest.mark.parametrize("offset", [0.0, 0.3, 0.7, 0.95])
def test_a_cut_is_seen_wherever_the_grids_lie(ct_mm, mm, offset):
    """The CT's face lies anywhere between two planes of the working grid."""
    grid = Grid((24, 24, 24), (float(mm),) * 3)
    ct = Grid((300, 300, 40), (1.0, 1.0, ct_mm), (-100.0, -100.0, (10 + offset) * mm))
    labels = np.zeros(grid.shape, np.uint8)
    labels[8:16, 8:16, 8:16] = 1
    z = grid.points(np.argwhere(labels)[:, ::-1])
    labels[labels > 0] = ct.depth(z) >= 0
    segmentation = SimpleNamespace(volume=SimpleNamespace(grid=grid), labels=labels)
    assert [one.code for one in _cut(segmentation, ct)] == ["lesion-cut"]


def apart(found: Prediction, shown: np.ndarray | None = None) -> Iterator[Finding]:
    mask = found.mask if shown is None else Grid.of(found.mask).image(shown)
    return _apart(found.segmentation, mask, found.lesions, found.numbers)


def test_a_mask_of_other_volumes_than_the_table_is_to_be_reviewed():
    """Thick slices leave small lesions out of the mask; a report told of them all the same."""
    found = predicted(*TWO)
    assert list(apart(found)) == []
    half = sitk.GetArrayFromImage(found.mask)
    half[half == 2] = 0
    said = list(apart(found, half))
    (node,) = (lesion.volume_ml for lesion in found.lesions if lesion.label == 2)
    assert [one.code for one in said] == ["mask-apart"]
    assert f"GTVn: 0.0 mL in the mask on the CT's grid, {node:.1f} mL" in said[0].text
    tiny = predicted(TWO[0], (2, (60, 20, 70), 3))  # of 0.1 mL, between two slices
    none = sitk.GetArrayFromImage(tiny.mask)
    none[none == 2] = 0
    assert list(apart(tiny)) == []
    (said,) = apart(tiny, none)
    assert said.code == "mask-apart"


def test_a_small_lesion_that_the_mask_lacks_is_to_be_reviewed():
    """Of 0.3 mL beside a node of 4: no class's volume says so, and DICOM objects lack it too."""
    found = predicted(TWO[0], TWO[1], (2, (60, 20, 70), 4))
    shown = sitk.GetArrayFromImage(found.mask)
    small = min(range(len(found.lesions)), key=lambda k: found.lesions[k].volume_ml) + 1
    shown[(shown == 2) & (found.numbers == small)] = 0
    assert list(apart(found)) == []
    (said,) = apart(found, shown)
    volume = found.lesions[small - 1].volume_ml
    assert said.code == "mask-apart" and 0.2 < volume < 0.5
    assert said.text.startswith(f"lesion {small} (GTVn, {volume:.2f} mL) of the table is not in")


@pytest.mark.parametrize(
    ("asked", "codes", "risk"),
    [
        ([], [], True),
        (["postprocessing.cleanup=false"], [], True),
        (["preprocessing.suv_window=0 9"], ["other-settings"], True),
        (["data.region=centre"], ["other-settings"], False),
    ],
)
def test_networks_shown_something_else_are_to_be_reviewed(tiny_bundle, asked, codes, risk):
    """Sarcomas of a leg got a risk of head-and-neck cancer, and the verdict was ok."""
    pipeline = load_pipeline(tiny_bundle, "cpu", asked)
    assert [one.code for one in pipeline.findings] == codes
    assert (pipeline.prognosis is not None) is risk
    assert any("no risk" in note for note in pipeline.notes) is not risk


def test_what_is_made_of_a_bundle_with_other_settings_remembers(tiny_bundle, tmp_path):
    """Its networks have not seen such input, whatever was fitted on top of them since."""
    asked = load_settings(None, ["preprocessing.suv_window=0 9"])
    other, _ = load_bundle(tiny_bundle).adjusted(asked)
    made = write_bundle(tmp_path / "made", other.manifest, other.all_tensors())
    pipeline = load_pipeline(made, "cpu")
    assert [one.code for one in pipeline.findings] == ["other-settings"]
    assert pipeline.prognosis is not None
