"""The patient's vector: positions, necrosis, what is not there, and what the encoder saw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import patient_with

from hmvnet.lesions.features import (
    LesionFeatures,
    feature_names,
    lesion_features,
    pool_encoder_features,
)
from hmvnet.lesions.table import lesion_table

MM = (1.0, 1.0, 1.0)


def features(*args: np.ndarray) -> dict[str, float]:
    return lesion_features(*args, MM).to_dict()


def test_primary_and_two_nodes() -> None:
    left, right = (40.0, 30.0, 70.0), (14.0, 34.0, 20.0)
    case = patient_with((1, (60, 30, 70), 8), (2, left, 5), (2, right, 7))
    table = lesion_table(*case, MM)
    assert [one.label for one in table] == [1, 2, 2]
    assert table[1].volume_ml > table[2].volume_ml
    assert table[1].centroid_mm == pytest.approx(right[::-1])
    found = features(*case)
    assert (found["nodes_count"], found["primary_present"], found["nodes_present"]) == (2, 1, 1)
    assert found["total_dissemination_mm"] == pytest.approx(math.dist((60, 30, 70), right))
    assert found["nodes_farthest_from_primary_mm"] == found["total_dissemination_mm"]
    assert found["nodes_lowest_caudal_mm"] == pytest.approx(46)
    assert 20 < found["nodes_mean_caudal_mm"] < 46
    assert found["primary_lateral_offset_mm"] == pytest.approx(70 - 45)
    assert found["nodes_bilateral"] == 1
    assert found["nodes_contralateral_volume_ml"] == pytest.approx(table[1].volume_ml)
    assert found["nodes_volume_ml"] == pytest.approx(table[1].volume_ml + table[2].volume_ml)
    assert found["nodes_largest_volume_ml"] == pytest.approx(table[1].volume_ml)
    assert found["total_diameter_sum_mm"] == pytest.approx(40, abs=3)
    assert found["nodes_diameter_max_mm"] == pytest.approx(14, abs=1)
    assert found["primary_ct_mean"] == pytest.approx(40, abs=2)
    assert found["nodes_pet_mean"] == pytest.approx(6, abs=0.2)


@pytest.mark.parametrize("hu, counted", [(18.0, True), (60.0, False), (-90.0, False)])
def test_necrosis_is_a_core_of_low_attenuation(hu: float, counted: bool) -> None:
    mask, ct, pet = patient_with((1, (45, 30, 45), 14))
    grid = np.indices(mask.shape) - np.array((45, 30, 45))[:, None, None, None]
    core = np.linalg.norm(grid, axis=0) <= 7
    ct[mask > 0] = 60
    ct[core] = hu
    found = features(mask, ct, pet)
    ml = core.sum() / 1000 if counted else 0
    # The Gaussian takes half a millimetre of the edge: 30 HU is nearer to 18 than to 60.
    assert found["primary_necrosis_ml"] == pytest.approx(ml, rel=0.35)
    fraction = found["primary_necrosis_ml"] / found["primary_volume_ml"]
    assert found["primary_necrosis_fraction"] == pytest.approx(fraction)
    assert found["total_necrosis_ml"] == found["primary_necrosis_ml"]
    assert found["nodes_necrosis_ml"] == 0
    assert math.isnan(found["nodes_necrosis_fraction"])


def test_low_attenuation_at_the_surface_is_no_necrosis() -> None:
    mask, ct, pet = patient_with((2, (45, 30, 45), 9))
    grid = np.indices(mask.shape) - np.array((45, 30, 45))[:, None, None, None]
    ct[mask > 0] = 60
    ct[(mask > 0) & (np.linalg.norm(grid, axis=0) > 7)] = 10
    assert features(mask, ct, pet)["nodes_necrosis_ml"] == 0


def test_features_are_selected_by_name() -> None:
    found = lesion_features(*patient_with((1, (60, 30, 65), 8)), MM)
    some = found.select(["nodes_count", "primary_volume_ml"])
    assert some.names == ("nodes_count", "primary_volume_ml")
    assert some.to_dict() == {name: found.to_dict()[name] for name in some.names}
    with pytest.raises(ValueError, match="1 of 2 lesion features"):
        found.select(["nodes_count", "primary_colour"])


def test_mirrored_patient_has_the_same_features() -> None:
    case = patient_with((1, (60, 30, 65), 8), (2, (40, 30, 70), 5), (2, (14, 34, 22), 7))
    mirrored = [np.ascontiguousarray(a[:, :, ::-1]) for a in case]
    there, back = features(*case), features(*mirrored)
    # Not symmetric about the array, so the midline must come from the body for this to hold.
    assert there == pytest.approx(back, rel=1e-4, nan_ok=True)


AMOUNTS = (
    "volume_ml", "mtv41_ml", "mtv4_ml", "tlg", "surface_mm2", "diameter_sum_mm", "diameter_max_mm",
    "necrosis_ml",
)  # fmt: skip


def test_no_lesion_has_zero_amounts_and_nothing_to_describe() -> None:
    mask, ct, pet = patient_with()
    assert lesion_table(mask, ct, pet, MM) == []
    found = features(mask, ct, pet)
    zero = {f"{group}_{name}" for group in ("total", "primary", "nodes") for name in AMOUNTS}
    zero |= {"primary_present", "nodes_present", "nodes_count", "nodes_largest_volume_ml"}
    zero |= {"total_dissemination_mm", "nodes_bilateral", "nodes_contralateral_volume_ml"}
    assert {name for name, value in found.items() if value == 0} == zero
    assert all(math.isnan(value) for name, value in found.items() if name not in zero)


@pytest.mark.parametrize("label", [1, 2])
def test_only_primary_or_only_nodes(label: int) -> None:
    found = features(*patient_with((label, (40, 30, 40), 6)))
    here, away = ("primary", "nodes") if label == 1 else ("nodes", "primary")
    assert (found[f"{here}_present"], found[f"{away}_present"]) == (1, 0)
    assert math.isfinite(found[f"{here}_pet_glcm_contrast"])
    assert math.isnan(found[f"{away}_pet_glcm_contrast"])
    assert math.isnan(found["nodes_lowest_caudal_mm"])
    assert found["total_dissemination_mm"] == 0


def test_single_voxels_and_constant_images_do_not_crash() -> None:
    mask = np.zeros((9, 9, 9), dtype=np.uint8)
    mask[0, 0, 0], mask[4, 4, 4], mask[8, 8, 8] = 1, 2, 2
    found = features(mask, np.full(mask.shape, -1000.0), np.zeros(mask.shape))
    assert found["nodes_count"] == 2
    assert found["primary_elongation"] == 0 and found["primary_suv_max"] == 0
    assert math.isnan(found["primary_pet_glcm_contrast"])  # no neighbour, no co-occurrence


def test_names_are_always_the_same_and_unique() -> None:
    names = lesion_features(*patient_with((1, (40, 30, 40), 6), (2, (20, 30, 20), 6)), MM).names
    assert names == feature_names() == lesion_features(*patient_with(), MM).names
    assert len(set(names)) == len(names)
    assert "nodes_ct_coefficient_of_variation" not in names


def test_metal_does_not_empty_or_blow_up_the_texture() -> None:
    mask, ct, pet = patient_with((1, (40, 30, 40), 6))
    ct[mask > 0], pet[40, 30, 40] = 30_000, 1e7
    found = features(mask, ct, pet)
    assert found["primary_ct_entropy"] == 0
    assert math.isfinite(found["primary_pet_glcm_contrast"])


def maps(shape: tuple[int, int, int], strides: tuple[int, ...]) -> list[torch.Tensor]:
    """Two channels a stage: the voxel's z index in that stage's grid, and a constant."""
    stages = []
    for stride in strides:
        size = [math.ceil(n / stride) for n in shape]
        z = torch.arange(size[0], dtype=torch.float32)[:, None, None].expand(size)
        stages.append(torch.stack([z, torch.full(size, 7.0)]))
    return stages


def test_encoder_features_are_pooled_in_the_lesion() -> None:
    mask = np.zeros((33, 20, 18), dtype=np.uint8)
    mask[8:16, 4:8, 4:8] = 1
    mask[20, 5, 5] = 2
    found = pool_encoder_features(maps(mask.shape, (2, 4)), mask).to_dict()
    # Stage 0: z indices 4 to 7 with 2 x 2 voxels each, and 10 with one.
    assert found["encoder0_mean_0"] == pytest.approx((4 * (4 + 5 + 6 + 7) + 10) / 17)
    assert found["encoder0_max_0"] == 10
    assert found["encoder1_mean_0"] == pytest.approx((2 + 3 + 5) / 3)
    assert found["encoder1_max_1"] == found["encoder0_mean_1"] == 7
    assert found["encoder_lesion_present"] == 1
    assert len(found) == 2 * 2 * 2 + 1


def test_one_voxel_is_not_lost_on_a_coarse_grid_whose_input_was_padded() -> None:
    # 310 x 200 x 200 padded to 320 x 224 x 224 by the network, stride 32.
    mask = np.zeros((310, 200, 200), dtype=np.uint8)
    mask[309, 199, 0] = 2
    features = torch.zeros(1, 10, 7, 7)
    features[0, 9, 6, 0] = 5.0
    assert pool_encoder_features([features], mask).values.tolist() == [5.0, 5.0, 1.0]
    # 33 padded to 64, stride 16: slice 20 is in the second of four cells.
    mask = np.zeros((33, 33, 33), dtype=np.uint8)
    mask[20, 0, 0] = 1
    features = torch.arange(4.0)[None, :, None, None].expand(1, 4, 4, 4)
    assert pool_encoder_features([features], mask).values.tolist() == [1.0, 1.0, 1.0]


def test_without_lesion_encoder_features_are_the_overall_mean() -> None:
    found = pool_encoder_features(maps((16, 16, 16), (4,)), np.zeros((16, 16, 16), np.uint8))
    assert isinstance(found, LesionFeatures) and found.values.dtype == np.float32
    assert found.values.tolist() == [1.5, 7.0, 1.5, 7.0, 0.0]


def test_encoder_features_of_half_precision_maps() -> None:
    mask = np.ones((8, 8, 8), dtype=np.uint8)
    stages = [m.to(torch.bfloat16).requires_grad_() for m in maps(mask.shape, (2,))]
    assert pool_encoder_features(stages, mask).values.tolist() == [1.5, 7.0, 3.0, 7.0, 1.0]


def test_encoder_maps_of_other_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one map"):
        pool_encoder_features([torch.zeros(1, 2, 4, 4, 4)], np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="0 feature maps"):
        pool_encoder_features([], np.zeros((8, 8, 8), np.uint8))
