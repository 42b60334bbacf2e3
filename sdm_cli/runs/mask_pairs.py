"""Masks on disk and the labels that they are scored against: matched by name, read on one grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdm_cli.console import warn
from sdm_cli.data.cases import Case
from sdm_cli.data.domains import assign_domains
from sdm_cli.data.layouts.folders import masks_by_id
from sdm_cli.data.readers import (
    is_same_grid,
    label_values,
    n_values_of_scan,
    read_geometry,
    read_label,
    read_label_file,
)
from sdm_cli.data.resample import to_grid
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError
from sdm_cli.runs.workers import in_processes

_MAX_CLASSES = 254


class Pair(NamedTuple):
    """What is compared: class indices of one shape, with the voxel size along its axes."""

    case_id: str
    prediction: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    domain: str | None = None
    files: Mapping[str, str | bool | None] | None = None


class PairFiles(NamedTuple):
    """Where a pair lies on disk; no mask: scored as an empty one."""

    case_id: str
    mask: Path | None
    label: Path
    domain: str | None


class Matched(NamedTuple):
    """Masks on disk and their labels.

    Attributes:
        pairs: one a label, in the order of the ids.
        missing: ids of the labels without a mask.
        unscored: ids of the masks without a label.
    """

    pairs: list[PairFiles]
    missing: list[str]
    unscored: list[str]


def match_masks(predictions: Path, labels: Path, domains: Path | None) -> Matched:
    """Masks and labels of the same names, with a warning of those that stand alone.

    Args:
        predictions: folder of masks.
        labels: folder of labels, or of subfolders with labels.
        domains: CSV of the columns `case,domain`; none: a subfolder is a domain.

    Raises:
        ImageReadError: a folder or the CSV cannot be read, a folder holds scans, or no names match.
    """
    mask_of = masks_by_id(predictions, "masks")
    label_of = masks_by_id(labels, "labels", prefixed=mask_of)
    _require_masks(predictions, mask_of)
    _require_masks(labels, label_of)
    missing, unscored = _unmatched(predictions, labels, mask_of, label_of)
    domain_of = _domains_of(labels, label_of, domains)
    pairs = [PairFiles(case_id, mask_of.get(case_id), label, domain_of[case_id]) for case_id, label in label_of.items()]
    return Matched(pairs, missing, unscored)


def _require_masks(folder: Path, file_of: Mapping[str, Path]) -> None:
    """Raise ImageReadError for a folder of scans, as far as its first file tells."""
    case_id, path = next(iter(file_of.items()))
    try:
        n_values = n_values_of_scan(read_label_file(Case(case_id, path, path), DataConfig()).voxels)
    except ImageReadError:  # its case says why when it is scored
        return
    if n_values:
        raise ImageReadError(
            f"{folder} holds scans, not masks ({path.name} has {n_values} different values, most beside others): "
            "check which folders --predictions and --labels name."
        )


def _domains_of(labels: Path, label_of: Mapping[str, Path], table: Path | None) -> dict[str, str | None]:
    """Domain of each label: of the table, else the subfolder of `labels` that it lies in."""
    cases = [
        Case(case_id, path, domain=path.parent.name if path.parent != labels else None)
        for case_id, path in label_of.items()
    ]
    return {case.case_id: case.domain for case in (cases if table is None else assign_domains(cases, table))}


def _unmatched(
    predictions: Path, labels: Path, mask_of: Mapping[str, Path], label_of: Mapping[str, Path]
) -> tuple[list[str], list[str]]:
    """Labels without a mask and masks without a label, with a warning; ImageReadError when no names match."""
    missing = [case_id for case_id in label_of if case_id not in mask_of]
    unscored = [case_id for case_id in mask_of if case_id not in label_of]
    if len(missing) == len(label_of):
        raise ImageReadError(
            f"{predictions} has no mask with the name of a label ({', '.join(mask_of)} against "
            f"{', '.join(label_of)}): name each mask like its label."
        )
    if missing:
        warn(f"{predictions}: no mask of {', '.join(missing)}; scored as empty")
    if unscored:
        warn(f"{labels}: no label of {', '.join(unscored)}; not scored")
    return missing, unscored


def classes_found(pairs: Sequence[PairFiles], labels: Path, workers: int) -> DataConfig:
    """One class for each value of masks and labels; ImageReadError without one, or with more than a mask can have."""
    files = [path for pair in pairs for path in (pair.label, pair.mask) if path is not None]
    values = sorted(value for value in set().union(*in_processes(_values, files, workers)) if value > 0)
    if not values or len(values) > _MAX_CLASSES:
        raise ImageReadError(
            f"{labels}: {len(values)} different values above 0 in labels and masks, where 1 to {_MAX_CLASSES} can be "
            "classes: check that these are label files."
        )
    return DataConfig(classes={f"class_{value}": value for value in values})


def _values(path: Path) -> set[int]:
    return label_values([Case(path.name, path, path)])


def read_pair(files: PairFiles, data: DataConfig, resample: bool) -> Pair:
    """A mask and its label, on the grid of the label in file order.

    Args:
        files: the two.
        data: says which value is which class.
        resample: take a mask on another grid to that of its label.

    Raises:
        ImageReadError: one cannot be read, or the mask is on another grid and stays there.
    """
    mask, label = files.mask, files.label
    labeled = Case(files.case_id, label, label)
    geometry = read_geometry(labeled, data)
    reference = read_label(labeled, data, geometry)
    prediction, is_resampled = np.zeros_like(reference), False
    if mask is not None:
        masked = Case(files.case_id, mask, mask)
        own = read_geometry(masked, data)
        is_resampled = not is_same_grid(own, geometry)
        if is_resampled and not resample:
            raise ImageReadError(
                f"{mask} is not on the voxel grid of {label}: check that both folders are of the same scans, and "
                "predict from the scans that the labels belong to, or let --resample take the mask to the label's grid."
            )
        # For a mask, the scan whose grid it must be on is the label.
        prediction = read_label(masked, data, own if is_resampled else geometry)
        if is_resampled:
            prediction = to_grid(prediction, own, geometry)
    names = {"reference_file": str(label), "prediction_file": None if mask is None else str(mask)}
    said = {**names, **({"resampled": True} if is_resampled else {})}
    return Pair(files.case_id, prediction, reference, geometry.spacing_mm, files.domain, said)
