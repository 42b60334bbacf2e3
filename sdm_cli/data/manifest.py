"""The manifest of a slice store: its format, its settings, and the index of its cases.

The index can be made again from the case files at any time (`sdm_cli.data.store.index_cases`), which
`sdm preprocess` does when the manifest is damaged.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from sdm_cli.data_config import DataConfig
from sdm_cli.documents import lies_in, parse_json, read_text
from sdm_cli.errors import PresetError, StoreError, reason_of
from sdm_cli.fields import is_plain_name
from sdm_cli.files import json_text, write_json
from sdm_cli.preset_files import data_config_from_dict, data_config_to_dict, differing

FORMAT = "sdm-store"
_WITHOUT_VOXELS = ("dataset", "layout", "split", "labeled_domains", "unlabeled_domains", "unseen_domains")
VERSION = 2


_Size = Annotated[int, Field(gt=0, lt=2**31)]
_Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class StoredCase:
    """What the manifest says of a case.

    Attributes:
        case_id: name of the case.
        n_slices: Z.
        height: H in pixels.
        width: W in pixels.
        spacing_mm: (z, h, w), between slices, along rows and along columns.
        labeled: whether the file holds a label; a split may still call the case unlabeled.
        domain: scanner, vendor or modality, where known.
        patient: whose scan it is, where several cases may be of one patient.
        digest: of image and label as stored.
        image_digest: the same for the same scan, with or without a label; empty where it is not known.
        is_empty: whether there is a label, without a voxel of a class.
        centres_x_mm: class index, or 255 for what is ignored -> mean x (RAS) of its voxels in the label, for those that
            are there; stores of before have none.
    """

    case_id: str
    n_slices: _Size
    height: _Size
    width: _Size
    spacing_mm: tuple[_Length, _Length, _Length]
    labeled: bool
    domain: str | None = None
    patient: str | None = None
    digest: str = ""
    image_digest: str = ""
    is_empty: bool = False
    centres_x_mm: dict[int, _Finite] = field(default_factory=dict)


_STORED_CASE = TypeAdapter(StoredCase)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        data: settings that the cases were made with.
        cases: case id -> what is stored, sorted by id.
        complete: false while cases are still being made.
        failed: case id -> why the scan is not stored.
    """

    data: DataConfig
    cases: dict[str, StoredCase]
    complete: bool
    failed: dict[str, str] = field(default_factory=dict)


class DamagedManifest(StoreError):
    """The manifest is to be made anew from the case files."""


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Write the manifest of a store; raises OutputError when that is not possible."""
    entries = {case_id: dataclasses.asdict(case) for case_id, case in manifest.cases.items()}
    for entry in entries.values():
        del entry["case_id"]
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "complete": manifest.complete,
        "data": data_config_to_dict(manifest.data),
        "failed": manifest.failed,
        "cases": entries,
    }
    write_json(store / "manifest.json", tree)


def require_own(path: Path, store: Path) -> None:
    """Raise StoreError for a link that leads out of a store, which may come from a stranger."""
    if not lies_in(path, store):
        raise StoreError(f"{path} is a link that leads out of the store: put a copy in its place.")


def read_manifest(store: Path) -> Manifest:
    """Read and check the manifest of a store.

    Raises:
        DamagedManifest: it is there, but cannot be used.
        StoreError: there is no store, or the program of another version wrote it.
    """
    file = store / "manifest.json"
    for path in (file, store / "cases"):
        require_own(path, store)
    try:
        tree = parse_json(read_text(file))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{store} is no slice store: make one with sdm preprocess -i FOLDER -o {store}.") from None
    except OSError as error:
        raise StoreError(f"{file} cannot be read ({error.strerror}): check its permissions and its disk.") from None
    except ValueError as error:
        raise _damaged(file, error) from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise StoreError(f"{file} is not the manifest of a slice store: choose another folder.")
    version = tree.get("version")
    if isinstance(version, int) and version > VERSION:
        raise StoreError(
            f"{store} was written by a newer sdm (store version {version}, this program reads {VERSION}): update sdm."
        )
    if isinstance(version, int) and version < VERSION:
        raise StoreError(
            f"{store} was written by an older sdm (store version {version}, this program reads {VERSION}): make it "
            "anew with sdm preprocess --overwrite."
        )
    try:
        if version != VERSION:
            raise ValueError(f"version {version!r}")
        cases = {case_id: _stored_case(case_id, entry) for case_id, entry in tree["cases"].items()}
        failed = {str(case_id): str(reason) for case_id, reason in tree.get("failed", {}).items()}
        return Manifest(data_config_from_dict(tree["data"], "data"), cases, bool(tree["complete"]), failed)
    except (PresetError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> "DamagedManifest":
    return DamagedManifest(
        f"{file} is damaged ({reason_of(error)}): run the command that made the store again (sdm preprocess, without "
        "--overwrite), which makes it anew from the finished cases."
    )


def is_store(folder: Path) -> bool:
    """Whether `folder` is a slice store of any version, finished, unfinished or damaged.

    Raises:
        StoreError: the system does not let us look.
    """
    try:
        text = read_text(folder / "manifest.json", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{folder} cannot be looked into ({reason_of(error)}): check its name and its permissions."
        ) from None
    return FORMAT in text or (not _is_json(text) and any((folder / "cases").glob("*.h5")))


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def settings_text(data: DataConfig) -> str:
    """The settings that change voxels or labels, as one line that two equal settings share."""
    return json_text(_voxel_settings(data), indent=None)


def settings_differences(stored: DataConfig, wanted: DataConfig) -> str:
    """Settings that change voxels or labels and differ, as a phrase; empty when there are none."""
    settings = differing(_voxel_settings(stored), _voxel_settings(wanted))
    return ", ".join(f"{key} is {there} there, {here} here" for key, there, here in settings)


def _voxel_settings(data: DataConfig) -> dict[str, Any]:
    """The settings without those that change no voxel: names, and who may be trained on."""
    tree = data_config_to_dict(data)
    # Class order is class indices, which equality of dicts would not see; a name changes no voxel.
    tree["classes"] = list(tree["classes"].values())
    return {key: value for key, value in tree.items() if key not in _WITHOUT_VOXELS}


def _stored_case(case_id: str, entry: Mapping[str, Any]) -> StoredCase:
    if not is_plain_name(case_id):  # it becomes the name of a file
        raise ValueError(f"{case_id!r} is no name of a case")
    try:
        return _STORED_CASE.validate_python({**entry, "case_id": case_id})
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"{case_id}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
