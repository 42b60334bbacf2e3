"""Where the structures of a label lie, and what that shows to be wrong beside the names of the classes."""

from collections.abc import Iterable, Mapping

import numpy as np

from sdm_cli.data.contents import LARGEST_CLASS
from sdm_cli.data.volume import Array


def centres_x_mm(voxels: Array, affine: Array) -> dict[int, float]:
    """Label value -> mean x of its voxels in mm, for each value from 1 to `LARGEST_CLASS` that is there.

    Args:
        voxels: (x, y, z) label values or class indices, whole numbers in the axis order of the file.
        affine: (4, 4), voxel index -> mm, RAS+: x grows to the patient's right.
    """
    walked = int(np.argmax(np.abs(voxels.strides)))  # each plane lies together in memory
    first, second = (affine[0, axis] * np.arange(voxels.shape[axis]) for axis in range(3) if axis != walked)
    in_plane_mm = first[:, None] + second + affine[0, 3]
    n_voxels, sum_mm = np.zeros(LARGEST_CLASS + 1), np.zeros(LARGEST_CLASS + 1)
    for step, plane in enumerate(np.moveaxis(voxels, walked, 0)):
        is_inside = (plane > 0) & (plane <= LARGEST_CLASS)
        values = np.rint(plane[is_inside], dtype=np.float64).astype(np.intp)
        counts = np.bincount(values)
        n_voxels[: len(counts)] += counts
        sum_mm[: len(counts)] += np.bincount(values, in_plane_mm[is_inside]) + counts * (affine[0, walked] * step)
    return {value: float(sum_mm[value] / n_voxels[value]) for value in np.flatnonzero(n_voxels).tolist()}


def swapped_sides(centre_mm: Mapping[int, float], pairs: Iterable[tuple[int, int, str]]) -> list[str]:
    """Names of the paired organs whose right one lies left of the left one.

    Args:
        centre_mm: label value -> mean x, of `centres_x_mm`; a value that is absent is on no side.
        pairs: values of the right and of the left one, and their name, as `findings.sides` tells them.
    """
    nowhere = float("nan")
    return [name for right, left, name in pairs if centre_mm.get(right, nowhere) < centre_mm.get(left, nowhere)]
