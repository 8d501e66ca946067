from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from hmvnet.survival.losses import (
    comparable_pairs,
    cox_loss,
    deephit_ranking_loss,
    discrete_loss,
    ranking_loss,
)


def cohort(
    seed: int, n: int = 120, months: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    failure = rng.exponential(900 * np.exp(-x[:, 0] + 0.5 * x[:, 1]))
    censoring = rng.exponential(1500, size=n)
    time = np.minimum(failure, censoring)
    return x, np.ceil(time / 90) if months else time, failure <= censoring


@pytest.mark.parametrize("months", [False, True])
def test_cox_loss_is_the_log_likelihood_of_lifelines(months: bool) -> None:
    x, time, event = cohort(0, months=months)
    table = pd.DataFrame(x).assign(time=time, event=event)
    table.columns = table.columns.astype(str)
    fitted = CoxPHFitter().fit(table, "time", "event")  # Efron's ties
    beta = torch.tensor(fitted.params_.to_numpy(), requires_grad=True)

    shuffled = np.random.default_rng(1).permutation(len(x))
    loss = cox_loss(
        torch.tensor(x)[shuffled] @ beta,
        torch.tensor(time)[shuffled],
        torch.tensor(event)[shuffled],
    )

    assert -loss.item() * event.sum() == pytest.approx(fitted.log_likelihood_, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, beta)
    assert gradient.abs().max() < 1e-5  # the library's optimum is ours


def test_cox_loss_has_the_optimum_of_scikit_survival() -> None:
    x, time, event = cohort(3, months=True)
    model = CoxPHSurvivalAnalysis(ties="efron").fit(x, Surv.from_arrays(event, time))
    beta = torch.tensor(model.coef_, requires_grad=True)
    loss = cox_loss(torch.tensor(x) @ beta, torch.tensor(time), torch.tensor(event))
    (gradient,) = torch.autograd.grad(loss, beta)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("scale", [1e-3, 50.0, 1000.0])
def test_cox_loss_stays_finite_for_extreme_risks(scale: float) -> None:
    x, time, event = cohort(1, months=True)
    risk = (torch.tensor(x[:, 0], dtype=torch.float32) * scale).requires_grad_()
    loss = cox_loss(risk, torch.tensor(time), torch.tensor(event))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(risk.grad).all()


def test_half_precision_is_raised() -> None:
    x, time, event = cohort(1)
    risk = torch.tensor(x[:, 0], dtype=torch.bfloat16)
    full = cox_loss(risk.float(), torch.tensor(time), torch.tensor(event))
    assert cox_loss(risk, torch.tensor(time), torch.tensor(event)) == full


def test_pairs_are_those_of_scikit_survival() -> None:
    x, time, event = cohort(2, months=True)
    risk = np.round(x[:, 0], 1)
    pairs = comparable_pairs(torch.tensor(time), torch.tensor(event)).numpy()
    ahead = risk[:, None] - risk[None, :]
    _, concordant, discordant, tied, _ = concordance_index_censored(event, time, risk)
    assert (pairs & (ahead > 1e-8)).sum() == concordant
    assert (pairs & (ahead < -1e-8)).sum() == discordant
    assert (pairs & (abs(ahead) <= 1e-8)).sum() == tied


def test_ranking_loss_bounds_the_discordance() -> None:
    x, time, event = cohort(2)
    for risk in (x[:, 0], 20 * x[:, 1], np.zeros(len(x))):
        loss = ranking_loss(torch.tensor(risk), torch.tensor(time), torch.tensor(event)).item()
        assert loss >= 1 - concordance_index_censored(event, time, risk)[0]
    assert loss == pytest.approx(1.0)  # no order at all costs one bit


def test_descent_on_either_loss_finds_the_direction_of_the_risk() -> None:
    x, time, event = (torch.tensor(v) for v in cohort(4))
    for loss in (cox_loss, ranking_loss):
        beta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(x @ beta, time, event), beta)
        assert gradient[0] < 0 < gradient[1]


@pytest.mark.parametrize(
    ("time", "event"),
    [([1.0, 2.0, 3.0], [0, 0, 0]), ([2.0, 2.0, 1.0], [1, 1, 0]), ([4.0], [1]), ([], [])],
)
def test_nothing_to_learn_gives_zero_with_a_gradient(time: list, event: list) -> None:
    time, event = torch.tensor(time), torch.tensor(event)
    risk = torch.randn(len(time), requires_grad=True)
    logits = torch.randn(len(time), 4, requires_grad=True)
    interval = torch.zeros(len(time), dtype=torch.long)
    losses = [
        ranking_loss(risk, time, event),
        deephit_ranking_loss(logits, interval, time, event),
    ]
    if not event.any() or len(event) < 2:
        losses.append(cox_loss(risk, time, event))
    for loss in losses:
        assert loss.item() == 0
        loss.backward()
    assert torch.equal(risk.grad, torch.zeros_like(risk))
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_discrete_loss_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    interval, event = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0])
    elapsed = torch.tensor([0.4, 0.25, 0.0])
    expected = -(np.log(0.5) + np.log(0.75 * 0.6 + 0.3) + np.log(0.6)) / 3
    assert discrete_loss(p.log(), interval, elapsed, event).item() == pytest.approx(expected)


def test_discrete_loss_has_finite_gradients() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [0.0, 300.0, -300.0]], requires_grad=True)
    interval, elapsed = torch.tensor([1, 1]), torch.tensor([0.5, 1.0])
    discrete_loss(logits, interval, elapsed, torch.tensor([True, False])).backward()
    assert torch.isfinite(logits.grad).all()


def test_deephit_ranking_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    time, event = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1, 0])
    found = deephit_ranking_loss(p.log(), torch.tensor([0, 1, 2]), time, event, sigma=0.5)
    pairs = [(0.1, 0.5), (0.2, 0.5), (0.4, 0.7)]  # (F_j, F_i): (0, 1), (0, 2), (1, 2)
    expected = np.mean([np.exp((fj - fi) / 0.5) for fj, fi in pairs])
    assert found.item() == pytest.approx(expected, abs=1e-6)
