"""Volume scores: cases drawn by hand, properties, and the numbers of the authors' code."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medpy.metric.binary import asd, assd, hd95

from sdm_cli.runs.metrics import Measure, PooledCounts, count_case, mean_defined, score_case

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
    (in_voxels,) = score_case(here, there, 2, SPACING_MM, Measure("voxel"))
    assert in_mm.asd == pytest.approx(np.sqrt(5**2 + 4**2 + 2**2))
    assert in_voxels.asd == pytest.approx(np.sqrt(1 + 4 + 16))


def test_counts_of_two_overlapping_boxes():
    prediction = _volume(np.s_[0:2, 0:2, 0:2])
    reference = _volume(np.s_[0:2, 0:2, 1:4])
    (score,) = score_case(prediction, reference, 2, SPACING_MM, Measure("voxel"))
    counts = score.counts
    assert (counts.true_positive, counts.false_positive, counts.false_negative) == (4, 4, 8)
    assert counts.true_negative == prediction.size - 16
    assert (counts.n_pred, counts.n_ref) == (8, 12)
    assert counts.dice == pytest.approx(8 / 20)
    assert counts.jaccard == pytest.approx(4 / 16)


def test_every_voxel_of_a_large_volume_is_counted():
    prediction, reference = (_volume(box, shape=(2, 900, 900)) for box in (np.s_[:, :, 10:], np.s_[:, :, :-10]))
    _, counts = count_case(prediction, reference, 2)
    assert (counts.true_positive, counts.false_positive, counts.false_negative) == (1584000, 18000, 18000)


def test_asd_is_directed_from_prediction_to_reference():
    # One predicted voxel touches the reference; the far end of the reference costs nothing.
    prediction, reference = _volume((2, 3, 1)), _volume(np.s_[2, 3, 1:9])
    (forward,) = score_case(prediction, reference, 2, SPACING_MM, Measure("voxel"))
    (backward,) = score_case(reference, prediction, 2, SPACING_MM, Measure("voxel"))
    assert forward.asd == 0
    assert backward.asd == pytest.approx(np.mean(range(8)))
    assert forward.hd95 == backward.hd95 == pytest.approx(np.percentile([0, *range(8)], 95))
    assert assd(reference, prediction) == pytest.approx(sum(range(8)) / 9)


def test_absent_from_both_is_undefined():
    empty = np.zeros((3, 4, 5), np.uint8)
    (score,) = score_case(empty, empty, 2, SPACING_MM)
    assert (score.counts.dice, score.counts.jaccard, score.hd95, score.asd) == (None, None, None, None)
    assert score.nsd is None and score.volume_difference_ml is None and score.counts.volume_difference_percent is None
    assert not score.counts.is_missed and not score.counts.is_invented
    assert score.counts.true_negative == empty.size


def test_missed_and_invented_structures_score_zero_and_have_no_distance():
    drawn, empty = _volume((2, 3, 4)), _volume()
    (missed,) = score_case(empty, drawn, 2, SPACING_MM)
    (invented,) = score_case(drawn, empty, 2, SPACING_MM)
    for score in (missed, invented):
        assert (score.counts.dice, score.counts.jaccard, score.hd95, score.asd) == (0, 0, None, None)
        assert score.nsd == 0
    assert (missed.volume_difference_ml, missed.counts.volume_difference_percent) == (-0.005, -100)
    assert (invented.volume_difference_ml, invented.counts.volume_difference_percent) == (0.005, None)
    assert missed.counts.is_missed and not missed.counts.is_invented
    assert invented.counts.is_invented and not invented.counts.is_missed


def test_ignored_voxels_belong_to_neither_side():
    reference = _volume(np.s_[2, 3, 1:4])
    reference[2, 3, 4:] = 255
    prediction = _volume(np.s_[2, 3, 1:9])
    (score,) = score_case(prediction, reference, 2, SPACING_MM, Measure("voxel"))
    assert (score.counts.dice, score.hd95, score.asd) == (1, 0, 0)
    assert score.counts.true_negative == reference.size - 6 - 3


def test_a_class_that_is_only_under_ignored_voxels_is_absent():
    reference = np.full((2, 3, 4), 255, np.uint8)
    (score,) = score_case(np.ones_like(reference), reference, 2, SPACING_MM, Measure("voxel"))
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


@st.composite
def _scenes(draw):
    """A volume that structures may touch the border of, as noise or as boxes, with a spacing."""
    if draw(st.booleans()):
        pair = draw(_pairs())
    else:
        shape = draw(st.tuples(*(st.integers(1, 12),) * 3))
        pair = (np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
        for volume in pair:
            for value in draw(st.lists(st.integers(0, 3), max_size=5)):
                first = [draw(st.integers(0, size - 1)) for size in shape]
                last = [draw(st.integers(start + 1, size)) for start, size in zip(first, shape, strict=True)]
                volume[tuple(map(slice, first, last))] = value
    margins = draw(st.tuples(*(st.tuples(st.integers(0, 3), st.integers(0, 3)),) * 3))
    spacing = draw(st.tuples(*(st.sampled_from((0.4, 0.7, 1.0, 1.7, 5.0)),) * 3))
    return *(np.pad(volume, margins) for volume in pair), spacing


def _surface(mask):
    """By hand: voxels with a neighbour outside of the mask."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner)


