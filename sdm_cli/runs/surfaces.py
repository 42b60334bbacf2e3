"""Distances between the surfaces of two masks, found once for HD95, ASD and NSD.

The surface of a mask is its voxels that have one of their six neighbours outside of it (those that a 6-neighbour
erosion removes, as in medpy); beyond the volume is outside. A distance is that between voxel centres.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

# Headers hold the spacing in single precision: three voxels of 0.4 mm lie within 1.2 mm.
_ROUNDING = 1e-6

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SurfaceDistances:
    """How far two surfaces lie apart, in the unit of the spacing.

    Attributes:
        to_reference: (P,) of each surface voxel of the prediction to the nearest one of the reference.
        to_prediction: (R,) the other way.
    """

    to_reference: NDArray[np.float64]
    to_prediction: NDArray[np.float64]

    @property
    def hd95(self) -> float:
        """95th percentile of both directions pooled."""
        return float(np.percentile(np.concatenate((self.to_reference, self.to_prediction)), 95))

    @property
    def asd(self) -> float:
        """Mean from the prediction to the reference, directed."""
        return float(self.to_reference.mean())

    def nsd(self, tolerance: float) -> float:
        """Surface Dice: the share of both surfaces that lies within the tolerance of the other one, 0 to 1.

        Source: Nikolov et al., arXiv 1809.04430. Departure: there each piece of surface counts by its area, here each
        surface voxel counts one, so that the surface is that of HD95 and ASD.
        """
        sides = (self.to_reference, self.to_prediction)
        n_within = sum(int(np.count_nonzero(side <= tolerance * (1 + _ROUNDING))) for side in sides)
        return n_within / sum(len(side) for side in sides)


def surface_distances(predicted: Mask, expected: Mask, spacing: tuple[float, float, float]) -> SurfaceDistances:
    """Distances between the surfaces of two masks, neither of them empty.

    Surfaces are thin, so a search tree of their voxels finds the distances six times faster than a distance transform
    of the volume (masks of an organ; see benchmarks/README.md), which would also hold 45 bytes a voxel.

    Args:
        predicted: (Z, H, W), cut to the joint box of both masks or larger: the distances are the same.
        expected: (Z, H, W).
        spacing: of the three axes.
    """
    ours, theirs = _surface(predicted), _surface(expected)
    return SurfaceDistances(_to_nearest(ours, theirs, spacing), _to_nearest(theirs, ours, spacing))


def _surface(mask: Mask) -> Mask:
    surface: Mask = mask & ~ndimage.binary_erosion(mask)
    return surface


def _to_nearest(surface: Mask, other: Mask, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    distances = np.zeros(np.count_nonzero(surface))
    is_apart = ~other[surface]
    if is_apart.any():
        tree = KDTree(np.argwhere(other) * spacing, compact_nodes=False, balanced_tree=False)
        distances[is_apart] = tree.query(np.argwhere(surface)[is_apart] * spacing)[0]
    return distances
