"""Split files: our own form as text, and the lists of others read into case ids.

Read are nnU-Net's `splits_final.json`, lists of one case (or slice) a line such as SSL4MIS has, and lists of slice
pairs (image and label). Knows names only; what a role is, `splits` knows.
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdm_cli.data.manifest import StoredCase
from sdm_cli.data.splits import ROLES, Split
from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import SplitError, reason_of

_SUFFIXES = r"\.(?:nii\.gz|nii|h5|nrrd|npy|npz|png|jpg|jpeg|tif|tiff)"
_SUFFIX = re.compile(f"{_SUFFIXES}$", re.IGNORECASE)
_FIRST_PATH = re.compile(rf".+?{_SUFFIXES}(?=[\s,]|$)", re.IGNORECASE)
_SLICE = re.compile(r"[_-]?slice[_-]?\d+$", re.IGNORECASE)
_NUMBER = re.compile(r"_\d+$")
_BTCV = re.compile(r"^(?:img|label)(?=\d{4}$)")
_FRAME = re.compile(r"_(?:frame|sa_)\d+$")


@dataclass(frozen=True)
class ImportedIds:
    """Ids of one role, as a file of others lists them.

    Attributes:
        ids: of cases or patients, each once, in the order of the file.
        n_collapsed: how many entries are a slice, a frame or a repetition of what stands in `ids`.
        unknown: ids that the store holds neither as a case nor as a patient.
    """

    ids: tuple[str, ...]
    n_collapsed: int
    unknown: tuple[str, ...]


def format_split(split: Split, source: str, comment: str = "") -> str:
    """A split as YAML that `load_split` reads, all ids in quotes (a bare 0021 would be the number 17)."""
    lines = [f"# {line}" for line in textwrap.wrap(comment, 100)]
    lines.append(yaml.safe_dump({"source": source}, width=110, allow_unicode=True).rstrip())
    for role in ROLES:
        quoted = ["'" + case_id.replace("'", "''") + "'" for case_id in getattr(split, role)]
        if quoted:
            lines += _wrapped(f"{role}: [", quoted)
    return "\n".join(lines) + "\n"


def _wrapped(start: str, words: list[str]) -> list[str]:
    """A list in brackets; unlike `textwrap`, it leaves blanks within a word alone."""
    lines = [start + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > 110:
            lines[-1] += ","
            lines.append(f"  {word}")
        else:
            lines[-1] += f", {word}"
    lines[-1] += "]"
    return lines


def read_nnunet_splits(file: Path, fold: int) -> dict[str, list[str]]:
    """The entries of one fold of `splits_final.json`: `train` as labeled, `val` as validation.

    Raises:
        SplitError: not the JSON of nnU-Net, or without that fold.
    """
    try:
        folds = parse_json(_text(file))
    except ValueError as error:
        raise SplitError(
            f"{file}: not valid JSON ({reason_of(error)}): give the splits_final.json of nnU-Net."
        ) from None
    if not isinstance(folds, list) or not all(_is_fold(entry) for entry in folds):
        raise SplitError(f"{file}: nnU-Net's splits are a list of folds, each with the lists train and val.")
    if not 0 <= fold < len(folds):
        raise SplitError(f"{file} has {len(folds)} folds, 0 to {len(folds) - 1}: choose one with --fold.")
    return {"labeled": folds[fold]["train"], "validation": folds[fold]["val"]}


def read_list(file: Path) -> list[str]:
    """The entries of a text file, one a line; of two paths (image and label of a slice) the first.

    Raises:
        SplitError: the file cannot be read, or lists nothing.
    """
    entries = []
    for line in _text(file).splitlines():
        path = _FIRST_PATH.match(line.strip())  # may hold blanks
        words = [path[0]] if path else line.replace(",", " ").split()
        entries += words[:1]
    if not entries:
        raise SplitError(f"{file} lists no case: leave the file out, or fill it with one case a line.")
    return entries


def import_ids(entries: list[str], cases: Mapping[str, StoredCase] | None) -> ImportedIds:
    """Ids of the entries of a list: ids, file names, paths, or slices of a case.

    Folder and suffix are no part of an id, and neither is `_slice_12`; a slice that is named by a number alone is of
    the case that its folder names. What the store does not know is tried without a number at its end (a slice, or
    nnU-Net's `_0000`), as the folder, as the patient of a frame, since others number frames anew, and without the `img`
    or `label` that BTCV's files begin with.

    Args:
        entries: as the file lists them.
        cases: of the store; none: nothing can be looked up.
    """
    known = set(cases or ()) | _patients(cases)
    ids: dict[str, None] = {}
    unknown: dict[str, None] = {}
    n_collapsed = 0
    for entry in entries:
        folder, stem = _parts(entry)
        case_id = _SLICE.sub("", stem)
        if not case_id or (_SUFFIX.search(entry) and case_id.isdigit() and len(case_id) < 4):
            case_id = folder or stem
        if cases is not None and case_id not in known:
            shorter = (_NUMBER.sub("", case_id), folder, _FRAME.sub("", case_id), _BTCV.sub("", case_id))
            found = next((candidate for candidate in (stem, *shorter) if candidate in known), None)
            unknown |= {} if found else {case_id: None}
            case_id = found or case_id
        names = {stem, _BTCV.sub("", stem)}  # of the case itself, not of a slice
        n_collapsed += case_id in ids or names.isdisjoint((case_id, f"{case_id}_0000"))
        ids[case_id] = None
    if cases is not None:  # of one patient a frame may be known by its name, the other not
        ids = {id_: None for id_ in ids if id_ not in cases or cases[id_].patient not in ids}
    return ImportedIds(tuple(ids), n_collapsed, tuple(unknown))


def patient_of(case_id: str) -> str:
    """The patient that an id of ACDC (`patient001_frame01`) or M&Ms (`A0S9V9_sa_0`) names; else the id itself."""
    return _FRAME.sub("", case_id)


def _patients(cases: Mapping[str, StoredCase] | None) -> set[str]:
    return {case.patient for case in (cases or {}).values() if case.patient}


def _parts(entry: str) -> tuple[str, str]:
    """Name of the folder, and name of the file without its suffix."""
    parts = entry.replace("\\", "/").rstrip("/").split("/")
    return parts[-2] if len(parts) > 1 else "", _SUFFIX.sub("", parts[-1])


def _is_fold(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), list) and all(isinstance(case_id, str) for case_id in entry[key])
        for key in ("train", "val")
    )


def _text(file: Path) -> str:
    try:
        return read_text(file, "utf-8-sig")
    except (OSError, ValueError) as error:
        raise SplitError(f"{file}: cannot be read as a list of cases ({reason_of(error)}).") from None
