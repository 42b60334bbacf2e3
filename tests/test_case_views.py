"""Views of a case: outlines that enclose their pixels, true proportions, the side of the patient, and size."""

import re
from dataclasses import replace
from xml.etree.ElementTree import tostring

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.path import Path as Polygon

from sdm_cli.runs.case_views import ShownCase, draw_case


def _case(shape=(12, 10, 8), spacing_mm=(1.0, 2.0, 5.0), image=None):
    mask = np.zeros(shape, np.uint8)
    mask[2:5, 3:7, 1:4] = 1
    return ShownCase(mask, np.roll(mask, 1, 0), spacing_mm, image)


def _views(case, classes=("liver", "spleen")):
    return draw_case(case, "a01", classes).findall("figure")


def _shown(view):
    (page,) = (page for page in view.iter("div") if page.get("class") == "slice" and page.get("hidden") is None)
    return page.find("svg")


def _pixels_inside(svg, kind, value, size):
    """Rows and columns of the picture whose centres the outline of a class encloses, even-odd."""
    inside = np.zeros(size, bool)
    x, y = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    for path in svg.iter("path"):
        if path.get("class") == f"outline {kind} k{value}":
            for start, moves in re.findall(r"M([^l]*)l([^z]*)z", path.get("d")):
                steps = np.array([start.split(), *np.array(moves.split()).reshape(-1, 2)], float)
                points = np.cumsum(steps, axis=0)
                inside ^= Polygon(points).contains_points(np.column_stack([x.ravel(), y.ravel()])).reshape(size)
    return inside


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.uint8, (7, 6, 1), elements=st.sampled_from([0, 1, 2, 255])))
def test_an_outline_encloses_exactly_the_pixels_of_its_class(mask):
    """Also of one pixel, at the edge, with holes; what is ignored has none."""
    svg = _shown(_views(ShownCase(mask, np.zeros_like(mask), (1, 1, 1)))[0])
    seen = mask[:, :, 0].T[::-1, ::-1]  # anterior up, the patient's right on the left
    for value in (1, 2):
        np.testing.assert_array_equal(_pixels_inside(svg, "prediction", value, seen.shape), seen == value)
    assert not [path for path in svg.iter("path") if path.get("class").endswith("k255")]


def test_the_three_views_show_the_patients_right_on_the_left():
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[9:11, 1:4, 5:7] = 1  # to the right in RAS+ is the first index falling: x grows to the right
    views = _views(ShownCase(mask, mask, (1.0, 1.0, 1.0)))
    sizes = {"axial": (10, 12), "coronal": (8, 12), "sagittal": (8, 10)}
    axes = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
    for view in views:
        plane = view.find("figcaption").text.strip()
        rows, columns = np.nonzero(_pixels_inside(_shown(view), "reference", 1, sizes[plane]))
        left, up = axes[plane]
        occupied = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in (left, up)]
        np.testing.assert_array_equal(np.unique(columns), np.sort(mask.shape[left] - 1 - occupied[0]))
        np.testing.assert_array_equal(np.unique(rows), np.sort(mask.shape[up] - 1 - occupied[1]))


def test_letters_say_where_right_front_and_head_are():
    wanted = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}
    for view in _views(_case()):
        svg = _shown(view)
        width, height = map(float, svg.get("viewBox").split()[2:])
        place = {text.text: (float(text.get("x")) / width, float(text.get("y")) / height) for text in svg.iter("text")}
        left, right, top, bottom = wanted[view.find("figcaption").text.strip()]
        assert place[left][0] < 0.2 and place[right][0] > 0.8 and place[top][1] < 0.2 and place[bottom][1] > 0.8
        assert len(place) == 4
    assert not [text for view in _views(replace(_case(), is_oriented=False)) for text in view.iter("text")]


def test_the_reference_lies_above_the_prediction_within_a_dark_rim():
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[2:5, 3:7, 1:4] = 1
    axial = _shown(_views(ShownCase(mask, mask, (1.0, 1.0, 1.0)))[0])
    kinds = [path.get("class") for path in axial.iter("path")]
    assert kinds == ["outline prediction k1", "outline halo reference", "outline reference k1"]
    assert len({path.get("d") for path in axial.iter("path")}) == 1


