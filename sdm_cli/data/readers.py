"""From a folder, as people have it, to cases, volumes and class indices.

Owns the layouts (plain, nnU-Net raw, BTCV, LASeg `mri_norm2.h5`) and the meaning of label values.
Axis order stays that of the file. Knows nothing of stores and training.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sdm_cli.config import IGNORE, DataConfig
from sdm_cli.data.cases import Case, is_nifti, nifti_stem
from sdm_cli.data.volume import Array, Geometry, Volume, read_nifti
from sdm_cli.errors import ImageReadError

_LASEG_FILE = "mri_norm2.h5"
# Folder of images -> folder of labels.
_FOLDERS = {"imagesTr": "labelsTr", "imagesVa": "labelsVa", "img": "label", "imagesUn": None}
_FOLDERS_FOR_PREDICTION = {**_FOLDERS, "imagesTs": None}

_ROUNDING = 1e-3


def find_cases(folder: Path, labels: Path | None = None, *, for_prediction: bool = False) -> list[Case]:
    """Find the scans of a folder in any of the known layouts, or the one scan of a file.

    Layouts: nnU-Net raw or MSD (`imagesTr`, `labelsTr`, `imagesUn`), BTCV (`img`, `label`), LASeg
    (`<id>/mri_norm2.h5`), else a plain folder of `.nii` and `.nii.gz`. Hidden files do not count.

    Args:
        folder: folder or file.
        labels: folder of label files, matched by name; other than the layout's own.
        for_prediction: take the scans of `imagesTs` too, which no training ever reads.

    Returns:
        Cases sorted by id. A scan without a label file is an unlabeled case.

    Raises:
        ImageReadError: nothing there, two files of one case, several channels, or a label
            without an image.
    """
    if not folder.exists():
        raise ImageReadError(f"{folder} does not exist: check the path of the images.")
    if labels is not None and not labels.is_dir():
        raise ImageReadError(f"{labels} is not a folder: check the path of the labels.")
    if labels is not None and not _nifti_files(labels):
        raise ImageReadError(f"{labels} holds no .nii or .nii.gz file: check the path of the labels.")
    if folder.is_file():
        return _cases_of_file(folder, labels)
    folders = _FOLDERS_FOR_PREDICTION if for_prediction else _FOLDERS
    subfolders = [name for name in folders if (folder / name).is_dir()]
    if subfolders:
        images = [path for name in subfolders for path in _nifti_files(folder / name)]
        label_folders = [folder / own for name in subfolders if (own := folders[name]) is not None]
        return _match(folder, images, [labels] if labels else label_folders, is_numbered=True)
    images = _nifti_files(folder)
    if images:
        return _match(folder, images, [labels] if labels else [], is_numbered=False)
    laseg = sorted([*folder.glob(f"*/{_LASEG_FILE}"), *folder.glob(f"*/*/{_LASEG_FILE}")])
    if not laseg:
        raise ImageReadError(
            f"{folder} holds no scans: give a folder of .nii or .nii.gz files, of nnU-Net's layout (imagesTr), "
            f"or of <id>/{_LASEG_FILE}."
        )
    return _checked_ids([_laseg_case(path) for path in laseg])


def read_image(case: Case, data: DataConfig) -> Volume:
    """Read the intensities of a case in the axis order of its file.

    Raises:
        ImageReadError: unreadable, or with voxels that are not finite.
    """
    path = case.image_path
    if path.suffix == ".h5":
        x, y, z = data.spacing_mm or (1.0, 1.0, 1.0)
        voxels = _read_h5(path, "image")
        volume = Volume(voxels, Geometry(np.diag([x, y, z, 1.0]), _shape(voxels)))
    else:
        volume = read_nifti(path, data.frame)
    if volume.voxels.dtype.kind == "f":
        n_broken = volume.voxels.size - int(np.count_nonzero(np.isfinite(volume.voxels)))
        if n_broken:
            raise ImageReadError(
                f"{path} has {n_broken} voxels that are NaN or infinite: replace them (by the background's value)."
            )
    return volume


def read_label(case: Case, data: DataConfig, image: Geometry) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read the label of a case as class indices on the grid of its image.

    Args:
        case: a case with a label file.
        data: which label value is which class, background, or ignored.
        image: geometry of the image.

    Returns:
        (x, y, z) uint8 in the axis order of the file: 0 background, 1.. in the order of
        `data.classes`, 255 ignored.

    Raises:
        ImageReadError: unreadable, on another grid, not whole numbers, or with unknown values.
    """
    if case.label_path is None:
        raise ValueError(f"case {case.case_id} has no label")
    path = case.label_path
    voxels = _read_label_voxels(path, data.frame, image)
    indices = {0: 0, **dict.fromkeys(data.background_values, 0)}
    indices |= {value: index for index, value in enumerate(data.classes.values(), start=1)}
    if data.ignore_value is not None:
        indices[data.ignore_value] = IGNORE
    low, high = min(indices), max(indices)
    if voxels.min() >= low and voxels.max() <= high:
        table = np.full(high - low + 1, -1, np.int16)
        for value, index in indices.items():
            table[value - low] = index
        mapped = table[voxels.astype(np.int32, copy=False) - low]
        if mapped.min() >= 0:
            return mapped.astype(np.uint8)
    raise _unknown_values(path, set(np.unique(voxels).tolist()) - indices.keys(), data)


