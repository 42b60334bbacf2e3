"""Distances between the surfaces of two masks, found once for HD95, ASD and NSD.

The surface of a mask is its voxels that have one of their six neighbours outside of it (those that a 6-neighbour
erosion removes, as in medpy); beyond the volume is outside. A distance is that between voxel centres.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

# Headers hold the spacing in single precision: three voxels of 0.4 mm lie within 1.2 mm.
_ROUNDING = 1e-6

Classes = NDArray[np.uint8]
Places = NDArray[np.float64]  # (N, 3) in the unit of the spacing


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


def surface_distances(
    prediction: Classes, reference: Classes, n_classes: int, spacing: tuple[float, float, float]
) -> dict[int, SurfaceDistances]:
    """Distances between the surfaces of each foreground class that both volumes have.

    The surfaces of all classes are found in one pass. They are thin, so a search tree of their voxels gives the
    distances of a class faster than a distance transform of its box, which would also hold 45 bytes a voxel.

    Args:
        prediction: (Z, H, W) class indices.
        reference: (Z, H, W) class indices.
        n_classes: K, with the background; values from K on are no class.
        spacing: of the three axes.
    """
    ours, theirs = _surface(prediction), _surface(reference)
    is_shared = (prediction == reference) & ours & theirs
    found = []
    for volume, surface in ((prediction, ours), (reference, theirs)):
        found.append((volume[surface], np.argwhere(surface), is_shared[surface]))
    distances = {}
    for index in range(1, n_classes):
        sides = [(places[values == index] * spacing, shared[values == index]) for values, places, shared in found]
        if all(len(places) for places, _ in sides):
            (predicted, on_theirs), (expected, on_ours) = sides
            distances[index] = SurfaceDistances(
                _to_nearest(predicted, on_theirs, expected), _to_nearest(expected, on_ours, predicted)
            )
    return distances


def _surface(volume: Classes) -> NDArray[np.bool_]:
    """(Z, H, W): where a foreground class has a neighbour of another value, or ends with the volume."""
    surface = np.zeros(volume.shape, np.bool_)
    for axis in range(volume.ndim):
        along, edge = np.moveaxis(volume, axis, 0), np.moveaxis(surface, axis, 0)  # views
        differs = along[1:] != along[:-1]
        edge[1:] |= differs
        edge[:-1] |= differs
        edge[[0, -1]] = True
    surface &= volume > 0
    return surface


def _to_nearest(places: Places, is_shared: NDArray[np.bool_], others: Places) -> NDArray[np.float64]:
    """(N,): from each of the places to the nearest of the others, among which are those that are shared."""
    distances = np.zeros(len(places))
    if not is_shared.all():
        tree = KDTree(others, compact_nodes=False, balanced_tree=False)
        distances[~is_shared] = tree.query(places[~is_shared])[0]
    return distances
