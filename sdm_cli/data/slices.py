"""From a scan to the slices that the network sees: the same way for a store and for prediction."""

from typing import Any

import numpy as np

from sdm_cli.data.cases import Case
from sdm_cli.data.grid import SliceGrid, plan_grid
from sdm_cli.data.limits import by
from sdm_cli.data.normalize import normalize_slices
from sdm_cli.data.pixels import cannot_become
from sdm_cli.data.volume import Volume, slice_spacing_mm, to_slices
from sdm_cli.data_config import DataConfig, NormalizeConfig, domain_among
from sdm_cli.errors import ImageReadError

Array = np.ndarray[Any, np.dtype[Any]]


def make_slices(case: Case, volume: Volume, data: DataConfig, label: Array | None = None) -> tuple[Array, SliceGrid]:
    """Normalised slices (Z, H, W) uint16 of a scan, and their grid.

    Args:
        case: whose scan it is; its domain may have a normalisation of its own.
        volume: the scan.
        data: settings of the preset.
        label: (Z, H, W) class indices on the scan's slices, for the grids that need one.

    Raises:
        ImageReadError: the preset normalises by domain, and that of this scan is not known; or its pixels cannot
            become those of the preset.
    """
    affine = volume.geometry.affine
    slices = to_slices(volume.voxels, affine, data.slice_axis)
    rule = _rule(data, case)
    spacing_mm = slice_spacing_mm(affine, data.slice_axis)
    _require_true_pixels(case, spacing_mm[1:], data.grid.spacing_mm)
    grid = plan_grid(data.grid, slices, spacing_mm, label)
    return normalize_slices(grid.image(slices), rule), grid


def _require_true_pixels(case: Case, pixel_mm: tuple[float, ...], wanted_mm: tuple[float, float] | None) -> None:
    """Raise ImageReadError where the header or the preset must be wrong about the pixels."""
    if wanted_mm is not None and cannot_become(pixel_mm, wanted_mm):
        has, wants = (by(f"{mm:.4g}" for mm in size) for size in (pixel_mm, wanted_mm))
        raise ImageReadError(
            f"{case.image_path} has pixels of {has} mm, and those of data.grid.spacing_mm are {wants} mm: correct the "
            "voxel size in its header, or the preset."
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
