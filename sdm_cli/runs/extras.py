"""What `sdm predict` writes beside a mask when asked: the certainty of a model, as maps of the scan's own grid."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from sdm_cli import console
from sdm_cli.data.cases import Case, some
from sdm_cli.data.volume import write_volume
from sdm_cli.errors import OutputError
from sdm_cli.files import replacing
from sdm_cli.runs.cohort import Cohort
from sdm_cli.runs.model import Model, Prediction, Scan
from sdm_cli.runs.pseudo_labels import PseudoLabels
from sdm_cli.runs.ranking import Doubt, doubt_of
from sdm_cli.runs.request import Request, Wanted

ENTROPY, PROBABILITIES, RANKING = "entropy", "probabilities", "ranking.csv"
"""Folders and a file beside the masks."""


class Extras:
    """Makes and writes what is wanted of each case besides its mask."""

    def __init__(self, output: Path, wanted: Wanted, model: Model) -> None:
        self._output = output
        self._wanted = wanted
        self.pseudo_labels = None
        if wanted.pseudo is not None:
            facts = {"preset": model.preset.name, "weights_sha256": model.weights_sha256}
            self.pseudo_labels = PseudoLabels(wanted.pseudo, model.preset.data, facts)

    def require_free(self, case_ids: Sequence[str], overwrite: bool) -> None:
        """Raise OutputError if a file of these cases is there; pseudo-labels, which may be corrected, stay always."""
        paths = [path for case_id in case_ids for path in self._files(case_id)]
        paths += [self._output / RANKING] if self._wanted.rank else []
        if not overwrite and (existing := [path for path in paths if path.exists()]):
            raise OutputError(f"{existing[0]} exists: give another folder, or replace it with --overwrite.")
        if self.pseudo_labels is not None:
            self.pseudo_labels.require_own()
        collected = self.pseudo_labels.files if self.pseudo_labels else lambda _: []
        if existing := [path for case_id in case_ids for path in collected(case_id) if path.exists()]:
            raise OutputError(f"{existing[0]} exists, and may be corrected by now: give another folder to --pseudo.")

    def unwanted(self) -> list[Path]:
        """What an earlier run left beside the masks and this one does not make anew."""
        makes = {
            ENTROPY: self._wanted.uncertainty,
            PROBABILITIES: self._wanted.probabilities,
            RANKING: self._wanted.rank,
        }
        return [path for name, is_made in makes.items() if not is_made and (path := self._output / name).exists()]

    def segment(self, model: Model, scan: Scan, case_id: str) -> Prediction:
        """The network's work on a scan; probabilities go straight to their file, a slice at a time.

        Raises:
            OutputError: the file cannot be written.
            SdmError: as `Model.segment`.
        """
        maps = {"entropy": self._wanted.entropy, "confidence_map": self._wanted.confidence}
        if not self._wanted.probabilities:
            return model.segment(scan, **maps)
        shape = (1 + len(model.classes), *scan.geometry.shape)
        with replacing(self._probabilities(case_id)) as temporary:
            likelihood = open_memmap(temporary, "w+", np.float16, shape)
            _require_space(temporary)
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


def _require_space(path: Path) -> None:
    """Take the blocks of a mapped file: where the disk is full, writing to its pages would kill the process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def extras_of(request: Request, cohort: Cohort, model: Model) -> Extras:
    """What is to be made of the cases of a cohort besides masks.

    Raises:
        OutputError: pseudo-labels are wanted of a store, or where scans or masks are; a file is there.
    """
    if request.wanted.pseudo is not None:
        pseudo, source = request.wanted.pseudo.resolve(), request.source.resolve()
        if cohort.store is not None:
            raise OutputError(
                "--pseudo needs the scans, of which a store holds slices alone: give their folder with -i."
            )
        if pseudo in (source, request.output.resolve()) or source in pseudo.parents:
            raise OutputError(
                f"{request.wanted.pseudo} is where scans or masks are: give --pseudo a folder of its own."
            )
    extras = Extras(request.output, request.wanted, model)
    if request.existing == "replace" and (stale := extras.unwanted()):
        console.warn(
            f"{some([str(path) for path in stale])} of an earlier run stay as they are, and may be of another model"
        )
    extras.require_free([case.case_id for case in cohort.cases], request.existing == "replace")
    return extras
