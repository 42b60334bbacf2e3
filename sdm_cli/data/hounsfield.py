"""What is known of the numbers of CT: which scans have them, and the window of soft tissue."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sdm_cli.data.volume import Array

Modality = Literal["CT", "MR", "mixed"]

AIR_BELOW_HU = -500
"""No other modality than CT stores intensities like its air."""

SOFT_TISSUE_HU = (-160, 240)

_CT_WORDS = frozenset(("ct", "cta", "cbct", "cect", "ncct", "tomography"))
_MR_WORDS = frozenset(
    ("mr", "mri", "cmr", "lge", "cine", "t1", "t1w", "t1ce", "t1gd", "t2", "t2w", "flair", "dwi", "adc")
)
_AIR_SHARE = 0.001  # of the voxels: a few dark ones are artefacts
_CT_SHARE = 0.9  # of the scans: an MR scan in a CT window is lost, a CT scan between its percentiles is not


def has_air(voxels: Array) -> bool:
    """Whether a scan looks like CT."""
    return int(np.count_nonzero(voxels < AIR_BELOW_HU)) >= _AIR_SHARE * voxels.size


def modality_of(have_air: Sequence[bool]) -> tuple[Modality, str]:
    """What scans are by their intensities, each with or without the air of CT, and why; `MR` stands for the rest."""
    n_ct = sum(have_air)
    evidence = f"{n_ct} of {len(have_air)} scans read have voxels below {AIR_BELOW_HU}, as air has in CT alone"
    if n_ct >= _CT_SHARE * len(have_air):
        return "CT", evidence
    return "mixed" if n_ct else "MR", evidence


def contradicts(claim: str | None, modality: Modality) -> bool:
    """Whether scans that are called so are CT by their name alone, or by their intensities alone.

    A name that tells no modality (`noNorm`, `image`) claims nothing.
    """
    words = set(re.split(r"[^a-z0-9]+", (claim or "").lower()))
    if words & _CT_WORDS:
        return modality != "CT"
    return bool(words & _MR_WORDS) and modality == "CT"
