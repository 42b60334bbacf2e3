"""What a gain is: by hand, and by what must hold of every one."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdm_cli.runs.gain import (
    bootstrap,
    common_cases,
    holm,
    metric_of_cases,
    over_seeds,
    paired_difference,
    paired_gain,
    signed_rank,
)


def summary(**dice):
    """As `summarize` makes it, of classes a (label 1) and b (label 7): a pair of Dice a case."""
    cases = [
        {"case_id": case_id, "metrics": {"1": {"Dice": pair[0]}, "7": {"Dice": pair[1]}}}
        for case_id, pair in dice.items()
    ]
    return {"classes": {"1": "a", "7": "b"}, "metric_per_case": cases}


def test_gain_by_hand():
    ours = summary(x=(0.9, 0.5), y=(0.7, None), z=(0.8, 0.0))
    theirs = summary(x=(0.8, 0.7), y=(0.6, 0.0), z=(0.7, 0.0))
    result = paired_gain([ours], [theirs])
    a, b, mean = result["per_class"]["a"], result["per_class"]["b"], result["mean"]
    assert (a["dice"], a["reference"], a["gain"]) == pytest.approx((0.8, 0.7, 0.1))
    assert (a["low"], a["high"]) == pytest.approx((0.1, 0.1))  # every case gains 0.1, so every resample does
    # y has no score of b on one side: it counts on neither.
    assert (b["dice"], b["reference"], b["gain"]) == pytest.approx((0.25, 0.35, -0.1))
    assert (a["n_cases"], b["n_cases"], mean["n_cases"]) == (3, 2, 3)
    assert (mean["dice"], mean["reference"], mean["gain"]) == pytest.approx((0.525, 0.525, 0.0))
    x, y, _ = result["per_case"]
    assert x["case_id"] == "x" and x["mean"] == pytest.approx(-0.05) and x["per_class"]["b"] == pytest.approx(-0.2)
    assert y["per_class"]["b"] is None and y["mean"] == pytest.approx(0.1)


def test_the_interval_by_hand():
    """Of two cases that gain 0 and 1, the four equally likely resamples have the means 0, 1/2, 1/2, 1."""
    assert bootstrap(np.array([[0.0], [1.0]])) == [(0.0, 1.0)] * 2
    # Of eight, one of which gains 8: the mean is the number of times that one is drawn, Binomial(8, 1/8), whose
    # quantiles at 2.5 and 97.5 % are 0 and 3.
    assert bootstrap(np.array([[8.0]] + [[0.0]] * 7)) == [(0.0, 3.0)] * 2


def test_cases_are_resampled_with_all_their_classes():
    """Two classes of opposite gains cancel in every resample; drawn apart they would not."""
    gains = np.random.default_rng(1).normal(size=(12, 1))
    a, b, mean = bootstrap(np.hstack([gains, -gains]))
    assert a[0] < -0.1 and b == pytest.approx((-a[1], -a[0]))
    assert mean == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("n_cases", [2, 3, 20, 200])
def test_the_interval_holds_the_mean_narrows_with_cases_and_never_changes(n_cases):
    random = np.random.default_rng(n_cases)
    gains = random.normal(0.02, 0.1, (n_cases, 3))
    gains[random.random(gains.shape) < 0.2] = np.nan
    gains[:2] = 0.01
    intervals = bootstrap(gains)
    means = [*np.nanmean(gains, 0), np.nanmean(np.nanmean(gains, 0))]
    assert all(low <= mean + 1e-12 and mean - 1e-12 <= high for (low, high), mean in zip(intervals, means, strict=True))
    assert bootstrap(gains.copy()) == intervals
    if n_cases == 200:  # by the normal law: 2 x 1.96 standard errors
        for (low, high), column in zip(intervals, gains.T, strict=False):
            error = np.nanstd(column) / np.sqrt((~np.isnan(column)).sum())
            assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_identical_scores_gain_nothing():
    same = summary(x=(0.9, 0.5), y=(0.7, None), z=(0.1, 0.3))
    result = paired_gain([same], [same])
    for entry in (result["mean"], *result["per_class"].values()):
        assert entry["gain"] == entry["low"] == entry["high"] == 0


def test_what_is_undefined_stays_undefined():
    result = paired_gain([summary(x=(0.9, None))], [summary(x=(0.8, None))])
    a, b, mean = result["per_class"]["a"], result["per_class"]["b"], result["mean"]
    assert a["gain"] == mean["gain"] == pytest.approx(0.1) and a["low"] is a["high"] is mean["low"] is None
    assert b == {"dice": None, "reference": None, "gain": None, "low": None, "high": None, "n_cases": 0}


def test_seeds_are_averaged_before_cases_are_drawn():
    ours = [summary(x=(0.9, 0.5), y=(0.5, 0.5)), summary(x=(0.7, 0.5), y=(0.9, 0.5))]
    theirs = [summary(x=(0.8, 0.5), y=(0.4, 0.5)), summary(x=(0.4, 0.5), y=(0.6, 0.5))]
    result = paired_gain(ours, theirs)
    assert [seed["per_class"]["a"] for seed in result["per_seed"]] == pytest.approx([0.1, 0.3])
    assert [case["per_class"]["a"] for case in result["per_case"]] == pytest.approx([0.2, 0.2])
    a = result["per_class"]["a"]
    assert (a["gain"], a["low"], a["high"]) == pytest.approx((0.2, 0.2, 0.2))


def test_only_cases_of_all_summaries_are_paired():
    ours, theirs = summary(x=(0.9, 0.9), y=(0.1, 0.1)), summary(y=(0.2, 0.2), z=(0.5, 0.5))
    assert common_cases([ours, theirs]) == ["y"]
    assert paired_gain([ours], [theirs])["mean"]["gain"] == pytest.approx(-0.1)


def test_mean_and_deviation_over_seeds():
    assert over_seeds([0.5, 0.7, 0.9]) == {
        "mean": pytest.approx(0.7),
        "std": pytest.approx(0.2),
        "per_seed": [0.5, 0.7, 0.9],
    }
    assert over_seeds([0.5, None])["std"] is None and over_seeds([None])["mean"] is None


def test_a_difference_is_the_gain_of_one_training():
    ours = summary(x=(0.9, 0.5), y=(0.7, None), z=(0.8, 0.0))
    theirs = summary(x=(0.8, 0.7), y=(0.6, 0.0), z=(0.75, 0.0))
    cases = ["x", "y", "z"]
    gain = paired_gain([ours], [theirs])
    entries = paired_difference(*(metric_of_cases(side, cases, "Dice") for side in (ours, theirs)))
    for entry, other in zip(entries, (*gain["per_class"].values(), gain["mean"]), strict=True):
        for name, its in (("first", "dice"), ("second", "reference"), ("difference", "gain")):
            assert entry[name] == pytest.approx(other[its])
        assert (entry["low"], entry["high"]) == pytest.approx((other["low"], other["high"]))
        assert entry["n_cases"] == other["n_cases"]
        assert entry["p"] is entry["p_holm"] is None  # of three cases


def _p_by_enumeration(differences):
    """Share of all assignments of signs whose rank sum lies as far from its middle; ties share their mean rank."""
    sizes = np.abs(differences)
    ranks = np.array([((sizes < size).sum() + (sizes <= size).sum() + 1) / 2 for size in sizes])
    middle = ranks.sum() / 2
    sums = np.array([ranks @ np.array(signs) for signs in product((0, 1), repeat=len(ranks))])
    return np.mean(np.abs(sums - middle) >= abs(ranks @ (differences > 0) - middle) - 1e-9)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
@settings(max_examples=50, deadline=None)
def test_p_is_that_of_all_signs_with_zeros_left_out(hundredths):
    rounding = 1e-16 * np.arange(len(hundredths) + 1)  # as of real scores, which must not break ties
    differences = np.array([*hundredths, np.nan]) / 100 + rounding
    different = np.array([value for value in hundredths if value])
    if len(different) < 6:
        assert signed_rank(differences) is None
    else:
        assert signed_rank(differences) == pytest.approx(_p_by_enumeration(different))


def test_six_cases_that_all_gain_have_a_p_of_two_in_sixty_four():
    assert signed_rank(np.arange(1, 7) / 100) == pytest.approx(2 / 64)
    assert signed_rank(np.arange(1, 6) / 100) is None
    assert signed_rank(np.zeros(20)) is None


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([None]) == [None]
