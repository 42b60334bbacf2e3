"""Folders of NIfTI files: plain, nnU-Net raw, MSD, and BTCV (Synapse) in both of its forms."""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sdm_cli.data.cases import Case, is_nifti, nifti_stem, same_case, some
from sdm_cli.data.dicom import is_dicom
from sdm_cli.data.layouts.search import files_below, nifti_files, volume_files
from sdm_cli.errors import ImageReadError

LABELED, LABELS, UNLABELED = "imagesTr", "labelsTr", "imagesUn"
# Folder of images -> folder of labels.
_FOLDERS = {LABELED: LABELS, "imagesVa": "labelsVa", "img": "label", UNLABELED: None}
_LABEL_NAMES = ("label", "mask", "seg")
_LEVELS = 2  # RawData/Training/img
_TESTS = "Testing"
_FOLDERS_FOR_PREDICTION = {**_FOLDERS, "imagesTs": None}


def find(
    folder: Path, labels: Path | None = None, for_prediction: bool = False, strays: list[Path] | None = None
) -> list[Case]:
    """Cases of `imagesTr`, `imagesVa`, `imagesUn` or `img`, else of the files of the folder, else of its subfolders.

    Of plain subfolders (`scans/siteA/*.nii.gz`), each one is a domain; where two of them have a scan of one name, all
    ids begin with the subfolder (`siteA_a01`). Other subfolders may hold the one data set (`RawData/Training/img`).
    Labels without an image go to `strays`, and are an error where that is not given. Two labels of one case, and other
    channels of it, are a problem of the case.

    Raises:
        ImageReadError: a label without an image, no label in `labels`, several data sets.
    """
    label_files = [] if labels is None else _label_files(labels)
    known = _FOLDERS_FOR_PREDICTION if for_prediction else _FOLDERS
    subfolders = [name for name in known if (folder / name).is_dir()]
    if subfolders:
        images = [path for name in subfolders for path in nifti_files(folder / name)]
        if labels is None:
            own_folders = [folder / own for name in subfolders if (own := known[name]) is not None]
            label_files = [path for own in own_folders for path in nifti_files(own)]
        if not images:
            raise ImageReadError(f"{folder} holds no scans: its image folders have no .nii or .nii.gz files.")
        return _match(folder, images, label_files, is_numbered=True, strays=strays)
    if images := nifti_files(folder):
        return _match(folder, images, label_files, is_numbered=False, strays=strays)
    if images := _files_by_domain(folder, labels):
        cases = _match(folder, images, label_files, is_numbered=False, strays=strays, by_domain=True)
        return [replace(case, domain=case.image_path.parent.name) for case in cases]
    return [case for root in _roots(folder, for_prediction) for case in find(root, labels, for_prediction, strays)]


def masks_by_id(folder: Path, kind: str, prefixed: Container[str] = ()) -> dict[str, Path]:
    """NIfTI, NRRD and MetaImage files of a folder of label maps, or of its subfolders, by case id and sorted.

    Args:
        folder: of the files alone, without their scans.
        kind: what they are, for messages.
        prefixed: ids that are known; files of subfolders are called `SUBFOLDER_NAME` where one of these says so, or
            where two subfolders have a file of one name.

    Raises:
        ImageReadError: no such folder, no files, or two of one case.
    """
    if not folder.is_dir():
        raise ImageReadError(f"{folder} is not a folder: check the path of the {kind}.")
    if not (files := volume_files(folder) or _files_by_domain(folder, None, volume_files)):
        raise ImageReadError(f"{folder} holds no NIfTI, NRRD or MetaImage file: check the path of the {kind}.")
    ids = {path: nifti_stem(path) if is_nifti(path) else path.stem for path in files}
    with_domain = _with_domain(ids, {path.parent.name for path in files if path.parent != folder})
    if _collide(ids) or any(with_domain[path] in prefixed for path in files if with_domain[path] != ids[path]):
        ids = with_domain
    file_of, problems = _labels_by_id(ids)
    if problems:
        raise ImageReadError(next(iter(problems.values())))
    return dict(sorted(file_of.items()))


def _label_files(folder: Path) -> list[Path]:
    """Those of the folder, else those of its subfolders."""
    if files := nifti_files(folder) or _files_by_domain(folder, None):
        return files
    raise ImageReadError(f"{folder} holds no .nii or .nii.gz file: check the path of the labels.")


def _roots(folder: Path, for_prediction: bool) -> list[Path]:
    """Where the one data set below a folder has its folders of images; BTCV's `Testing` is for prediction alone."""
    known = _FOLDERS_FOR_PREDICTION if for_prediction else _FOLDERS
    images = [path for name in known for path in files_below(folder, name, _LEVELS) if nifti_files(path)]
    roots = sorted({path.parent for path in images})
    tests = [root for root in roots if root.name == _TESTS]
    others = [root for root in roots if root.name != _TESTS]
    if len(others) > 1:
        raise ImageReadError(f"{folder} holds several data sets ({some([str(root) for root in others])}): give one.")
    return others + tests if for_prediction else others


def holds_scans(folder: Path) -> bool:
    """Whether scans lie in the folder itself or in its folders of images, whatever its other subfolders hold."""
    return any(nifti_files(place) for place in (folder, *(folder / name for name in _FOLDERS_FOR_PREDICTION)))


def takes_for_scans(folder: Path, place: Path) -> bool:
    """Whether files put into `place` may count as scans once `folder` is searched again; both resolved."""
    return folder in place.parents and (place.name in _FOLDERS_FOR_PREDICTION or not holds_scans(folder))


