import pytest
import torch

from hmvnet.training.losses import SegmentationLoss, shrink_label


def test_shrink_takes_the_commonest_class():
    label = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    label[:, :2, :2, :2] = 2
    label[:, 2:, 2:, 3] = 1
    small = shrink_label(label, (2, 2, 2))
    assert small[0, 0, 0, 0] == 2 and small[0, 1, 0, 0] == 0


def test_shrink_to_a_size_that_was_rounded_up():
    label = torch.zeros(1, 33, 9, 5, dtype=torch.uint8)
    label[:, 32], label[:, :8] = 1, 2
    small = shrink_label(label, (5, 2, 1))  # by 8
    assert small[0, :, 0, 0].tolist() == [2, 0, 0, 0, 0]
    assert small.shape == (1, 5, 2, 1)
    fine = shrink_label(label, (17, 5, 3))  # by 2
    assert fine[0, :, 0, 0].tolist() == [2] * 4 + [0] * 13


def test_loss_is_least_at_the_truth():
    label = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    label[:, :3], label[:, 5:] = 1, 2
    right = torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 1).float() * 20
    for loss in (SegmentationLoss(), SegmentationLoss(focal_weight=1.0)):
        best, worst = loss([right], label), loss([-right], label)
        assert best < 0.01 < worst


def test_absent_classes_do_not_pull_towards_background():
    """A patch without GTVn: its Dice says nothing, and the loss is that of GTVp alone."""
    label = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    label[:, :3] = 1
    logits = torch.zeros(1, 3, 8, 8, 8)

    def dice_of(target: torch.Tensor, absent_weight: float = 0.0) -> torch.Tensor:
        entropy = torch.nn.functional.cross_entropy(logits, target.long())
        return SegmentationLoss(absent_weight=absent_weight)([logits], target) - entropy

    dice = dice_of(label)
    # Uniform probabilities of 1/3: GTVp (2 * 64 + 1) / (512 / 3 + 192 + 1), GTVn 1 / (512 / 3 + 1).
    assert float(dice) == pytest.approx(1 - 129 / (512 / 3 + 193), abs=1e-4)
    weighted = dice_of(label, absent_weight=0.5)
    assert float(weighted - dice) == pytest.approx(0.5 * (1 - 1 / (512 / 3 + 1)), abs=1e-4)
    assert float(dice_of(torch.zeros_like(label))) == 0
