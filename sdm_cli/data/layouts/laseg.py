"""The left-atrium set (2018) in both of its forms, a folder for each scan.

The challenge's: `<id>/lgemri.nrrd` with `laendo.nrrd`. The community's: `<id>/mri_norm2.h5`, cropped and z-scored.
"""

from pathlib import Path

from sdm_cli.data.cases import Case
from sdm_cli.data.hdf5 import DAMAGES, has_dataset, open_h5
from sdm_cli.data.layouts.search import files_below

_H5, _IMAGE, _LABEL = "mri_norm2.h5", "lgemri.nrrd", "laendo.nrrd"
_LEVELS = 3


def find(folder: Path) -> list[Case]:
    """Cases of `<id>/...`, in the folder itself or below (`Training Set/<id>/...`).

    Where both forms of a scan lie side by side, as the community's script leaves them, the case is the community's.
    """
    found = {path.parent for name in (_H5, _IMAGE, _LABEL) for path in files_below(folder, name, _LEVELS)}
    return [case_of_file(scan / (_H5 if (scan / _H5).exists() else _IMAGE)) for scan in sorted(found)]


def is_volume(path: Path) -> bool:
    """Whether the name says HDF5 or NRRD."""
    return path.suffix in (".h5", ".nrrd")


def case_of_file(path: Path) -> Case:
    """The case of an HDF5 or NRRD file, named by its folder where the file has the usual name."""
    case_id = path.absolute().parent.name if path.name in (_H5, _IMAGE) else path.stem
    if path.suffix == ".nrrd":
        label = path.with_name(_LABEL)
        return Case(case_id, path, label if path.name == _IMAGE and label.exists() else None)
    try:
        with open_h5(path) as file:
            has_label = has_dataset(file, "label")
    except DAMAGES:
        has_label = True  # reading the case says what is wrong with the file
    return Case(case_id, path, path if has_label else None)
