import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hmvnet.training.schedule import Decay, Trunk, cosine, warm_ema

TRUNK = Trunk(peak=2.0, warmup=10)


def test_a_trunk_warms_up_and_stays():
    rates = [TRUNK.rate(step) for step in range(200)]
    assert rates[:2] == [0.2, 0.4] and rates[9:] == [2.0] * 191
    assert Trunk(1.0, warmup=0).rate(0) == 1.0


def test_a_decay_leaves_the_trunk_at_its_rate_and_ends_near_zero():
    decay = Decay(TRUNK, first=80, length=20)
    rates = [decay.rate(step) for step in range(decay.steps)]
    assert decay.steps == 100 and decay.frozen_from == 80
    assert rates[:81] == [TRUNK.rate(step) for step in range(81)]
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert rates[85] == pytest.approx(2.0 * (1 - 0.25**0.5)) and 0 < rates[-1] < 0.06


def test_a_decay_in_the_warm_up_goes_on_with_it():
    assert Decay(TRUNK, 4, 2).rate(4) == TRUNK.rate(4) < TRUNK.peak


def test_courses_tell_themselves_apart():
    keys = [TRUNK.key, Trunk(1.0, 10).key, Decay(TRUNK, 8, 2).key, Decay(TRUNK, 8, 3).key]
    assert len({str(key) for key in keys}) == 4


def test_cosine_ends_at_a_hundredth():
    assert cosine(0, 1.0, 2, 10) == 0.5 and cosine(10, 1.0, 2, 10) == pytest.approx(0.01)


def test_a_warm_average_forgets_its_beginning():
    """After n updates of constant weights little is left of the first ones, whatever the decay."""
    network = nn.Linear(2, 2)
    average = AveragedModel(network)
    average.multi_avg_fn = warm_ema(0.995, lambda: int(average.n_averaged))
    start = copy.deepcopy(network.state_dict())
    average.update_parameters(network)
    with torch.no_grad():
        network.weight += 1.0
    for _ in range(100):
        average.update_parameters(network)
    left = (network.weight - average.module.weight).detach()
    assert float(left.max()) < 1e-5 < 0.995**100
    assert not torch.equal(average.module.weight, start["weight"])


def test_a_warm_average_ends_at_the_decay_asked_for():
    unread = torch.zeros((), device="meta")  # who reads torch's count waits for a GPU
    for n, left in ((10_000, 0.9), (1, 2 / 11)):
        old, new = [torch.zeros(1)], [torch.ones(1)]
        warm_ema(0.9, lambda n=n: n)(old, new, unread)
        assert float(old[0]) == pytest.approx(1 - left)
