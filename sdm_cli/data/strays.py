"""Labels without an image, which stop the reading of a folder, and the cases that it holds besides."""

import dataclasses
from pathlib import Path

from sdm_cli.data.cases import Case, nifti_stem
from sdm_cli.data.findings import Finding
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.layouts.search import nifti_files
from sdm_cli.data_config import Layout
from sdm_cli.errors import ImageReadError

_IMAGES = ("imagesTr", "imagesVa", "imagesUn")
_LABELS = ("labelsTr", "labelsVa")


def find_cases_and_strays(folder: Path, labels: Path | None, layout: Layout) -> tuple[list[Case], list[Finding]]:
    """The cases of a folder, and a finding for each label that has no image.

    Raises:
        ImageReadError: the folder cannot be read for another reason.
    """
    try:
        return find_cases(folder, labels, layout), []
    except ImageReadError as error:
        cases, strays = _match_what_matches(folder, labels, error)
    repair = "Rename or remove the label."
    findings = [
        Finding("blocks", "label_without_image", None, f"{path} has no image of the same name.", repair)
        for path in strays
    ]
    return cases, findings


def _match_what_matches(folder: Path, labels: Path | None, error: ImageReadError) -> tuple[list[Case], list[Path]]:
    image_folders = [folder / name for name in _IMAGES if nifti_files(folder / name)] or [folder]
    label_folders = [labels] if labels is not None else [folder / name for name in _LABELS]
    label_of = {nifti_stem(path): path for own in label_folders for path in _files(own)}
    if not label_of:
        raise error
    unlabeled = {case.case_id: case for images in image_folders for case in find_cases(images)}
    cases, matched = [], set()
    for name, case in sorted(unlabeled.items()):
        case_id = next((known for known in (name, name.removesuffix("_0000")) if known in label_of), name)
        matched.add(case_id)
        cases.append(dataclasses.replace(case, case_id=case_id, label_path=label_of.get(case_id)))
    strays = [path for case_id, path in label_of.items() if case_id not in matched]
    if not strays:
        raise error
    return cases, strays


def _files(folder: Path) -> list[Path]:
    """NIfTI files of a folder of labels, else of its subfolders (one a domain)."""
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    return nifti_files(folder) or [path for subfolder in subfolders for path in nifti_files(subfolder)]
