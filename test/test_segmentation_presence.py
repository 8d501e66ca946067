"""Whether a class is there at all: SUVpeak gates, and a fitted chance."""

import numpy as np
import pytest

from hmvnet.case import GTVN, GTVP, Grid
from hmvnet.config import PostprocessingSettings
from hmvnet.segmentation.presence import asks_presence, chance, evidence, without_doubtful

GRID = Grid((40, 40, 40), (2.0, 2.0, 2.0))
BRIGHT, FAINT = (slice(5, 13),) * 3, (slice(24, 32),) * 3  # 16 mm cubes


@pytest.fixture
def volume() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and SUV of a bright and sure node, and a faint and doubtful one."""
    labels = np.zeros(GRID.shape, np.uint8)
    probabilities = np.zeros((3, *GRID.shape), np.float32)
    suv = np.full(GRID.shape, 0.5, np.float32)
    for box, p, uptake in ((BRIGHT, 0.95, 8.0), (FAINT, 0.55, 2.0)):
        labels[box], probabilities[GTVN][box], suv[box] = GTVN, p, uptake
    return labels, probabilities, suv


def test_what_speaks_for_a_lesion(volume):
    first, second = evidence(*volume, GRID, GTVN)
    assert first.volume_ml == pytest.approx(16**3 / 1000) and first.mean_probability > 0.94
    assert first.suv_peak == pytest.approx(8.0, rel=0.1) and second.suv_peak < 2.1
    assert list(evidence(*volume, GRID, GTVP)) == []
    assert np.isfinite(first.variables).all()


def test_nothing_is_asked_by_default(volume):
    assert not asks_presence(PostprocessingSettings())
    assert without_doubtful(*volume, GRID, PostprocessingSettings()) is volume[0]
    unfitted = PostprocessingSettings(least_presence_gtvn=0.9)
    assert not asks_presence(unfitted)
    assert without_doubtful(*volume, GRID, unfitted) is volume[0]


def test_a_lesion_of_too_low_a_peak_is_removed(volume):
    kept = without_doubtful(*volume, GRID, PostprocessingSettings(min_suv_peak_gtvn=3.0))
    assert (kept[BRIGHT] == GTVN).all() and not kept[FAINT].any()
    assert volume[0][FAINT].all(), "what was given is as it was"
    other = without_doubtful(*volume, GRID, PostprocessingSettings(min_suv_peak_gtvp=3.0))
    np.testing.assert_array_equal(other, volume[0])


@pytest.mark.parametrize(("least", "stays"), [(0.5, True), (0.99, False)])
def test_a_class_stays_whole_or_goes_whole_by_its_likeliest_lesion(volume, least, stays):
    """Of the bright node alone the chance is 0.9; the faint one's is below a half."""
    presence = (-3.0, 0.0, 0.0, 2.5)
    first, second = evidence(*volume, GRID, GTVN)
    chances = [float(chance(presence, one.variables)[0]) for one in (first, second)]
    assert 0.85 < chances[0] < 0.95 and chances[1] < 0.5
    rules = PostprocessingSettings(presence_gtvn=presence, least_presence_gtvn=least)
    assert asks_presence(rules)
    kept = without_doubtful(*volume, GRID, rules)
    np.testing.assert_array_equal(kept, volume[0] if stays else 0 * volume[0])
