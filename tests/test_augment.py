import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sdm_cli.config import AugmentConfig
from sdm_cli.data.augment import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GAMMA,
    NOTHING,
    STRAIGHT,
    AugmentDraw,
    augment,
    draw_augmentation,
)

CONFIG = AugmentConfig()


def draw(angle=0.0, zoom=1.0, kind=NOTHING, amount=0.0, curve=STRAIGHT, n=1):
    return AugmentDraw(
        torch.full((n,), angle),
        torch.full((n,), zoom),
        torch.full((n, 1), kind),
        torch.full((n, 1), float(amount)),
        torch.tensor([curve] * n, dtype=torch.float32),
    )


def smooth(height=40, width=52, n=1, seed=0):
    random = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(random.random((n, height, width)), (0, 2, 2))
    return torch.from_numpy((image - image.min()) / np.ptp(image)).float().unsqueeze(1)


def applied(image, parameters, label=None):
    image = image.clone()
    label = None if label is None else label.clone()
    augment(image, label, parameters)
    return image if label is None else (image, label)


def test_nothing_drawn_changes_nothing():
    image = smooth()
    assert torch.equal(applied(image, draw()), image)


@pytest.mark.parametrize(("angle", "zoom"), [(0.2, 1.0), (-0.26, 1.0), (0.0, 0.6), (0.15, 0.5)])
def test_warp_is_a_rotation_and_zoom_in_pixels_about_the_centre(angle, zoom):
    image = smooth()
    height, width = image.shape[2:]
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])  # rows, columns
    centre = (np.array([height, width]) - 1) / 2
    expected = ndimage.affine_transform(image[0, 0].numpy(), matrix, centre - matrix @ centre, order=3)
    got = applied(image, draw(angle, zoom))[0, 0].numpy()
    inside = ndimage.affine_transform(np.ones((height, width)), matrix, centre - matrix @ centre, order=1) > 0.99
    inside = ndimage.binary_erosion(inside, iterations=3)
    assert np.abs(got - expected)[inside].max() < 0.02


def test_outside_is_zero_and_labels_take_the_nearest_value():
    image, label = torch.ones(1, 1, 64, 64), torch.full((1, 64, 64), 7, dtype=torch.uint8)
    label[0, :32] = 255
    image, label = applied(image, draw(angle=0.26), label)
    assert image[0, 0, 0, 0] == 0 and label[0, 0, 0] == 0
    assert set(label.unique().tolist()) == {0, 7, 255}


def test_image_and_label_move_together():
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label[0, 20:40, 10:50] = 1
    image, moved = applied(label.unsqueeze(1).float(), draw(angle=0.2, zoom=0.7), label)
    assert ((image[:, 0] > 0.5) == (moved == 1)).float().mean() > 0.99


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.3])
def test_blur_is_gaussian(sigma):
    image = smooth()
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), sigma, mode="mirror")
    assert np.abs(applied(image, draw(kind=BLUR, amount=sigma))[0, 0].numpy() - expected).max() < 1e-3


def test_brightness_contrast_and_gamma_are_the_published_formulas():
    image = smooth() * 1.5 - 0.2
    x = image.numpy().astype(np.float64)
    assert applied(image, draw(kind=BRIGHTNESS, amount=1.7)).numpy() == pytest.approx(x * 1.7, abs=1e-5)
    contrast = np.clip((x - x.mean()) * 1.4 + x.mean(), x.min(), x.max())
    assert applied(image, draw(kind=CONTRAST, amount=1.4)).numpy() == pytest.approx(contrast, abs=1e-5)
    curved = ((x - x.min()) / np.ptp(x)) ** 0.6
    gamma = (curved - curved.mean()) / curved.std() * x.std() + x.mean()
    assert applied(image, draw(kind=GAMMA, amount=0.6)).numpy() == pytest.approx(gamma, abs=1e-4)


@pytest.mark.parametrize("kind", [BLUR, BRIGHTNESS, CONTRAST, GAMMA])
def test_an_empty_slice_stays_finite(kind):
    assert torch.isfinite(applied(torch.zeros(1, 1, 16, 16), draw(kind=kind, amount=1.2))).all()


