"""Padding: what the network is given of a slice whose sides are not those of its training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import small_network, small_preset

from sdm_cli.config import TrainConfig
from sdm_cli.method.checkpoint import load_model, save_model
from sdm_cli.runs.inference import predict_slices
from sdm_cli.runs.likelihood import Ensemble, padded
from sdm_cli.runs.predictor import Predictor
from sdm_cli.runs.torch_model import network_predictor


def trained_on(crop):
    return replace(small_preset(), train=TrainConfig(steps=1, crop=crop))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 65536, shape).astype(np.uint16)


SIDES = st.tuples(st.integers(1, 150), st.integers(1, 150))
CROPS = st.tuples(st.integers(32, 99), st.integers(32, 99))


@settings(deadline=None, max_examples=100)
@given(SIDES, CROPS)
def test_a_slice_goes_on_as_crops_of_training_do(size, crop):
    """Zeros up to the crop; the border where training showed parts of a slice alone."""
    slices = noise((2, *size))
    images = padded(slices, trained_on(crop))
    assert images.dtype == np.float32 and images.shape[:2] == (2, 1)
    for side, found, cropped in zip(size, images.shape[2:], crop, strict=True):
        assert found % 32 == 0 and max(side, cropped) <= found < max(side, cropped) + 32
    rows, columns = (np.arange(side) for side in images.shape[2:])
    values = slices[:, np.minimum(rows, size[0] - 1)][:, :, np.minimum(columns, size[1] - 1)] / 65535
    if size[0] < crop[0]:
        values[:, size[0] :] = 0
    if size[1] < crop[1]:
        values[:, :, size[1] :] = 0
    np.testing.assert_allclose(images[:, 0], values, atol=1e-7)


@settings(deadline=None, max_examples=50)
@given(SIDES, CROPS)
def test_the_padding_is_cut_off_again(size, crop):
    """Of logits that depend on the pixel alone, probabilities do, too."""

    def pixelwise(images):
        return np.concatenate([0 * images, np.sin(9 * images), np.cos(7 * images)], 1)

    slices = noise((2, *size))
    found, _ = Ensemble([Predictor(trained_on(crop), "cpu", pixelwise)]).likelihoods(slices)
    logits = pixelwise((slices / 65535)[:, None])
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)


def test_networks_of_other_crops_and_mirrored_slices_are_averaged():
    predictors = [
        network_predictor(small_network(small_preset(), n), trained_on(crop), torch.device("cpu"))
        for n, crop in enumerate([(32, 32), (160, 32), (32, 160)])
    ]
    slices = noise((2, 70, 90))
    found, _ = Ensemble(predictors, ((), (-1,))).likelihoods(slices)
    each = [Ensemble([predictor]).likelihoods(slices)[0] for predictor in predictors]
    mirrored = [Ensemble([predictor]).likelihoods(slices[:, :, ::-1])[0].flip(-1) for predictor in predictors]
    np.testing.assert_allclose(found, sum(each + mirrored) / 6, atol=1e-5)


@pytest.mark.parametrize(
    ("crops", "size", "batch"),
    [
        ([(32, 32)], (64, 64), 16),
        ([(32, 32)], (33, 128), 8),
        ([(32, 250)], (250, 20), 1),
        ([(32, 32), (256, 256)], (64, 64), 1),
        ([(256, 256), (32, 32)], (64, 64), 1),
    ],
)
def test_a_batch_is_of_as_many_padded_slices_as_suit_the_device(crops, size, batch):
    predictors = [Predictor(trained_on(crop), "cpu", lambda images: images) for crop in crops]
    assert Ensemble(predictors).batch_size(*size) == batch


def test_the_size_of_the_batch_changes_nothing():
    preset = trained_on((64, 128))
    predictor = network_predictor(small_network(preset), preset, torch.device("cpu"))
    slices = noise((5, 101, 75))
    expected = predict_slices(predictor, slices, batch_size=1)
    assert len(np.unique(expected.mask)) == 3
    for batch_size in (2, 5, None):
        found = predict_slices(predictor, slices, batch_size=batch_size)
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert found.confidence == expected.confidence


def test_a_model_says_how_slices_are_padded_and_averaged(tmp_path):
    preset = trained_on((64, 80))
    preset = replace(preset, predict=replace(preset.predict, smooth_mm=1.5))
    save_model(tmp_path / "model", small_network(preset), preset)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "a standard deviation of 1.5 mm" in card
    preprocessor = json.loads((tmp_path / "model/preprocessor_config.json").read_text())
    assert preprocessor["pad_end"] == {"zeros_to_height_width": [64, 80], "border_to_multiple": 32}
    assert preprocessor["smooth_mm"] == 1.5
    assert load_model(tmp_path / "model")[1] == preset
