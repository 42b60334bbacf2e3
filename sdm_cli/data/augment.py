"""Strong augmentation: parameters are drawn first, one slice at a time, and applied second, in batches.

Source: method.md section 5.
Departure: rotation and scaling are one warp (one interpolation, method.md 7.9), done before the intensity
transforms, whose drawn order is kept; labels take the nearest value. Intensities that leave [0, 1] are
left there (7.10).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_cli.config import AugmentConfig

ROTATE, ZOOM, BLUR, BRIGHTNESS, CONTRAST, GAMMA = range(6)
NOTHING = -1
_TRUNCATE = 4.0  # the Gaussian kernel ends at this many sigmas, as scipy's does
_TINY = 1e-8


class AugmentDraw(NamedTuple):
    """What happens to a slice; with a leading batch axis once collated."""

    angle: Tensor  # () float32, radians
    zoom: Tensor  # () float32, scale of the sampling grid: below 1 enlarges
    steps: Tensor  # (T,) int64, intensity transforms in order, NOTHING where none
    amounts: Tensor  # (T,) float32, sigma, factor or exponent of each step


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
    as_float = torch.float32
    return AugmentDraw(
        torch.tensor(angle, dtype=as_float),
        torch.tensor(zoom, dtype=as_float),
        torch.from_numpy(steps),
        torch.from_numpy(amounts),
    )


def augment(image: Tensor, label: Tensor | None, draw: AugmentDraw, config: AugmentConfig) -> None:
    """Apply drawn transforms to a batch, in place and on its device.

    Args:
        image: (B, 1, H, W) float32.
        label: (B, H, W) uint8 class indices, or None for unlabeled slices.
        draw: one entry a slice.
        config: what `draw` was drawn from.
    """
    _warp(image, label, draw.angle, draw.zoom)
    for step, amount in zip(draw.steps.unbind(1), draw.amounts.unbind(1), strict=True):
        for kind, transform in _TRANSFORMS.items():
            chosen = (step == kind).nonzero().flatten()
            if len(chosen):
                image[chosen] = transform(image[chosen], amount[chosen].view(-1, 1, 1, 1), config)


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


def _warp(image: Tensor, label: Tensor | None, angle: Tensor, zoom: Tensor) -> None:
    """Rotate about the centre and scale, zero outside, in place; cubic for the image, nearest for the label."""
    chosen = ((angle != 0) | (zoom != 1)).nonzero().flatten()
    if len(chosen) == 0:
        return
    grid = _grid(angle[chosen], zoom[chosen], image.shape[2], image.shape[3])
    image[chosen] = F.grid_sample(image[chosen], grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    if label is not None:
        part = label[chosen].unsqueeze(1).to(image.dtype)
        part = F.grid_sample(part, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        label[chosen] = part.squeeze(1).to(label.dtype)


def _grid(angle: Tensor, zoom: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, 2) source positions in units of half a side, rotated and scaled in pixels about the centre."""
    cos, sin = ((zoom * turn).view(-1, 1, 1) for turn in (angle.cos(), angle.sin()))
    rows = ((torch.arange(height, device=angle.device) + 0.5) - height / 2).view(1, -1, 1)
    columns = ((torch.arange(width, device=angle.device) + 0.5) - width / 2).view(1, 1, -1)
    grid = torch.empty(len(angle), height, width, 2, device=angle.device)
    torch.sub(cos * columns, sin * rows, out=grid[..., 0]).mul_(2 / width)
    torch.add(sin * columns, cos * rows, out=grid[..., 1]).mul_(2 / height)
    return grid


def _blur(image: Tensor, sigma: Tensor, config: AugmentConfig) -> Tensor:
    """Separable Gaussian with one sigma (B, 1, 1, 1) a slice; mirrored border."""
    batch, _, height, width = image.shape
    # One kernel size for all, that of the largest sigma of the preset: no value is read back from the device.
    radius = min(int(_TRUNCATE * config.blur_sigma[1] + 0.5), height - 1, width - 1)
    offset = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.view(-1, 1)).square())
    kernel = kernel / kernel.sum(1, keepdim=True)  # (B, 2 r + 1)
    padded = F.pad(image.transpose(0, 1), (radius, radius, radius, radius), mode="reflect")
    padded = padded.contiguous(memory_format=torch.channels_last)  # slices as channels: 3 x faster on a CPU
    padded = F.conv2d(padded, kernel.view(batch, 1, -1, 1), groups=batch)
    return F.conv2d(padded, kernel.view(batch, 1, 1, -1), groups=batch).transpose(0, 1)


def _brightness(image: Tensor, factor: Tensor, _: AugmentConfig) -> Tensor:
    return image * factor


def _contrast(image: Tensor, factor: Tensor, _: AugmentConfig) -> Tensor:
    """Stretch about the slice's mean, clipped to its former minimum and maximum."""
    low, high = image.amin((2, 3), True), image.amax((2, 3), True)
    mean = image.mean((2, 3), keepdim=True)
    return (image * factor).add_(mean - mean * factor).clamp_(low, high)


def _gamma(image: Tensor, exponent: Tensor, _: AugmentConfig) -> Tensor:
    """Power of the min-max-scaled slice; its mean and standard deviation are put back."""
    low, high = image.amin((2, 3), True), image.amax((2, 3), True)
    mean, deviation = _mean_and_deviation(image)
    # A power as exp(log) is four times faster here; log(0) ends as 0.
    curved = ((image - low) / (high - low).clamp_min(_TINY)).log_().mul_(exponent).exp_()
    new_mean, new_deviation = _mean_and_deviation(curved)
    return curved.sub_(new_mean).mul_(deviation / new_deviation.clamp_min(_TINY)).add_(mean)


def _mean_and_deviation(image: Tensor) -> tuple[Tensor, Tensor]:
    """Per slice, (B, 1, 1, 1) each; two plain passes are far faster than torch.std_mean on a CPU."""
    mean = image.mean((2, 3), keepdim=True)
    return mean, (image - mean).square_().mean((2, 3), keepdim=True).sqrt_()


_TRANSFORMS = {BLUR: _blur, BRIGHTNESS: _brightness, CONTRAST: _contrast, GAMMA: _gamma}