def case_of_file(file: Path, labels: Path | None) -> list[Case]:
    """The one case of a NIfTI file, with its label from a folder of labels."""
    if not is_nifti(file):
        remedy = "give the folder of its series" if is_dicom(file) else "convert it, or give a folder"
        raise ImageReadError(f"{file} is no NIfTI, NRRD or MetaImage file: {remedy}.")
    case = _match(file, [file], [], is_numbered=False, strays=None)[0]
    own = [] if labels is None else [path for path in nifti_files(labels) if nifti_stem(path) == case.case_id]
    if len(own) > 1:
        raise ImageReadError(same_case(case.case_id, own[0], own[1]))
    return [Case(case.case_id, file, own[0] if own else None)]


def _files_by_domain(
    folder: Path, labels: Path | None, files_of: Callable[[Path], list[Path]] = nifti_files
) -> list[Path]:
    """Files of plain subfolders, but for the folder of labels."""
    without = {path.resolve() for path in (labels, folder / "imagesTs") if path is not None}
    subfolders = [path for path in sorted(folder.iterdir()) if path.resolve() not in without]
    subfolders = [path for path in subfolders if files_of(path)]
    if others := [path for path in subfolders if path.name.lower().startswith(_LABEL_NAMES)]:
        raise ImageReadError(
            f"{folder} has a folder of labels ({others[0].name}) beside its scans: give the folder of the scans with "
            f"-i and the labels with --labels {others[0]}."
        )
    return [path for subfolder in subfolders for path in files_of(subfolder)]


def _match(
    folder: Path,
    images: list[Path],
    labels: list[Path],
    *,
    is_numbered: bool,
    strays: list[Path] | None,
    by_domain: bool = False,
) -> list[Case]:
    """Pair images with labels by case id; `is_numbered` when names may carry nnU-Net's channel."""
    image_ids, label_ids, other_channels = _case_ids(images, labels, is_numbered)
    if by_domain and _collide(image_ids):
        domains = {path.parent.name for path in images}
        image_ids, label_ids = _with_domain(image_ids, domains), _with_domain(label_ids, domains)
    label_of, problems = _labels_by_id(label_ids)
    for path, case_id in other_channels.items():
        problems.setdefault(
            case_id,
            f"{path} is another channel of case {case_id}: one channel is supported, so keep only the _0000 files (or "
            "move the others away).",
        )
    lone = [path for path, case_id in label_ids.items() if case_id not in set(image_ids.values())]
    if strays is not None:
        strays += lone
    elif lone:
        names, have = some([str(path) for path in lone]), "have" if len(lone) > 1 else "has"
        remedy = "rename or remove the label, or let sdm check --repair make copies without it"
        if by_domain:
            remedy += " (where two subfolders have a scan of one name, labels need the same subfolders)"
        raise ImageReadError(f"{names} {have} no image of the same name in {folder}: {remedy}.")
    return [
        Case(case_id, path, label_of.get(case_id), problem=problems.get(case_id)) for path, case_id in image_ids.items()
    ]


def _collide(ids: Mapping[Path, str]) -> bool:
    """Whether files of different folders have one id."""
    places = {(path.parent, case_id) for path, case_id in ids.items()}
    return len({case_id for _, case_id in places}) < len(places)


def _with_domain(ids: Mapping[Path, str], domains: Container[str]) -> dict[Path, str]:
    """Ids that begin with the subfolder, where that is one of the domains."""
    return {
        path: f"{path.parent.name}_{case_id}" if path.parent.name in domains else case_id
        for path, case_id in ids.items()
    }


def _case_ids(
    images: list[Path], labels: list[Path], is_numbered: bool
) -> tuple[dict[Path, str], dict[Path, str], dict[Path, str]]:
    """Ids of images and labels; and, apart, those of images that are another channel of a case."""
    image_ids = {path: nifti_stem(path) for path in images}
    label_ids = {path: nifti_stem(path) for path in labels}
    other_channels: dict[Path, str] = {}
    stems = set(image_ids.values())
    if (labels or is_numbered) and _have_number(stems, "img") and _have_number(label_ids.values(), "label"):  # BTCV
        image_ids = {path: stem.removeprefix("img") for path, stem in image_ids.items()}
        label_ids = {path: stem.removeprefix("label") for path, stem in label_ids.items()}
    elif not stems & set(label_ids.values()) and (is_numbered or all(stem.endswith("_0000") for stem in stems)):
        for path, stem in list(image_ids.items()):
            base, _, number = stem.rpartition("_")
            if len(number) == 4 and number.isdigit() and f"{base}_0000" in stems:
                image_ids[path] = base
                if number != "0000":
                    other_channels[path] = image_ids.pop(path)
    return image_ids, label_ids, other_channels


def _have_number(stems: Iterable[str], prefix: str) -> bool:
    numbers = [stem.removeprefix(prefix) for stem in stems if stem.startswith(prefix)]
    return len(numbers) == len(list(stems)) and all(len(number) == 4 and number.isdigit() for number in numbers)


def _labels_by_id(label_ids: Mapping[Path, str]) -> tuple[dict[str, Path], dict[str, str]]:
    """The label of each id; and what is wrong with ids that have two."""
    label_of: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for path, case_id in label_ids.items():
        if label_of.setdefault(case_id, path) != path:
            problems[case_id] = same_case(case_id, label_of[case_id], path)
    return label_of, problems
