"""Encoder features of parts of lesions."""

from __future__ import annotations

import numpy as np
import pytest

from hmvnet.lesions.crops import LESIONS, PARTS, crop_features, groups_of

SPACING = (1.0, 1.0, 1.0)


def scene() -> tuple[np.ndarray, list[np.ndarray]]:
    """A primary of 16 mm and two nodes; maps at 4 and 8 mm that hold z, y and a constant."""
    mask = np.zeros((64, 64, 64), np.uint8)
    mask[20:36, 20:36, 20:36] = 1
    mask[44:52, 44:52, 44:52] = 2
    mask[8:10, 50:52, 50:52] = 2
    maps = []
    for stride in (4, 8, 16):
        n = 64 // stride
        place = (np.arange(n) + 0.5) * stride
        z, y, _ = np.meshgrid(place, place, place, indexing="ij")
        maps.append(np.stack([z, y, np.full_like(z, 7.0)]).astype(np.float32))
    return mask, maps


def test_parts_are_means_of_what_they_cover() -> None:
    mask, maps = scene()
    found = crop_features(maps, mask, SPACING).to_dict()
    for stage in (0, 1):
        assert found[f"crop_primary_mean{stage}_0"] == pytest.approx(28.0, abs=1e-4)
        assert found[f"crop_node_mean{stage}_1"] == pytest.approx(48.0, abs=1e-4)
        assert found[f"crop_primary_spread{stage}_2"] == pytest.approx(0.0, abs=1e-3)
        assert found[f"crop_primary_shell{stage}_2"] == pytest.approx(7.0, abs=1e-4)
        assert found[f"crop_primary_upper{stage}_1"] == pytest.approx(0.0, abs=1e-4)
    assert found["crop_primary_upper0_0"] == pytest.approx(8.0, abs=1e-4)  # z grows to the head
    assert found["crop_primary_front0_1"] == pytest.approx(-8.0, abs=1e-4)  # y to the back
    assert found["crop_primary_spread0_0"] == pytest.approx(np.sqrt((4**2 - 1) / 12) * 4, abs=1e-3)


def test_a_patch_of_the_region_gives_the_same() -> None:
    """Crops see nothing but the lesion and its surroundings."""
    mask, maps = scene()
    whole = crop_features(maps, mask, SPACING)
    cut = slice(8, 64)
    near = [m[:, 8 // s :, 8 // s :, 8 // s :] for m, s in zip(maps[:2], (4, 8))]
    part = crop_features(near, mask[cut, cut, cut], SPACING)
    np.testing.assert_allclose(part.values, whole.values, atol=1e-4)
    far = [m.copy() for m in maps]
    for m in far:
        m[..., 0] = 1e6
    np.testing.assert_array_equal(crop_features(far, mask, SPACING).values, whole.values)


def test_names_are_the_same_with_and_without_lesions() -> None:
    mask, maps = scene()
    found = crop_features(maps, mask, SPACING)
    nothing = crop_features(maps, np.zeros_like(mask), SPACING)
    assert nothing.names == found.names and np.isnan(nothing.values).all()
    only = crop_features(maps, np.where(mask == 1, mask, 0), SPACING).to_dict()
    for name, value in only.items():
        assert np.isnan(value) == name.startswith("crop_node")
    assert len(np.unique(groups_of(found.names))) == len(LESIONS) * len(PARTS) * 2
    assert crop_features([], mask, SPACING).names == ()


def test_a_lesion_at_the_edge_has_finite_features() -> None:
    mask, maps = scene()
    mask[:] = 0
    mask[60:, 60:, 60:] = 1
    assert np.isfinite(crop_features(maps, mask, SPACING).values[: 3 * len(PARTS) * 2]).all()
