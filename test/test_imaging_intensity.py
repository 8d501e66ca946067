import numpy as np

from hmvnet.config import PreprocessingSettings
from hmvnet.imaging.intensity import normalise


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
