"""What `sdm predict` writes beside a mask when asked: the certainty of a model, as maps of the scan's own grid."""

from collections.abc import Sequence
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
from sdm_cli.runs.ranking import Doubt, doubt_of

ENTROPY, PROBABILITIES, RANKING = "entropy", "probabilities", "ranking.csv"
"""Folders and a file beside the masks."""


@dataclass(frozen=True)
class Wanted:
    """What a user asks for besides masks.

    Attributes:
        uncertainty: `entropy/<case>.nii.gz`, float32: 0 is certain, 1 knows nothing.
        probabilities: `probabilities/<case>.npy`, (K, x, y, z) float16, the background first.
        pseudo: folder of pseudo-labels to be corrected.
        rank: `ranking.csv`, which case to label next.
    """

    uncertainty: bool = False
    probabilities: bool = False
    pseudo: Path | None = None
    rank: bool = False


class Extras:
    """Makes and writes what is wanted of each case besides its mask."""

    def __init__(self, output: Path, wanted: Wanted, model: Model) -> None:
        self._output = output
        self._wanted = wanted
        self.pseudo_labels = None
        if wanted.pseudo is not None:
            facts = {"preset": model.preset.name, "weights_sha256": model.weights_sha256}
            self.pseudo_labels = PseudoLabels(wanted.pseudo, model.preset.data, facts)

    @property
    def how_to_go_on(self) -> str:
        """After a stop."""
        if self._wanted.pseudo is not None:
            return "give --pseudo another folder, and the same command with --overwrite starts over"
        if self._wanted != Wanted():
            return "the same command with --overwrite starts over"
        return "the same command with --skip-existing goes on with the others"

    def require_free(self, case_ids: Sequence[str], overwrite: bool) -> None:
        """Raise OutputError if a file of these cases is there; pseudo-labels, which may be corrected, stay always."""
        paths = [path for case_id in case_ids for path in self._files(case_id)]
        paths += [self._output / RANKING] if self._wanted.rank else []
        if not overwrite and (existing := [path for path in paths if path.exists()]):
            raise OutputError(f"{existing[0]} exists: give another folder, or replace it with --overwrite.")
        collected = self.pseudo_labels.files if self.pseudo_labels else lambda _: []
        if existing := [path for case_id in case_ids for path in collected(case_id) if path.exists()]:
            raise OutputError(f"{existing[0]} exists, and may be corrected by now: give another folder to --pseudo.")

    def segment(self, model: Model, scan: Scan, case_id: str) -> Prediction:
        """The network's work on a scan; probabilities go straight to their file, a slice at a time.

        Raises:
            OutputError: the file cannot be written.
            SdmError: as `Model.segment`.
        """
        wanted = self._wanted
        maps = {
            "entropy": wanted.uncertainty or wanted.rank,
            "confidence_map": wanted.pseudo is not None or wanted.rank,
        }
        if not wanted.probabilities:
            return model.segment(scan, **maps)
        shape = (1 + len(model.classes), *scan.geometry.shape)
        with replacing(self._probabilities(case_id)) as temporary:
            likelihood = open_memmap(temporary, "w+", np.float16, shape)
            found = model.segment(scan, **maps, probabilities=likelihood)
            likelihood.flush()
        return found

    def write(self, found: Prediction, case: Case, overwrite: bool) -> Doubt | None:
        """Write the other files of a case; how doubtful it is, if cases are ranked. Raises OutputError."""
        if self._wanted.uncertainty and found.entropy is not None:
            write_volume(self._entropy(case.case_id), found.entropy, found.geometry, overwrite)
        if self.pseudo_labels is not None:
            self.pseudo_labels.add(found, case)
        return doubt_of(case.case_id, found) if self._wanted.rank else None

    def _files(self, case_id: str) -> list[Path]:
        paths = [self._entropy(case_id)] if self._wanted.uncertainty else []
        return paths + ([self._probabilities(case_id)] if self._wanted.probabilities else [])

    def _entropy(self, case_id: str) -> Path:
        return self._output / ENTROPY / f"{case_id}.nii.gz"

    def _probabilities(self, case_id: str) -> Path:
        return self._output / PROBABILITIES / f"{case_id}.npy"
