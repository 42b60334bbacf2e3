"""Looking for files below a folder; knows no layout."""

from pathlib import Path

from sdm_cli.data.cases import is_nifti
from sdm_cli.errors import ImageReadError


def nifti_files(folder: Path) -> list[Path]:
    """NIfTI files of a folder by name; empty where there is no such folder.

    Raises:
        ImageReadError: the folder cannot be listed.
    """
    if not folder.is_dir():
        return []
    try:
        # A broken link is listed too, so that reading it names it.
        return sorted(path for path in folder.iterdir() if is_nifti(path) and not path.is_dir())
    except OSError as error:
        raise ImageReadError(f"{folder} cannot be listed ({error.strerror}): check its permissions.") from None


def nifti_named(folder: Path, stem: str) -> Path | None:
    """The NIfTI file of that name in a folder, if there is one.

    Raises:
        ImageReadError: it is there with and without .gz.
    """
    found = [path for suffix in (".nii.gz", ".nii") if _is_there(path := folder / f"{stem}{suffix}")]
    if len(found) > 1:
        raise ImageReadError(f"{found[0]} and {found[1].name} are the same file twice: remove one.")
    return found[0] if found else None


def files_below(folder: Path, pattern: str, levels: int) -> list[Path]:
    """Files (and folders) of a name pattern in the folder and in its subfolders down to so many levels."""
    return sorted(path for level in range(levels + 1) for path in folder.glob("*/" * level + pattern))


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
