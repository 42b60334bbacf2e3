"""The file of one case in a store: where it lies, and opening it.

A store may come from a stranger: a case file that is a link out of the store, that refers to other files, or that does
not hold the slices of its manifest is refused; for training also one of another domain or patient.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py

from sdm_cli.data.hdf5 import DAMAGES, has_dataset, open_h5, own_dataset
from sdm_cli.data.manifest import StoredCase, require_own
from sdm_cli.errors import ImageReadError, StoreError, reason_of

_DATASETS = ("image", "label", "reference")


@dataclass(frozen=True)
class OpenCase:
    """A case's file and what it holds: looking a dataset up by name costs as much as reading a slice."""

    file: h5py.File
    datasets: dict[str, h5py.Dataset]


def case_path(store: Path, case_id: str) -> Path:
    """File of a case in a store."""
    return store / "cases" / f"{case_id}.h5"


def open_case(store: Path, case: StoredCase) -> OpenCase:
    """Open the file of a case that the manifest names; StoreError where it is missing, damaged, or of another case."""
    path = case_path(store, case.case_id)
    file = open_file(path)
    try:
        names = [name for name in _DATASETS if has_dataset(file, name)]
        datasets = {name: own_dataset(file, path, name) for name in names}
        if datasets["image"].shape != (case.n_slices, case.height, case.width):
            raise ValueError("its slices are not those of the manifest")
        return OpenCase(file, datasets)
    except (ImageReadError, *DAMAGES) as error:
        file.close()
        raise damaged(path, error) from error


def open_file(path: Path) -> h5py.File:
    """Open a case file as it is; StoreError where it is missing, damaged, or no file of its store."""
    require_own(path, path.parent.parent)
    try:
        # Finished files never change, so no lock is needed (and read-only disks work). A slice is a whole chunk: the
        # cache of chunks would only copy it once more.
        return open_h5(path, rdcc_nbytes=0)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: run sdm preprocess again, which makes the missing cases.") from None
    except DAMAGES as error:
        raise damaged(path, error) from error


def require_names(file: h5py.File, path: Path, case: StoredCase) -> None:
    """Raise StoreError where the manifest gives a case another domain or patient than its file has."""
    try:
        own = [str(file.attrs[name]) or None for name in ("domain", "patient")]
    except DAMAGES as error:
        raise damaged(path, error) from error
    if own != [case.domain, case.patient]:
        raise StoreError(
            f"{path.parent.parent / 'manifest.json'} gives {case.case_id} another domain or patient than {path} has: "
            "run sdm preprocess again, which makes the index anew from the files."
        )


def damaged(path: Path, error: Exception) -> StoreError:
    """What to say of a damaged case file."""
    return StoreError(
        f"{path} is damaged ({reason_of(error)}): delete it and run sdm preprocess again, which makes it anew."
    )
