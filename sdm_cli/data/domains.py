"""Which scanner, vendor or modality a case is of, when its folder does not tell: words of the user's.

They stand in `dataset.json` under `sdm` (`domains` and `patients`, each case id -> name; `slice_axis`), or in a table,
which has the last word.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sdm_cli.data.cases import Case, nifti_stem, some
from sdm_cli.data.classes import read_dataset_json
from sdm_cli.data.layouts.search import nifti_files
from sdm_cli.data.volume import SliceAxis
from sdm_cli.documents import read_text
from sdm_cli.errors import ImageReadError, reason_of

_OWN_KEYS = ("domains", "patients", "slice_axis")
_WORDS = "domains, patients and slice_axis"


@dataclass(frozen=True)
class OwnKeys:
    """What `dataset.json` says under `sdm`.

    Attributes:
        domains: case id -> scanner, vendor or modality.
        patients: case id -> whose scan it is.
        slice_axis: plane of the slices, where no preset says it.
    """

    domains: Mapping[str, str]
    patients: Mapping[str, str]
    slice_axis: SliceAxis | None


def read_own_keys(folder: Path) -> OwnKeys:
    """The own keys in the `dataset.json` of a folder; empty where there are none, or no such file.

    Raises:
        ImageReadError: the file cannot be read, has other keys under `sdm` (but for those that `sdm predict --pseudo`
            leaves there), or other values.
    """
    path = folder / "dataset.json"
    tree = read_dataset_json(folder).get("sdm", {})
    if not isinstance(tree, dict):
        raise ImageReadError(f"{path} has no mapping under sdm: the keys there are {_WORDS}.")
    if "pseudo_labels" not in tree and (unknown := sorted(tree.keys() - set(_OWN_KEYS))):
        raise ImageReadError(f"{path} has the key {some(unknown)} under sdm: the keys there are {_WORDS}.")
    axis = tree.get("slice_axis")
    if axis is not None and axis not in get_args(SliceAxis):
        *others, last = get_args(SliceAxis)
        raise ImageReadError(f"{path}: sdm.slice_axis is {axis!r}: give {', '.join(others)} or {last}.")
    return OwnKeys(_names(tree, "domains", path), _names(tree, "patients", path), axis)


def name_cases(cases: Sequence[Case], folder: Path) -> list[Case]:
    """The cases with the domains and patients that the `dataset.json` of their folder gives them.

    Raises:
        ImageReadError: as `read_own_keys`, or it names a case that is not there.
    """
    own = read_own_keys(folder)
    ids = {case.case_id for case in cases}
    tests = {nifti_stem(path).removesuffix("_0000") for path in nifti_files(folder / "imagesTs")}  # no case of training
    for key, names in (("domains", own.domains), ("patients", own.patients)):
        if unknown := sorted(names.keys() - ids - tests):
            raise ImageReadError(
                f"{folder / 'dataset.json'}: sdm.{key} names {some(unknown)}, which the folder does not hold: correct "
                "the ids."
            )
    return [
        dataclasses.replace(
            case,
            domain=own.domains.get(case.case_id, case.domain),
            patient=own.patients.get(case.case_id, case.patient),
        )
        for case in cases
    ]


def assign_domains(cases: Sequence[Case], table: Path) -> list[Case]:
    """The cases with the domains (and patients) of a CSV with the columns `case,domain[,patient]`.

    Raises:
        ImageReadError: the table cannot be read, lacks a column or a case, or names one that is not there.
    """
    try:
        text = read_text(table, "utf-8-sig")
        first = text.partition("\n")[0]
        # Excel writes semicolons where the comma is the decimal sign.
        reader = csv.DictReader(io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ",")
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise ImageReadError(
            f"{table} cannot be read as CSV ({reason_of(error)}): write it as case,domain lines."
        ) from None
    if not {"case", "domain"} <= set(columns):
        raise ImageReadError(f"{table} has the columns {some(columns)}: the first line must be case,domain.")
    row_of = {(row["case"] or "").removesuffix(".gz").removesuffix(".nii"): row for row in rows}
    if len(row_of) < len(rows):
        twice = next(row["case"] for row in rows if all(row is not kept for kept in row_of.values()))
        raise ImageReadError(f"{table} names case {twice} twice: keep one line.")
    ids = {case.case_id for case in cases}
    if lacking := sorted(ids - row_of.keys()):
        raise ImageReadError(f"{table} has no line of {some(lacking)}: add the domain of each case.")
    if unknown := sorted(row_of.keys() - ids):
        raise ImageReadError(f"{table} names {some(unknown)}, which the folder does not hold: correct the ids.")
    return [
        dataclasses.replace(
            case,
            domain=(row_of[case.case_id]["domain"] or "").strip() or None,
            patient=(row_of[case.case_id].get("patient") or "").strip() or case.patient,
        )
        for case in cases
    ]


def _names(tree: Mapping[str, Any], key: str, path: Path) -> dict[str, str]:
    names = tree.get(key, {})
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise ImageReadError(f'{path}: sdm.{key} is not case ids with a text each: write it as {{"case1": "name"}}.')
    return {case_id: name.strip() for case_id, name in names.items()}
