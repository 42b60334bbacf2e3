"""The largest part of a structure: what a network sees of it elsewhere is no second heart. Knows arrays only."""

from typing import Any

import numpy as np
from scipy import ndimage

Array = np.ndarray[Any, np.dtype[Any]]

_CONNECTED = np.ones((3, 3, 3), bool)  # over faces, edges and corners


def keep_largest_part(mask: Array, index: int, spacing_mm: tuple[float, float, float], bridge_mm: float) -> None:
    """Make all of a class background that is not its largest part, in place.

    Parts that hang together by a bridge of at most `bridge_mm` are two: what is deeper than half of it is the core of a
    part. Of the part with the largest core all is kept that lies within `bridge_mm` of the core, corners included.

    Args:
        mask: (Z, H, W) class indices.
        index: of the class.
        spacing_mm: (z, h, w).
        bridge_mm: 0 tells apart only what does not touch.
    """
    boxes = ndimage.find_objects((mask == index).view(np.uint8))
    if not boxes:
        return
    inside = mask[boxes[0]]
    region = np.pad(inside == index, 1)
    core = _deeper_than(bridge_mm / 2, region, spacing_mm)
    if not core.any():  # nowhere thicker than a bridge
        core = region
    largest = _largest(core)
    lost = region & _deeper_than(bridge_mm, ~largest, spacing_mm)
    inside[lost[1:-1, 1:-1, 1:-1]] = 0


def _largest(region: Array) -> Array:
    """The largest of the parts of a region (Z, H, W) that do not touch; the first of several."""
    parts, n_parts = ndimage.label(region, _CONNECTED)
    sizes = np.zeros(n_parts + 1, np.int64)
    for plane in parts:  # numpy counts in copies of 8 bytes a voxel
        sizes += np.bincount(plane.ravel(), minlength=n_parts + 1)
    largest: Array = parts == 1 + np.argmax(sizes[1:])
    return largest


def _deeper_than(depth_mm: float, region: Array, spacing_mm: tuple[float, float, float]) -> Array:
    """Which voxels of a region (Z, H, W) lie further than `depth_mm` from all that is outside.

    Makes the distances of one slice after another: scipy's own of all at once take 45 bytes a voxel, the places of the
    nearest voxels outside, which it makes first, 12.
    """
    nearest = ndimage.distance_transform_edt(region, spacing_mm, return_distances=False, return_indices=True)
    rows, columns = np.indices(region.shape[1:], sparse=True)
    deeper = np.empty_like(region)
    for z in range(len(region)):
        steps = (nearest[0, z] - z, nearest[1, z] - rows, nearest[2, z] - columns)
        z_mm, h_mm, w_mm = (step * size_mm for step, size_mm in zip(steps, spacing_mm, strict=True))
        deeper[z] = np.sqrt(z_mm * z_mm + h_mm * h_mm + w_mm * w_mm) > depth_mm
    return deeper
