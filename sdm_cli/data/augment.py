"""Strong augmentation: parameters are drawn first, applied second, on the device of the batch.

The batch is worked through slice by slice: the planes of one slice stay in a processor's cache from one
transform to the next, and none is copied to be grouped with others of its kind (measured: twice as fast).

Source: method.md section 5.
Departures: rotation and scaling are one warp (one interpolation, method.md 7.9), done before the intensity
transforms, whose drawn order is kept; labels take the nearest value. Intensities that leave [0, 1] are
left there (7.10). The intensity curve is ours, and off unless a preset asks for it.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_cli.config import AugmentConfig

ROTATE, ZOOM, BLUR, BRIGHTNESS, CONTRAST, GAMMA = range(6)
NOTHING = -1
STRAIGHT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The intensity curve that changes nothing."""
_TRUNCATE = 4.0  # the Gaussian kernel ends at this many sigmas, as scipy's does
_TINY = 1e-8


class AugmentDraw(NamedTuple):
    """What happens to a slice; with a leading batch axis once collated."""

    angle: Tensor  # () float32, radians
    zoom: Tensor  # () float32, scale of the sampling grid: below 1 enlarges
    steps: Tensor  # (T,) int64, intensity transforms in order, NOTHING where none
    amounts: Tensor  # (T,) float32, sigma, factor or exponent of each step
    curve: Tensor  # (5,) float32, heights of the intensity curve at equal steps; STRAIGHT where there is none


def draw_augmentation(config: AugmentConfig, random: np.random.Generator) -> AugmentDraw:
    """Draw the transforms of one slice: `transforms` distinct ones of six, each applied with `probability`."""
    angle, zoom = 0.0, 1.0
    steps = np.full(config.transforms, NOTHING)
    amounts = np.zeros(config.transforms, np.float32)
    for slot, kind in enumerate(random.permutation(len(_DRAWS))[: config.transforms]):
        if random.random() >= config.probability:
            continue
        amount = _DRAWS[kind](config, random)
        if kind == ROTATE:
            angle = math.radians(amount)
        elif kind == ZOOM:
            zoom = amount
        else:
            steps[slot], amounts[slot] = kind, amount
    has_curve = config.curve > 0 and random.random() < config.curve
    curve = random.random(len(STRAIGHT)) if has_curve else STRAIGHT
    as_float = torch.float32
    return AugmentDraw(
        torch.tensor(angle, dtype=as_float),
        torch.tensor(zoom, dtype=as_float),
        torch.from_numpy(steps),
        torch.from_numpy(amounts),
        torch.tensor(curve, dtype=as_float),
    )


def augment(image: Tensor, label: Tensor | None, draw: AugmentDraw) -> None:
    """Apply drawn transforms to a batch, in place and on its device.

    Args:
        image: (B, 1, H, W) float32.
        label: (B, H, W) uint8 class indices, or None for unlabeled slices.
        draw: one entry a slice.
    """
    drawn = zip(*(part.tolist() for part in draw), strict=True)  # read back once, for the whole batch
    for index, (angle, zoom, steps, amounts, curve) in enumerate(drawn):
        plane = image[index, 0]  # (H, W)
        if tuple(curve) != STRAIGHT:
            plane = _curved(plane, curve)
        if angle != 0 or zoom != 1:
            grid = _grid(angle, zoom, plane)
            plane = _sampled(plane, grid, "bicubic")
            if label is not None:
                label[index] = _sampled(label[index].to(plane.dtype), grid, "nearest")
        for step, amount in zip(steps, amounts, strict=True):
            if step != NOTHING:
                plane = _TRANSFORMS[step](plane, amount)
        image[index, 0] = plane


def _half_half(bounds: tuple[float, float], random: np.random.Generator) -> float:
    """Half of the draws uniform in [low, 1], the others uniform in [1, high]."""
    low, high = bounds
    return random.uniform(low, 1.0) if random.random() < 0.5 else random.uniform(1.0, high)


