"""Batches: whatever their size, and wherever memory ends, each way from slices to classes finds the same."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import small_network, small_preset
from scipy.ndimage import gaussian_filter1d

from sdm_cli.config import PredictConfig
from sdm_cli.data.grid import SliceGrid, whole_grid
from sdm_cli.errors import SdmError
from sdm_cli.runs.inference import Maps, predict_scan, predict_slices
from sdm_cli.runs.predictor import Predictor
from sdm_cli.runs.torch_model import network_predictor

PRESET = small_preset({"liver": 1, "spleen": 7, "aorta": 5})
SIZE = (7, 40, 37)
CROP = SliceGrid((9, 50, 60), ((1, 8), (4, 44), (20, 57)), SIZE)
RESAMPLED = SliceGrid((11, 50, 60), ((1, 10), (3, 48), (0, 60)), SIZE)
FEWER_SLICES = SliceGrid((4, 40, 37), ((0, 4), (0, 40), (0, 37)), SIZE)
MIRRORED = ((), (-2,), (-1,), (-2, -1))
# How slices go to the scan: networks, their grid, how they are mirrored, whether maps are wanted.
WAYS = {
    "own grid": (1, whole_grid(SIZE), ((),), False),
    "crop": (1, CROP, ((),), False),
    "resampled": (1, RESAMPLED, ((),), False),
    "fewer slices": (1, FEWER_SLICES, ((),), False),
    "models": (2, whole_grid(SIZE), ((),), False),
    "mirrored": (1, whole_grid(SIZE), MIRRORED, False),
    "maps": (1, whole_grid(SIZE), ((),), True),
    "all": (2, RESAMPLED, ((), (-1,)), True),
}
each_way = pytest.mark.parametrize("way", WAYS)


def noise(seed=0):
    return np.random.default_rng(seed).integers(0, 65536, SIZE).astype(np.uint16)


def networks(n):
    return [network_predictor(small_network(PRESET, seed), PRESET, torch.device("cpu")) for seed in range(n)]


def found_on(way, batch_size, change=lambda predictor: predictor, predictors=None):
    """Segmentation and maps of noise on one of the ways; `change` makes another network of each."""
    n_models, grid, flips, are_wanted = WAYS[way]
    maps = Maps()
    if are_wanted:
        entropy, confidence, *probabilities = (np.empty(grid.scan, np.float32) for _ in range(6))
        maps = Maps(entropy, confidence, probabilities)
    used = [change(predictor) for predictor in predictors or networks(n_models)]
    found = predict_scan(used, noise(), grid, (1, 1, 1), flips, maps, batch_size)
    return found, [maps.entropy, maps.confidence, *maps.probabilities] if are_wanted else []


def recording(sizes):
    """A change that notes the size of each batch."""

    def change(predictor):
        def forward(images):
            sizes.append(len(images))
            return predictor.forward(images)

        return replace(predictor, forward=forward)

    return change


def rounding_by_batch(predictor):
    """As a network on a device that rounds much more than a real one, otherwise in each batch; and with near ties."""

    def forward(images):
        logits = predictor.forward(images)
        logits = logits - logits.mean(1, keepdim=True) * 0.999
        logits[:, 1] = logits[:, 2] * (
            1 + 1e-6 * torch.sin(torch.arange(logits[0, 1].numel())).reshape(logits[0, 1].shape)
        )
        rounding = torch.Generator().manual_seed(len(images))
        scale = 3e-6 * logits.abs().amax((1, 2, 3), keepdim=True) if len(images) > 1 else 0
        return logits + scale * torch.rand(logits.shape, generator=rounding)

    return replace(predictor, forward=forward)


@each_way
@pytest.mark.parametrize("change", [lambda predictor: predictor, rounding_by_batch], ids=["real", "rounding"])
def test_the_size_of_the_batch_changes_no_voxel_and_no_confidence(way, change):
    expected, maps = found_on(way, 1, change)
    assert len(np.unique(expected.mask)) > 2
    for batch_size in (2, None):
        found, others = found_on(way, batch_size, change)
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert found.confidence == expected.confidence
        for one, other in zip(maps, others, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_confidence_that_rounding_could_change_is_that_of_slices_alone():
    sizes = []

    def forward(images):
        """All of one class, whose probability is 0.9005 but for what a batch rounds."""
        sizes.append(len(images))
        certain = np.float32(np.log(0.9005 / 0.0995) + (2e-6 if len(images) > 1 else -2e-6))
        return np.concatenate([0 * images, 0 * images + certain, 0 * images - 99], 1)

    slices = np.zeros((4, 32, 32), np.uint16)
    assert predict_slices(Predictor(PRESET, "cpu", forward), slices, batch_size=1).confidence == 0.9
    sizes.clear()
    assert predict_slices(Predictor(PRESET, "cpu", forward), slices, batch_size=4).confidence == 0.9
    assert sizes == [4, 1, 1, 1, 1]


@each_way
def test_a_batch_that_does_not_fit_is_halved_on_each_way(way):
    def small_memory(predictor):
        def forward(images):
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return predictor.forward(images)

        return replace(predictor, forward=forward)

    sizes = []
    found, _ = found_on(way, None, lambda predictor: recording(sizes)(small_memory(predictor)))
    assert sizes[:2] == [7, 3] and max(sizes[2:]) <= 2
    np.testing.assert_array_equal(found.mask, found_on(way, 1)[0].mask)


@each_way
def test_a_slice_that_does_not_fit_is_one_sentence_on_each_way(way):
    def no_memory(predictor):
        def forward(images):
            raise MemoryError

        return replace(predictor, forward=forward)

    with pytest.raises(SdmError, match=r"^A slice of 40 x 37 pixels is too large for the memory of cpu: use a machine"):
        found_on(way, None, no_memory)


def test_where_most_slices_are_made_again_no_further_batch_is_tried():
    sizes = []

    def forward(images):
        """Two classes that tie everywhere, but for what a batch rounds."""
        sizes.append(len(images))
        plane = images[:, 0] + 1
        return np.stack([0 * plane, plane, plane * np.float32(1 + 1e-6 * (len(images) > 1))], 1)

    slices = np.zeros((20, 32, 32), np.uint16)
    mask = predict_slices(Predictor(PRESET, "cpu", forward), slices, batch_size=4).mask
    assert sizes == [4, *[1] * 4, *[1] * 16]
    assert (mask == 1).all()


def test_one_slice_is_made_again_once_however_many_slices_of_the_scan_it_serves():
    sizes = []

    def forward(images):
        sizes.append(len(images))
        return np.concatenate([0 * images, 0 * images + 1, 0 * images + 1], 1)

    grid = SliceGrid((12, 32, 32), ((0, 12), (0, 32), (0, 32)), (3, 32, 32))
    predict_scan([Predictor(PRESET, "cpu", forward)], np.zeros(grid.size, np.uint16), grid, (1, 1, 1), batch_size=3)
    assert sizes == [3, 1, 1, 1]


def test_slices_of_the_grid_that_no_slice_of_the_scan_needs_are_not_predicted():
    sizes = []
    grid = SliceGrid((2, 40, 37), ((0, 2), (0, 40), (0, 37)), (6, 40, 37))
    predict_scan([recording(sizes)(networks(1)[0])], np.zeros(grid.size, np.uint16), grid, (1, 1, 1), batch_size=1)
    assert sizes == [1, 1]  # the second and the fifth


def test_networks_of_numpy_and_of_torch_are_averaged_as_two_of_one_kind():
    """As a model folder and an exported .onnx file."""
    first, second = networks(2)
    as_numpy = replace(second, forward=lambda images: second.forward(images).numpy())
    expected, _ = found_on("models", 3, predictors=[first, second])
    for pair in ([first, as_numpy], [as_numpy, first]):
        found, _ = found_on("models", 3, predictors=pair)
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert found.confidence == expected.confidence


def test_memory_is_that_of_a_batch_and_two_slices_however_many_there_are():
    """Of classes x volume nothing is held: with four times the slices the mask grows alone."""

    def forward(images):
        return np.concatenate([images * index for index in range(12)], 1)

    def peak(n_slices):
        grid = SliceGrid((n_slices, 96, 96), ((0, n_slices), (0, 96), (0, 96)), (n_slices, 64, 64))
        slices = np.full(grid.size, 65535, np.uint16)
        predictor = Predictor(PRESET, "cpu", forward)
        tracemalloc.start()
        predict_scan([predictor], slices, grid, (1, 1, 1), ((), (-1,)), batch_size=4)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    few, many = peak(12), peak(48)
    of_a_slice = 12 * 96 * 96 * 4
    assert few < 12 * of_a_slice
    assert many - few < 36 * 96 * 96 + of_a_slice / 2


def smoothing(predictor):
    """A change that averages neighbouring slices, of 1 mm here."""
    preset = replace(predictor.preset, predict=PredictConfig(smooth_mm=1.3))
    return replace(predictor, preset=preset)


@each_way
@pytest.mark.parametrize("change", [lambda predictor: predictor, rounding_by_batch], ids=["real", "rounding"])
def test_neighbouring_slices_are_averaged_whatever_the_batch(way, change):
    expected, maps = found_on(way, 1, lambda predictor: smoothing(change(predictor)))
    assert (expected.mask != found_on(way, 1, change)[0].mask).any()
    for batch_size in (2, None):
        found, others = found_on(way, batch_size, lambda predictor: smoothing(change(predictor)))
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert found.confidence == expected.confidence
        for one, other in zip(maps, others, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.floats(0.2, 4), st.floats(0.3, 5))
def test_the_average_over_slices_is_that_of_a_gaussian_filter(n, spacing_mm, smooth_mm):
    """Within the scan: at its ends there is nothing beyond the last slice, and the others share its weight."""
    slices = np.random.default_rng(n).integers(0, 65536, (n, 32, 32)).astype(np.uint16)

    def forward(images):
        return np.concatenate([0 * images, np.sin(9 * images), np.cos(5 * images)], 1)

    def probabilities(preset):
        found = np.empty((3, *slices.shape), np.float32)
        predict_scan(
            [Predictor(preset, "cpu", forward)],
            slices,
            whole_grid(slices.shape),
            (spacing_mm, 1, 1),
            maps=Maps(probabilities=list(found)),
        )
        return found

    preset = small_preset({"liver": 1, "spleen": 7})
    plain = probabilities(preset)
    sigma = smooth_mm / whole_grid(slices.shape).spacing_mm((spacing_mm, 1, 1))[0]  # to the last bit
    weights = gaussian_filter1d(np.ones(n), sigma, radius=math.ceil(3 * sigma), mode="constant")
    expected = gaussian_filter1d(plain, sigma, 1, radius=math.ceil(3 * sigma), mode="constant") / weights[:, None, None]
    found = probabilities(replace(preset, predict=PredictConfig(smooth_mm=smooth_mm)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_distance_of_slices_is_that_of_the_grid():
    """Of a scan of 8 slices of 1 mm, resampled to 4 of 2 mm, those of 2 mm are averaged, and then go to the scan."""
    grid = SliceGrid((8, 32, 32), ((0, 8), (0, 32), (0, 32)), (4, 32, 32))
    slices = noise()[:4, :32, :32]

    def forward(images):
        return np.concatenate([0 * images, np.sin(9 * images), np.cos(5 * images)], 1)

    preset = small_preset({"liver": 1, "spleen": 7})
    plain, found = np.empty((3, 4, 32, 32), np.float32), np.empty((3, 8, 32, 32), np.float32)
    predict_scan(
        [Predictor(preset, "cpu", forward)], slices, whole_grid((4, 32, 32)), (2, 1, 1), maps=Maps(probabilities=plain)
    )
    smooth = replace(preset, predict=PredictConfig(smooth_mm=2))
    predict_scan([Predictor(smooth, "cpu", forward)], slices, grid, (1, 1, 1), maps=Maps(probabilities=found))
    bell = np.exp(-(np.subtract.outer(np.arange(4), np.arange(4)) ** 2) / 2)
    averaged = np.einsum("nm,kmhw->knhw", bell / bell.sum(1, keepdims=True), plain)
    low, high, share = grid.weights(0)
    expected = averaged[:, low] + (averaged[:, high] - averaged[:, low]) * share[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("smooth_mm", "spacing_mm"), [(1.5, 1e-300), (1e300, 1e-300), (1e-200, 1)])
def test_no_spacing_makes_the_average_endless(smooth_mm, spacing_mm):
    preset = replace(PRESET, predict=PredictConfig(smooth_mm=smooth_mm))
    predictor = network_predictor(small_network(PRESET), preset, torch.device("cpu"))
    assert predict_scan([predictor], noise(), whole_grid(SIZE), (spacing_mm, 1, 1)).mask.shape == SIZE


def test_thick_slices_are_not_averaged():
    slices = noise()
    for spacing_mm, is_other in ((1, True), (8, False)):
        found = [
            predict_scan([change(networks(1)[0])], slices, whole_grid(SIZE), (spacing_mm, 1, 1)).mask
            for change in (lambda predictor: predictor, smoothing)
        ]
        assert (found[0] != found[1]).any() == is_other
