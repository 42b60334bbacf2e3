"""Frames: what the network is given of a slice whose sides are not those of its training."""

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
from sdm_cli.runs.likelihood import Ensemble, framed
from sdm_cli.runs.predictor import Predictor
from sdm_cli.runs.torch_model import network_predictor


def trained_on(crop, **data):
    return replace(small_preset(**data), train=TrainConfig(steps=1, crop=crop))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 65536, shape).astype(np.uint16)


SIDES = st.tuples(st.integers(1, 150), st.integers(1, 150))
CROPS = st.tuples(st.integers(32, 99), st.integers(32, 99))


@settings(deadline=None, max_examples=100)
@given(SIDES, CROPS)
def test_a_slice_goes_on_as_crops_of_training_do(size, crop):
    """Zeros up to the crop; the border where training showed parts of a slice alone."""
    slices = noise((2, *size))
    images = framed(slices, trained_on(crop))
    assert images.dtype == np.float32 and images.shape[:2] == (2, 1)
    for side, frame, cropped in zip(size, images.shape[2:], crop, strict=True):
        assert frame % 32 == 0 and max(side, cropped) <= frame < max(side, cropped) + 32
    rows, columns = (np.arange(frame) for frame in images.shape[2:])
    values = slices[:, np.minimum(rows, size[0] - 1)][:, :, np.minimum(columns, size[1] - 1)] / 65535
    outside = [places >= side if cropped > side else places < 0 for places, side, cropped in
               zip((rows, columns), size, crop, strict=True)]  # fmt: skip
    values[:, outside[0][:, None] | outside[1]] = 0
    np.testing.assert_allclose(images[:, 0], values, atol=1e-7)


@settings(deadline=None, max_examples=50)
@given(SIDES, CROPS)
def test_the_frame_is_cut_off_again(size, crop):
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


@pytest.mark.parametrize(("crop", "size"), [((32, 32), (256, 256)), ((256, 256), (20, 20)), ((32, 250), (250, 20))])
def test_a_batch_holds_as_many_frames_as_suit_the_device(crop, size):
    batch = Ensemble([Predictor(trained_on(crop), "cpu", lambda images: images)]).batch_size(*size)
    assert batch == 1 < Ensemble([Predictor(trained_on((32, 32)), "cpu", lambda images: images)]).batch_size(64, 64)


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


def test_a_model_says_how_slices_are_framed_and_averaged(tmp_path):
    preset = trained_on((64, 80))
    preset = replace(preset, predict=replace(preset.predict, smooth_mm=1.5))
    save_model(tmp_path / "model", small_network(preset), preset)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "a standard deviation of 1.5 mm" in card
    preprocessor = json.loads((tmp_path / "model/preprocessor_config.json").read_text())
    assert preprocessor["pad_with_zeros_to"] == [64, 80] and preprocessor["pad_with_border_to_multiple"] == 32
    assert preprocessor["smooth_mm"] == 1.5
    assert load_model(tmp_path / "model")[1] == preset
