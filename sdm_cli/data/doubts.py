"""What a label shows to be wrong although it can be read, told by its voxels and the names of its classes."""

from collections.abc import Mapping

import numpy as np

from sdm_cli.data.cases import some
from sdm_cli.data.findings import sides
from sdm_cli.data.volume import Array, from_slices
from sdm_cli.data_config import IGNORE, DataConfig


def swapped_sides(voxels: Array, affine: Array, classes: Mapping[str, int]) -> list[str]:
    """Paired organs of a label whose right one lies left of the left one.

    Args:
        voxels: (x, y, z) label values or class indices, in the axis order of the file.
        affine: (4, 4), voxel index -> mm, RAS+: x grows to the patient's right.
        classes: class name -> its value in `voxels`.

    Returns:
        Names of the pairs without the side.
    """
    centre_mm = {value: _centre_x_mm(voxels, value, affine) for pair in sides(classes) for value in pair[:2]}
    return [name for right, left, name in sides(classes) if centre_mm[right] < centre_mm[left]]


def _centre_x_mm(voxels: Array, value: int, affine: Array) -> float:
    """NaN, which is neither left nor right of anything, where the value is absent."""
    indices = np.nonzero(voxels == value)
    if not len(indices[0]):
        return float("nan")
    return float(affine[0] @ [*(float(np.mean(axis)) for axis in indices), 1.0])


def label_doubt(label: Array, affine: Array, data: DataConfig) -> str:
    """What is wrong with a label as a store has it, to be followed by the cases; empty where nothing is.

    Args:
        label: (Z, H, W) class indices on the scan's own slices, 255 where ignored.
        affine: (4, 4), of the scan's file.
        data: classes and slice axis.
    """
    if IGNORE in label and not np.any((label > 0) & (label != IGNORE)):
        return f"nothing but {data.ignore_value}, which is left out of losses and scores, is labeled"
    indices = {name: index for index, name in enumerate(data.classes, start=1)}
    swapped = swapped_sides(from_slices(label, affine, data.slice_axis), affine, indices)
    return f"left and right look swapped ({some(swapped)})" if swapped else ""
