"""The left-atrium set in the community's form: `<id>/mri_norm2.h5`, cropped and z-scored."""

from pathlib import Path

import h5py

from sdm_cli.data.cases import Case

_FILE = "mri_norm2.h5"


def find(folder: Path) -> list[Case]:
    """Cases of `<id>/mri_norm2.h5`, in the folder itself or one below."""
    return [case_of_file(path) for path in sorted([*folder.glob(f"*/{_FILE}"), *folder.glob(f"*/*/{_FILE}")])]


def is_volume(path: Path) -> bool:
    """Whether the name says HDF5."""
    return path.suffix == ".h5"


def case_of_file(path: Path) -> Case:
    """The case of an HDF5 file, named by its folder where the file has the usual name."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            has_label = "label" in file
    except OSError:
        has_label = True  # reading the case says what is wrong with the file
    return Case(path.parent.name if path.name == _FILE else path.stem, path, path if has_label else None)