_DRAWS: dict[int, Callable[[AugmentConfig, np.random.Generator], float]] = {
    ROTATE: lambda config, random: random.uniform(-config.rotation_degrees, config.rotation_degrees),
    ZOOM: lambda config, random: _half_half(config.zoom, random),
    BLUR: lambda config, random: random.uniform(*config.blur_sigma),
    BRIGHTNESS: lambda config, random: random.uniform(*config.brightness),
    CONTRAST: lambda config, random: _half_half(config.contrast, random),
    GAMMA: lambda config, random: _half_half(config.gamma, random),
}


def _grid(angle: float, zoom: float, plane: Tensor) -> Tensor:
    """(1, H, W, 2) source positions (column, row) of each pixel, in half sides from the centre.

    Rotated and scaled in pixels, and then expressed in half sides. A column and a row each move the position by a
    vector of their own, so the grid is one sum; as complex numbers, because those are added in whole vectors.
    """
    height, width = plane.shape
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    down = (torch.arange(height, device=plane.device) + 0.5) - height / 2
    across = (torch.arange(width, device=plane.device) + 0.5) - width / 2
    rows = torch.complex(down * (-sin * 2 / width), down * (cos * 2 / height))
    columns = torch.complex(across * (cos * 2 / width), across * (sin * 2 / height))
    return torch.view_as_real(rows[:, None] + columns).unsqueeze(0)


def _sampled(plane: Tensor, grid: Tensor, mode: Literal["bicubic", "nearest"]) -> Tensor:
    """(H, W) values at the positions of a grid, zero outside."""
    return F.grid_sample(plane[None, None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0, 0]


def _curved(plane: Tensor, heights: list[float]) -> Tensor:
    """Intensities through a curve over the slice's range, linear between its heights."""
    table = plane.new_tensor(heights)
    low, high = plane.aminmax()
    n_pieces = len(heights) - 1
    position = (plane - low) * (n_pieces / (high - low).clamp_min(_TINY))
    left = position.floor().clamp_max_(n_pieces - 1)
    index = left.long()
    return torch.lerp(table[index], table[index + 1], position - left)


def _blur(plane: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian as a sum of shifted planes, which stay in the cache; mirrored border."""
    height, width = plane.shape
    radius = min(int(_TRUNCATE * sigma + 0.5), height - 1, width - 1)
    kernel = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    kernel = [weight / sum(kernel) for weight in kernel]
    padded = F.pad(plane[None, None], (radius, radius, radius, radius), mode="reflect")[0, 0]
    for axis, size in ((0, height), (1, width)):
        blurred = padded.narrow(axis, 0, size) * kernel[0]
        for start, weight in enumerate(kernel[1:], start=1):
            blurred.add_(padded.narrow(axis, start, size), alpha=weight)
        padded = blurred
    return padded


def _brightness(plane: Tensor, factor: float) -> Tensor:
    return plane * factor


def _contrast(plane: Tensor, factor: float) -> Tensor:
    """Stretch about the slice's mean, clipped to its former minimum and maximum."""
    low, high = plane.aminmax()
    stretched = torch.lerp(plane.mean(), plane, factor)
    return torch.minimum(torch.maximum(stretched, low), high)


def _gamma(plane: Tensor, exponent: float) -> Tensor:
    """Power of the min-max-scaled slice; its mean and standard deviation are put back."""
    low, high = plane.aminmax()
    mean = plane.mean()
    # A power as exp(log) is faster here; log(0) ends as 0.
    curved = (plane - low).div_((high - low).clamp_min(_TINY)).log_().mul_(exponent).exp_()
    curved.sub_(curved.mean())
    return curved.mul_(_norm(plane - mean) / _norm(curved).clamp_min(_TINY)).add_(mean)


def _norm(plane: Tensor) -> Tensor:
    """Root of the sum of squares; of a plane about its mean, the standard deviation but for a factor."""
    values = plane.flatten()
    return torch.dot(values, values).sqrt()


_TRANSFORMS: dict[int, Callable[[Tensor, float], Tensor]] = {
    BLUR: _blur,
    BRIGHTNESS: _brightness,
    CONTRAST: _contrast,
    GAMMA: _gamma,
}
