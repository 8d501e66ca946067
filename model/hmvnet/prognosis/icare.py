"""ICARE: individual coefficient approximation for risk estimation, and its bagged form.

Rebaud et al., "Simplicity is all you need: out-of-the-box nnUNet followed by binary-weighted
radiomic model for segmentation and outcome prediction in HECKTOR", HECKTOR 2022.

1. Variables are visited in random order; one is dropped when it correlates above ``rho`` with a
   variable visited earlier.
2. Each variable alone is scored by Harrell's concordance; those whose concordance, in the better
   of the two directions, is below ``cmin`` are dropped.
3. Each variable left gets the weight +1 or -1, its direction.
4. The risk is the mean of the signed z-scores, itself standardised on the training patients.
   Bagging repeats this on bootstrap samples and averages.

Every choice follows the authors' package ``icare`` 0.1.0 with ``sign_method="harrell"``, down to
the order of the random draws, so that ``rng = np.random.default_rng(s)`` selects what
``random_state=s`` selects there. Three things are ours on purpose:

- A selected variable that is constant in training always has the z-score 0. The package divides
  by 1e-6, so that one deviating patient would get an absurd risk.
- With no variable selected, or none of the selected ones observed in a patient, the risk is 0,
  the training mean (the package gives 1, or NaN).
- A variable with no comparable pair (all missing, say) is not selected (the package raises).

Missing values (NaN) are left out: of a variable's concordance, its correlations, its mean and
standard deviation, and of the mean over z-scores of a patient.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hmvnet.case import Outcomes, has_comparable_pair
from hmvnet.prognosis.concordance import single_variable_concordance, weighted_concordance

STATE_KEYS = ("sign", "mean", "scale", "concordance", "risk_moments", "settings")


class Icare:
    """One ICARE model.

    Args:
        rho: a variable whose absolute Pearson correlation with an earlier one is above this is
            dropped; None keeps all.
        cmin: least single-variable concordance, in [0.5, 1); None keeps all.

    After ``fit``, for p variables: ``sign_`` ``[p]`` (+1, -1, or 0 where not selected), ``mean_``
    and ``scale_`` ``[p]`` of the training patients, ``concordance_`` ``[p]`` (NaN where not
    scored), and ``center_``, ``spread_``, the mean and standard deviation of the unscaled training
    risk.
    """

    def __init__(self, rho: float | None = None, cmin: float | None = None) -> None:
        self.rho = rho
        self.cmin = cmin

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> Icare:
        """Fit on ``x`` ``[n, p]`` (NaN = missing) and the ``n`` patients' outcomes.

        Raises:
            ValueError: features that do not fit the outcomes, infinite values, no comparable pair
                of patients.
        """
        x = checked_training(x, outcomes)
        return self._fit(x, single_variable_concordance(x, outcomes), rng)

    def _fit(self, x: np.ndarray, concordance: np.ndarray, rng: np.random.Generator) -> Icare:
        """On checked variables and the concordance ``[p]`` of each alone."""
        order = np.arange(x.shape[1])
        rng.shuffle(order)
        if self.rho is not None and self.rho < 1:
            order = order[~follows_correlated(x[:, order], self.rho)]

        self.concordance_ = np.full(x.shape[1], np.nan)
        self.concordance_[order] = concordance[order]
        self.sign_ = signs(self.concordance_, self.cmin)

        self.mean_, self.scale_ = column_moments(x)
        self.center_, self.spread_ = 0.0, 1.0
        risk = self._mean_signed_z(x)
        if not np.isnan(risk).all():
            self.center_, spread = float(np.nanmean(risk)), float(np.nanstd(risk))
            self.spread_ = spread if spread > 0 else 1.0
        return self

    @property
    def selected_(self) -> np.ndarray:
        """Indices of the selected variables, ascending."""
        return np.flatnonzero(self.sign_)

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]`` of ``x`` ``[n, p]``; higher = earlier event.

        Over the training patients its mean is 0 and its standard deviation 1.
        """
        return np.nan_to_num(self._standardised_risk(checked_features(x, len(self.sign_))))

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """What each variable adds to the risk, ``[n, p]``; rows sum to ``predict_risk(x)``.

        The signed z-score, less the training mean of the risk, over the number of observed
        selected variables and the training spread; 0 where not selected or missing.
        """
        x = checked_features(x, len(self.sign_))
        used = self.selected_
        signed = self._signed_z(x)
        observed = np.maximum((~np.isnan(signed)).sum(axis=1, keepdims=True), 1)
        parts = np.zeros(x.shape)
        parts[:, used] = np.nan_to_num((signed - self.center_) / (observed * self.spread_))
        return parts

    def _signed_z(self, x: np.ndarray) -> np.ndarray:
        """Signed z-scores of the selected variables, ``[n, selected]``, NaN where missing."""
        used = self.selected_
        centred = x[:, used].astype(np.float64) - self.mean_[used]
        # A scale of 0 marks a variable that is constant in training: its z-score is 0.
        scale = self.scale_[used]
        inverse = np.divide(self.sign_[used], scale, out=np.zeros(len(used)), where=scale > 0)
        return centred * inverse

    def _mean_signed_z(self, x: np.ndarray) -> np.ndarray:
        """Mean over the observed selected variables ``[n]``; NaN where there is none."""
        signed = self._signed_z(x)
        observed = (~np.isnan(signed)).sum(axis=1)
        total = np.nansum(signed, axis=1)
        return np.divide(total, observed, out=np.full(len(x), np.nan), where=observed > 0)

    def _standardised_risk(self, x: np.ndarray) -> np.ndarray:
        return (self._mean_signed_z(x) - self.center_) / self.spread_

    def state(self) -> dict[str, np.ndarray]:
        """The fitted model as plain arrays; see ``from_state``."""
        return {
            "sign": self.sign_.astype(np.int8),
            "mean": self.mean_.copy(),
            "scale": self.scale_.copy(),
            "concordance": self.concordance_.copy(),
            "risk_moments": np.array([self.center_, self.spread_]),
            "settings": np.array([_or_nan(self.rho), _or_nan(self.cmin)]),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Icare:
        """The model whose ``state()`` this is.

        Raises:
            ValueError: an array is missing or its shape does not fit the others.
        """
        check_state(state, bags=None)
        model = cls(*(None if np.isnan(v) else float(v) for v in state["settings"]))
        model.sign_ = state["sign"].astype(np.float64)
        model.mean_, model.scale_ = state["mean"].copy(), state["scale"].copy()
        model.concordance_ = state["concordance"].copy()
        model.center_, model.spread_ = (float(v) for v in state["risk_moments"])
        return model


class BaggedIcare:
    """The mean of ``Icare`` models fitted on bootstrap samples.

    After ``fit``: ``bags_``, the list of fitted models.
    """

    def __init__(self, rho: float | None = None, cmin: float | None = None, bags: int = 10) -> None:
        if bags < 1:
            raise ValueError(f"bags must be at least 1, found {bags}")
        self.rho = rho
        self.cmin = cmin
        self.bags = bags

    def fit(self, x: np.ndarray, outcomes: Outcomes, rng: np.random.Generator) -> BaggedIcare:
        """As ``Icare.fit``."""
        x = checked_training(x, outcomes)
        seeds = bag_seeds(rng, self.bags)
        drawn = [bag_rows(seed, len(x)) for seed in seeds]
        # One pass over the patients for all bags: each is a weighting of them.
        weights = np.stack([np.bincount(rows, minlength=len(x)) for rows in drawn])
        concordance = weighted_concordance(x, outcomes, weights)
        self.bags_ = [
            Icare(self.rho, self.cmin)._fit(x[rows], scores, np.random.default_rng(seed))
            for rows, scores, seed in zip(drawn, concordance, seeds, strict=True)
        ]
        return self

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]`` of ``x`` ``[n, p]``: mean over the bags; higher = earlier event."""
        risks = self._of_bags(x)
        votes = np.maximum((~np.isnan(risks)).sum(axis=0), 1)
        return np.nansum(risks, axis=0) / votes

    def draws(self, x: np.ndarray) -> np.ndarray:
        """The risks ``[bags, n]`` by each of the bags."""
        return np.nan_to_num(self._of_bags(x))

    def _of_bags(self, x: np.ndarray) -> np.ndarray:
        x = checked_features(x, len(self.bags_[0].sign_))
        return np.array([bag._standardised_risk(x) for bag in self.bags_])

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """What each variable adds to the risk, ``[n, p]``; rows sum to ``predict_risk(x)``."""
        x = checked_features(x, len(self.bags_[0].sign_))
        total = np.zeros(x.shape)
        votes = np.zeros(len(x), dtype=int)
        for bag in self.bags_:
            total += bag.contributions(x)
            votes += ~np.isnan(bag._mean_signed_z(x))
        return total / np.maximum(votes, 1)[:, None]

    def state(self) -> dict[str, np.ndarray]:
        """The fitted model as plain arrays, those of ``Icare.state`` stacked: ``[bags, ...]``."""
        states = [bag.state() for bag in self.bags_]
        return {key: np.stack([state[key] for state in states]) for key in states[0]}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> BaggedIcare:
        """The model whose ``state()`` this is.

        Raises:
            ValueError: an array is missing or its shape does not fit the others.
        """
        bags = len(state["sign"]) if "sign" in state and np.ndim(state["sign"]) else 0
        check_state(state, bags)
        models = [Icare.from_state({k: state[k][i] for k in STATE_KEYS}) for i in range(bags)]
        model = cls(models[0].rho, models[0].cmin, bags)
        model.bags_ = models
        return model


def bag_seeds(rng: np.random.Generator, bags: int) -> list[int]:
    """A seed a bag, drawn as the package does, so that results compare one to one."""
    return [int(rng.integers(0, 99999999, size=1)[0]) for _ in range(bags)]


def bag_rows(seed: int, patients: int) -> np.ndarray:
    """The patients of a bag, as many as there are, drawn with replacement."""
    return np.random.default_rng(seed).choice(np.arange(patients), patients, replace=True)


def signs(concordance: np.ndarray, cmin: float | None) -> np.ndarray:
    """+1 or -1 by the direction of each concordance; 0 where below ``cmin`` or NaN."""
    sign = np.where(concordance < 0.5, -1.0, 1.0)
    kept = ~np.isnan(concordance)
    if cmin is not None:
        kept &= np.fmax(concordance, 1.0 - concordance) >= cmin
    return np.where(kept, sign, 0.0)


def follows_correlated(x: np.ndarray, rho: float) -> np.ndarray:
    """Which columns of ``x`` ``[n, p]`` correlate above ``rho`` with an earlier one, bool ``[p]``.

    Pearson correlation, absolute, over the patients in whom both are observed; an undefined one
    (a constant column) is not above. "Earlier" includes columns that are dropped themselves.
    """
    values = x.astype(np.float64)
    mean, scale = column_moments(x)
    z = (values - mean) / np.where(scale > 0, scale, 1.0)
    observed = ~np.isnan(z)
    if observed.all():
        correlation = z.T @ z / max(len(z) - 1, 1)
    else:
        correlation = _pairwise_correlation(np.where(observed, z, 0.0), observed.astype(float))
    return (np.triu(np.abs(correlation), k=1) > rho).any(axis=0)


def _pairwise_correlation(z: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Pearson correlation over the rows where both columns are observed; 0 where undefined."""
    count = observed.T @ observed
    total = z.T @ observed  # [i, j]: sum of column i over rows where j is observed
    square = (z * z).T @ observed
    covariance = count * (z.T @ z) - total * total.T
    variance = count * square - total**2
    # What cancellation leaves of a variance that is truly 0.
    variance[variance <= 1e-12 * count * square] = 0.0
    divisor = np.sqrt(variance * variance.T)
    return np.divide(covariance, divisor, out=np.zeros_like(divisor), where=divisor > 0)


