"""Intensities to [0, 1] in 16 bits."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdm_cli.data.normalize import normalize_slices
from sdm_cli.data_config import NormalizeConfig

WINDOW = NormalizeConfig(window_hu=(-100, 300), scale="window")


def test_a_window_maps_its_ends_to_0_and_1():
    slices = np.array([[[-2000, -100, 100, 300, 3000]]], np.int16)
    assert normalize_slices(slices, WINDOW).tolist() == [[[0, 0, 32768, 65535, 65535]]]  # half to even


def test_min_max_per_slice_and_per_volume():
    slices = np.array([[[0.0, 1.0]], [[2.0, 4.0]]], np.float32)
    assert normalize_slices(slices, NormalizeConfig(scale="slice")).tolist() == [[[0, 65535]], [[0, 65535]]]
    assert normalize_slices(slices, NormalizeConfig(scale="volume")).tolist() == [[[0, 16384]], [[32768, 65535]]]


def test_a_window_with_min_max_scales_what_is_left():
    """AMOS: clip to the window, then min-max per slice (method.md section 6)."""
    slices = np.array([[[-1000, 0, 200]], [[100, 100, 2000]]], np.int16)
    config = NormalizeConfig(window_hu=(-75, 275), scale="slice")
    normalized = normalize_slices(slices, config)
    assert normalized.tolist() == [[[0, round(75 / 275 * 65535), 65535]], [[0, 0, 65535]]]


@pytest.mark.parametrize("scale", ["slice", "volume"])
def test_percentiles_are_those_of_the_region(scale):
    slices = np.random.default_rng(0).normal(size=(3, 20, 20)) * np.array([1, 5, 25])[:, None, None]
    normalized = normalize_slices(slices, NormalizeConfig(percentiles=(5, 90), scale=scale)) / 65535
    for z in range(3):
        low, high = np.percentile(slices[z] if scale == "slice" else slices, (5, 90))
        assert normalized[z] == pytest.approx(np.clip((slices[z] - low) / (high - low), 0, 1), abs=1 / 65535)


@pytest.mark.parametrize(
    "config", [NormalizeConfig(), NormalizeConfig(percentiles=(1, 99)), NormalizeConfig(scale="volume")]
)
def test_a_region_without_contrast_is_zero(config):
    assert not normalize_slices(np.full((2, 3, 3), 7, np.int16), config).any()


def test_a_slice_without_contrast_does_not_spoil_the_others():
    slices = np.stack([np.zeros((2, 2)), np.arange(4).reshape(2, 2)])
    assert normalize_slices(slices, NormalizeConfig())[1].tolist() == [[0, 21845], [43690, 65535]]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "uint64", "float32", "float64"])
def test_the_number_type_does_not_matter(dtype):
    slices = np.arange(24).reshape(2, 3, 4)
    expected = normalize_slices(slices.astype("int16"), NormalizeConfig())
    assert np.array_equal(normalize_slices(slices.astype(dtype), NormalizeConfig()), expected)


def test_int16_extremes_do_not_overflow():
    slices = np.array([[[-32768, 0, 32767]]], np.int16)
    assert normalize_slices(slices, NormalizeConfig()).tolist() == [[[0, 32768, 65535]]]


def test_the_scan_is_not_changed():
    slices = np.arange(24.0).reshape(2, 3, 4)
    before = slices.copy()
    normalize_slices(slices, WINDOW)
    assert np.array_equal(slices, before)


@settings(deadline=None)
@given(
    arrays(np.float32, (2, 3, 4), elements=st.floats(-1e6, 1e6, width=32)), st.floats(0.5, 100), st.floats(-1000, 1000)
)
def test_min_max_forgets_gain_and_offset(slices, gain, offset):
    """Up to one step of the 16 bits, the scanner's own scale does not matter."""
    slices = slices.astype(np.float64)
    assume(np.ptp(slices, axis=(1, 2)).min() >= 1)
    once = normalize_slices(slices, NormalizeConfig()).astype(int)
    again = normalize_slices(slices * gain + offset, NormalizeConfig()).astype(int)
    assert np.abs(once - again).max() <= 1


def test_a_reordered_view_gives_the_same_numbers():
    """The store sees slices of a permuted view, prediction may see a copy."""
    volume = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
    view = volume[::-1, :, ::-1].transpose(2, 0, 1)
    for config in (NormalizeConfig(), NormalizeConfig(percentiles=(1, 99), scale="volume")):
        assert np.array_equal(normalize_slices(view, config), normalize_slices(view.copy(), config))
