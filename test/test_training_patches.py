import numpy as np
import pytest
import torch
from conftest import PATCH, short_training

from hmvnet.case import GTVN, GTVP
from hmvnet.config import AugmentationSettings
from hmvnet.imaging.intensity import AIR
from hmvnet.training.patches import PatchSampler, crop


def test_a_sample_depends_on_its_number_alone(cases):
    sampler = PatchSampler(cases, short_training())
    image, label = sampler(7)
    sampler(3)
    again, label_again = PatchSampler(cases, short_training())(7)
    assert torch.equal(image, again) and torch.equal(label, label_again)
    assert image.shape == (2, *PATCH) and label.shape == PATCH
    assert not torch.equal(image, sampler(8)[0])


def test_every_patient_is_seen_once_before_any_is_seen_twice(cases):
    sampler = PatchSampler(cases, short_training())
    seen = [sampler.place(number)[0].patient_id for number in range(12 * len(cases))]
    rounds = [seen[n : n + len(cases)] for n in range(0, len(seen), len(cases))]
    assert all(len(set(each)) == len(cases) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_patches_is_near_a_tumour_of_either_class(cases, share):
    settings = short_training(tumour_fraction=share, patch_size=(8, 8, 8))
    sampler, count = PatchSampler(cases, settings), 600
    held, starts = {GTVP: 0, GTVN: 0}, set()
    for number in range(count):
        case, start, _ = sampler.place(number)
        starts.add(tuple(start))
        label = crop(case.label, start, (8, 8, 8), (0,))
        for kind in held:
            held[kind] += (label == kind).any()
    # A patch is shifted by 0.3 of its size at most, so that its voxel is in it. Those drawn from
    # the whole region hold some now and then.
    by_chance = 0.15 * (1 - share)
    for kind in held:
        assert share / 2 - 0.08 < held[kind] / count < share / 2 + 0.08 + by_chance
    assert len(starts) > 0.3 * count


def test_beyond_the_border_is_air(cases):
    rng = np.random.default_rng(0)
    for case in cases:
        volume, label = np.asarray(case.volume[:]), np.asarray(case.label[:])
        wide = [np.pad(part, 40, constant_values=air) for part, air in zip(volume, AIR)]
        wide.append(np.pad(label, 40))
        for _ in range(20):
            start, size = rng.integers(-30, 30, 3), rng.integers(1, 40, 3)
            box = tuple(slice(s + 40, s + 40 + n) for s, n in zip(start, size))
            assert np.array_equal(crop(case.volume, start, size, AIR), [v[box] for v in wide[:2]])
            assert np.array_equal(crop(case.label, start, size, (0,)), wide[2][box])


def test_a_patch_larger_than_the_volume_has_air_around_it(cases):
    settings = short_training(patch_size=(96, 64, 64), tumour_fraction=0.0)
    off = {name: 0.0 for name in ("flip", "affine", "elastic", "misalignment", "drop_modality")}
    off |= {name: 0.0 for name in ("low_resolution", "blur", "intensity", "noise")}
    settings = settings.model_copy(update={"augmentation": AugmentationSettings(**off)})
    image, _ = PatchSampler(cases, settings)(0)
    assert image.shape == (2, 96, 64, 64)
    assert (image[:, -1] == torch.tensor(AIR)[:, None, None]).all() and image[1].max() > AIR[1]
