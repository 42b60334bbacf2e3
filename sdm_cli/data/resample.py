"""A mask on another voxel grid, by nearest neighbours."""

import numpy as np

from sdm_cli.data.volume import Array, Geometry


def to_grid(mask: Array, own: Geometry, wanted: Geometry) -> Array:
    """Take a mask to another grid: each voxel there has the value of the nearest one here.

    Args:
        mask: (X, Y, Z) of whole numbers.
        own: the grid of the mask.
        wanted: the other grid.

    Returns:
        The mask in the shape of `wanted`; 0 (background) where that lies outside of the mask's own grid.
    """
    to_own = np.linalg.inv(own.affine) @ wanted.affine
    x, y, z = wanted.shape
    resampled = np.zeros(wanted.shape, mask.dtype)
    rows, columns = np.arange(x)[:, None], np.arange(y)[None, :]
    for k in range(z):  # one slice at a time: places of all voxels would be twelve times the mask
        is_inside = np.ones((x, y), np.bool_)
        places = []
        for i, size in enumerate(mask.shape):
            place = np.rint(to_own[i, 0] * rows + to_own[i, 1] * columns + to_own[i, 2] * k + to_own[i, 3])
            is_inside &= (place >= 0) & (place < size)
            places.append(place)
        resampled[is_inside, k] = mask[tuple(place[is_inside].astype(np.intp) for place in places)]
    return resampled
