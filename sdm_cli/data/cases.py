"""A case: one scan, the unit of splits and scores, and the files it comes from.

Knows names and paths only; no voxel is read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        case_id: name of the scan in splits, stores and reports.
        image_path: file of the intensities.
        label_path: file of the ground truth; none for an unlabeled scan. A file that holds both
            (`mri_norm2.h5`) stands in both fields.
        domain: scanner, vendor or modality, where known.
        patient: whose scan it is, where several cases may be of one patient.
        frame: of a 4D image, 0-based; none: what the preset says.
        problem: why the case cannot be read, where its folder shows it already.
    """

    case_id: str
    image_path: Path
    label_path: Path | None = None
    domain: str | None = None
    patient: str | None = None
    frame: int | None = None
    problem: str | None = None


def is_nifti(path: Path) -> bool:
    """Whether the name says NIfTI; hidden files (and the `._` files of macOS) do not count."""
    return path.name.lower().endswith(_SUFFIXES) and not path.name.startswith(".")


def nifti_stem(path: Path) -> str:
    """File name without `.nii.gz` or `.nii`; other dots belong to the name."""
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)]


def stores_spacing(path: Path) -> bool:
    """Whether files of this format say how large a voxel is; HDF5 files do not."""
    return path.suffix != ".h5"


def source_signature(case: Case) -> list[list[str | int]]:
    """Name, bytes and modification time (ns) of each file of the case; JSON types.

    Raises:
        OSError: a file of the case is not there.
    """
    paths = [case.image_path] if case.label_path is None else [case.image_path, case.label_path]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def same_case(case_id: str, first: Path, second: Path) -> str:
    """What is wrong where two files claim to be one case."""
    return f"{first} and {second} are both case {case_id}: rename or remove one."


def counted(number: int, noun: str) -> str:
    """How many there are of something: 1 scan, 2 scans, 2 processes."""
    plural = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def what_was_found(folder: Path, cases: Sequence[Case]) -> str:
    """How many scans a folder holds, as a sentence."""
    n_labeled = sum(case.label_path is not None for case in cases)
    return f"{counted(len(cases), 'scan')} in {folder}, {n_labeled} with a label."


def some(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
