import numpy as np
import torch
from conftest import PATCH, short_training

from hmvnet.training.patches import PatchSampler


def test_a_sample_depends_on_its_number_alone(cases):
    sampler = PatchSampler(cases, short_training())
    image, label = sampler(7)
    sampler(3)
    again, label_again = PatchSampler(cases, short_training())(7)
    assert torch.equal(image, again) and torch.equal(label, label_again)
    assert image.shape == (2, *PATCH) and label.shape == PATCH
    assert not torch.equal(image, sampler(8)[0])


def test_tumour_patches_hold_tumour_and_all_patients_come_up(cases):
    sampler = PatchSampler(cases, short_training(tumour_fraction=1.0))
    labels = [sampler(i)[1] for i in range(12)]
    assert np.mean([(label > 0).any().item() for label in labels]) > 0.8


def test_patches_at_the_border_are_padded_with_air(cases):
    sampler = PatchSampler(cases, short_training(patch_size=(96, 64, 64), tumour_fraction=0.0))
    image, _ = sampler(0)
    assert image.shape == (2, 96, 64, 64) and torch.isfinite(image).all()
