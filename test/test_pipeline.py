"""What makes a result doubtful beyond its images: what is known of training, and of the passes."""

import pytest
from conftest import predicted
from test_writing_page import TWO, bundle

from hmvnet.bundle import Bundle
from hmvnet.pipeline import MOST_DISAGREEMENT, _doubtful
from hmvnet.settings_file import load_settings


def codes(volumes: dict, disagreement: float | None = None) -> list[str]:
    manifest = bundle().model_copy(update={"volumes_ml": volumes})
    return [found.code for found in _doubtful(predicted(*TWO).lesions, manifest, disagreement)]


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
