"""Reference values of the published ICARE package, written to icare_reference.npz beside this file.

The package (``icare`` 0.1.0) fails with scikit-learn 1.8 and later, so this runs in an environment
of its own and its results are stored:

    python3.11 -m venv /tmp/icare
    /tmp/icare/bin/pip install "scikit-learn<1.8" icare==0.1.0
    /tmp/icare/bin/python test/data/icare_reference.py

Stored values were made with icare 0.1.0, scikit-learn 1.7.2, scikit-survival 0.26.0, numpy 2.4.6
and pandas 3.1.1. Per case ``<name>/``: x, time, event (what was fitted), probe (new patients),
settings (rho, cmin; NaN = None; seed; bags, 0 = a single model), and what the package made of
them: sign [bags or 1, p], train_risk, probe_risk.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from icare.survival import BaggedIcareSurvival, IcareSurvival
from sksurv.util import Surv

TARGET = Path(__file__).resolve().with_suffix(".npz")


def cohort(seed: int, n: int = 90, p: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, a third of them in correlated pairs, and outcomes that depend on a few."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    x[:, p // 3 : p // 2] = x[:, : p // 2 - p // 3] + 0.3 * rng.normal(size=(n, p // 2 - p // 3))
    hazard = np.exp(0.8 * x[:, 0] - 0.6 * x[:, 1] + 0.4 * x[:, -1])
    failure = rng.exponential(900 / hazard)
    censoring = rng.exponential(1500, size=n)
    return x, np.ceil(np.minimum(failure, censoring)), failure <= censoring


def with_ties(x: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.round(x), np.ceil(time / 150) * 150


def with_gaps(x: np.ndarray, seed: int) -> np.ndarray:
    """A tenth of the values missing, and one column missing in four of five patients."""
    rng = np.random.default_rng(seed)
    gaps = rng.random(x.shape) < 0.1
    gaps[:, 3] = rng.random(len(x)) < 0.8
    return np.where(gaps, np.nan, x)


def with_degenerate_columns(x: np.ndarray) -> np.ndarray:
    """Constant, duplicated, mirrored, nearly constant and very small columns."""
    x = x.copy()
    x[:, 2] = 5.0
    x[:, 5] = x[:, 0]
    x[:, 6] = -x[:, 1]
    x[:, 7] = 0.0
    x[0, 7] = 1.0
    x[:, 9] *= 1e-8
    return x


def cases() -> dict[str, tuple]:
    made = {}
    for seed in (1, 2, 3):
        x, time, event = cohort(seed)
        tied_x, tied_time = with_ties(x, time)
        gaps, odd = with_gaps(x, seed), with_degenerate_columns(x)
        for name, table, times in (
            ("plain", x, time),
            ("ties", tied_x, tied_time),
            ("gaps", gaps, time),
            ("odd", odd, time),
            ("odd_gaps_ties", with_gaps(with_degenerate_columns(tied_x), seed), tied_time),
        ):
            made[f"{name}{seed}"] = (table, times, event, 0.8, 0.53, seed, 0)
        made[f"all_kept{seed}"] = (odd, time, event, None, None, seed, 0)
        made[f"bagged{seed}"] = (x, time, event, 0.7, 0.55, seed, 10)
        made[f"bagged_odd_gaps{seed}"] = (with_gaps(odd, seed), time, event, 0.8, 0.55, seed, 7)
    return made


def reference(x, time, event, rho, cmin, seed, bags) -> dict[str, np.ndarray]:
    settings = {"rho": rho, "cmin": cmin, "sign_method": "harrell"}
    if bags:
        model = BaggedIcareSurvival(bags, [settings], random_state=seed)
    else:
        model = IcareSurvival(**settings, random_state=seed)
    x = x.astype(np.float32)
    # A quarter of the patients is kept out, so that prediction is seen on others too.
    train, probe = x[: -len(x) // 4], x[-len(x) // 4 :]
    time, event = time[: len(train)], event[: len(train)]
    model.fit(train, Surv.from_arrays(event, time))
    singles = model.estimators_ if bags else [model]
    sign = np.zeros((len(singles), x.shape[1]), dtype=np.int8)
    for row, single in zip(sign, singles, strict=True):
        row[[int(name) for name in single.used_features_]] = single.weights_
    return {
        "x": train,
        "time": time,
        "event": event,
        "probe": probe,
        "settings": np.array([np.nan if v is None else v for v in (rho, cmin, seed, bags)]),
        "sign": sign,
        "train_risk": np.asarray(model.predict(train), dtype=float),
        "probe_risk": np.asarray(model.predict(probe), dtype=float),
    }


def main() -> None:
    stored = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # the package may write a stray file into the working directory
        for name, case in cases().items():
            for key, value in reference(*case).items():
                stored[f"{name}/{key}"] = value
        os.chdir("/")
    np.savez_compressed(TARGET, **stored)


if __name__ == "__main__":
    main()
