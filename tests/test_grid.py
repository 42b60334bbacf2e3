"""The grid of the slices and the way back: what a crop must hold, that extents are kept, and that labels return."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import tiny_preset

from sdm_cli.data.grid import SliceGrid, grid_from_json, plan_grid, whole_grid
from sdm_cli.data_config import IGNORE, GridConfig
from sdm_cli.runs.inference import predict_scan
from sdm_cli.runs.predictor import Predictor

SIDES = st.integers(1, 24)
SIZES = st.tuples(st.integers(1, 7), SIDES, SIDES)
SPACINGS = st.tuples(*[st.floats(0.3, 5)] * 3)
SOME = settings(max_examples=100, deadline=None)


def noise(size: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype("float32")


@st.composite
def boxes(draw, size):
    """A box inside a volume of this size."""
    bounds = []
    for length in size:
        first = draw(st.integers(0, length - 1))
        bounds.append((first, draw(st.integers(first + 1, length))))
    return tuple(bounds)


@st.composite
def grids(draw):
    scan = draw(SIZES)
    return SliceGrid(scan, draw(boxes(scan)), draw(SIZES))


def one_hot_predictor(n_classes: int) -> Predictor:
    """A network that finds the class index written into the intensity."""

    def forward(images: np.ndarray) -> np.ndarray:
        index = (images[:, 0] * 65535).round().astype(int)
        return 100 * np.eye(n_classes, dtype=np.float32)[index].transpose(0, 3, 1, 2)

    return Predictor(tiny_preset(), "cpu", forward)


def there_and_back(label: np.ndarray, grid: SliceGrid) -> np.ndarray:
    predictor = one_hot_predictor(int(label.max()) + 1)
    return predict_scan([predictor], grid.label(label).astype(np.uint16), grid, (1.0, 1.0, 1.0)).mask


# Planning


@SOME
@given(SIZES, SPACINGS)
def test_without_crop_and_size_the_grid_is_the_scans_own(size, spacing_mm):
    slices = noise(size)
    grid = plan_grid(GridConfig(), slices, spacing_mm, None)
    assert grid == whole_grid(size)
    assert grid.is_identity
    assert grid.image(slices) is slices
    assert grid.spacing_mm(spacing_mm) == pytest.approx(spacing_mm)
    assert np.array_equal(grid.weights(0)[0], np.arange(size[0]))


@SOME
@given(SIZES, SPACINGS, st.tuples(st.floats(0.3, 5), st.floats(0.3, 5)), st.floats(0.05, 1))
def test_resampling_comes_as_close_to_the_spacing_as_whole_pixels_allow(size, spacing_mm, wanted_mm, fraction):
    config = GridConfig(crop="centre", centre_fraction=fraction, spacing_mm=wanted_mm)
    grid = plan_grid(config, noise(size), spacing_mm, None)
    assert grid.size[0] == size[0]
    for n, m, own, wanted in zip(grid.box_size[1:], grid.size[1:], spacing_mm[1:], wanted_mm, strict=True):
        assert m == 1 or abs(m * wanted - n * own) <= 0.5 * wanted * (1 + 1e-9)


@SOME
@given(grids(), SPACINGS)
def test_spacing_times_size_is_the_extent_of_the_box(grid, spacing_mm):
    extent = np.multiply(grid.box_size, spacing_mm)
    assert np.multiply(grid.size, grid.spacing_mm(spacing_mm)) == pytest.approx(extent)


@SOME
@given(SIZES, st.integers(8, 40))
def test_the_short_side_becomes_that_long(size, short_side):
    grid = plan_grid(GridConfig(short_side=short_side), noise(size), (1, 1, 1), None)
    assert min(grid.size[1:]) == short_side
    assert max(grid.size[1:]) == pytest.approx(short_side * max(size[1:]) / min(size[1:]), abs=0.5)


@SOME
@given(SIZES, SIZES)
def test_a_size_is_taken_as_it_is(size, wanted):
    grid = plan_grid(GridConfig(size=wanted), noise(size), (1, 1, 1), None)
    assert grid.size == wanted
    assert grid.image(noise(size)).shape == wanted


@SOME
@given(SIZES, st.floats(0.05, 1))
def test_the_centre_crop_keeps_its_share_about_the_middle(size, fraction):
    grid = plan_grid(GridConfig(crop="centre", centre_fraction=fraction), noise(size), (1, 1, 1), None)
    assert grid.box[0] == (0, size[0])
    for (first, last), length in zip(grid.box[1:], size[1:], strict=True):
        assert abs(last - first - fraction * length) <= 0.5 or last - first == 1
        assert 0 <= first < last <= length
        assert abs(first - (length - last)) <= 1


@SOME
@given(st.data(), SIZES, st.integers(0, 30))
def test_the_label_crop_holds_the_label_and_its_margin(data, size, margin):
    label = np.zeros(size, np.uint8)
    label[0, 0, 0] = IGNORE
    box = data.draw(boxes(size))
    label[tuple(slice(*bounds) for bounds in box)] = 3
    grid = plan_grid(GridConfig(crop="label", margin=margin), noise(size), (1, 1, 1), label)
    assert grid.box == tuple(
        (max(0, first - margin), min(length, last + margin)) for (first, last), length in zip(box, size, strict=True)
    )


@pytest.mark.parametrize("crop", ["body", "label"])
@pytest.mark.parametrize("n_slices", [1, 3, 20])
@pytest.mark.parametrize("air", [-1000, 0])
def test_the_body_crop_holds_the_body_and_no_speckles(crop, n_slices, air):
    """However few slices there are; a label crop without a label is that of the body, and so is one of an empty one."""
    scan = np.full((n_slices, 60, 50), air, "float32")
    scan[:, 12:48, 9:41] = air + 1000
    scan[:, 2, 3] = scan[0, 57, :2] = air + 1200
    label = np.zeros(scan.shape, np.uint8) if crop == "label" else None
    grid = plan_grid(GridConfig(crop=crop, margin=2), scan, (5, 1, 1), label)
    assert grid.box == ((0, n_slices), (10, 50), (7, 43))


def test_a_body_that_fills_the_scan_is_kept_whole():
    scan = np.full((6, 30, 30), 500, "float32") + noise((6, 30, 30))
    scan[:, :2, :2] = 0
    assert plan_grid(GridConfig(crop="body"), scan, (1, 1, 1), None).is_identity


def test_a_scan_without_contrast_is_kept_whole():
    assert plan_grid(GridConfig(crop="body"), np.zeros((3, 9, 9)), (1, 1, 1), None).is_identity


def test_a_body_too_thin_for_the_opening_is_found():
    scan = np.zeros((4, 40, 40))
    scan[1:3, 5:35, 20:22] = 900
    assert plan_grid(GridConfig(crop="body"), scan, (1, 1, 1), None).box == ((1, 3), (5, 35), (20, 22))


# Intensities


@SOME
@given(grids())
def test_images_keep_their_size_and_their_range(grid):
    slices = noise(grid.scan)
    image = grid.image(slices)
    assert image.shape == grid.size
    assert slices.min() - 1e-6 <= image.min() <= image.max() <= slices.max() + 1e-6


@SOME
@given(grids(), st.integers(-2000, 2000))
def test_a_constant_image_stays_constant(grid, value):
    image = grid.image(np.full(grid.scan, value, np.int16))
    assert np.allclose(image, value, rtol=1e-5)


@pytest.mark.parametrize("size", [(4, 60, 44), (9, 30, 22), (3, 17, 15), (4, 12, 9)])
def test_a_ramp_stays_where_it_is(size):
    """Centres of voxels lie at the same place of the same extent; borders may be flatter."""
    grid = SliceGrid((5, 32, 24), ((1, 5), (2, 32), (2, 24)), size)
    ramp = np.add.outer(np.add.outer(10.0 * np.arange(5), np.arange(32)), 3.0 * np.arange(24))
    where = [
        first + (np.arange(m) + 0.5) * (last - first) / m - 0.5 for (first, last), m in zip(grid.box, size, strict=True)
    ]
    expected = np.add.outer(np.add.outer(10 * where[0].clip(1, 4), where[1]), 3 * where[2])
    through = slice(1, -1) if size[0] < 4 else slice(None)
    inner = (through, slice(size[1] // 4, -(size[1] // 4)), slice(size[2] // 4, -(size[2] // 4)))
    assert np.abs(grid.image(ramp) - expected)[inner].max() < 0.5


def test_noise_between_slices_is_averaged_where_slices_become_fewer():
    """Each slice of the grid covers 2.5 of the scan: of alternating ones a fifth is left, not all or nothing."""
    scan = np.zeros((10, 4, 4), np.float32)
    scan[::2] = 1
    shrunk = SliceGrid(scan.shape, ((0, 10), (0, 4), (0, 4)), (4, 4, 4)).image(scan)
    assert np.allclose(shrunk[:, 0, 0], [0.6, 0.6, 0.4, 0.4])


# Labels, and the way back


@SOME
@given(grids())
def test_weights_of_slices_stay_in_range_and_in_order(grid):
    low, high, share = grid.weights(0)
    assert len(low) == grid.box_size[0]
    assert low.min() >= 0
    assert high.max() <= grid.size[0] - 1
    assert np.isin(high - low, (0, 1)).all()
    assert share.min() >= 0
    assert share.max() < 1
    position = low + share
    assert (np.diff(position) >= 0).all()
    assert np.allclose(position, position[::-1][0] - position[::-1] + position[0])


@SOME
@given(st.data(), SIZES)
def test_a_label_returns_where_nothing_is_resized(data, size):
    box = data.draw(boxes(size))
    grid = SliceGrid(size, box, tuple(last - first for first, last in box))
    label = np.random.default_rng(0).integers(0, 4, size).astype(np.uint8)
    expected = np.zeros_like(label)
    expected[grid.window] = label[grid.window]
    assert np.array_equal(there_and_back(label, grid), expected)


@SOME
@given(st.data(), st.tuples(st.integers(1, 6), st.integers(20, 40), st.integers(20, 40)))
def test_a_label_returns_within_a_voxel_after_mild_resampling(data, size):
    """Boxes that are not thin, resized by up to a factor of 1.5 in plane and between slices."""
    label = np.zeros(size, np.uint8)
    corner = [data.draw(st.integers(2, 6)) for _ in range(2)]
    label[:, corner[0] : size[1] - corner[1], corner[1] : size[2] - corner[0]] = 1
    label[:, corner[0] : size[1] // 2, corner[1] : size[2] - corner[0]] = 2
    resized = tuple(max(1, round(n * data.draw(st.floats(1 / 1.5, 1.5)))) for n in size)
    back = there_and_back(label, SliceGrid(size, tuple((0, n) for n in size), resized))
    for value in (0, 1, 2):
        reach = np.zeros(size, bool)
        for rows in (-1, 0, 1):
            for columns in (-1, 0, 1):
                reach |= np.roll(label == value, (rows, columns), (1, 2))
        assert not ((back == value) & ~reach).any()


@SOME
@given(grids())
def test_a_grid_survives_its_json(grid):
    assert grid_from_json(grid.to_json()) == grid


def test_a_scan_is_resized_slice_by_slice():
    """What is held is the result, and two slices: never the scan and its float copy beside it."""
    scan = np.zeros((60, 128, 128), np.int16)
    grid = SliceGrid(scan.shape, ((0, 60), (0, 128), (0, 128)), (60, 96, 96))
    tracemalloc.start()
    image = grid.image(scan)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1.5 * image.nbytes
