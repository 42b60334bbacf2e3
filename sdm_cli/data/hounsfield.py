"""What is known of the numbers of CT: which scans have them, and the window of soft tissue."""

import numpy as np

from sdm_cli.data.volume import Array

AIR_BELOW_HU = -500
"""No other modality than CT stores intensities like its air."""

SOFT_TISSUE_HU = (-160, 240)

_AIR_SHARE = 0.001  # of the voxels: a few dark ones are artefacts


def has_air(voxels: Array) -> bool:
    """Whether a scan looks like CT."""
    return int(np.count_nonzero(voxels < AIR_BELOW_HU)) >= _AIR_SHARE * voxels.size
