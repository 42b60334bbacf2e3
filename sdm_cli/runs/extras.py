"""What `sdm predict` writes beside a mask when asked: the certainty of a model, as maps of the scan's own grid."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from sdm_cli.data.cases import Case
from sdm_cli.data.volume import write_volume
from sdm_cli.errors import OutputError
from sdm_cli.files import replacing
from sdm_cli.runs.model import Model, Prediction, Scan
from sdm_cli.runs.pseudo_labels import PseudoLabels

ENTROPY, PROBABILITIES = "entropy", "probabilities"
"""Folders beside the masks."""


@dataclass(frozen=True)
class Extras:
    """What is wanted of each case besides its mask.

    Attributes:
        output: folder of the masks.
        uncertainty: `entropy/<case>.nii.gz`, float32: 0 is certain, 1 knows nothing.
        probabilities: `probabilities/<case>.npy`, (K, x, y, z) float16, the background first.
        pseudo_labels: where these are collected, to be corrected.
        rank: the entropy is needed to rank cases.
    """

    output: Path
    uncertainty: bool = False
    probabilities: bool = False
    pseudo_labels: PseudoLabels | None = None
    rank: bool = False

    def files(self, case_id: str) -> list[Path]:
        """What `segment` and `write` make of a case."""
        paths = [self._entropy(case_id)] if self.uncertainty else []
        paths += [self._probabilities(case_id)] if self.probabilities else []
        return paths + (self.pseudo_labels.files(case_id) if self.pseudo_labels else [])

    def segment(self, model: Model, scan: Scan, case_id: str) -> Prediction:
        """The network's work on a scan; probabilities go straight to their file, a slice at a time.

        Raises:
            OutputError: the file cannot be written.
            SdmError: as `Model.segment`.
        """
        entropy = self.uncertainty or self.rank
        confidence_map = self.pseudo_labels is not None or self.rank
        if not self.probabilities:
            return model.segment(scan, entropy=entropy, confidence_map=confidence_map)
        shape = (1 + len(model.classes), *scan.geometry.shape)
        with replacing(self._probabilities(case_id)) as temporary:
            likelihood = open_memmap(temporary, "w+", np.float16, shape)
            found = model.segment(scan, entropy=entropy, confidence_map=confidence_map, probabilities=likelihood)
            likelihood.flush()
        return found

    def write(self, found: Prediction, case: Case, overwrite: bool) -> None:
        """Write the other files of a case; raises OutputError."""
        if self.uncertainty and found.entropy is not None:
            write_volume(self._entropy(case.case_id), found.entropy, found.geometry, overwrite)
        if self.pseudo_labels is not None:
            self.pseudo_labels.add(found, case, overwrite)

    def require_free(self, case_ids: list[str]) -> None:
        """Raise OutputError if a file of these cases is there."""
        existing = [path for case_id in case_ids for path in self.files(case_id) if path.exists()]
        if existing:
            raise OutputError(f"{existing[0]} exists: give another folder, or replace it with --overwrite.")

    def _entropy(self, case_id: str) -> Path:
        return self.output / ENTROPY / f"{case_id}.nii.gz"

    def _probabilities(self, case_id: str) -> Path:
        return self.output / PROBABILITIES / f"{case_id}.npy"