def test_a_slice_does_not_depend_on_its_batch():
    image, random = smooth(n=6), np.random.default_rng(3)
    draws = [draw_augmentation(CONFIG, random) for _ in range(6)]
    together = AugmentDraw(*(torch.stack(parts) for parts in zip(*draws, strict=True)))
    label = (image[:, 0] * 5).to(torch.uint8)
    images, labels = applied(image, together, label)
    for i, alone in enumerate(draws):
        single = AugmentDraw(*(part.unsqueeze(0) for part in alone))
        one, one_label = applied(image[i : i + 1], single, label[i : i + 1])
        assert torch.allclose(one, images[i : i + 1], atol=1e-5)
        assert torch.equal(one_label, labels[i : i + 1])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_draws_stay_in_their_ranges(seed):
    parameters = draw_augmentation(CONFIG, np.random.default_rng(seed))
    assert abs(parameters.angle) <= math.radians(15) and 0.5 <= parameters.zoom <= 1
    ranges = {BLUR: CONFIG.blur_sigma, BRIGHTNESS: CONFIG.brightness, CONTRAST: CONFIG.contrast, GAMMA: CONFIG.gamma}
    kinds = [kind for kind in parameters.steps.tolist() if kind != NOTHING]
    assert len(set(kinds)) == len(kinds)
    for kind, amount in zip(parameters.steps.tolist(), parameters.amounts.tolist(), strict=True):
        if kind != NOTHING:
            assert ranges[kind][0] - 1e-6 <= amount <= ranges[kind][1] + 1e-6


def test_three_of_six_are_drawn_and_each_applied_with_probability_07():
    random = np.random.default_rng(0)
    draws = [draw_augmentation(CONFIG, random) for _ in range(4000)]
    share = 0.5 * 0.7
    assert np.mean([d.angle != 0 for d in draws]) == pytest.approx(share, abs=0.03)
    assert np.mean([d.zoom != 1 for d in draws]) == pytest.approx(share / 2, abs=0.03)  # the other half is the identity
    for kind in (BLUR, BRIGHTNESS, CONTRAST, GAMMA):
        assert np.mean([kind in d.steps for d in draws]) == pytest.approx(share, abs=0.03)
    gammas = [float(d.amounts[d.steps == GAMMA]) for d in draws if GAMMA in d.steps]
    assert np.mean(np.array(gammas) < 1) == pytest.approx(0.5, abs=0.05)


@given(heights=st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5))
@settings(max_examples=20, deadline=None)
def test_a_curve_is_a_function_of_the_intensity_over_the_range_of_the_slice(heights):
    image = smooth() * 0.4 + 0.3
    got = applied(image, draw(curve=heights))[0, 0].numpy()
    x = image[0, 0].numpy().astype(np.float64)
    expected = np.interp((x - x.min()) / np.ptp(x) * 4, np.arange(5), heights)
    assert np.abs(got - expected).max() < 1e-5


def test_an_empty_slice_has_a_curve_too():
    assert torch.isfinite(applied(torch.zeros(1, 1, 8, 8), draw(curve=(0.5, 1.0, 0.0, 0.2, 0.1)))).all()


def test_curves_are_drawn_with_their_probability_and_change_no_other_draw():
    with_curve, n = AugmentConfig(curve=0.3), 0
    for seed in range(500):
        drawn = draw_augmentation(with_curve, np.random.default_rng(seed))
        plain = draw_augmentation(CONFIG, np.random.default_rng(seed))
        assert all(torch.equal(a, b) for a, b in zip(drawn[:4], plain[:4], strict=True))
        assert tuple(plain.curve.tolist()) == STRAIGHT
        n += tuple(drawn.curve.tolist()) != STRAIGHT
    assert 110 < n < 190


def test_switched_off():
    nothing = AugmentConfig(transforms=0)
    parameters = draw_augmentation(nothing, np.random.default_rng(0))
    image = smooth()
    single = AugmentDraw(*(part.unsqueeze(0) for part in parameters))
    assert torch.equal(applied(image, single), image)
