"""Layouts of folders as people have them, each a module with one function: folder in, cases out.

A new benchmark adds a module here only if no other layout fits its download.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdm_cli.data.cases import Case, same_case
from sdm_cli.data.itk import is_itk
from sdm_cli.data.layouts import acdc, amos, exports, folders, laseg, mmwhs, mnms
from sdm_cli.data_config import Layout
from sdm_cli.errors import ImageReadError

# Those that names of files tell apart; AMOS has the folders of MSD.
_FINDERS: dict[str, Callable[[Path], list[Case]]] = {
    "acdc": acdc.find,
    "mnms": mnms.find,
    "mmwhs": mmwhs.find,
    "laseg": laseg.find,
}
_ANY_FOLDER = (
    "a folder of .nii or .nii.gz files, of nnU-Net's layout (imagesTr), or of the download of a benchmark "
    f"({', '.join(_FINDERS)}, amos)"
)


def find_cases(
    folder: Path,
    labels: Path | None = None,
    layout: Layout = "auto",
    *,
    for_prediction: bool = False,
    strays: list[Path] | None = None,
) -> list[Case]:
    """Find the scans of a folder, or the one scan of a file.

    Args:
        folder: folder or file.
        labels: folder of label files, matched by name; other than the layout's own. Only for the layout `folders`.
        layout: of the folder; `auto` tells a benchmark by the names of its files, all but `amos`, and takes any
            other folder for `folders` (plain, nnU-Net raw, MSD, BTCV).
        for_prediction: take the scans of `imagesTs` too, which no training ever reads, any layout if it is not the
            one that is named, and NRRD, MetaImage and DICOM in a plain folder.
        strays: takes the labels without an image, which are an error where it is not given.

    Returns:
        Cases sorted by id. A scan without a label file is an unlabeled case. What is wrong with one case, such as two
        files of it, is its problem, which is said when it is read.

    Raises:
        ImageReadError: nothing there, several channels, a label without an image, several data sets in one folder,
            or M&Ms without its table.
    """
    if not folder.exists():
        raise ImageReadError(f"{folder} does not exist: check the path of the images.")
    if labels is not None and not labels.is_dir():
        raise ImageReadError(f"{labels} is not a folder: check the path of the labels.")
    if labels is not None and layout not in ("auto", "folders"):
        raise ImageReadError(f"{folder}: the layout {layout} has labels of its own: leave --labels out.")
    if not folder.name:
        folder = folder.absolute()  # the name of a patient's folder tells, and "." has none
    if folder.is_file():
        return _case_of_file(folder, labels, layout)
    cases = _FINDERS[layout](folder) if layout in _FINDERS else []
    if not cases and labels is None and (for_prediction or layout == "auto"):
        cases = _told_by_names(folder)
    if not cases and layout == "amos":
        cases = amos.find(folder, for_prediction, strays)
    elif not cases and (for_prediction or layout in ("auto", "folders")):
        cases = folders.find(folder, labels, for_prediction, strays)
        cases += exports.find(folder) if for_prediction else []
    if not cases:
        wanted = f"the download of {layout}" if layout in (*_FINDERS, "amos") else _ANY_FOLDER
        if for_prediction:
            wanted += ", or NRRD, MetaImage or DICOM files"
        elif others := exports.find(folder):
            raise ImageReadError(
                f"{others[0].image_path} and the like are read by sdm predict alone: convert the scans of {folder} to "
                "NIfTI, for example with dcm2niix or 3D Slicer."
            )
        raise ImageReadError(f"{folder} holds no scans: give {wanted}.")
    return _one_of_each_id(cases)


def _told_by_names(folder: Path) -> list[Case]:
    """Cases of the one benchmark in the folder; none where scans of its own lie above the benchmark."""
    found = {name: cases for name, find in _FINDERS.items() if (cases := find(folder))}
    if len(found) > 1:
        raise ImageReadError(f"{folder} holds scans of {' and '.join(found)}: give the folder of one of them.")
    cases = next(iter(found.values()), [])
    is_above = folders.holds_scans(folder) and all(case.image_path.parent != folder for case in cases)
    return [] if is_above else cases


def _case_of_file(file: Path, labels: Path | None, layout: Layout) -> list[Case]:
    if laseg.is_volume(file):
        return [laseg.case_of_file(file)]
    if is_itk(file):
        return [Case(file.stem, file)]
    cases = folders.case_of_file(file, labels)
    return amos.with_modality(cases) if layout == "amos" else cases


def _one_of_each_id(cases: list[Case]) -> list[Case]:
    case_of: dict[str, Case] = {}
    for case in cases:
        first = case_of.setdefault(case.case_id, case)
        if first is not case:
            problem = same_case(case.case_id, first.image_path, case.image_path)
            case_of[case.case_id] = replace(first, problem=problem)
    return [case_of[case_id] for case_id in sorted(case_of)]
