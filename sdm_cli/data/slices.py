"""From a scan to the slices that the network sees: the same way for a store and for prediction."""

from typing import Any

import numpy as np

from sdm_cli.data.cases import Case
from sdm_cli.data.grid import SliceGrid, plan_grid
from sdm_cli.data.limits import by
from sdm_cli.data.normalize import normalize_slices
from sdm_cli.data.volume import Volume, slice_spacing_mm, to_slices
from sdm_cli.data_config import DataConfig, NormalizeConfig, domain_among
from sdm_cli.errors import ImageReadError

Array = np.ndarray[Any, np.dtype[Any]]

_SANE_SIDES = (16, 4096)
"""Pixels a side that resampling may lead to: half a stride of the encoder; eight times the largest published side."""


def make_slices(case: Case, volume: Volume, data: DataConfig, label: Array | None = None) -> tuple[Array, SliceGrid]:
    """Normalised slices (Z, H, W) uint16 of a scan, and their grid.

    Args:
        case: whose scan it is; its domain may have a normalisation of its own.
        volume: the scan.
        data: settings of the preset.
        label: (Z, H, W) class indices on the scan's slices, for the grids that need one.

    Raises:
        ImageReadError: the preset normalises by domain, and that of this scan is not known; or its voxel size makes
            resampling absurd.
    """
    affine = volume.geometry.affine
    slices = to_slices(volume.voxels, affine, data.slice_axis)
    rule = _rule(data, case)
    spacing_mm = slice_spacing_mm(affine, data.slice_axis)
    _require_sane_sides(case, slices.shape[1:], spacing_mm[1:], data)
    grid = plan_grid(data.grid, slices, spacing_mm, label)
    return normalize_slices(grid.image(slices), rule), grid


def _require_sane_sides(case: Case, size: tuple[int, ...], pixel_mm: tuple[float, ...], data: DataConfig) -> None:
    """Raise ImageReadError where resampling to a spacing would take slices (H, W) beyond `_SANE_SIDES`."""
    wanted_mm = data.grid.spacing_mm
    if wanted_mm is None:
        return
    smallest, largest = _SANE_SIDES
    became = [max(1, round(n * own / wanted)) for n, own, wanted in zip(size, pixel_mm, wanted_mm, strict=True)]
    if any(new < smallest <= old or old <= largest < new for old, new in zip(size, became, strict=True)):
        raise ImageReadError(
            f"{case.image_path} has slices of {by(size)} pixels of {by(f'{mm:.4g}' for mm in pixel_mm)} mm, which "
            f"would become {by(became)} on a grid of {by(f'{mm:.4g}' for mm in wanted_mm)} mm: correct the voxel size "
            "in its header, or data.grid.spacing_mm of the preset."
        )


def _rule(data: DataConfig, case: Case) -> NormalizeConfig:
    if not data.normalize_by_domain:
        return data.normalize
    name = domain_among(case.domain, data.normalize_by_domain)
    if name is None:
        raise ImageReadError(
            f"{case.image_path} is of {'no known domain' if case.domain is None else f'domain {case.domain}'}, and the "
            f"intensities of {' and '.join(data.normalize_by_domain)} are scaled differently: say which it is, with "
            "--domain when predicting, with --domains FILE.csv when preprocessing."
        )
    return data.normalize_by_domain[name]
