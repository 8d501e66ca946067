"""Time our ICARE against the published package, side by side, on the same simulated patients.

    python -m hmvnet.experiments.bench_icare --reference /tmp/icare/bin/python

The package needs an environment of its own (see test/data/icare_reference.py); without
``--reference`` only our time is printed. Both fit once to warm up and then ``--repeats`` times; the
fastest counts. Refuses to report times if the two select other variables or signs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from hmvnet.case import Outcomes
from hmvnet.prognosis.icare import Icare

RHO, CMIN, SEED = 0.8, 0.52, 3

# Runs in the other environment, which has no hmvnet: reads patients.npz in the working directory.
REFERENCE = """
import json, time, warnings
import numpy as np
warnings.simplefilter("ignore")
from icare.survival import IcareSurvival
from sksurv.util import Surv
data = np.load("patients.npz")
y = Surv.from_arrays(data["event"], data["time"])
rho, cmin, seed, repeats = data["settings"]
def fit(x, y):
    model = IcareSurvival(rho=rho, cmin=cmin, sign_method="harrell", random_state=int(seed))
    return model.fit(x, y)
fit(data["x"][:, :20], y)
seconds = []
for _ in range(int(repeats)):
    start = time.perf_counter()
    model = fit(data["x"], y)
    seconds.append(time.perf_counter() - start)
sign = np.zeros(data["x"].shape[1])
sign[[int(name) for name in model.used_features_]] = model.weights_
print(json.dumps({"seconds": min(seconds), "sign": sign.tolist()}))
"""


def simulated(patients: int, variables: int) -> tuple[np.ndarray, Outcomes]:
    """Features ``[n, p]`` with correlated blocks, and follow-up in whole days."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(patients, variables))
    copied = variables // 6
    x[:, -copied:] = x[:, :copied] + 0.3 * rng.normal(size=(patients, copied))
    failure = rng.exponential(1000 * np.exp(-0.5 * x[:, 0]))
    censoring = rng.exponential(1500, size=patients)
    return x, Outcomes(np.ceil(np.minimum(failure, censoring)), failure <= censoring)


def our_fit(x: np.ndarray, outcomes: Outcomes, repeats: int) -> tuple[float, np.ndarray]:
    """Seconds of the fastest fit, and the signs ``[p]``."""
    Icare(RHO, CMIN).fit(x[:, :20], outcomes, np.random.default_rng(SEED))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        model = Icare(RHO, CMIN).fit(x, outcomes, np.random.default_rng(SEED))
        seconds.append(time.perf_counter() - start)
    return min(seconds), model.sign_


def reference_fit(
    python: Path, x: np.ndarray, outcomes: Outcomes, repeats: int
) -> tuple[float, np.ndarray]:
    """As ``our_fit``, by the package, in its own environment and an empty working directory."""
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(
            Path(scratch) / "patients.npz",
            x=x,
            time=outcomes.days,
            event=outcomes.event,
            settings=np.array([RHO, CMIN, SEED, repeats]),
        )
        run = subprocess.run(  # noqa: S603  the Python that the user named, without a shell
            [str(python.absolute()), "-c", REFERENCE],
            cwd=scratch,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    answer = json.loads(run.stdout)
    return answer["seconds"], np.array(answer["sign"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time ICARE against the published package.")
    parser.add_argument("--reference", type=Path, help="python of an environment with icare 0.1.0")
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--variables", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    x, outcomes = simulated(args.patients, args.variables)
    ours, sign = our_fit(x, outcomes, args.repeats)
    print(f"{args.patients} patients x {args.variables} variables, {(sign != 0).sum()} selected")
    print(f"hmvnet         {ours:8.3f} s")
    if args.reference:
        theirs, their_sign = reference_fit(args.reference, x, outcomes, args.repeats)
        if not np.array_equal(sign, their_sign):
            parser.exit(1, f"{(sign != their_sign).sum()} variables differ\n")
        print(f"icare package  {theirs:8.3f} s, the same variables and signs")
        print(f"{theirs / ours:.0f} times faster")


if __name__ == "__main__":
    main()