def column_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n - 1) of each column over its observed values, ``[p]`` each.

    Mean 0 and deviation 0 for a column with no value; deviation exactly 0 for a constant one.
    """
    observed = ~np.isnan(x)
    count = observed.sum(axis=0)
    values = np.where(observed, x, 0.0).astype(np.float64)
    mean = values.sum(axis=0) / np.maximum(count, 1)
    square = (np.where(observed, values - mean, 0.0) ** 2).sum(axis=0)
    scale = np.sqrt(square / np.maximum(count - 1, 1))
    first = np.take_along_axis(values, observed.argmax(axis=0)[None], axis=0)
    constant = (~observed | (values == first)).all(axis=0)
    return mean, np.where(constant, 0.0, scale)


def checked_features(x: np.ndarray, expected: int | None = None) -> np.ndarray:
    """``x`` as float32 ``[n, p]``, the precision variables are compared at; NaN allowed.

    Raises:
        ValueError: not two axes, an infinite value, or not ``expected`` columns.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"features must be [patients, variables], found shape {x.shape}")
    if np.isinf(x).any():
        column = int(np.flatnonzero(np.isinf(x).any(axis=0))[0])
        raise ValueError(f"features must be finite or NaN; column {column} holds an infinite one")
    if expected is not None and x.shape[1] != expected:
        raise ValueError(f"the model was fitted on {expected} variables, found {x.shape[1]}")
    return x


