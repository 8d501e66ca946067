"""Classical survival models by name, behind one interface.

    model = create("coxph").fit(x, outcomes, rng)
    risk = model.predict_risk(x)                # [n], higher = earlier event
    curves = model.predict_survival(x, times)   # [n, t], or None where a model gives no curve

Cox is ``hmvnet.survival.cox``, forest and boosting are scikit-survival's. DeepHit and MTLR are
short implementations of their papers: ``pycox`` needs numba, py7zr and feather-format for it,
``torchmtlr`` is not published. Every model but ICARE, which leaves missing values out, fills them
with the training median and standardises by the training patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from scipy.integrate import trapezoid
from sklearn.impute import SimpleImputer
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sksurv.ensemble import GradientBoostingSurvivalAnalysis, RandomSurvivalForest
from torch import Tensor, nn

from hmvnet.case import Outcomes, harrell_c, has_comparable_pair
from hmvnet.prognosis.icare import BaggedIcare
from hmvnet.survival.cox import PENALTIES, RidgeCox
from hmvnet.survival.losses import deephit_ranking_loss, discrete_loss
from hmvnet.survival.metrics import structured


class SurvivalModel(Protocol):
    """What every model here can do; see the module's description."""

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> SurvivalModel:
        """Fit on ``x`` ``[n, p]`` (NaN = missing) and the ``n`` patients' outcomes."""

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]``; higher = earlier event. Only its order has a meaning across models."""

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray | None:
        """Probability ``[n, t]`` of no event up to each of ``times``, or None."""


class SksurvModel:
    """A scikit-survival estimator made by ``build(random_state)``, on standardised features."""

    def __init__(self, build: Callable[[int], Any]) -> None:
        self.build = build

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> SksurvModel:
        self.scaler_ = standardiser().fit(x)
        self.model_ = self.build(int(rng.integers(2**31)))
        self.model_.fit(self.scaler_.transform(x), structured(outcomes))
        return self

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        return self.model_.predict(self.scaler_.transform(x))

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Step curves; beyond the training follow-up they stay at their last value."""
        x = self.scaler_.transform(x)
        curves = self.model_.predict_survival_function(x, return_array=True)
        step = np.searchsorted(self.model_.unique_times_, times, side="right")
        return np.concatenate([np.ones((len(curves), 1)), curves], axis=1)[:, step]


class Tuned:
    """The best of several settings by inner cross-validation, fitted to all training patients.

    How strongly a linear model is shrunk moves its concordance as much as which model it is, so a
    fair baseline chooses that too, on its training patients alone. Candidates come with growing
    shrinkage.
    """

    def __init__(self, candidates: Sequence[Callable[[], SurvivalModel]], folds: int = 5) -> None:
        self.candidates = candidates
        self.folds = folds

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> Tuned:
        splitter = StratifiedKFold(self.folds, shuffle=True, random_state=int(rng.integers(2**31)))
        splits = list(splitter.split(x, outcomes.event))
        scores = [self._concordance(c, splits, x, outcomes, rng) for c in self.candidates]
        # Of equals the last, which shrinks most: without an event to judge by, keep to directions.
        self.chosen_ = max(range(len(scores)), key=lambda i: (scores[i], i))
        self.model_ = self.candidates[self.chosen_]().fit(x, outcomes, rng)
        return self

    @staticmethod
    def _concordance(
        candidate: Callable[[], SurvivalModel],
        splits: Sequence[tuple[np.ndarray, np.ndarray]],
        x: np.ndarray,
        outcomes: Outcomes,
        rng: np.random.Generator,
    ) -> float:
        """Mean concordance over the splits in which patients compare."""
        values = []
        for train, test in splits:
            if all(has_comparable_pair(outcomes[part]) for part in (train, test)):
                model = candidate().fit(x[train], outcomes[train], rng)
                values.append(harrell_c(outcomes[test], model.predict_risk(x[test])))
        return float(np.mean(values)) if values else 0.5

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        return self.model_.predict_risk(x)

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> np.ndarray | None:
        return self.model_.predict_survival(x, times)


class IcareModel:
    """Bagged ICARE; ranks only, gives no curve."""

    def __init__(self, rho: float | None = 0.9, cmin: float = 0.53, bags: int = 25) -> None:
        self.model = BaggedIcare(rho, cmin, bags)

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> IcareModel:
        self.model.fit(x, outcomes, rng)
        return self

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        return self.model.predict_risk(x)

    def predict_survival(self, x: np.ndarray, times: np.ndarray) -> None:
        return None


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
        self.ends_ = np.unique(np.quantile(days[event], np.linspace(0, 1, count + 1)[1:]))
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
        rest, held_out = train_test_split(
            rows, test_size=0.2, stratify=event, random_state=torch.randint(2**31, ()).item()
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


def standardiser() -> Pipeline:
    """Missing values to the median, then zero mean and unit deviation, column by column."""
    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()
    )


def _forest(seed: int) -> RandomSurvivalForest:
    return RandomSurvivalForest(n_estimators=200, min_samples_leaf=15, random_state=seed)


def _boosting(seed: int) -> GradientBoostingSurvivalAnalysis:
    return GradientBoostingSurvivalAnalysis(
        n_estimators=200,
        learning_rate=0.05,
        max_depth=2,
        min_samples_leaf=10,
        subsample=0.5,
        max_features="sqrt",
        random_state=seed,
    )


REGISTRY: dict[str, Callable[[], SurvivalModel]] = {
    "coxph": RidgeCox,
    "icare": IcareModel,
    "deephit": DeepHit,
    "mtlr": lambda: Tuned([partial(Mtlr, penalty) for penalty in PENALTIES]),
    "rsf": lambda: SksurvModel(_forest),
    "gbm": lambda: SksurvModel(_boosting),
}


def available() -> tuple[str, ...]:
    """Names that ``create`` knows."""
    return tuple(REGISTRY)


def create(name: str) -> SurvivalModel:
    """A new, unfitted model.

    Raises:
        ValueError: unknown name; the message lists those known.
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown survival model {name!r}, expected one of {', '.join(REGISTRY)}")
    return REGISTRY[name]()
