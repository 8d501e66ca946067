"""The challenge's metrics on masks whose score can be written down by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import case_score
from grand_challenge_metrics import stats
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import gaussian_filter

from hmvnet.segmentation.metrics import (
    CaseScore,
    LesionCount,
    aggregate,
    count_lesions,
    hd95_mm,
    platform_scores,
    score_case,
    to_frame,
)

SHAPE = (20, 24, 28)
MM = (1.0, 1.0, 1.0)


def boxes(*corners: tuple[int, int, int, int, int, int, int]) -> np.ndarray:
    """A label map of boxes, each (label, z0, z1, y0, y1, x0, x1)."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for label, z0, z1, y0, y1, x0, x1 in corners:
        mask[z0:z1, y0:y1, x0:x1] = label
    return mask


def row(*extents: tuple[int, int]) -> np.ndarray:
    """A boolean mask of bars along x, each (start, stop); bars next to each other are one."""
    mask = np.zeros((3, 3, 120), dtype=bool)
    for start, stop in extents:
        mask[1, 1, start:stop] = True
    return mask


def test_perfect_prediction_scores_one() -> None:
    truth = boxes((1, 2, 8, 2, 8, 2, 8), (2, 10, 14, 10, 14, 10, 14), (2, 10, 14, 18, 22, 10, 14))
    score = score_case(truth, truth, MM)
    assert (score.gtvp.dice, score.gtvn.dice) == (1.0, 1.0)
    assert (score.gtvp.hd95_mm, score.gtvn.hd95_mm) == (0.0, 0.0)
    assert score.nodes == LesionCount(tp=2, fp=0, fn=0)


def test_dice_volumes_and_hd95_of_a_shifted_box_in_mm() -> None:
    truth, prediction = boxes((1, 4, 8, 4, 10, 4, 10)), boxes((1, 6, 10, 4, 10, 4, 10))
    score = score_case(prediction, truth, (3.0, 1.0, 0.5))
    assert score.gtvp.intersection_mm3 == 2 * 6 * 6 * 1.5
    assert score.gtvp.truth_mm3 == score.gtvp.prediction_mm3 == 4 * 6 * 6 * 1.5
    assert score.gtvp.dice == 0.5
    assert score.gtvp.hd95_mm == pytest.approx(6.0)  # two slices of 3 mm


