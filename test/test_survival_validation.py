from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import YEAR, follow_up
from lifelines import CoxPHFitter
from lifelines.datasets import load_larynx, load_rossi
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sksurv.datasets import load_gbsg2, load_veterans_lung_cancer, load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.preprocessing import OneHotEncoder

from hmvnet.case import Outcomes, harrell_c
from hmvnet.survival.baselines import SksurvModel
from hmvnet.survival.bootstrap import bootstrap_concordance
from hmvnet.survival.metrics import structured, uno_c
from hmvnet.survival.validation import OutOfFold, comparison_table, cross_validate_by, score
from hmvnet.training.folds import repeated_folds


def cox(seed: int = 0) -> SksurvModel:
    return SksurvModel(lambda _: CoxPHSurvivalAnalysis(ties="efron"))


def cross_validate(build, features, outcomes, fold, times=None) -> OutOfFold:
    """Of models on features that may be fitted to the training patients, as comparisons do it."""

    def fit_predict(train, test, rng):
        x = features(train)
        model = build().fit(x[train], outcomes[train], rng)
        return model.predict_risk(x[test]), (
            None if times is None else model.predict_survival(x[test], times)
        )

    return cross_validate_by(fit_predict, fold, np.random.default_rng(0), times)


# --- the libraries' own data sets ----------------------------------------------------------------


def numeric(x: pd.DataFrame) -> np.ndarray:
    return OneHotEncoder().fit_transform(x).to_numpy(dtype=float)


def library_cohorts() -> dict[str, tuple[np.ndarray, Outcomes]]:
    larynx, rossi = load_larynx(), load_rossi()
    cohorts = {
        "larynx": (
            larynx.drop(columns=["time", "death"]).to_numpy(float),
            Outcomes(larynx["time"], larynx["death"]),
        ),
        "rossi": (
            rossi.drop(columns=["week", "arrest"]).to_numpy(float),
            Outcomes(rossi["week"], rossi["arrest"]),
        ),
    }
    for name, load, event, time in (
        ("GBSG2", load_gbsg2, "cens", "time"),
        ("WHAS500", load_whas500, "fstat", "lenfol"),
        ("veterans", load_veterans_lung_cancer, "Status", "Survival_in_days"),
    ):
        x, y = load()
        cohorts[name] = numeric(x), Outcomes(y[time], y[event])
    return cohorts


COHORTS = library_cohorts()


@pytest.mark.parametrize("name", COHORTS)
def test_coxph_has_the_concordance_that_lifelines_reports(name: str) -> None:
    x, outcomes = COHORTS[name]
    model = cox().fit(x, outcomes, np.random.default_rng(0))
    table = pd.DataFrame(x).add_prefix("x").assign(time=outcomes.days, event=outcomes.event)
    reported = CoxPHFitter().fit(table, "time", "event").concordance_index_
    assert harrell_c(outcomes, model.predict_risk(x)) == pytest.approx(reported, abs=0.005)


@pytest.mark.parametrize(
    ("name", "published"),
    # The values printed in the user guides of lifelines (Cox regression) and scikit-survival
    # (introduction).
    [("rossi", 0.640), ("veterans", 0.7363)],
)
def test_coxph_has_the_published_concordance(name: str, published: float) -> None:
    x, outcomes = COHORTS[name]
    model = cox().fit(x, outcomes, np.random.default_rng(0))
    assert harrell_c(outcomes, model.predict_risk(x)) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("name", ["larynx", "GBSG2", "WHAS500"])
def test_cross_validation_is_that_of_scikit_learn(name: str) -> None:
    x, outcomes = COHORTS[name]
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), repeats=1)
    found = cross_validate(cox, lambda train: x, outcomes, fold)
    expected = cross_val_score(
        CoxPHSurvivalAnalysis(ties="efron"), x, structured(outcomes), cv=PredefinedSplit(fold[0])
    )
    assert score(found, outcomes, fold).harrell == pytest.approx(expected.mean(), abs=1e-6)


def test_scores_are_weighted_by_whose_follow_up_is_given() -> None:
    x, outcomes = COHORTS["WHAS500"]
    rng = np.random.default_rng(0)
    until = rng.exponential(600, len(outcomes)) + 1
    short = Outcomes(np.minimum(outcomes.days, until), outcomes.event & (outcomes.days <= until))
    risk = cox().fit(x, outcomes, rng).predict_risk(x)
    fold = np.zeros((1, len(outcomes)), int)
    found = [score(OutOfFold(risk[None]), short, fold, followed=one) for one in (short, outcomes)]
    assert found[0].uno == pytest.approx(uno_c(short, short, risk))
    assert found[0].uno != pytest.approx(found[1].uno, abs=1e-4)


