"""Looking for files below a folder; knows no layout."""

from collections.abc import Callable
from pathlib import Path

from sdm_cli.data.cases import is_nifti
from sdm_cli.data.itk import is_itk
from sdm_cli.errors import ImageReadError


def nifti_files(folder: Path) -> list[Path]:
    """NIfTI files of a folder by name; empty where there is no such folder.

    Raises:
        ImageReadError: the folder cannot be listed.
    """
    return _files(folder, is_nifti)


def volume_files(folder: Path) -> list[Path]:
    """NIfTI, NRRD and MetaImage files of a folder by name; as `nifti_files`."""
    return _files(folder, lambda path: is_nifti(path) or is_itk(path))


def _files(folder: Path, is_wanted: Callable[[Path], bool]) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        # A broken link is listed too, so that reading it names it.
        return sorted(path for path in folder.iterdir() if is_wanted(path) and not path.is_dir())
    except OSError as error:
        raise ImageReadError(f"{folder} cannot be listed ({error.strerror}): check its permissions.") from None


def nifti_named(folder: Path, stem: str) -> Path | None:
    """The NIfTI file of that name in a folder, if there is one."""
    return next(iter(_named(folder, stem)), None)


def named_twice(folder: Path, *stems: str) -> str | None:
    """What is wrong where one of these files is there with and without .gz: a problem of its case."""
    for stem in stems:
        if len(found := _named(folder, stem)) > 1:
            return f"{found[0]} and {found[1].name} are the same file twice: remove one."
    return None


def files_below(folder: Path, pattern: str, levels: int) -> list[Path]:
    """Files (and folders) of a name pattern in the folder and in its subfolders down to so many levels."""
    return sorted(path for level in range(levels + 1) for path in folder.glob("*/" * level + pattern))


def _named(folder: Path, stem: str) -> list[Path]:
    return [path for suffix in (".nii.gz", ".nii") if _is_there(path := folder / f"{stem}{suffix}")]


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
