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
    boxes = ndimage.find_objects((mask == index).astype(np.uint8))
    if not boxes:
        return
    inside = mask[boxes[0]]
    region = np.pad(inside == index, 1)
    core = ndimage.distance_transform_edt(region, spacing_mm) > bridge_mm / 2
    if not core.any():  # nowhere thicker than a bridge
        core = region
    parts, _ = ndimage.label(core, _CONNECTED)
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    lost = region & (ndimage.distance_transform_edt(~largest, spacing_mm) > bridge_mm)
    inside[lost[1:-1, 1:-1, 1:-1]] = 0