def label_values(cases: Iterable[Case], frame: int | None = None) -> Counter[int]:
    """Count in how many cases each label value but 0 occurs; labels that cannot be read do not count."""
    counts: Counter[int] = Counter()
    for case in cases:
        if case.label_path is not None:
            try:
                counts.update(set(np.unique(_read_label_voxels(case.label_path, frame)).tolist()) - {0})
            except ImageReadError:
                continue  # its own case says why when it is read
    return counts


def _cases_of_file(file: Path, labels: Path | None) -> list[Case]:
    if file.suffix == ".h5":
        return [_laseg_case(file)]
    if not is_nifti(file):
        raise ImageReadError(f"{file} is no .nii or .nii.gz file: convert it, or give a folder.")
    case = _match(file, [file], [], is_numbered=False)[0]
    own = [] if labels is None else [path for path in _nifti_files(labels) if nifti_stem(path) == case.case_id]
    return [Case(case.case_id, file, own[0] if own else None)]


def _nifti_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        # A broken link is listed too, so that reading it names it.
        return sorted(path for path in folder.iterdir() if is_nifti(path) and not path.is_dir())
    except OSError as error:
        raise ImageReadError(f"{folder} cannot be listed ({error.strerror}): check its permissions.") from None


def _match(folder: Path, images: list[Path], label_folders: list[Path], is_numbered: bool) -> list[Case]:
    """Pair images with labels by case id; `is_numbered` when names may carry nnU-Net's channel."""
    if not images:
        raise ImageReadError(f"{folder} holds no scans: its image folders have no .nii or .nii.gz files.")
    labels = [path for own in label_folders for path in _nifti_files(own)]
    image_ids, label_ids = _case_ids(images, labels, is_numbered)
    _checked_ids([Case(case_id, path) for path, case_id in label_ids.items()])
    label_of = {case_id: path for path, case_id in label_ids.items()}
    cases = _checked_ids([Case(case_id, path, label_of.get(case_id)) for path, case_id in image_ids.items()])
    strays = [str(path) for path, case_id in label_ids.items() if case_id not in set(image_ids.values())]
    if strays:
        raise ImageReadError(
            f"{_some(strays)} {'have' if len(strays) > 1 else 'has'} no image of the same name in {folder}: rename "
            "or remove the label."
        )
    return cases


def _case_ids(images: list[Path], labels: list[Path], is_numbered: bool) -> tuple[dict[Path, str], dict[Path, str]]:
    image_ids = {path: nifti_stem(path) for path in images}
    label_ids = {path: nifti_stem(path) for path in labels}
    stems = set(image_ids.values())
    if labels and _have_number(stems, "img") and _have_number(label_ids.values(), "label"):  # BTCV
        return (
            {path: stem.removeprefix("img") for path, stem in image_ids.items()},
            {path: stem.removeprefix("label") for path, stem in label_ids.items()},
        )
    if stems & set(label_ids.values()) or not (is_numbered or all(stem.endswith("_0000") for stem in stems)):
        return image_ids, label_ids
    for path, stem in image_ids.items():
        base, _, number = stem.rpartition("_")
        if len(number) == 4 and number.isdigit() and f"{base}_0000" in stems:
            if number != "0000":
                raise ImageReadError(
                    f"{path} is another channel of case {base}: one channel is supported, so keep only the "
                    "_0000 files (or move the others away)."
                )
            image_ids[path] = base
    return image_ids, label_ids


