"""Survival models over intervals of time: MTLR and DeepHit, short implementations of their papers.

``pycox`` needs numba, py7zr and feather-format for the one, ``torchmtlr`` is not published.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.integrate import trapezoid
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from hmvnet.case import Outcomes
from hmvnet.prognosis.linear import LinearRisk
from hmvnet.survival.cox import PENALTIES
from hmvnet.survival.losses import deephit_ranking_loss, discrete_loss
from hmvnet.survival.tuning import SurvivalModel, Tuned


def standardiser() -> Pipeline:
    """Missing values to the median, then zero mean and unit deviation, column by column."""
    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()
    )


class DiscreteTimeModel:
    """Common to MTLR and DeepHit: probabilities of the event over intervals of time.

    The intervals end at quantiles of the training event times, sqrt(events) of them; a last, open
    one follows. Curves are linear in between and level after the last event. The risk is the
    expected time without event up to then, negated.
    """

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> DiscreteTimeModel:
        days, event = outcomes.days, outcomes.event
        if not event.any():
            raise ValueError("no event among the training patients")
        self.scaler_ = standardiser().fit(x)
        count = int(np.ceil(np.sqrt(event.sum())))
        ends = np.unique(np.quantile(days[event], np.linspace(0, 1, count + 1)[1:]))
        # Events on the day 0 are of the first interval, which has to have a length.
        self.ends_ = ends[ends > 0] if (ends > 0).any() else np.array([max(days.max(), 1.0)])
        interval, elapsed = self.locate(days)
        # The global generator of torch is used by dropout and put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            self.network_ = self._train(
                self._tensor(x),
                torch.from_numpy(interval),
                torch.from_numpy(elapsed),
                torch.from_numpy(days),
                torch.from_numpy(event),
            ).eval()
        return self

    def _train(
        self, x: Tensor, interval: Tensor, elapsed: Tensor, time: Tensor, event: Tensor
    ) -> nn.Module:
        """A trained network ``[b, p] -> [b, intervals]`` of logits."""
        raise NotImplementedError

    def locate(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The interval each time is in, and the share of it that is over by then."""
        starts = np.concatenate([[0.0], self.ends_])
        lengths = np.append(np.diff(starts), np.inf)
        interval = np.searchsorted(self.ends_, time, side="left")
        return interval, (time - starts[interval]) / lengths[interval]

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        knots = np.concatenate([[0.0], self.ends_])
        return -trapezoid(self.predict_survival(x, knots), knots, axis=1)

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            p = torch.softmax(self.network_(self._tensor(x)).double(), dim=1).numpy()
        at_ends = 1.0 - p[:, :-1].cumsum(axis=1)
        knots = np.concatenate([[0.0], self.ends_])
        curves = np.concatenate([np.ones((len(p), 1)), at_ends], axis=1)
        return np.stack([np.interp(times, knots, curve) for curve in curves]).clip(0.0, 1.0)

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(self.scaler_.transform(x)).float()


