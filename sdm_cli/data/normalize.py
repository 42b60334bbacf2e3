"""Intensities to [0, 1], quantised to 16 bits: the same numbers in the store and in prediction.

Knows arrays only; which rule applies is the preset's data.
"""

from typing import Any

import numpy as np

from sdm_cli.data_config import NormalizeConfig

Array = np.ndarray[Any, np.dtype[Any]]

_STEPS = 65535


def normalize_slices(slices: Array, config: NormalizeConfig) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Clip and scale intensities linearly to [0, 1], stored as uint16 / 65535.

    Args:
        slices: (Z, H, W), finite intensities of any real dtype.
        config: clip (window or percentiles) and the region whose range becomes [0, 1].

    Returns:
        (Z, H, W) uint16, rounded half to even. A region without contrast is 0.

    Source: method.md section 6.
    """
    normalized = np.empty(slices.shape, np.uint16)
    volume_range = None if config.scale == "slice" else _intensity_range(slices, config)
    for z, plane in enumerate(slices):
        low, high = volume_range or _intensity_range(plane, config)
        if high > low:
            # float64: exact for every integer dtype a scanner writes.
            fraction = (plane.astype(np.float64) - low) / (high - low)
            normalized[z] = np.rint(np.clip(fraction, 0.0, 1.0) * _STEPS)
        else:
            normalized[z] = 0
    return normalized


def _intensity_range(region: Array, config: NormalizeConfig) -> tuple[float, float]:
    """Intensities of `region` that become 0 and 1."""
    if config.scale == "window" and config.window_hu is not None:
        return config.window_hu
    if config.percentiles is not None:
        low, high = np.percentile(region, config.percentiles)
        return float(low), float(high)
    low, high = region.min(), region.max()
    if config.window_hu is not None:
        low, high = np.clip((low, high), *config.window_hu)
    return float(low), float(high)
