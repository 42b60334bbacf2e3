"""Which cases of a folder a store has already, and which of them are its own.

A place is the folder that an image lies in, and a store remembers it as a short hash, since paths may name patients.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdm_cli.console import warn
from sdm_cli.data.cases import Case, some, source_signature
from sdm_cli.data.manifest import StoredCase
from sdm_cli.errors import StoreError
from sdm_cli.files import json_text


@dataclass(frozen=True)
class FinishedCase:
    """A whole case file, and what it was made from.

    Attributes:
        stored: what the manifest says of it.
        source: `source_signature` of its files, as JSON.
        place: of its image; none where the file does not tell.
    """

    stored: StoredCase
    source: str
    place: str | None

    def has_names_of(self, case: Case) -> bool:
        """Whether domain and patient are those of the case."""
        return (self.stored.domain, self.stored.patient) == (case.domain or None, case.patient or None)


def place_of(case: Case) -> str:
    """The folder of the image, the same whatever folder above it was given."""
    return hashlib.sha256(str(case.image_path.parent.resolve()).encode()).hexdigest()[:16]


def without_folders(message: str, folders: Iterable[Path | None]) -> str:
    """A message to keep: its paths begin below these folders, since those above may name patients."""
    for folder in folders:
        for name in (str(folder.absolute()), str(folder)) if folder is not None else ():
            message = re.sub(rf"(?<![^\s'\"(]){re.escape(name)}/", "", message)
    return message


def find_unfinished(
    store: Path, cases: Sequence[Case], finished: Mapping[str, FinishedCase], folder: Path
) -> tuple[list[Case], set[str]]:
    """Cases of a folder to make, and the ids of those whose file in the store is of something else, or damaged.

    Raises:
        StoreError: a case of the same name is of another folder, or had a label. A folder that was moved as a whole
            is no other: it is known by a case that is as it was.
    """
    waiting, new, other_files, other_names, foreign = [], [], [], [], []
    has_moved = False
    for case in cases:
        known, source = finished.get(case.case_id), _source_of(case)
        is_elsewhere = known is not None and known.place not in (None, place_of(case))
        if source is None:  # out of reach proves no change: what is stored stays, and making the case says why
            waiting.append(case)
        elif known is None:
            new.append(case)
        elif known.source != source:
            other_files.append(case)
            foreign += [case.case_id] if is_elsewhere else []
        else:
            has_moved = has_moved or is_elsewhere
            if not known.has_names_of(case):
                other_names.append(case)
    if foreign and not has_moved:
        raise StoreError(
            f"{store} holds other scans of the names {some(foreign)}, from another folder than {folder}: choose "
            "another store with -o, rename the scans, or start this store anew with --overwrite."
        )
    _refuse_lost_labels(store, cases, finished)
    for what, others in (("other files", other_files), ("another domain or patient", other_names)):
        if others:
            warn(f"{store} has {what} of {some([case.case_id for case in others])} than {folder}; made again")
    outdated = [*new, *other_files, *other_names]
    return [*waiting, *outdated], {case.case_id for case in outdated}


def refuse_other_data(store: Path, cases: Sequence[Case], finished: Mapping[str, FinishedCase], folder: Path) -> None:
    """Stop before a data set is added to another one, which only has a folder of the same name.

    Raises:
        StoreError: no case lies where a stored one lay, or is one that was stored.
    """
    places = {case.place for case in finished.values()}
    if not finished or None in places or any(place_of(case) in places for case in cases):
        return
    if all(case.case_id not in finished or finished[case.case_id].source != _source_of(case) for case in cases):
        raise StoreError(
            f"{store} was made from another folder than {folder}: choose another store with -o, or name this one with "
            "-o to add the scans to it."
        )


def _source_of(case: Case) -> str | None:
    """`source_signature` as JSON; none where a file is out of reach, or the case has a problem."""
    if case.problem is not None:
        return None
    try:
        return json_text(source_signature(case), indent=None)
    except OSError:
        return None


def _refuse_lost_labels(store: Path, cases: Sequence[Case], finished: Mapping[str, FinishedCase]) -> None:
    labeled = {case_id for case_id, case in finished.items() if case.stored.labeled}
    if lost := [case.case_id for case in cases if case.label_path is None and case.case_id in labeled]:
        raise StoreError(
            f"{store} has labels of {some(lost)}, which this folder comes without: give them again with --labels, or "
            "start the store anew with --overwrite."
        )