class Mtlr(DiscreteTimeModel):
    """Multi-task logistic regression, linear, with an L2 penalty.

    Yu et al., "Learning patient-specific cancer survival distributions as a sequence of dependent
    regressors", NIPS 2011: interval k has the score of all regressors from k on. The penalty is on
    those regressors, the changes from one interval to the next, as there.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def _train(
        self, x: Tensor, interval: Tensor, elapsed: Tensor, time: Tensor, event: Tensor
    ) -> nn.Module:
        linear = nn.Linear(x.shape[1], len(self.ends_))
        network = nn.Sequential(linear, SumOfLaterRegressors())
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
        optimiser = torch.optim.LBFGS(
            network.parameters(), max_iter=200, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            shrinkage = 0.5 * self.penalty * linear.weight.square().sum() / len(x)
            loss = discrete_loss(network(x), interval, elapsed, event) + shrinkage
            loss.backward()
            return loss

        optimiser.step(closure)
        return network


class SumOfLaterRegressors(nn.Module):
    """Regressors ``[b, k]`` to interval scores ``[b, k + 1]``: sums from there on, the last 0."""

    def forward(self, regressors: Tensor) -> Tensor:
        sums = regressors.flip(1).cumsum(1).flip(1)
        return torch.cat([sums, sums.new_zeros(len(sums), 1)], dim=1)


class DeepHit(DiscreteTimeModel):
    """DeepHit for one kind of event: likelihood and ranking loss on a small network.

    Lee et al., "DeepHit: a deep learning approach to survival analysis with competing risks", AAAI
    2018. Trained by AdamW with early stopping on a fifth of the training patients.
    """

    def __init__(
        self,
        width: int = 32,
        dropout: float = 0.3,
        ranking_weight: float = 0.05,
        learning_rate: float = 3e-3,
        batch_size: int = 64,
        epochs: int = 200,
        patience: int = 15,
    ) -> None:
        self.width = width
        self.dropout = dropout
        self.ranking_weight = ranking_weight
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience

    def _train(
        self, x: Tensor, interval: Tensor, elapsed: Tensor, time: Tensor, event: Tensor
    ) -> nn.Module:
        data = (x, interval, elapsed, time, event)
        rows = np.arange(len(x))
        alone = 1 in np.bincount(np.asarray(event, int), minlength=2)  # who is in no two parts
        rest, held_out = train_test_split(
            rows,
            test_size=0.2,
            stratify=None if alone else event,
            random_state=torch.randint(2**31, ()).item(),
        )
        network = self._network(x.shape[1])
        optimiser = torch.optim.AdamW(network.parameters(), self.learning_rate, weight_decay=1e-2)
        best, best_state, waited = np.inf, network.state_dict(), 0
        for _ in range(self.epochs):
            network.train()
            # A last batch of one patient is skipped: batch normalisation cannot use it.
            order = torch.from_numpy(rest)[torch.randperm(len(rest))]
            for batch in order.split(self.batch_size):
                if len(batch) > 1:
                    optimiser.zero_grad()
                    self._loss(network, *(part[batch] for part in data)).backward()
                    optimiser.step()
            network.eval()
            with torch.no_grad():
                loss = self._loss(network, *(part[held_out] for part in data)).item()
            if loss < best:
                best, waited = loss, 0
                best_state = {k: v.clone() for k, v in network.state_dict().items()}
            elif (waited := waited + 1) >= self.patience:
                break
        network.load_state_dict(best_state)
        return network

    def _network(self, variables: int) -> nn.Module:
        hidden: list[nn.Module] = []
        for inputs in (variables, self.width):
            hidden += [nn.Linear(inputs, self.width), nn.ReLU(), nn.BatchNorm1d(self.width)]
            hidden += [nn.Dropout(self.dropout)]
        return nn.Sequential(*hidden, nn.Linear(self.width, len(self.ends_) + 1))

    def _loss(
        self,
        network: nn.Module,
        x: Tensor,
        interval: Tensor,
        elapsed: Tensor,
        time: Tensor,
        event: Tensor,
    ) -> Tensor:
        logits = network(x)
        ranking = deephit_ranking_loss(logits, interval, time, event)
        return discrete_loss(logits, interval, elapsed, event) + self.ranking_weight * ranking


def tuned_mtlr(folds: int = 5) -> Tuned:
    """MTLR whose penalty is chosen by inner cross-validation."""
    return Tuned([partial(Mtlr, penalty) for penalty in PENALTIES], folds)


def fit_mtlr_risk(x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> LinearRisk:
    """MTLR as plain arrays: its expected time without event to first order, negated.

    The expected time up to the last event, ``E(z) = integral of S(t | z)``, is expanded about the
    training mean, ``E(0) + z . dE/dz``, so that the risk is a sum of parts, one a variable; it is
    scaled to unit deviation among the training patients. With fewer events than the penalty's three
    folds the strongest is taken.

    Args:
        x: ``[n, p]``, NaN = missing.

    Raises:
        ValueError: no event.
    """
    folds = 3
    if outcomes.event.sum() < folds or (~outcomes.event).sum() < folds:
        model: SurvivalModel = Mtlr(PENALTIES[-1]).fit(x, outcomes, rng)
    else:
        model = tuned_mtlr(folds).fit(x, outcomes, rng).model_
    assert isinstance(model, Mtlr)
    z = torch.zeros(1, x.shape[1], requires_grad=True)
    p = torch.softmax(model.network_(z)[0], 0)
    curve = torch.cat([torch.ones(1), 1.0 - p[:-1].cumsum(0)])
    knots = torch.from_numpy(np.concatenate([[0.0], model.ends_])).float()
    (slope,) = torch.autograd.grad(torch.trapezoid(curve, knots), z)
    filled, scaled = model.scaler_[0], model.scaler_[1]
    fill = np.nan_to_num(filled.statistics_)  # of a column without a value
    linear = LinearRisk(fill, scaled.mean_, scaled.scale_, -slope[0].double().numpy(), 1.0)
    return replace(linear, spread=float(linear.predict_risk(x).std()) or 1.0)