@given(_scenes(), st.sampled_from((0.0, 0.4, 1.0, 1.4, 2.1, 5.0)))
@settings(max_examples=200, deadline=None)
def test_distances_are_those_of_medpy_on_the_whole_volume_and_nsd_that_of_all_pairs(scene, tolerance):
    prediction, reference, spacing = scene
    scores = score_case(prediction, reference, 4, spacing, Measure("mm", tolerance))
    for index, score in enumerate(scores, start=1):
        predicted, expected = prediction == index, reference == index
        if predicted.any() and expected.any():
            assert score.hd95 == pytest.approx(hd95(predicted, expected, spacing), rel=1e-9, abs=1e-9)
            assert score.asd == pytest.approx(asd(predicted, expected, spacing), rel=1e-9, abs=1e-9)
            ours, theirs = _surface(predicted), _surface(expected)
            apart = np.sqrt((((ours[:, None] - theirs) * spacing) ** 2).sum(-1))
            near = apart <= tolerance + 1e-5
            assert score.nsd == (near.any(0).sum() + near.any(1).sum()) / sum(apart.shape)
        else:
            assert score.hd95 is None and score.asd is None
            assert score.nsd == (0 if predicted.any() or expected.any() else None)


@given(_scenes())
@settings(max_examples=30, deadline=None)
def test_in_voxels_every_axis_counts_the_same(scene):
    prediction, reference, spacing = scene
    in_voxels = score_case(prediction, reference, 4, spacing, Measure("voxel"))
    for one, other in zip(in_voxels, score_case(prediction, reference, 4, (1.0, 1.0, 1.0)), strict=True):
        assert (one.hd95, one.asd, one.nsd) == (other.hd95, other.asd, other.nsd)


def test_surface_dice_by_hand():
    """Two plates of 8 voxels, two steps of 2 mm apart: no voxel is within 3.9 mm, all are within 4 mm."""
    here, there = _volume(np.s_[2, 1, 1:9]), _volume(np.s_[2, 3, 1:9])
    nsd = {mm: score_case(here, there, 2, SPACING_MM, Measure("mm", mm))[0].nsd for mm in (0.0, 3.9, 4.0)}
    assert nsd == {0.0: 0, 3.9: 0, 4.0: 1}
    # Of 8 and 4 voxels in a row, 0.5 mm apart, the first reaches 4 voxels beyond the second: two of them by 1 mm.
    longer, shorter = _volume(np.s_[2, 1, 0:8]), _volume(np.s_[2, 1, 0:4])
    assert score_case(longer, shorter, 2, SPACING_MM, Measure("mm", 1.0))[0].nsd == (6 + 4) / 12
    assert score_case(longer, shorter, 2, SPACING_MM, Measure("voxel", 1.0))[0].nsd == (5 + 4) / 12


def test_a_tolerance_that_the_spacing_meets_but_for_rounding_is_met():
    here, there = _volume((2, 3, 0)), _volume((2, 3, 3))
    spacing = float(np.float32(0.4))  # as a header holds it: three of them are more than 1.2
    assert score_case(here, there, 2, (5.0, 2.0, spacing), Measure("mm", 1.2))[0].nsd == 1
    assert score_case(here, there, 2, (5.0, 2.0, spacing), Measure("mm", 1.1999))[0].nsd == 0


def test_volume_difference_is_prediction_minus_reference():
    larger, smaller = _volume(np.s_[0:5, 0:8, 0:10]), _volume(np.s_[0:2, 0:8, 0:10])
    (more,) = score_case(larger, smaller, 2, SPACING_MM)
    (less,) = score_case(smaller, larger, 2, SPACING_MM, Measure("voxel"))
    assert more.volume_difference_ml == pytest.approx(1.2) and less.volume_difference_ml == pytest.approx(-1.2)
    assert more.counts.volume_difference_percent == pytest.approx(150)
    assert less.counts.volume_difference_percent == pytest.approx(-60)


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
