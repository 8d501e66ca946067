"""Table and plot of the sarcomas by training time, from each patient's Dice.

    .venv/bin/python docs/results/sts_budgets.py [plot.png]

Reads ``budgets-sts-2mm/patients.csv`` (a patient, network and set of seeds a row) and
``seconds.csv`` beside it (of the network, a patient); prints Markdown.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from hmvnet.experiments.budget_table import DICE, Point
from hmvnet.experiments.budgets import WAYS, Budget
from hmvnet.survival.bootstrap import Bootstrap, draw_weights
from hmvnet.training.pictures_budgets import draw_budgets

FOLDER = Path(__file__).parent / "budgets-sts-2mm"
HERE, PEER = "hmvnet norm=group training.patch_size=96,96,96", "segresnet init_filters=16"
NAMES = {
    HERE: "HM-VNet, norm=group; from 30 min on several averaged",
    PEER: "SegResNet, 16 filters",
    "resenc-unet width=16 stages=5": "residual-encoder U-Net, width 16",
    "swinunetr feature_size=12": "SwinUNETR, feature size 12",
}
PLOTTED = {HERE: ["one pass", "both"]}  # the others have windows alone


def rows(table: pd.DataFrame) -> dict[tuple[str, float, str, str], pd.Series]:
    """By network, minutes in all, kind and way: each patient's Dice.

    The kind is ``alone`` (the mean of all seeds, each by itself) or how many were averaged.
    """
    members = table["seeds"].str.split().str.len()
    table = table.assign(minutes=table["minutes a seed"] * members, members=members)
    found = {}
    for (network, minutes, count), some in table.groupby(["network", "minutes", "members"]):
        kind = "alone" if count == 1 else f"{count} averaged"
        for way in WAYS:
            dice = some.groupby("patient")[way].mean().dropna()
            if len(dice):
                found[network, minutes, kind, way] = dice
    return found


def main() -> None:
    """Print the table; draw the plot where a file is named."""
    # Of seeds that have some of the patients alone nothing is said here.
    table = pd.read_csv(FOLDER / "patients.csv", dtype={"seeds": str})
    everyone = table["patient"].nunique()
    runs = table.groupby(["network", "seeds", "minutes a seed"])["patient"].transform("nunique")
    found = rows(table[runs == everyone])
    weights = draw_weights(everyone, 10_000, np.random.default_rng(0))
    means = {key: weights @ dice.to_numpy() / weights.sum(axis=1) for key, dice in found.items()}
    boot = Bootstrap.of(means, everyone)
    print(f"| minutes | network | {' | '.join(WAYS)} | the last less SegResNet |")
    print("|---|---|---|---|---|---|")
    for minutes, network, kind in sorted({(k[1], k[0], k[2]) for k in found}):
        keys = [(network, minutes, kind, way) for way in WAYS]
        cells = [str(boot.interval(key)) if key in found else "" for key in keys]
        peer, last = (PEER, minutes, "alone", "windows"), [key for key in keys if key in found][-1]
        less = f"{boot.difference(last, peer):+.3f}" if peer in found and last != peer else ""
        print(f"| {minutes:g} | {network}, {kind} | {' | '.join(cells)} | {less} |")
    if len(sys.argv) > 1:
        draw_budgets(_points(found, boot, everyone), Path(sys.argv[1]))


def _points(found: dict, boot: Bootstrap, everyone: int) -> list[Point]:
    """The curves: at a budget several averaged where there are, else each alone."""
    seconds = pd.read_csv(FOLDER / "seconds.csv").set_index(["network", "inference"])["seconds"]
    points = []
    for network, name in NAMES.items():
        for way in PLOTTED.get(network, ["windows"]):
            for minutes in sorted({k[1] for k in found if k[0] == network}):
                kinds = [k[2] for k in found if k[:2] == (network, minutes) and k[3] == way]
                kind = min(kinds)  # digits come before letters
                members = 1 if kind == "alone" else int(kind.split()[0])
                figures = {DICE: boot.interval((network, minutes, kind, way))}
                cost = members * float(seconds[network, way])
                points.append(
                    Point(
                        network=name,
                        way=way,
                        budget=Budget(float(minutes)),
                        folds=(2, 3, 4),
                        patients=everyone,
                        figures=figures,
                        minutes=minutes,
                        seconds=cost,
                        device="CPU",
                        differences={},  # what is not drawn
                        shared=0,
                        steps=0,
                        parameters=0,
                    )
                )
    return points


if __name__ == "__main__":
    main()
