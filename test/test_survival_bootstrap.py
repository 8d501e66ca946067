from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import case_score, follow_up
from sksurv.metrics import concordance_index_censored

from hmvnet.case import Outcomes, harrell_c
from hmvnet.segmentation.metrics import METRICS, CaseScore, aggregate
from hmvnet.survival.bootstrap import Interval, bootstrap_concordance, bootstrap_segmentation
from hmvnet.training.folds import repeated_folds

# --- concordance ---------------------------------------------------------------------------------


def test_bootstrap_is_the_concordance_of_resampled_patients() -> None:
    x, outcomes = follow_up(n=60)
    outcomes = Outcomes(np.ceil(outcomes.days / 300), outcomes.event)
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
    x, outcomes = follow_up(n=100)
    fold = repeated_folds(outcomes.event, np.random.default_rng(0), folds=2, repeats=2)
    # An offset per fold would ruin a comparison across folds.
    risk = x[:, 0] + 100.0 * fold
    found = bootstrap_concordance(outcomes, {"m": risk}, np.random.default_rng(0), fold, 10)
    assert found.estimate["m"] > 0.6
    parts = [
        concordance_index_censored(outcomes.event[f == k], outcomes.days[f == k], x[f == k, 0])
        for f in fold
        for k in (0, 1)
    ]
    wins = [(p[1] + 0.5 * p[3], p[1] + p[2] + p[3]) for p in parts]
    by_repeat = [(wins[i][0] + wins[i + 1][0]) / (wins[i][1] + wins[i + 1][1]) for i in (0, 2)]
    assert found.estimate["m"] == pytest.approx(np.mean(by_repeat))


def test_paired_difference_is_narrower_than_unpaired() -> None:
    x, outcomes = follow_up(n=200)
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
    x, everyone = follow_up(3, n=3000)
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
    x, outcomes = follow_up(n=20)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="does not fit 20 patients"):
        bootstrap_concordance(outcomes, {"m": x[:5, 0]}, rng)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_concordance(outcomes, {"m": np.full(20, np.nan)}, rng)
    nobody = Outcomes(outcomes.days, np.zeros(20, dtype=bool))
    with pytest.raises(ValueError, match="m: no two patients compare"):
        bootstrap_concordance(nobody, {"m": x[:, 0]}, rng)


# --- segmentation --------------------------------------------------------------------------------


def method(rng: np.random.Generator, gain: float) -> list[CaseScore]:
    """60 patients; the noise is the generator's, the gain the method's."""
    difficulty = np.random.default_rng(0).random(60) * 0.5
    noise = rng.normal(0, 0.02, 60)
    return [
        case_score(
            dice=0.4 + d + gain + e,
            inter=(0.2 + d + gain + e) * v / 2,
            total=v,
            tp=1,
            fn=1,
            hd=8 - 10 * gain if i % 7 else math.nan,
            name=f"P{i}",
        )
        for i, (d, e, v) in enumerate(zip(difficulty, noise, 10 + 500 * difficulty, strict=True))
    ]


def test_paired_bootstrap_finds_a_small_gain_that_unpaired_spread_would_hide() -> None:
    rng = np.random.default_rng(1)
    scores = {"new": method(rng, 0.05), "old": method(rng, 0.0)}
    found = bootstrap_segmentation(scores, rng, samples=2000)
    result = {metric: boot.difference("new", "old") for metric, boot in found.items()}
    for metric in ("gtvp_mean_dice", "gtvn_aggregated_dice"):
        assert 0.03 < result[metric].low < 0.05 < result[metric].high < 0.07
    assert result["gtvn_aggregated_f1"].estimate == 0.0
    assert result["gtvp_mean_hd95_mm"].estimate == pytest.approx(-0.5)
    assert found["gtvp_mean_hd95_mm"].patients == sum(i % 7 > 0 for i in range(60))
    assert found["gtvp_mean_dice"].patients == 60


def test_paired_bootstrap_agrees_with_the_loop_over_aggregate() -> None:
    rng = np.random.default_rng(2)
    first, second = method(rng, 0.02), method(rng, 0.0)
    scores = {"first": first, "second": second}
    found = bootstrap_segmentation(scores, np.random.default_rng(5), samples=300)
    result = {metric: boot.difference("first", "second") for metric, boot in found.items()}
    weights = np.random.default_rng(5).multinomial(60, np.full(60, 1 / 60), size=300)
    drawn = []
    for w in weights:
        pick = np.repeat(np.arange(60), w)
        a, b = (aggregate([some[i] for i in pick]) for some in (first, second))
        drawn.append([getattr(a, m) - getattr(b, m) for m in METRICS])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert [result[m].low for m in METRICS] == pytest.approx(low.tolist())
    assert [result[m].high for m in METRICS] == pytest.approx(high.tolist())


def test_paired_hd95_is_over_patients_that_both_methods_found() -> None:
    scores = {
        name: [case_score(hd=hd, name=patient) for hd, patient in zip(mm, "ABC", strict=True)]
        for name, mm in (("first", (2.0, 90.0, 3.0)), ("second", (3.0, math.nan, 4.0)))
    }
    found = bootstrap_segmentation(scores, np.random.default_rng(0), samples=200)
    hd95 = found["gtvp_mean_hd95_mm"]
    assert (hd95.estimate["first"], hd95.estimate["second"], hd95.patients) == (2.5, 3.5, 2)
    difference = hd95.difference("first", "second")
    assert difference.low == difference.high == pytest.approx(-1.0)


def test_a_metric_that_no_patient_has_has_no_limits() -> None:
    scores = {"m": [case_score(hd=math.nan, name="A"), case_score(hd=math.nan, name="B")]}
    found = bootstrap_segmentation(scores, np.random.default_rng(0), samples=20)
    hd95 = found["gtvn_mean_hd95_mm"]
    assert hd95.patients == 0
    assert all(math.isnan(v) for v in (hd95.interval("m").low, hd95.interval("m").high))


def test_paired_bootstrap_refuses_other_patients() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="same patients"):
        bootstrap_segmentation({"a": [case_score(name="A")], "b": [case_score(name="B")]}, rng)
    with pytest.raises(ValueError, match=r"0 \(a\) patients, .* at least one"):
        bootstrap_segmentation({"a": []}, rng)


def test_an_interval_as_text() -> None:
    interval = Interval(0.05, -0.01, 0.1)
    assert str(interval) == f"{interval}" == "0.050 (-0.010 to 0.100)"
    assert f"{interval:+.2f}" == "+0.05 (-0.01 to +0.10)"
