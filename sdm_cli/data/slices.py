"""From a scan to the slices that the network sees: the same way for a store and for prediction."""

from typing import Any

import numpy as np

from sdm_cli.data.grid import SliceGrid, plan_grid
from sdm_cli.data.normalize import normalize_slices
from sdm_cli.data.volume import Volume, slice_spacing_mm, to_slices
from sdm_cli.data_config import DataConfig, NormalizeConfig
from sdm_cli.errors import ImageReadError

Array = np.ndarray[Any, np.dtype[Any]]


def make_slices(
    volume: Volume, data: DataConfig, domain: str | None, label: Array | None = None
) -> tuple[Array, SliceGrid]:
    """Normalised slices (Z, H, W) uint16 of a scan, and their grid.

    Args:
        volume: the scan.
        data: settings of the preset.
        domain: of the scan, which may have a normalisation of its own.
        label: (Z, H, W) class indices on the scan's slices, for the grids that need one.

    Raises:
        ImageReadError: the preset normalises by domain, and that of this scan is not known.
    """
    affine = volume.geometry.affine
    slices = to_slices(volume.voxels, affine, data.slice_axis)
    rule = _rule(data, domain)
    grid = plan_grid(data.grid, slices, slice_spacing_mm(affine, data.slice_axis), label)
    return normalize_slices(grid.image(slices), rule), grid


def _rule(data: DataConfig, domain: str | None) -> NormalizeConfig:
    if not data.normalize_by_domain:
        return data.normalize
    rules = {name.lower(): rule for name, rule in data.normalize_by_domain.items()}
    if domain is None or domain.lower() not in rules:
        raise ImageReadError(
            f"The intensities of {' and '.join(data.normalize_by_domain)} are scaled differently, and this scan is of "
            f"{'no known domain' if domain is None else f'domain {domain}'}: say which it is, with --domain when "
            "predicting, with --domains FILE.csv when preprocessing."
        )
    return rules[domain.lower()]