def test_hd95_of_a_mask_at_the_volume_border_equals_the_same_mask_inside() -> None:
    inside = [np.zeros((12, 12, 12), dtype=bool) for _ in range(2)]
    inside[0][3:7, 3:7, 3:7] = True
    inside[1][3:9, 3:7, 3:7] = True
    at_border = [mask[3:9, 3:7, 3:7] for mask in inside]
    assert hd95_mm(*at_border, MM) == hd95_mm(*inside, MM) == pytest.approx(2.0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hd95_is_monais() -> None:
    rng = np.random.default_rng(8)
    for spacing in (MM, (3.0, 1.0, 0.7)):
        smooth = gaussian_filter(rng.normal(size=(2, 18, 20, 22)), (0, 2, 2, 2))
        prediction, truth = smooth > np.quantile(smooth, 0.85)
        expected = compute_hausdorff_distance(
            prediction[None, None],
            truth[None, None],
            include_background=True,
            percentile=95,
            spacing=list(spacing),
        )
        assert hd95_mm(prediction, truth, spacing) == pytest.approx(float(expected), rel=1e-5)


def test_dice_is_the_platforms() -> None:
    rng = np.random.default_rng(6)
    for trial in range(60):
        prediction, truth = rng.choice(3, size=(2, 9, 10, 11), p=rng.dirichlet((4, 1, 1)))
        for mask, label in ((prediction, trial % 5), (truth, trial % 7)):
            mask[mask == label] = 0  # now and then a label is empty in one or both
        score = score_case(prediction, truth, (3.0, 1.0, 0.5))
        counts = stats.calculate_confusion_matrix(truth, prediction, [0, 1, 2])
        theirs = platform_scores(prediction, truth)
        for name, label, ours in (("gtvp", 1, score.gtvp), ("gtvn", 2, score.gtvn)):
            hits, true, found = counts[label, label], counts[label].sum(), counts[:, label].sum()
            dice, jaccard, difference = (
                theirs[f"{name}_platform_{key}"] for key in ("dice", "jaccard", "volume_difference")
            )
            if not true + found:  # nothing to overlap: 1 is ours, no value is theirs
                assert ours.dice == 1.0 and math.isnan(dice) and math.isnan(jaccard)
                assert math.isnan(difference)
                continue
            # Their counts give our Dice; their Dice is that, rounded to single precision.
            assert ours.dice == pytest.approx(2 * hits / (true + found), abs=1e-12)
            assert dice == np.float32(ours.dice)
            assert jaccard == pytest.approx(stats.dice_to_jaccard(np.array([ours.dice]))[0])
            expected = abs(found - true) / true if true else math.inf
            assert difference == pytest.approx(expected)


def test_platform_scores_of_empty_masks() -> None:
    empty, full = boxes(), boxes((1, 2, 8, 2, 8, 2, 8))
    assert all(map(math.isnan, platform_scores(empty, empty).values()))
    missed, invented = platform_scores(empty, full), platform_scores(full, empty)
    assert missed["gtvp_platform_dice"] == invented["gtvp_platform_dice"] == 0.0
    assert missed["gtvp_platform_volume_difference"] == 1.0
    assert invented["gtvp_platform_volume_difference"] == math.inf


def test_labels_are_not_mixed() -> None:
    score = score_case(boxes((2, 2, 8, 2, 8, 2, 8)), boxes((1, 2, 8, 2, 8, 2, 8)), MM)
    assert score.gtvp.dice == score.gtvn.dice == 0.0
    assert score.nodes == LesionCount(tp=0, fp=1, fn=0)


def test_empty_masks() -> None:
    empty, full = boxes(), boxes((1, 2, 8, 2, 8, 2, 8), (2, 10, 14, 10, 14, 10, 14))
    both = score_case(empty, empty, MM)
    assert both.gtvp.dice == both.gtvn.dice == 1.0
    assert math.isnan(both.gtvp.hd95_mm)
    assert both.nodes == LesionCount(0, 0, 0)
    missed, invented = score_case(empty, full, MM), score_case(full, empty, MM)
    assert missed.gtvp.dice == invented.gtvp.dice == 0.0
    assert math.isnan(missed.gtvn.hd95_mm) and math.isnan(invented.gtvn.hd95_mm)
    assert missed.nodes == LesionCount(tp=0, fp=0, fn=1)
    assert invented.nodes == LesionCount(tp=0, fp=1, fn=0)


def test_aggregates_of_empty_sums_are_one_and_hd95_has_no_value() -> None:
    table = aggregate([score_case(boxes(), boxes(), MM)])
    assert table.gtvp_mean_dice == table.gtvn_aggregated_dice == table.gtvn_aggregated_f1 == 1.0
    assert math.isnan(table.gtvp_mean_hd95_mm) and table.gtvp_hd95_patients == 0


def test_iou_of_exactly_thirty_percent_is_a_miss() -> None:
    # 30 of 100 voxels, then 31 of 100.
    assert count_lesions(row((0, 30)), row((0, 100))) == LesionCount(tp=0, fp=1, fn=1)
    assert count_lesions(row((0, 31)), row((0, 100))) == LesionCount(tp=1, fp=0, fn=0)


def test_one_prediction_over_two_nodes_finds_one_of_them() -> None:
    # IoU 50/101 with each.
    assert count_lesions(row((0, 101)), row((0, 50), (51, 101))) == LesionCount(tp=1, fp=0, fn=1)


def test_two_predictions_in_one_node_count_once() -> None:
    assert count_lesions(row((0, 50), (51, 101)), row((0, 101))) == LesionCount(tp=1, fp=1, fn=0)


def test_matching_is_a_largest_one() -> None:
    truth, prediction = np.zeros((2, 1, 5, 120), dtype=bool)
    truth[0, 0, 0:100] = True  # T1
    truth[0, 2, 70:100] = True  # T2, two rows away: not connected
    prediction[0, 0, 0:34] = True  # P2: IoU 34/100 with T1
    prediction[0, 0, 35:100] = True  # P1: IoU 65/131 with T1, the best of all pairs ...
    prediction[0, 1, 99] = True
    prediction[0, 2, 70:100] = True  # ... and 30/96 with T2
    # Best pair first would leave P2 and T2 without a partner.
    assert count_lesions(prediction, truth) == LesionCount(tp=2, fp=0, fn=0)


def test_nodes_that_touch_by_a_corner_are_one_lesion() -> None:
    truth = boxes((2, 2, 5, 2, 5, 2, 5), (2, 5, 8, 5, 8, 5, 8))
    assert score_case(truth, truth, MM).nodes == LesionCount(tp=1, fp=0, fn=0)


def test_lesion_count_is_symmetric_and_independent_of_orientation() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        prediction, truth = rng.random((2, 8, 9, 10)) < 0.12
        count, mirrored = (
            count_lesions(prediction, truth),
            count_lesions(prediction[::-1, :, ::-1], truth[::-1, :, ::-1]),
        )
        exchanged = count_lesions(truth, prediction)
        assert count == mirrored
        assert (count.tp, count.fp, count.fn) == (exchanged.tp, exchanged.fn, exchanged.fp)


def test_aggregated_is_not_the_mean() -> None:
    scores = [
        case_score(dice=1.0, inter=10, total=20, tp=1),
        case_score(dice=0.0, inter=0, total=60, fn=3, tp=0, fp=1),
    ]
    table = aggregate(scores)
    assert table.gtvp_mean_dice == 0.5
    assert table.gtvn_aggregated_dice == 20 / 80
    assert table.gtvn_aggregated_f1 == 2 / (2 + 1 + 3)
    assert (table.gtvn_tp, table.gtvn_fp, table.gtvn_fn) == (1, 1, 3)


def test_mean_hd95_is_over_the_patients_that_have_one() -> None:
    table = aggregate([case_score(hd=2.0), case_score(hd=4.0), case_score(hd=math.nan)])
    assert table.gtvp_mean_hd95_mm == 3.0
    assert table.gtvp_hd95_patients == 2


def test_per_centre() -> None:
    table = aggregate(
        [case_score(dice=0.2), case_score(dice=0.4), case_score(dice=0.9)], ["MDA", "CHUM", "MDA"]
    )
    assert list(table.per_centre) == ["CHUM", "MDA"]
    assert table.per_centre["MDA"].patients == 2
    assert table.per_centre["MDA"].gtvp_mean_dice == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("prediction", "spacing", "message"),
    [
        (np.zeros((3, 3, 4), np.uint8), MM, r"P1: prediction has shape \(3, 3, 4\)"),
        (np.zeros((3, 3), np.uint8), MM, r"expected \[z, y, x\]"),
        (np.full((3, 3, 3), 3, np.uint8), MM, "values from 3 to 3"),
        (np.zeros((3, 3, 3)), MM, "expected whole numbers"),
        (np.zeros((3, 3, 3), np.uint8), (1.0, 0.0, 1.0), "three positive numbers"),
        (np.zeros((3, 3, 3), np.uint8), (1.0, math.nan, 1.0), "three positive numbers"),
    ],
)
def test_bad_input_is_named(prediction: np.ndarray, spacing: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_case(prediction, np.zeros((3, 3, 3), np.uint8), spacing, patient_id="P1")


def test_aggregate_refuses_nothing_and_centres_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="no patients"):
        aggregate([])
    with pytest.raises(ValueError, match="2 centres"):
        aggregate([case_score()], ["A", "B"])


def test_scores_go_through_json_and_a_table() -> None:
    scores = [case_score(hd=math.nan, name="A"), case_score(name="B")]
    text = json.dumps([s.to_dict() for s in scores], allow_nan=False)
    back = [CaseScore.from_dict(values) for values in json.loads(text)]
    assert back[1] == scores[1]
    assert math.isnan(back[0].gtvp.hd95_mm) and back[0].nodes == scores[0].nodes
    frame = to_frame(scores)
    assert frame.columns[0] == "patient_id"
    assert frame.loc[1, "gtvp_dice"] == 0.5 and math.isnan(frame.loc[0, "gtvp_hd95_mm"])
    json.dumps(aggregate(scores, ["X", "Y"]).to_dict(), allow_nan=False)
