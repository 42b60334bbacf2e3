"""Volume scores: cases drawn by hand, properties, and the numbers of the authors' code."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medpy.metric.binary import asd, assd, hd95

from sdm_cli.runs.metrics import PooledCounts, count_case, mean_defined, score_case

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"
SPACING_MM = (5.0, 2.0, 0.5)


def _volume(*voxels, shape=(6, 8, 10), value=1):
    volume = np.zeros(shape, np.uint8)
    for voxel in voxels:
        volume[voxel] = value
    return volume


def _golden(case):
    with np.load(GOLDEN) as golden:
        return {key.split("/")[1]: golden[key] for key in golden if key.startswith(f"{case}/")}


def _pooled(predictions, references, n_classes):
    pooled = PooledCounts(n_classes)
    for prediction, reference in zip(predictions, references, strict=True):
        pooled.add(count_case(prediction, reference, n_classes))
    return pooled


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 5.0), (1, 2.0), (2, 0.5)])
def test_one_voxel_apart_measures_the_spacing_of_that_axis(axis, expected_mm):
    there = [2, 3, 4]
    there[axis] += 1
    (score,) = score_case(_volume((2, 3, 4)), _volume(tuple(there)), 2, SPACING_MM)
    assert (score.hd95, score.asd) == (expected_mm, expected_mm)
    assert score.counts.dice == 0 and score.counts.jaccard == 0


def test_diagonal_distance_in_mm_and_in_voxels():
    here, there = _volume((1, 1, 1)), _volume((2, 3, 5))
    (in_mm,) = score_case(here, there, 2, SPACING_MM)
    (in_voxels,) = score_case(here, there, 2, None)
    assert in_mm.asd == pytest.approx(np.sqrt(5**2 + 4**2 + 2**2))
    assert in_voxels.asd == pytest.approx(np.sqrt(1 + 4 + 16))


def test_counts_of_two_overlapping_boxes():
    prediction = _volume(np.s_[0:2, 0:2, 0:2])
    reference = _volume(np.s_[0:2, 0:2, 1:4])
    (score,) = score_case(prediction, reference, 2, None)
    counts = score.counts
    assert (counts.true_positive, counts.false_positive, counts.false_negative) == (4, 4, 8)
    assert counts.true_negative == prediction.size - 16
    assert (counts.n_pred, counts.n_ref) == (8, 12)
    assert counts.dice == pytest.approx(8 / 20)
    assert counts.jaccard == pytest.approx(4 / 16)


def test_asd_is_directed_from_prediction_to_reference():
    # One predicted voxel touches the reference; the far end of the reference costs nothing.
    prediction, reference = _volume((2, 3, 1)), _volume(np.s_[2, 3, 1:9])
    (forward,) = score_case(prediction, reference, 2, None)
    (backward,) = score_case(reference, prediction, 2, None)
    assert forward.asd == 0
    assert backward.asd == pytest.approx(np.mean(range(8)))
    assert forward.hd95 == backward.hd95 == pytest.approx(np.percentile([0, *range(8)], 95))
    assert assd(reference, prediction) == pytest.approx(sum(range(8)) / 9)


def test_absent_from_both_is_undefined():
    empty = np.zeros((3, 4, 5), np.uint8)
    (score,) = score_case(empty, empty, 2, SPACING_MM)
    assert (score.counts.dice, score.counts.jaccard, score.hd95, score.asd) == (None, None, None, None)
    assert not score.counts.is_missed and not score.counts.is_invented
    assert score.counts.true_negative == empty.size


def test_missed_and_invented_structures_score_zero_and_have_no_distance():
    drawn, empty = _volume((2, 3, 4)), _volume()
    (missed,) = score_case(empty, drawn, 2, SPACING_MM)
    (invented,) = score_case(drawn, empty, 2, SPACING_MM)
    for score in (missed, invented):
        assert (score.counts.dice, score.counts.jaccard, score.hd95, score.asd) == (0, 0, None, None)
    assert missed.counts.is_missed and not missed.counts.is_invented
    assert invented.counts.is_invented and not invented.counts.is_missed


def test_ignored_voxels_belong_to_neither_side():
    reference = _volume(np.s_[2, 3, 1:4])
    reference[2, 3, 4:] = 255
    prediction = _volume(np.s_[2, 3, 1:9])
    (score,) = score_case(prediction, reference, 2, None)
    assert (score.counts.dice, score.hd95, score.asd) == (1, 0, 0)
    assert score.counts.true_negative == reference.size - 6 - 3


def test_a_class_that_is_only_under_ignored_voxels_is_absent():
    reference = np.full((2, 3, 4), 255, np.uint8)
    (score,) = score_case(np.ones_like(reference), reference, 2, None)
    assert score.counts.dice is None and score.hd95 is None


@pytest.mark.parametrize("bad", [2, 254])
def test_a_value_that_is_no_class_is_refused(bad):
    empty, wrong = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    wrong[0, 0, 0] = bad
    with pytest.raises(ValueError, match="reference holds"):
        count_case(empty, wrong, 2)
    with pytest.raises(ValueError, match="prediction holds"):
        count_case(wrong, empty, 2)
    with pytest.raises(ValueError, match="differ in shape"):
        count_case(empty, empty[:1], 2)


@st.composite
def _pairs(draw, n_classes=4):
    shape = draw(st.tuples(*(st.integers(1, 6),) * 3))
    values = st.integers(0, n_classes - 1)
    labels = arrays(np.uint8, shape, elements=values, fill=st.just(0))
    return draw(labels), draw(labels)


@given(_pairs())
@settings(max_examples=60, deadline=None)
def test_a_perfect_match_scores_one_and_zero_distance(pair):
    for score in score_case(pair[0], pair[0], 4, SPACING_MM):
        assert score.counts.dice in (1, None)
        assert score.counts.jaccard == score.counts.dice
        assert score.hd95 in (0, None) and score.asd in (0, None)


@given(_pairs())
@settings(max_examples=60, deadline=None)
def test_overlap_and_hd95_do_not_depend_on_which_side_is_the_reference(pair):
    for there, back in zip(score_case(*pair, 4, SPACING_MM), score_case(*pair[::-1], 4, SPACING_MM), strict=True):
        assert there.counts.dice == back.counts.dice
        assert there.counts.jaccard == back.counts.jaccard
        assert there.hd95 == back.hd95


@given(_pairs())
@settings(max_examples=60, deadline=None)
def test_the_cropped_distances_are_those_of_the_whole_volume(pair):
    # The volume is larger than the box, and the structures may touch its border.
    prediction, reference = (np.pad(volume, ((0, 3), (2, 0), (1, 4))) for volume in pair)
    for index, score in enumerate(score_case(prediction, reference, 4, SPACING_MM), start=1):
        predicted, expected = prediction == index, reference == index
        if predicted.any() and expected.any():
            assert score.hd95 == hd95(predicted, expected, SPACING_MM)
            assert score.asd == asd(predicted, expected, SPACING_MM)
        else:
            assert score.hd95 is None and score.asd is None


@given(_pairs())
@settings(max_examples=60, deadline=None)
def test_dice_and_jaccard_agree_and_the_four_counts_fill_the_volume(pair):
    for counts in count_case(*pair, 4):
        total = counts.true_positive + counts.false_positive + counts.false_negative + counts.true_negative
        assert total == pair[0].size
        if counts.jaccard is not None:
            assert counts.dice == pytest.approx(2 * counts.jaccard / (1 + counts.jaccard))


def test_mean_defined_leaves_undefined_values_out():
    assert mean_defined([1.0, None, 0.0]) == 0.5
    assert mean_defined([None]) is None
    assert mean_defined([]) is None


def test_pooled_equals_the_authors_figure():
    golden = _golden("all")
    pooled = _pooled(golden["pred"], golden["label"], 5)
    np.testing.assert_allclose(np.multiply(pooled.iou(), 100), golden["iou_class"], rtol=1e-10)
    assert 100 * pooled.mean_iou() == pytest.approx(float(golden["mIoU"]), rel=1e-10)
    assert 100 * pooled.mean_dice() == pytest.approx(float(golden["DICE"]), rel=1e-10)


@pytest.mark.parametrize("case", ["absent", "ignore255"])
def test_pooled_leaves_an_absent_class_out_where_the_authors_count_zero(case):
    golden = _golden(case)
    pooled = _pooled(golden["pred"], golden["label"], 5)
    np.testing.assert_allclose(np.multiply(pooled.iou()[:4], 100), golden["iou_class"][:4], rtol=1e-10)
    assert pooled.iou()[4] is None and golden["iou_class"][4] == 0
    # Of four foreground classes the authors average four, this project the three that exist.
    assert 100 * pooled.mean_iou() * 3 / 4 == pytest.approx(float(golden["mIoU"]), rel=1e-10)
    assert 100 * pooled.mean_dice() * 3 / 4 == pytest.approx(float(golden["DICE"]), rel=1e-10)


def test_pooled_does_not_count_label_k_as_class_k_minus_one():
    golden = _golden("labelK")
    with pytest.raises(ValueError, match="no class of 5"):
        count_case(golden["pred"], golden["label"], 5)
    pooled = _pooled(golden["pred"], golden["label"], 6)
    np.testing.assert_allclose(np.multiply(pooled.iou()[:4], 100), golden["iou_class"][:4], rtol=1e-10)
    # The slip: the reference voxels of label 5 enlarge the union of class 4.
    overlap, n_pred, n_ref = pooled.totals[4]
    slip = overlap / (n_pred + n_ref + pooled.totals[5, 2] - overlap)
    assert 100 * slip == pytest.approx(golden["iou_class"][4], rel=1e-10)
    assert pooled.iou()[4] > slip


def test_pooled_does_not_depend_on_how_slices_are_grouped():
    golden = _golden("all")
    by_slice = _pooled(golden["pred"], golden["label"], 5)
    at_once = _pooled([golden["pred"]], [golden["label"]], 5)
    np.testing.assert_array_equal(by_slice.totals, at_once.totals)
