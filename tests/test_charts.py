"""Charts: where boxes, dots and curves lie, and that nothing that a record may hold breaks them."""

import math
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdm_cli.runs.charts import Box, Curve, box_chart, histogram_chart, line_chart


def _dots(chart):
    return {dot.find("title").text.rsplit(":", 1)[0]: float(dot.get("cx")) for dot in chart.iter("circle")}


def _numbers(chart):
    """Numbers of the axis and where they are, left to right."""
    texts = [text for text in chart.iter("text") if text.get("class") is None and "median" not in text.text]
    return [(float(text.get("x")), float(text.text.rstrip(" %m"))) for text in texts]


def test_a_box_is_the_middle_half_with_its_median_and_a_dot_for_each_case():
    values = {f"case {value}": float(value) for value in (10, 20, 30, 40, 50, 200)}
    chart = box_chart("HD95", [Box("liver", "k1", {**values, "none": None})], " mm")
    (x0, low), *_, (x1, high) = _numbers(chart)
    dots = _dots(chart)
    assert dots.keys() == values.keys()

    def value_at(x):
        return low + (x - x0) * (high - low) / (x1 - x0)

    for name, value in values.items():
        assert value_at(dots[name]) == pytest.approx(value, abs=0.1)
    (box,) = chart.iter("rect")
    first, third = np.percentile(list(values.values()), (25, 75))
    assert value_at(float(box.get("x"))) == pytest.approx(first, abs=0.1)
    assert value_at(float(box.get("x")) + float(box.get("width"))) == pytest.approx(third, abs=0.1)
    whiskers = [line for line in chart.iter("line") if line.get("class") == "whisker"]
    assert value_at(max(float(line.get("x2")) for line in whiskers)) == pytest.approx(50, abs=0.1)  # 200 is beyond
    assert "median 35.0 mm of 6" in chart.find("svg").get("aria-label")


def test_a_class_without_a_value_says_so_and_many_cases_are_dots_only_where_they_stand_out():
    many = {f"c{i}": 50 + i / 100 for i in range(200)} | {"far": 5.0}
    chart = box_chart("Dice", [Box("empty", "k1", {"a": None}), Box("many", "k2", many)], " %", 100.0)
    assert "empty no value of 0" in chart.find("svg").get("aria-label")
    assert list(_dots(chart)) == ["far"] and "more than 100 cases" in chart.find("p").text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=20), st.sampled_from([None, 1e6]))
@example([5e-324], None)
def test_dots_lie_within_the_picture_whatever_the_values(values, top):
    chart = box_chart("x", [Box("a", "k1", {str(i): value for i, value in enumerate(values)})], "", top)
    assert all(0 <= x <= 360 for x in _dots(chart).values())
    assert len(_dots(chart)) == sum(value is not None for value in values)


def _points(chart, key):
    (path,) = (path for path in chart.iter("path") if path.get("class") == f"curve {key}")
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d"))]


def test_a_curve_has_gaps_where_nothing_is_known_and_its_course_in_words():
    values = np.array([0.2, np.nan, 0.4, 0.8])
    chart = line_chart("Loss", [Curve("total", "k1", [10, 20, 30, 40], values)])
    assert len(_points(chart, "k1")) == 3
    assert next(path for path in chart.iter("path")).get("d").count("M") == 2
    assert "total from 0.2 to 0.8" in chart.find("svg").get("aria-label")
    heights = [y for _, y in _points(chart, "k1")]
    assert heights == sorted(heights, reverse=True)  # up is less in SVG


def test_no_share_at_all_lies_on_the_lower_edge_of_a_logarithmic_axis():
    steps, values = [1, 2, 3], np.array([10.0, 0.0, 1.0])
    chart = line_chart("Share", [Curve("liver", "k1", steps, values, marks=[2])], " %", lowest=None)
    (_, ten), (_, zero), (_, one) = _points(chart, "k1")
    assert ten < one < zero == pytest.approx(178)
    assert "alarm at step 2" in next(chart.iter("title")).text


def test_many_points_are_thinned_to_means_and_the_ends_stay():
    steps = list(range(1, 10_002))
    values = np.linspace(0, 1, len(steps))
    points = _points(line_chart("Loss", [Curve("total", "k1", steps, values)]), "k1")
    assert 250 < len(points) <= 300 and points[-1][0] == pytest.approx(352)
    assert points[-1][1] == pytest.approx(10, abs=1) and points[0][1] == pytest.approx(178, abs=1)


@pytest.mark.parametrize("values", [[], [math.nan], [0.0], [0.0, 0.0], [1e-12], [1e12, -1e12]])
@pytest.mark.parametrize("lowest", [0.0, None])
def test_any_record_is_drawn(values, lowest):
    curve = Curve("total", "k1", list(range(1, len(values) + 1)), np.array(values, float))
    assert line_chart("Loss", [curve], lowest=lowest).find("figcaption").text == "Loss"


def test_a_histogram_holds_every_group():
    edges = np.linspace(0, 1, 5)
    chart = histogram_chart("x", edges, {"CT": np.array([50.0, 0, 25, 25]), "MR": np.array([0, 0, 0, 100.0])})
    tops = [min(float(y) for y in re.findall(r"V([\d.]+)", path.get("d"))) for path in chart.iter("path")]
    assert len(tops) == 4 and tops[2] == pytest.approx(10) and tops[0] > tops[2]
    assert [entry.find("span").tail for entry in chart.iter("li")] == ["CT", "MR"]


def test_a_chart_of_no_curve_says_that_nothing_is_recorded():
    assert "Nothing recorded yet." in "".join(line_chart("Share", [], " %").itertext())
