import numpy as np
import pytest

from hmvnet.config import PreprocessingSettings
from hmvnet.imaging.intensity import AIR, normalise, with_usual_ct


def test_intensity_windows_and_back():
    settings = PreprocessingSettings()
    volume = np.array([[-3000, -200, 50, 300, 3000], [-1, 0, 10, 20, 90]], np.float32)
    volume = volume.reshape(2, 1, 1, 5)
    scaled = normalise(volume, settings)
    assert volume.min() == -3000  # left alone
    in_place = volume.copy()
    assert normalise(in_place, settings, out=in_place) is in_place
    np.testing.assert_array_equal(in_place, scaled)
    np.testing.assert_allclose(scaled[0, 0, 0], [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(scaled[1, 0, 0], [-1, -1, 0, 1, 1], atol=1e-6)
    low, high = settings.suv_window
    suv = low + (scaled[1, 0, 0] + 1) / 2 * (high - low)
    np.testing.assert_allclose(suv, [0, 0, 10, 20, 20], atol=1e-4)


def test_air_is_air_to_the_last_bit_in_any_window():
    """The rules on anatomy ask for CT above 0."""
    for low in range(-1000, 0, 7):
        for high in (40, 150, 240, 250, 300, 1000):
            settings = PreprocessingSettings(hu_window=(low, high), suv_window=(0.1, 13.0))
            volume = np.array([[-3000, low], [0, 0.1]], np.float32).reshape(2, 1, 1, 2)
            scaled = normalise(volume, settings)
            assert (scaled.reshape(2, 2) == np.array(AIR, np.float32)[:, None]).all(), (low, high)


@pytest.mark.parametrize("window", [(-160.0, 240.0), (-1000.0, 1000.0), (-200.0, 300.0)])
def test_rules_see_the_usual_window(window):
    hu = np.array([-3000.0, -900, -250, -100, 40, 200, 220, 3000], np.float32)
    volume = np.stack([hu, hu * 0]).reshape(2, 1, 1, -1)
    usual = normalise(volume, PreprocessingSettings())
    settings = PreprocessingSettings(hu_window=window)
    found = with_usual_ct(normalise(volume, settings), settings)
    clipped = np.clip(usual[0], 0, (min(window[1], 300) + 200) / 500)
    np.testing.assert_allclose(found[0], clipped, atol=1e-6)
    assert (found[0] > 0).tolist() == (usual[0] > 0).tolist()
    np.testing.assert_array_equal(found[1], usual[1])
