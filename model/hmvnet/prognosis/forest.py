"""A fitted forest of regression trees as plain arrays: what the container needs of one.

Fitting is ``hmvnet.survival.forest.fit_forest_risk``; this file is all that a prediction needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np

from hmvnet.prognosis.icare import checked_features

LEAF = -1  # in place of a variable


@dataclass(frozen=True)
class ForestRisk:
    """The mean over trees of what a patient's leaf differs from its tree's root, over ``spread``.

    The nodes of all trees lie one after the other, each below its parent, those of a tree together.

    Attributes:
        fill: ``[p]`` what a missing value becomes: the training median.
        root: int32 ``[t]`` the first node of each tree.
        variable: int32 ``[m]`` which variable a node asks for, or ``LEAF``.
        threshold: float64 ``[m]``; values up to it go left, those above it right.
        left, right: int32 ``[m]`` the nodes below; of a leaf itself.
        value: float64 ``[m]`` the mean over the training patients of a node.
        spread: the deviation of the risk among the training patients; 1 where it is 0.
    """

    fill: np.ndarray
    root: np.ndarray
    variable: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    spread: float

    def predict_risk(self, x: np.ndarray) -> np.ndarray:
        """Risk ``[n]`` of ``x`` ``[n, p]`` (NaN = missing); higher = earlier event."""
        leaf = np.repeat(self.root[None], len(x), axis=0)
        for _, below in self._steps(x):
            leaf = below
        return (self.value[leaf] - self.value[self.root]).mean(axis=1) / self.spread

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """What each variable adds to the risk, ``[n, p]``; rows sum to ``predict_risk``.

        Each step down a tree changes the mean of the node a patient is in; the change is the
        variable's that was asked for (Saabas, Interpreting random forests, 2014). A sum of parts,
        as of the linear models, though what a variable adds hangs on the others here.
        """
        added = np.zeros((len(x), len(self.fill)))
        patient = np.arange(len(x))[:, None]
        for node, below in self._steps(x):
            change = self.value[below] - self.value[node]  # 0 of a leaf
            np.add.at(added, (patient, self.variable[node]), change)
        return added / len(self.root) / self.spread

    def draws(self, x: np.ndarray) -> np.ndarray:
        """The risks as one sample ``[1, n]``: its trees are of one bootstrap sample each."""
        return self.predict_risk(x)[None]

    def _steps(self, x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Nodes ``[n, t]`` of every patient in every tree, and those a step below them."""
        x = checked_features(x, len(self.fill))
        x = np.where(np.isnan(x), self.fill.astype(np.float32), x)
        node = np.repeat(self.root[None], len(x), axis=0)
        patient = np.arange(len(x))[:, None]
        while (self.variable[node] != LEAF).any():
            goes_left = x[patient, self.variable[node]] <= self.threshold[node]
            below = np.where(goes_left, self.left[node], self.right[node])
            yield node, below
            node = below

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays; see ``from_state``."""
        arrays = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        return arrays | {"spread": np.array([self.spread])}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> ForestRisk:
        """The model whose ``state`` this is.

        Raises:
            ValueError: an array is missing, or they are not those of trees over these variables.
        """
        names = [f.name for f in fields(cls)]
        if missing := [name for name in names if name not in state]:
            raise ValueError(f"forest lacks {', '.join(missing)}")
        arrays = {name: np.asarray(state[name]) for name in names}
        nodes = [arrays[name] for name in ("variable", "threshold", "left", "right", "value")]
        shapes = {name: array.shape for name, array in arrays.items()}
        count = len(nodes[0]) if nodes[0].ndim == 1 else 0
        flat = all(array.shape == (count,) for array in nodes) and arrays["root"].ndim == 1
        if not flat or not count or not len(arrays["root"]) or arrays["fill"].ndim != 1:
            raise ValueError(f"forest has shapes {shapes}")
        if arrays["spread"].shape != (1,) or arrays["spread"][0] <= 0:
            raise ValueError(f"forest has spread {arrays['spread']}, expected one above 0")
        for name in ("fill", "threshold", "value", "spread"):
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"forest: {name} must be finite")
        _check_nodes(arrays)
        spread = float(arrays.pop("spread")[0])
        return cls(**arrays, spread=spread)


def _check_nodes(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises: ValueError: a node is not there, lies above its parent, or asks for no variable."""
    for name in ("root", "variable", "left", "right"):
        if arrays[name].dtype.kind != "i":
            raise ValueError(f"forest: {name} must be integers, found {arrays[name].dtype}")
    variable, root = arrays["variable"], arrays["root"]
    number = np.arange(len(variable))
    if root.min() < 0 or root.max() >= len(variable):
        raise ValueError(f"forest: a root beyond its {len(variable)} nodes")
    if variable.min() < LEAF or variable.max() >= len(arrays["fill"]):
        raise ValueError(f"forest: a variable beyond its {len(arrays['fill'])}")
    inner = variable != LEAF
    for name in ("left", "right"):
        below = arrays[name]
        if below.max() >= len(variable) or (below < number + inner).any():
            raise ValueError(f"forest: a node's {name} one lies above it, or is not there")
