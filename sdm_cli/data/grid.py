"""The grid of the slices that the network sees, and the way from a scan's own grid to it and back.

A grid is a box of the scan and the number of pixels that the box becomes. Knows arrays only.
Source: method.md section 6, datasets.md (M&Ms, MMWHS).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from sdm_cli.data_config import IGNORE, GridConfig
from sdm_cli.documents import parse_json
from sdm_cli.files import json_text

Array = np.ndarray[Any, np.dtype[Any]]
Size = tuple[int, int, int]


@dataclass(frozen=True)
class SliceGrid:
    """From the slices of a scan (Z, H, W) to those of the network.

    Attributes:
        scan: size of the scan's own slices.
        box: first and last index (exclusive) along Z, H and W of what is kept.
        size: what the box becomes.
    """

    scan: Size
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    size: Size

    @property
    def is_identity(self) -> bool:
        """Whether the network sees the scan's own slices."""
        return self.box == tuple((0, length) for length in self.scan) and self.size == self.scan

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The box as an index."""
        z, h, w = (slice(first, last) for first, last in self.box)
        return z, h, w

    @property
    def box_size(self) -> Size:
        """Size of the box."""
        z, h, w = (last - first for first, last in self.box)
        return z, h, w

    def spacing_mm(self, scan_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """Spacing (Z, H, W) on the grid, from that of the scan."""
        z, h, w = (mm * n / m for mm, n, m in zip(scan_mm, self.box_size, self.size, strict=True))
        return z, h, w

    def image(self, slices: Array) -> Array:
        """(Z, H, W) intensities of the scan on the grid: cubic in plane, linear between slices; float32.

        Where slices become fewer, each is the mean of those it covers, by the share covered.
        """
        if self.is_identity:
            return slices
        cropped = slices[self.window]
        stacked = np.empty(self.size, np.float32)
        planes: dict[int, Array] = {}
        for z, shares in enumerate(self._shares()):
            planes = {n: planes[n] if n in planes else _resized(cropped[n], self.size[1:]) for n in shares}
            stacked[z] = sum(planes[n] * share for n, share in shares.items())
        return stacked

    def label(self, slices: Array) -> Array:
        """(Z, H, W) class indices of the scan on the grid: the nearest value."""
        index = np.ix_(*(_nearest(n, m) for n, m in zip(self.box_size, self.size, strict=True)))
        nearest: Array = slices[self.window][index]
        return nearest

    def to_json(self) -> str:
        """As a store holds it."""
        return json_text(asdict(self), indent=None)

    def _shares(self) -> Iterator[dict[int, float]]:
        """For each slice of the grid: slices of the box -> their shares in it, which add up to 1."""
        n_box = self.box_size[0]
        thickness = n_box / self.size[0]  # of a slice of the grid, in slices of the box
        for centre in _centres(self.size[0], n_box):
            if thickness > 1:
                first, last = centre + 0.5 - thickness / 2, centre + 0.5 + thickness / 2  # edges
                covered = range(math.floor(first), min(n_box, math.ceil(last)))
                yield {n: (min(n + 1, last) - max(n, first)) / thickness for n in covered}
            else:
                nearest = min(max(centre, 0.0), n_box - 1.0)
                low = math.floor(nearest)
                yield (
                    {low: 1 - (nearest - low), min(low + 1, n_box - 1): nearest - low} if low < nearest else {low: 1.0}
                )

    def weights(self, axis: int) -> tuple[Array, Array, Array]:
        """For each index of the box along an axis: the two of the grid it lies between, and the share of the second.

        The way back from the grid: linear between the centres of its voxels.
        """
        n_grid = self.size[axis]
        position = _centres(self.box_size[axis], n_grid).clip(0, n_grid - 1)
        low = np.floor(position).astype(int)
        return low, np.minimum(low + 1, n_grid - 1), position - low


def whole_grid(shape: tuple[int, ...]) -> SliceGrid:
    """The own grid of slices (Z, H, W)."""
    n, height, width = shape
    return SliceGrid((n, height, width), ((0, n), (0, height), (0, width)), (n, height, width))


def grid_from_json(text: str) -> SliceGrid:
    """Undo `SliceGrid.to_json`; ValueError, KeyError or TypeError for another text."""
    tree = parse_json(text)
    scan, size = ((int(z), int(h), int(w)) for z, h, w in (tree["scan"], tree["size"]))
    z, h, w = ((int(first), int(last)) for first, last in tree["box"])
    return SliceGrid(scan, (z, h, w), size)


def plan_grid(
    config: GridConfig, slices: Array, spacing_mm: tuple[float, float, float], label: Array | None
) -> SliceGrid:
    """The grid of one scan.

    Args:
        config: crop and size.
        slices: (Z, H, W) intensities.
        spacing_mm: (Z, H, W) of the scan.
        label: (Z, H, W) class indices, for `crop: label`; a scan without one gets the box of its body.
    """
    z, h, w = slices.shape
    box = _box(config, slices, label)
    sides = [last - first for first, last in box]
    size = (sides[0], sides[1], sides[2])
    if config.size is not None:
        size = config.size
    elif config.short_side is not None:
        scale = config.short_side / min(sides[1:])
        size = (sides[0], round(sides[1] * scale), round(sides[2] * scale))
    elif config.spacing_mm is not None:
        scales = [own / wanted for own, wanted in zip(spacing_mm[1:], config.spacing_mm, strict=True)]
        height, width = sides[1] * scales[0], sides[2] * scales[1]
        size = (sides[0], max(1, round(height)), max(1, round(width)))
    return SliceGrid((z, h, w), box, size)


def _box(
    config: GridConfig, slices: Array, label: Array | None
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    whole = [(0, length) for length in slices.shape]
    if config.crop == "centre":
        kept = [max(1, round(length * config.centre_fraction)) for length in slices.shape[1:]]
        whole[1:] = [
            ((length - side) // 2, (length - side) // 2 + side)
            for length, side in zip(slices.shape[1:], kept, strict=True)
        ]
    elif config.crop != "none":
        inside = None if label is None or config.crop == "body" else (label > 0) & (label != IGNORE)
        if inside is None or not inside.any():
            inside = _body(slices)
        for axis, length in enumerate(slices.shape):
            others = tuple(other for other in range(3) if other != axis)
            occupied = np.flatnonzero(inside.any(axis=others))
            if len(occupied):
                first, last = int(occupied[0]) - config.margin, int(occupied[-1]) + 1 + config.margin
                whole[axis] = (max(0, first), min(length, last))
    z, h, w = whole
    return z, h, w


def _body(slices: Array) -> Array:
    """What is brighter than halfway between the dark and the bright of a scan (percentiles 1 and 99)."""
    low, high = np.percentile(slices, (1, 99))
    body: Array = slices > (low + high) / 2 if high > low else np.ones(slices.shape, bool)
    # Speckles of noise around the body, and the table, are no part of its box. In plane, where a scan has many
    # pixels: across a few thick slices an opening would take all of them.
    opened = ndimage.binary_opening(body, np.ones((1, 3, 3), bool), iterations=2)
    return opened if opened.any() else body


def _resized(plane: Array, size: tuple[int, ...]) -> Array:
    """(H, W) to another size, by cubic splines between pixel centres; smoothed first where pixels grow."""
    plane = plane.astype(np.float32)
    if plane.shape == size:
        return plane
    factors = [n / m for n, m in zip(plane.shape, size, strict=True)]
    smooth = ndimage.gaussian_filter(plane, [max(0.0, (factor - 1) / 2) for factor in factors])
    low, high = plane.min(), plane.max()
    resized = ndimage.zoom(smooth, [1 / factor for factor in factors], order=3, mode="nearest", grid_mode=True)
    clipped: Array = resized.clip(low, high)
    return clipped


def _centres(n: int, m: int) -> Array:
    """Where the centres of n pixels lie among the m pixels of the same side."""
    centres: Array = (np.arange(n) + 0.5) * m / n - 0.5
    return centres


def _nearest(n: int, m: int) -> Array:
    """Of each of m pixels, the nearest of the n pixels of the same side."""
    nearest: Array = np.floor((np.arange(m) + 0.5) * n / m).astype(int)
    return nearest
