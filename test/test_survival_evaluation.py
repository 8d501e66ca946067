from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from lifelines.datasets import load_larynx, load_rossi
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sksurv.datasets import load_gbsg2, load_veterans_lung_cancer, load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.preprocessing import OneHotEncoder

from hmvnet.survival.baselines import SksurvModel
from hmvnet.survival.evaluation import (
    Interval,
    Outcomes,
    OutOfFold,
    auc_at,
    bootstrap_concordance,
    brier,
    calibration,
    calibration_figure,
    comparison_table,
    cross_validate,
    forest_figure,
    harrell_c,
    kaplan_meier_figure,
    repeated_folds,
    risk_groups,
    score,
    uno_c,
)

YEARS = 365.25


def cohort(seed: int = 0, n: int = 150) -> tuple[np.ndarray, Outcomes]:
    """Features `[n, 3]`, of which the first raises the risk, and follow-up of up to ten years."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    failure = rng.exponential(4 * YEARS * np.exp(-x[:, 0]))
    censoring = rng.uniform(1, 10, size=n) * YEARS
    return x, Outcomes(np.ceil(np.minimum(failure, censoring)), failure <= censoring)


def cox(seed: int = 0) -> SksurvModel:
    return SksurvModel(lambda _: CoxPHSurvivalAnalysis(ties="efron"))


# --- metrics -------------------------------------------------------------------------------------


def test_harrell_by_hand() -> None:
    outcomes = Outcomes([1.0, 2.0, 3.0, 4.0], [True, False, True, False])
    # Comparable: 0 with 1, 2, 3, and 2 with 3.
    assert harrell_c(outcomes, np.array([4.0, 3.0, 2.0, 1.0])) == 1.0
    assert harrell_c(outcomes, np.array([1.0, 2.0, 3.0, 4.0])) == 0.0
    assert harrell_c(outcomes, np.array([2.0, 2.0, 3.0, 3.0])) == pytest.approx(1.0 / 4)
    assert np.isnan(harrell_c(Outcomes([1.0, 2.0], [False, False]), np.zeros(2)))
    with pytest.raises(ValueError, match="NaN"):
        harrell_c(outcomes, np.array([1.0, np.nan, 0.0, 0.0]))


def test_metrics_are_those_of_scikit_survival() -> None:
    train_x, train = cohort(1)
    x, test = cohort(2)
    risk, tau = x[:, 0], 6 * YEARS
    assert harrell_c(test, risk) == concordance_index_censored(test.event, test.time, risk)[0]
    assert (
        uno_c(train, test, risk, tau)
        == concordance_index_ipcw(train.structured, test.structured, risk, tau)[0]
    )
    years = np.array([1, 2, 3]) * YEARS
    np.testing.assert_allclose(
        auc_at(train, test, risk, years),
        cumulative_dynamic_auc(train.structured, test.structured, risk, years)[0],
    )
    curves = cox().fit(train_x, train.time, train.event, np.random.default_rng(0))
    times = np.linspace(0.5, 5, 30) * YEARS
    predicted = curves.predict_survival(x, times)
    assert brier(train, test, predicted, times) == pytest.approx(
        integrated_brier_score(train.structured, test.structured, predicted, times)
    )


def test_metrics_beyond_the_follow_up_are_nan_and_later_times_left_out() -> None:
    _, train = cohort(1)
    x, test = cohort(2)
    short = test.until(2 * YEARS)
    values = auc_at(train, short, x[:, 0], [1 * YEARS, 5 * YEARS])
    assert np.isfinite(values[0])
    assert np.isnan(values[1])
    times = np.array([0.5, 1.0, 1.5, 5.0]) * YEARS
    predicted = np.tile([0.9, 0.8, 0.7, 0.0], (len(x), 1))
    expected = integrated_brier_score(
        train.structured, short.structured, predicted[:, :3], times[:3]
    )
    assert brier(train, short, predicted, times) == pytest.approx(expected)


def test_test_patients_may_outlast_the_training_patients() -> None:
    _, test = cohort(1)
    x, _ = cohort(2)
    train = test.until(3.5 * YEARS)
    assert np.isfinite(uno_c(train, test, x[:, 0]))
    assert np.isfinite(auc_at(train, test, x[:, 0], [1 * YEARS, 3 * YEARS])).all()
    assert np.isnan(auc_at(train, test, x[:, 0], [4 * YEARS])).all()
    times = np.linspace(0.5, 9, 20) * YEARS
    assert np.isfinite(brier(train, test, np.full((len(x), 20), 0.5), times))


def test_brier_of_a_coin_is_a_quarter_without_censoring() -> None:
    time = np.arange(1.0, 41.0)
    outcomes = Outcomes(time, np.ones(40, dtype=bool))
    curves = np.full((40, 10), 0.5)
    times = np.linspace(2, 30, 10)
    assert brier(outcomes, outcomes, curves, times) == pytest.approx(0.25)
    expected = brier_score(outcomes.structured, outcomes.structured, curves, times)[1]
    np.testing.assert_allclose(expected, 0.25)


def test_calibration_of_known_chances() -> None:
    rng = np.random.default_rng(0)
    chance = rng.choice([0.1, 0.5, 0.9], size=3000)
    hit = rng.random(3000) < chance
    outcomes = Outcomes(np.where(hit, rng.uniform(1, 365, 3000), 800.0), hit)
    good = calibration(outcomes, chance, 365, groups=3)
    np.testing.assert_allclose(good.predicted, good.observed, atol=0.05)
    assert (good.low <= good.observed).all()
    assert (good.observed <= good.high).all()
    assert good.error < 0.03
    assert calibration(outcomes, chance**2, 365, groups=3).error > 0.1
    with pytest.raises(ValueError, match="follow-up ends at 800"):
        calibration(outcomes, chance, 900)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration(outcomes, chance * 3, 365)


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
    model = cox().fit(x, outcomes.time, outcomes.event, np.random.default_rng(0))
    table = pd.DataFrame(x).add_prefix("x").assign(time=outcomes.time, event=outcomes.event)
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
    model = cox().fit(x, outcomes.time, outcomes.event, np.random.default_rng(0))
    assert harrell_c(outcomes, model.predict_risk(x)) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("name", ["larynx", "GBSG2", "WHAS500"])
def test_cross_validation_is_that_of_scikit_learn(name: str) -> None:
    x, outcomes = COHORTS[name]
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), repeats=1)
    found = cross_validate(cox, lambda train: x, outcomes, fold, np.random.default_rng(0))
    expected = cross_val_score(
        CoxPHSurvivalAnalysis(ties="efron"), x, outcomes.structured, cv=PredefinedSplit(fold[0])
    )
    assert score(found, outcomes, fold).harrell == pytest.approx(expected.mean(), abs=1e-6)


# --- cross-validation ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_folds_are_stratified_by_event_and_centre() -> None:
    rng = np.random.default_rng(0)
    event = rng.random(203) < 0.3
    centre = rng.choice(["A", "B", "C"], size=203, p=[0.5, 0.48, 0.02])
    fold = repeated_folds(event, rng, folds=5, repeats=4, centre=centre)
    assert fold.shape == (4, 203)
    for row in fold:
        for chosen in (event, (centre == "A") & event, (centre == "B") & ~event):
            counts = np.bincount(row[chosen], minlength=5)
            assert counts.max() - counts.min() <= 1 + (chosen is event)
    assert (fold[0] != fold[1]).any()
    again = repeated_folds(event, np.random.default_rng(5), repeats=2)
    np.testing.assert_array_equal(again, repeated_folds(event, np.random.default_rng(5), repeats=2))


def test_too_few_events_for_the_folds() -> None:
    with pytest.raises(ValueError, match=r"5 folds .* found 3 and 47"):
        repeated_folds(np.arange(50) < 3, np.random.default_rng(0))


class Memory:
    """Knows the outcomes of the patients it was fitted on, and nothing of others."""

    def fit(self, x, time, event, rng):
        self.time_ = {row[0]: t for row, t in zip(x, time, strict=True)}
        return self

    def predict_risk(self, x):
        return np.array([-self.time_.get(row[0], 0.0) for row in x])

    def predict_survival(self, x, times):
        return None


def test_cross_validation_shows_no_model_the_patients_it_is_scored_on() -> None:
    _, outcomes = cohort()
    ids = np.arange(len(outcomes), dtype=float)[:, None]
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), repeats=2)
    seen = []

    def features(train: np.ndarray) -> np.ndarray:
        seen.append(set(train.tolist()))
        return ids

    found = cross_validate(
        Memory, features, outcomes, fold, np.random.default_rng(0), np.array([365.0])
    )
    assert (found.risk == 0).all()
    assert found.survival is None
    # What is fitted for the features sees the same patients as the model.
    tests = [set(np.flatnonzero(row == k).tolist()) for row in fold for k in range(5)]
    assert all(not train & test for train, test in zip(seen, tests, strict=True))
    assert all(len(train | test) == len(ids) for train, test in zip(seen, tests, strict=True))


def test_scores_of_a_cross_validated_model() -> None:
    x, outcomes = cohort(n=300)
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), repeats=2)
    times = np.linspace(0.1, 4, 40) * YEARS
    found = cross_validate(cox, lambda train: x, outcomes, fold, np.random.default_rng(0), times)
    scores = score(found, outcomes, fold)
    assert 0.65 < scores.harrell < 0.85
    assert 0.65 < scores.uno < 0.85
    assert all(0.65 < value < 0.95 for value in scores.auc.values())
    assert 0.05 < scores.brier < 0.22
    assert scores.calibration.time == 3 * YEARS
    assert scores.calibration.error < 0.1
    reverse = score(OutOfFold(-found.risk), outcomes, fold)
    assert reverse.harrell == pytest.approx(1 - scores.harrell)
    assert np.isnan(reverse.brier)
    assert reverse.calibration is None


def test_mean_rank_compares_within_folds_only() -> None:
    risk = np.array([[1.0, 2.0, 101.0, 102.0]])
    ranks = OutOfFold(risk).mean_rank(np.array([[0, 0, 1, 1]]))
    np.testing.assert_allclose(ranks, [0.25, 0.75, 0.25, 0.75])


# --- bootstrap -----------------------------------------------------------------------------------


def test_bootstrap_is_the_concordance_of_resampled_patients() -> None:
    x, outcomes = cohort(n=60)
    outcomes = Outcomes(np.ceil(outcomes.time / 300), outcomes.event)
    risks = {"a": np.round(x[:, 0], 1), "b": x[:, 1]}
    found = bootstrap_concordance(outcomes, risks, np.random.default_rng(7), samples=20)

    n = len(outcomes)
    counts = np.random.default_rng(7).multinomial(n, np.full(n, 1 / n), 20)
    for name, risk in risks.items():
        assert found.estimate[name] == pytest.approx(harrell_c(outcomes, risk))
        for value, count in zip(found.samples[name], counts, strict=True):
            rows = np.repeat(np.arange(n), count)
            assert value == pytest.approx(harrell_c(outcomes[rows], risk[rows]))


def test_bootstrap_compares_within_folds_and_averages_repeats() -> None:
    x, outcomes = cohort(n=100)
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), folds=2, repeats=2)
    # An offset per fold would ruin a comparison across folds.
    risk = x[:, 0] + 100.0 * fold
    found = bootstrap_concordance(outcomes, {"m": risk}, np.random.default_rng(0), fold, 10)
    assert found.estimate["m"] > 0.6
    parts = [
        concordance_index_censored(outcomes.event[f == k], outcomes.time[f == k], x[f == k, 0])
        for f in fold
        for k in (0, 1)
    ]
    wins = [(p[1] + 0.5 * p[3], p[1] + p[2] + p[3]) for p in parts]
    by_repeat = [(wins[i][0] + wins[i + 1][0]) / (wins[i][1] + wins[i + 1][1]) for i in (0, 2)]
    assert found.estimate["m"] == pytest.approx(np.mean(by_repeat))


def test_paired_difference_is_narrower_than_unpaired() -> None:
    x, outcomes = cohort(n=200)
    noise = np.random.default_rng(1).normal(size=200)
    risks = {"good": x[:, 0], "worse": x[:, 0] + 0.7 * noise, "none": noise}
    found = bootstrap_concordance(outcomes, risks, np.random.default_rng(0), samples=500)
    interval = found.interval("good")
    assert interval.low < interval.estimate < interval.high
    difference = found.difference("good", "worse")
    assert difference.low > 0
    assert difference.high - difference.low < interval.high - interval.low
    same = found.difference("good", "good")
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    assert found.interval("none").low < 0.5 < found.interval("none").high


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    x, everyone = cohort(3, n=3000)
    truth = harrell_c(everyone, x[:, 0])
    covered = []
    for part in np.array_split(np.arange(3000), 40):
        found = bootstrap_concordance(
            everyone[part], {"m": x[part, 0]}, np.random.default_rng(0), samples=200
        )
        interval = found.interval("m")
        covered.append(interval.low <= truth <= interval.high)
    assert 0.85 <= np.mean(covered) <= 1.0


def test_bootstrap_names_what_is_wrong() -> None:
    x, outcomes = cohort(n=20)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="does not fit 20 patients"):
        bootstrap_concordance(outcomes, {"m": x[:5, 0]}, rng)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_concordance(outcomes, {"m": np.full(20, np.nan)}, rng)
    nobody = Outcomes(outcomes.time, np.zeros(20, dtype=bool))
    with pytest.raises(ValueError, match="m: no two patients compare"):
        bootstrap_concordance(nobody, {"m": x[:, 0]}, rng)
    with pytest.raises(ValueError, match="time and event must be"):
        Outcomes([1.0, 2.0], [True])


# --- table and pictures --------------------------------------------------------------------------


def test_comparison_table_is_sorted_and_names_the_reference() -> None:
    x, outcomes = cohort(n=200)
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), repeats=1)
    models = {"noise": OutOfFold(x[None, :, 1]), "good": OutOfFold(x[None, :, 0])}
    scores = {name: score(model, outcomes, fold) for name, model in models.items()}
    risks = {name: model.risk for name, model in models.items()}
    found = bootstrap_concordance(outcomes, risks, np.random.default_rng(0), fold, 50)
    table = comparison_table(scores, found, "noise")
    assert table.index.tolist() == ["good", "noise"]
    assert table.loc["noise", "C - noise"] == "0.000 (0.000 to 0.000)"
    assert {"Uno's C", "AUC 1 y", "AUC 2 y", "AUC 3 y", "Brier"} <= set(table.columns)


def test_risk_groups_are_cut_at_training_quantiles() -> None:
    training = np.arange(1.0, 10.0)
    groups = risk_groups(np.array([-5.0, 3.0, 5.0, 99.0]), training)
    assert groups.tolist() == [0, 0, 1, 2]
    counts = np.bincount(risk_groups(training, training))
    assert counts.tolist() == [3, 3, 3]


def test_kaplan_meier_figure_shows_each_group() -> None:
    x, outcomes = cohort(n=200)
    figure = kaplan_meier_figure(outcomes, risk_groups(x[:, 0], x[:, 0]))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["low", "middle", "high"]
    final = [line.get_ydata()[-1] for line in axes.get_lines()]
    assert final[0] > final[1] > final[2]
    assert all(line.get_ydata()[0] == 1.0 for line in axes.get_lines())
    assert "log-rank p" in axes.get_title()


def test_kaplan_meier_figure_of_one_group_without_events() -> None:
    outcomes = Outcomes([100.0, 400.0, 900.0], [False, False, False])
    figure = kaplan_meier_figure(outcomes, np.zeros(3, dtype=int))
    assert "log-rank" not in figure.axes[0].get_title()


def test_forest_and_calibration_figures(tmp_path) -> None:
    intervals = {"icare": Interval(0.68, 0.6, 0.75), "coxph": Interval(0.66, 0.58, 0.72)}
    figure = forest_figure(intervals)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["icare", "coxph"]
    figure.savefig(tmp_path / "forest.png")

    x, outcomes = cohort()
    curve = calibration(outcomes, np.clip(0.3 + 0.2 * x[:, 0], 0.01, 0.99), YEARS)
    calibration_figure({"m": curve}).savefig(tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 1000