def _have_number(stems: Iterable[str], prefix: str) -> bool:
    numbers = [stem.removeprefix(prefix) for stem in stems if stem.startswith(prefix)]
    return len(numbers) == len(list(stems)) and all(len(number) == 4 and number.isdigit() for number in numbers)


def _checked_ids(cases: list[Case]) -> list[Case]:
    seen: dict[str, Path] = {}
    for case in cases:
        if case.case_id in seen:
            raise ImageReadError(
                f"{seen[case.case_id]} and {case.image_path} are both case {case.case_id}: rename or remove one."
            )
        seen[case.case_id] = case.image_path
    return sorted(cases, key=lambda case: case.case_id)


def _laseg_case(path: Path) -> Case:
    try:
        with h5py.File(path, "r", locking=False) as file:
            has_label = "label" in file
    except OSError:
        has_label = True  # reading the case says what is wrong with the file
    return Case(path.parent.name if path.name == _LASEG_FILE else path.stem, path, path if has_label else None)


def _read_h5(path: Path, key: str) -> Array:
    try:
        with h5py.File(path, "r", locking=False) as file:
            if key not in file:
                raise ImageReadError(f"{path} has no {key!r} (only {', '.join(file) or 'nothing'}): download it again.")
            voxels: Array = np.asarray(file[key][()])
    except FileNotFoundError:
        raise ImageReadError(f"{path} does not exist: check the path (or the link).") from None
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ImageReadError(f"{path} cannot be read as HDF5 ({reason}): download it again.") from error
    if voxels.ndim != 3 or voxels.dtype.kind not in "iuf" or voxels.size == 0:
        raise ImageReadError(f"{path}: {key} is {voxels.dtype} {voxels.shape}, not a volume (x, y, z) of numbers.")
    return voxels


def _read_label_voxels(path: Path, frame: int | None, image: Geometry | None = None) -> Array:
    """Whole label values; checked to lie on the grid of `image` when it is given."""
    if path.suffix == ".h5":
        voxels = _read_h5(path, "label")
        geometry = Geometry(image.affine if image else np.eye(4), _shape(voxels))
    else:
        volume = read_nifti(path, frame)
        voxels, geometry = volume.voxels, volume.geometry
    if image is not None:
        _check_grid(path, geometry, image)
    if voxels.dtype.kind == "f":
        # A slope that stands for 1/255 leaves 1.0000001, which still is a 1.
        with np.errstate(invalid="ignore"):
            is_whole = np.abs(voxels - np.rint(voxels)) < _ROUNDING  # false for NaN and infinity
        if not is_whole.all():
            example = voxels[~is_whole].flat[0]
            raise ImageReadError(
                f"{path} has label values that are not whole numbers ({example:g}, for example): round them, or "
                "resample the label with nearest neighbours."
            )
    if max(abs(int(voxels.min())), int(voxels.max())) > 2**31 - 1:
        raise ImageReadError(f"{path} has label values beyond 2^31: check that it is a label file.")
    return np.rint(voxels).astype(np.int32) if voxels.dtype.kind == "f" else voxels


def _check_grid(path: Path, label: Geometry, image: Geometry) -> None:
    if label.shape != image.shape:
        raise ImageReadError(
            f"{path} has shape {_sizes(label.shape)}, but its image {_sizes(image.shape)}: resample the label to the "
            "grid of the image."
        )
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*image.shape, 1]
    distance_mm = float(np.abs((label.affine - image.affine) @ corners.T).max())
    # Rounding of headers moves corners by micrometres; a hundredth of a voxel is still the same grid.
    if distance_mm > 0.01 * min(image.spacing_mm):
        raise ImageReadError(
            f"{path} lies up to {distance_mm:.3g} mm away from its image (another affine): resample the label to "
            "the grid of the image, or copy the image's header if the voxels belong together."
        )


def _unknown_values(path: Path, unknown: set[int], data: DataConfig) -> ImageReadError:
    values = _some([str(value) for value in sorted(unknown)])
    known = ", ".join(f"{value} {name}" for name, value in data.classes.items()) or "none"
    remedy = "add them to data.classes or data.background_values"
    if IGNORE in unknown:
        remedy = "set data.ignore_value: 255 if 255 marks voxels to leave out, else add the values to data.classes"
    return ImageReadError(f"{path} has label values {values} that are no class (classes: {known}): {remedy}.")


def _shape(voxels: Array) -> tuple[int, int, int]:
    x, y, z = voxels.shape
    return x, y, z


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
