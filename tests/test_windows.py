"""Windows: what the network sees of a slice, and that their mean is what one would expect."""

import json
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import small_network, small_preset
from scans import affine, write_nifti
from test_bundle import CLASSES, run, same_share

from sdm_cli.config import MethodConfig, PredictConfig, TrainConfig
from sdm_cli.method.checkpoint import load_model, save_model
from sdm_cli.runs.export import export_model
from sdm_cli.runs.inference import predict_slices
from sdm_cli.runs.likelihood import Ensemble
from sdm_cli.runs.predict import predict
from sdm_cli.runs.predictor import Predictor
from sdm_cli.runs.request import Request
from sdm_cli.runs.torch_model import network_predictor


def in_windows(preset, crop):
    method = MethodConfig(patch=8)
    return replace(preset, method=method, train=TrainConfig(steps=1, crop=crop), predict=PredictConfig(windows=True))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)


def pixelwise(images):
    """Logits that depend on the pixel alone."""
    return np.concatenate([0 * images, np.sin(9 * images), np.cos(7 * images)], 1)


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.integers(1, 150), st.integers(1, 150)), st.tuples(st.integers(32, 99), st.integers(32, 99)))
def test_of_what_depends_on_the_pixel_alone_windows_find_the_same(size, crop):
    whole, slices = small_preset(), noise((2, *size))
    expected, _ = Ensemble([Predictor(whole, "cpu", pixelwise)]).likelihoods(slices)
    found, _ = Ensemble([Predictor(in_windows(whole, crop), "cpu", pixelwise)]).likelihoods(slices)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), st.tuples(st.integers(32, 99), st.integers(32, 99)))
def test_each_window_has_the_size_of_the_crop_and_each_pixel_is_seen(size, crop):
    seen = []

    def forward(images):
        seen.append(images)
        return np.concatenate([images, images, images], 1)

    slices = 1 + np.arange(size[0] * size[1], dtype=np.uint16).reshape(1, *size) % 65535
    preset = in_windows(small_preset(), crop)
    Ensemble([Predictor(preset, "cpu", forward)]).likelihoods(slices)
    assert {images.shape for images in seen} == {(1, 1, *(side + -side % 32 for side in crop))}
    values = [np.round(images * 65535).astype(int).ravel() for images in seen]
    assert set(np.unique(np.concatenate(values))) - {0} == set(np.unique(slices))
    steps = [max(0, -(-(side - wanted) // (wanted // 2))) for side, wanted in zip(size, preset.window, strict=True)]
    assert len(seen) == (1 + steps[0]) * (1 + steps[1])


def test_the_middle_of_a_window_counts_more_than_its_border():
    """Of two windows, one of which says 1 everywhere: what it weighs falls from its middle to its border."""
    answers = iter([1, 0])

    def forward(images):
        value = np.float32(next(answers))
        return np.concatenate([0 * images, 0 * images + value, 0 * images - 99], 1)

    predictor = Predictor(in_windows(small_preset(), (64, 64)), "cpu", forward)
    probabilities, _ = Ensemble([predictor]).likelihoods(np.zeros((1, 64, 96), np.uint16))
    logits = np.log(probabilities[0, 1, 0] / probabilities[0, 0, 0])
    np.testing.assert_allclose(logits[:32], 1, atol=1e-5)
    np.testing.assert_allclose(logits[64:], 0, atol=1e-5)
    assert (np.diff(logits[32:64]) < 0).all()
    # By hand: 15 pixels and 17 pixels from the middle of the one and of the other, 16 pixels to a standard deviation.
    one, other = np.exp(-((15.5 / 16) ** 2) / 2), np.exp(-((16.5 / 16) ** 2) / 2)
    np.testing.assert_allclose(logits[47], one / (one + other), atol=1e-5)


def test_networks_with_windows_of_their_own_and_mirrored_slices_are_averaged():
    plain = small_preset()
    presets = [plain, in_windows(plain, (32, 64)), in_windows(plain, (64, 32))]
    predictors = [
        network_predictor(small_network(plain, n), preset, torch.device("cpu")) for n, preset in enumerate(presets)
    ]
    slices = noise((2, 70, 90))
    found, _ = Ensemble(predictors, ((), (-1,))).likelihoods(slices)
    each = [Ensemble([predictor]).likelihoods(slices)[0] for predictor in predictors]
    mirrored = [Ensemble([predictor]).likelihoods(slices[:, :, ::-1])[0].flip(-1) for predictor in predictors]
    np.testing.assert_allclose(found, sum(each + mirrored) / 6, atol=1e-5)


def test_windows_make_no_batch_larger_than_memory():
    """The probabilities of whole slices are held, however small a window is."""
    preset = small_preset()
    whole, windows = (Ensemble([Predictor(each, "cpu", pixelwise)]) for each in (preset, in_windows(preset, (32, 32))))
    assert windows.batch_size(512, 512) == whole.batch_size(512, 512) == 1


def test_the_size_of_the_batch_changes_nothing():
    preset = in_windows(small_preset(), (64, 64))
    predictor = network_predictor(small_network(preset), preset, torch.device("cpu"))
    slices = noise((5, 101, 75))
    expected = predict_slices(predictor, slices, batch_size=1)
    assert len(np.unique(expected.mask)) == 3
    for batch_size in (2, 5, None):
        found = predict_slices(predictor, slices, batch_size=batch_size)
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert found.confidence == expected.confidence


def test_a_model_says_what_it_sees(tmp_path):
    preset = in_windows(small_preset(), (64, 80))
    preset = replace(preset, predict=replace(preset.predict, smooth_mm=1.5))
    save_model(tmp_path / "model", small_network(preset), preset)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "sees windows of 64 x 96 pixels" in card and "a standard deviation of 1.5 mm" in card
    preprocessor = json.loads((tmp_path / "model/preprocessor_config.json").read_text())
    assert (preprocessor["window"], preprocessor["smooth_mm"]) == ([64, 96], 1.5)
    assert load_model(tmp_path / "model")[1] == preset


def test_a_bundle_sees_the_same_windows(tmp_path):
    """Of slices that are smaller than a window one way and larger the other way."""
    preset = in_windows(small_preset(CLASSES, slice_axis="coronal", normalize={"scale": "slice"}), (64, 96))
    preset = replace(preset, predict=replace(preset.predict, smooth_mm=0.01))  # too little to change a mask
    save_model(tmp_path / "model", small_network(preset), preset)
    voxels = np.random.default_rng(0).integers(-500, 1500, (40, 3, 133)).astype(np.int16)
    write_nifti(tmp_path / "scans" / "a.nii.gz", voxels, affine((2, 1, 0), (-1, 1, -1)))
    predict(Request(tmp_path / "scans", tmp_path / "sdm", tmp_path / "model", "cpu"))
    bundle = export_model(tmp_path / "model", tmp_path / "bundle", "monai-bundle")
    readme = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert "also averages probabilities over neighbouring slices (0.01 mm); this bundle does not" in readme
    run(bundle, tmp_path / "scans", tmp_path / "monai")
    assert same_share(tmp_path / "sdm" / "a.nii.gz", tmp_path / "monai" / "a.nii.gz") > 0.999  # ties alone