def test_voxels_have_their_true_proportions():
    axial, coronal, sagittal = (_shown(view) for view in _views(_case()))
    assert axial.get("viewBox") == "0 0 12 20"  # mm along x and y
    assert coronal.get("viewBox") == "0 0 12 40"
    assert sagittal.get("viewBox") == "0 0 20 40"
    assert axial.find("g").get("transform") == "scale(1 2)"


def test_every_slice_has_words_and_the_slider_a_name():
    for view in _views(_case()):
        plane = view.find("figcaption").text.strip()
        slices = [page for page in view.iter("div") if page.get("class") == "slice"]
        for page in slices:
            svg = page.find("svg")
            assert svg.get("role") == "img" and svg.get("aria-label").startswith(
                f"a01, {plane} {page.get('data-place')}"
            )
        slider = view.find("input")
        assert slider.get("aria-label") == f"{plane} slice of a01"
        assert int(slider.get("max")) == len(slices) - 1
        assert slices[int(slider.get("value"))].get("hidden") is None


def test_the_slices_are_those_of_the_structures_and_begin_with_most_of_them():
    mask = np.zeros((20, 20, 60), np.uint8)
    mask[5:10, 5:10, 30:36] = 1
    mask[2:18, 2:18, 33] = 1
    axial = _views(ShownCase(mask, mask, (1.0, 1.0, 1.0)))[0]
    places = [page.get("data-place") for page in axial.iter("div") if page.get("class") == "slice"]
    assert places == [f"slice {z + 1} of 60" for z in range(28, 38)]
    assert axial.find("figcaption").find("output").text == "slice 34 of 60"


@pytest.mark.parametrize("shape", [(8, 8, 1), (1, 1, 1), (3, 2, 120)])
def test_any_shape_is_drawn_without_structures_and_without_a_scan(shape):
    empty = np.zeros(shape, np.uint8)
    for view in _views(ShownCase(empty, empty, (1.0, 1.0, 1.0))):
        n_slices = len([page for page in view.iter("div") if page.get("class") == "slice"])
        assert 1 <= n_slices <= 40
        assert (view.find("input") is None) == (n_slices == 1)
        assert _shown(view) is not None and not list(view.iter("image"))


def test_the_scan_lies_beneath_and_what_is_around_the_structures_sets_its_contrast():
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    case = _case(image=np.zeros((12, 10, 8), np.int16))
    case.image[2:6, 3:7, 1:4] = 100
    case.image[8:, 9, :] = 30000  # metal far away
    image = _shown(_views(case)[0]).find("image")
    kind, data = image.get("href").split(",")
    assert kind == "data:image/webp;base64"
    grey = np.asarray(Image.open(BytesIO(b64decode(data))).convert("L"))
    assert grey.shape == (10, 12)
    assert grey[10 - 1 - 5, 12 - 1 - 4] > 200 and grey[8, 1] < 60


def test_a_large_case_of_noise_stays_within_its_bytes(monkeypatch):
    monkeypatch.setattr("sdm_cli.runs.case_views._MOST_BYTES", 100_000)
    random = np.random.default_rng(0)
    noise = random.integers(0, 4, (24, 24, 24)).astype(np.uint8)
    case = ShownCase(noise, np.roll(noise, 1, 0), (1.0, 1.0, 1.0), random.random(noise.shape))
    views = draw_case(case, "a01", ("a", "b", "c"))
    assert len(tostring(views)) < 102_000
    for view in views:
        assert _shown(view) is not None


def test_a_large_slice_is_made_smaller():
    mask = np.zeros((700, 300, 3), np.uint8)
    mask[100:600, 50:250] = 1
    svg = _shown(_views(ShownCase(mask, mask, (1.0, 1.0, 1.0)))[0])
    assert svg.find("g").get("transform") == f"scale({700 / 288:.6g} {300 / 288:.6g})"
    inside = _pixels_inside(svg, "prediction", 1, (288, 288))
    assert inside.mean() == pytest.approx(500 * 200 / (700 * 300), abs=0.01)
