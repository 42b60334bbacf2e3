"""What scanners and viewers export, for prediction alone: NRRD and MetaImage files, and folders of DICOM series."""

from pathlib import Path

from sdm_cli.data.cases import Case
from sdm_cli.data.dicom import dicom_files
from sdm_cli.data.itk import is_itk

_LEVELS = 3  # patient/study/series


def find(folder: Path) -> list[Case]:
    """Cases of the NRRD and MetaImage files of a folder, and of the DICOM series in it or below.

    A series is called after its folder; where two folders have one name, all are called by their way from here
    (`p01_ct`).

    Raises:
        ImageReadError: a folder cannot be listed.
    """
    files = sorted(path for path in folder.iterdir() if is_itk(path) and not path.is_dir())
    series = _series_below(folder, _LEVELS)
    is_unique = len({place.name for place in series}) == len(series)
    return [
        *(Case(path.stem, path) for path in files),
        *(
            Case(place.name if is_unique or place == folder else "_".join(place.relative_to(folder).parts), place)
            for place in series
        ),
    ]


def _series_below(folder: Path, levels: int) -> list[Path]:
    if dicom_files(folder):
        return [folder]
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [found for path in below if levels for found in _series_below(path, levels - 1)]