def checked_training(x: np.ndarray, outcomes: Outcomes) -> np.ndarray:
    """Features to be fitted to the outcomes, float32 ``[n, p]``, checked to agree with them.

    Raises:
        ValueError: as ``checked_features``, not one row an outcome, or no comparable pair (no event
            that others outlast).
    """
    x = checked_features(x)
    if len(x) != len(outcomes):
        raise ValueError(f"features of {len(x)} patients, but outcomes of {len(outcomes)}")
    if not has_comparable_pair(outcomes):
        raise ValueError("no comparable pair: no patient is known to outlast another's event")
    return x


def check_state(state: Mapping[str, np.ndarray], bags: int | None) -> None:
    """Refuse a state whose arrays do not fit together.

    Raises:
        ValueError: names the array, what was found and what was expected.
    """
    missing = [key for key in STATE_KEYS if key not in state]
    if missing:
        raise ValueError(f"ICARE state lacks {', '.join(missing)}")
    lead = () if bags is None else (bags,)
    variables = np.shape(state["sign"])[-1:]
    for key in STATE_KEYS:
        expected = (*lead, 2) if key in ("risk_moments", "settings") else (*lead, *variables)
        found = np.shape(state[key])
        if found != expected or 0 in expected:
            raise ValueError(f"ICARE state {key!r} has shape {found}, expected {expected}")


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value
