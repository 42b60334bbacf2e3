"""What is asked of one prediction, as a value: the scans, the model, where masks go, and what is written besides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdm_cli.runs.roles import Role

Format = Literal["nifti", "input"]
Existing = Literal["refuse", "keep", "replace"]


@dataclass(frozen=True)
class Part:
    """Which share of a cohort: of so many parts the one of this index, from 0."""

    index: int = 0
    count: int = 1


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

    @property
    def entropy(self) -> bool:
        """Whether the entropy of each voxel is needed."""
        return self.uncertainty or self.rank

    @property
    def confidence(self) -> bool:
        """Whether the probability of each voxel's class is needed."""
        return self.pseudo is not None or self.rank

    @property
    def option_to_go_on(self) -> str:
        """After a stop; what is wanted besides masks would lack the cases that `--skip-existing` keeps."""
        return "--skip-existing" if self == Wanted() else "--overwrite"

    @property
    def how_to_go_on(self) -> str:
        """After a stop, or when failed cases are repaired."""
        if self == Wanted():
            return f"the same command with {self.option_to_go_on} goes on with the others"
        another = " and another folder for --pseudo" if self.pseudo else ""
        return f"the same command with {self.option_to_go_on}{another} starts over"


@dataclass(frozen=True)
class Request:
    """One prediction.

    Attributes:
        source: a scan, a folder of scans in any layout, a store, or `-`: see `find_cohort`.
        output: folder of the masks, `<case_id>.nii.gz`; made if missing.
        model: one, or several whose probabilities are averaged: see `load_model`.
        device: see `resolve_device`.
        existing: masks that are there are an error, kept, or replaced if a journal in `output` names them.
        domain: of all scans, where the preset normalises by domain and their folder does not tell.
        form: of the masks: NIfTI, or that of the scan where it is NRRD or MetaImage.
        part: predict these cases alone.
        role: predict these cases of a store alone.
        tta: average over mirrored slices, where the preset allows it.
        wanted: what is written besides the masks.
    """

    source: Path
    output: Path
    model: Path | Sequence[Path]
    device: str | None = None
    existing: Existing = "refuse"
    domain: str | None = None
    form: Format = "nifti"
    part: Part = Part()
    role: Role | None = None
    tta: bool = False
    wanted: Wanted = Wanted()

    @property
    def models(self) -> list[Path]:
        """The models, also if it is one."""
        return [self.model] if isinstance(self.model, Path) else list(self.model)