# --- cross-validation ----------------------------------------------------------------------------


class Memory:
    """Knows the outcomes of the patients it was fitted on, and nothing of others."""

    def fit(self, x, outcomes, rng):
        self.time_ = {row[0]: t for row, t in zip(x, outcomes.days, strict=True)}
        return self

    def predict_risk(self, x):
        return np.array([-self.time_.get(row[0], 0.0) for row in x])

    def predict_survival(self, x, times):
        return None


def test_cross_validation_shows_no_model_the_patients_it_is_scored_on() -> None:
    _, outcomes = follow_up()
    ids = np.arange(len(outcomes), dtype=float)[:, None]
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), repeats=2)
    seen = []

    def features(train: np.ndarray) -> np.ndarray:
        seen.append(set(train.tolist()))
        return ids

    found = cross_validate(Memory, features, outcomes, fold, np.array([365.0]))
    assert (found.risk == 0).all()
    assert found.survival is None
    # What is fitted for the features sees the same patients as the model.
    tests = [set(np.flatnonzero(row == k).tolist()) for row in fold for k in range(5)]
    assert all(not train & test for train, test in zip(seen, tests, strict=True))
    assert all(len(train | test) == len(ids) for train, test in zip(seen, tests, strict=True))


def test_scores_of_a_cross_validated_model() -> None:
    x, outcomes = follow_up(n=300)
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), repeats=2)
    times = np.linspace(0.1, 4, 40) * YEAR
    found = cross_validate(cox, lambda train: x, outcomes, fold, times)
    scores = score(found, outcomes, fold)
    assert 0.65 < scores.harrell < 0.85
    assert 0.65 < scores.uno < 0.85
    assert all(0.65 < value < 0.95 for value in scores.auc.values())
    assert 0.05 < scores.brier < 0.22
    assert scores.calibration.time == 3 * YEAR
    assert scores.calibration.error < 0.1
    reverse = score(OutOfFold(-found.risk), outcomes, fold)
    assert reverse.harrell == pytest.approx(1 - scores.harrell)
    assert np.isnan(reverse.brier)
    assert reverse.calibration is None


def test_mean_rank_compares_within_folds_only() -> None:
    risk = np.array([[1.0, 2.0, 101.0, 102.0]])
    ranks = OutOfFold(risk).mean_rank(np.array([[0, 0, 1, 1]]))
    np.testing.assert_allclose(ranks, [0.25, 0.75, 0.25, 0.75])


def test_comparison_table_is_sorted_and_names_the_reference() -> None:
    x, outcomes = follow_up(n=200)
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), repeats=1)
    models = {"noise": OutOfFold(x[None, :, 1]), "good": OutOfFold(x[None, :, 0])}
    scores = {name: score(model, outcomes, fold) for name, model in models.items()}
    risks = {name: model.risk for name, model in models.items()}
    found = bootstrap_concordance(outcomes, risks, np.random.default_rng(0), fold, 50)
    table = comparison_table(scores, found, "noise")
    assert table.index.tolist() == ["good", "noise"]
    assert table.loc["noise", "C - noise"] == "0.000 (0.000 to 0.000)"
    assert {"Uno's C", "AUC 1 y", "AUC 2 y", "AUC 3 y", "Brier"} <= set(table.columns)


# --- rooms ---------------------------------------------------------------------------------------


ROOMS = """
import sys
sys.modules.update(sksurv=None, matplotlib=None)
import hmvnet.container, hmvnet.api, hmvnet.cohort, hmvnet.pipeline, hmvnet.prognosis.risk
found = lambda: {n.split(".")[-1] for n in sys.modules if n.startswith("hmvnet.survival.")}
rooms = ("metrics", "bootstrap", "baselines", "validation")
assert found() == set(), found()
del sys.modules["sksurv"]
for number, room in enumerate(rooms):
    __import__(f"hmvnet.survival.{room}")
    assert not found() & set(rooms[number + 1 :]), (room, found())
"""


def test_inference_imports_no_evaluation_and_no_room_a_later_one() -> None:
    subprocess.run([sys.executable, "-c", ROOMS], check=True)


NETWORKS_ALONE = """
import sys
sys.modules.update(sksurv=None)
import hmvnet.phantom
import hmvnet.training.segmentation_bundle, hmvnet.training.pictures
import hmvnet.experiments.compare_networks, hmvnet.experiments.tune, hmvnet.experiments.bench
from hmvnet.experiments.evaluate import evaluate_segmentation
"""


def test_networks_are_trained_and_scored_without_the_extra_for_survival() -> None:
    """scikit-survival is GPL-3, and has no wheels for the newest Pythons."""
    subprocess.run([sys.executable, "-c", NETWORKS_ALONE], check=True)
