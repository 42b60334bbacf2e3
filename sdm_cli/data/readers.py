"""From the files of a case to a volume and class indices.

Owns the file formats and the meaning of label values. Axis order stays that of the file. Knows nothing
of layouts, stores and training.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.data.cases import Case, counted, some, stores_spacing
from sdm_cli.data.dicom import read_dicom, read_dicom_geometry
from sdm_cli.data.hdf5 import DAMAGES, has_dataset, open_h5, own_dataset
from sdm_cli.data.itk import is_itk, read_itk, read_itk_geometry
from sdm_cli.data.limits import by
from sdm_cli.data.volume import Array, Geometry, Volume, occupied_frames, read_nifti, read_nifti_geometry
from sdm_cli.data_config import IGNORE, DataConfig
from sdm_cli.errors import ImageReadError, reason_of

# Rounding of headers moves corners by micrometres; a hundredth of a voxel is still the same grid.
SAME_GRID_VOXELS = 0.01
# A slope that stands for 1/255 leaves 1.0000001, which still is a 1.
_ROUNDING = 1e-3
_ALIKE_IN_MASKS = 0.5
_FEW_VALUES = 20


def read_image(case: Case, data: DataConfig) -> Volume:
    """Read the intensities of a case in the axis order of its file.

    Raises:
        ImageReadError: unreadable, with voxels that are not finite, or of a case that has a problem.
    """
    path, volume = case.image_path, read_image_file(case, data)
    if volume.voxels.dtype.kind == "f":
        n_broken = volume.voxels.size - int(np.count_nonzero(np.isfinite(volume.voxels)))
        if n_broken:
            raise ImageReadError(
                f"{path} has {broken_voxels(n_broken)}: replace what is broken (by the background's value)."
            )
    return volume


def read_scan(case: Case, data: DataConfig) -> Volume:
    """Read the intensities of a case to train on: as `read_image`, and they must differ.

    Raises:
        ImageReadError: as `read_image`, or all voxels are the same.
    """
    volume = read_image(case, data)
    if volume.is_constant:
        raise ImageReadError(f"{case.image_path} is constant (all voxels {volume.voxels.flat[0]}): export it again.")
    return volume


def read_image_file(case: Case, data: DataConfig) -> Volume:
    """Read the image of a case as it is, also with voxels that are not finite.

    Raises:
        ImageReadError: unreadable, or the case has a problem.
    """
    if case.problem is not None:
        raise ImageReadError(case.problem)
    if case.image_path.suffix == ".h5":
        voxels = _read_h5(case.image_path, "image")
        return Volume(voxels, Geometry(_h5_affine(data), _shape(voxels)))
    if case.image_path.is_dir():
        return read_dicom(case.image_path)
    return read_itk(case.image_path) if is_itk(case.image_path) else read_nifti(case.image_path, _frame(case, data))


def read_geometry(case: Case, data: DataConfig) -> Geometry:
    """Geometry of the image of a case, from its header alone.

    Raises:
        ImageReadError: the header cannot be read, or the case has a problem.
    """
    if case.problem is not None:
        raise ImageReadError(case.problem)
    path = case.image_path
    if not stores_spacing(path):
        return Geometry(_h5_affine(data), _h5_shape(path))
    if path.is_dir():
        return read_dicom_geometry(path)
    return read_itk_geometry(path) if is_itk(path) else read_nifti_geometry(path, _frame(case, data))


def read_label_file(case: Case, data: DataConfig, image: Geometry | None = None) -> Volume:
    """Read the label of a case as it is: any numbers, on any grid; `image` gives HDF5 files their grid.

    Raises:
        ImageReadError: unreadable, or there is none.
    """
    path = case.label_path
    if path is None:
        raise ImageReadError(f"Case {case.case_id} has no label.")
    if path.suffix == ".h5":  # stores no grid of its own
        voxels = _read_h5(path, "label")
        return Volume(voxels, Geometry(image.affine if image else np.eye(4), _shape(voxels)))
    return read_itk(path) if is_itk(path) else read_nifti(path, _frame(case, data))


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
        ImageReadError: unreadable, on another grid, not whole numbers, with unknown values, or empty in the
            frame that the case names.
    """
    voxels = read_label_values(case, data, image)
    indices = {0: 0, **dict.fromkeys(data.background_values, 0)}
    indices |= {value: index for index, value in enumerate(data.classes.values(), start=1)}
    if data.ignore_value is not None:
        indices[data.ignore_value] = IGNORE
    indices |= {value: indices[meaning] for value, meaning in data.value_aliases.items()}
    low, high = min(indices), max(indices)
    if voxels.min() >= low and voxels.max() <= high:
        table = np.full(high - low + 1, -1, np.int16)
        for value, index in indices.items():
            table[value - low] = index
        mapped = table[voxels.astype(np.int32, copy=False) - low]
        if mapped.min() >= 0:
            return mapped.astype(np.uint8)
    raise ImageReadError(unknown_values(case, set(np.unique(voxels).tolist()) - indices.keys(), data))


def read_label_values(case: Case, data: DataConfig, image: Geometry) -> Array:
    """Read the label of a case as the whole numbers of its file, on the grid of its image.

    Raises:
        ImageReadError: unreadable, on another grid, not whole numbers, or empty in the frame that the case names.
    """
    if case.label_path is None:
        raise ValueError(f"case {case.case_id} has no label")
    path = case.label_path
    label = read_label_file(case, data, image)
    _check_grid(path, label.geometry, image)
    voxels = _whole_numbers(path, label.voxels)
    if case.frame is not None and not voxels.any():
        raise _empty_frame(path, case.frame)
    return voxels


def label_values(cases: Iterable[Case]) -> set[int]:
    """Label values but 0 of some cases; labels that cannot be read do not count."""
    values: set[int] = set()
    for case in cases:
        if case.label_path is not None:
            with suppress(ImageReadError):  # its own case says why when it is read
                label = read_label_file(case, DataConfig())
                values.update(np.unique(_whole_numbers(case.label_path, label.voxels)).tolist())
    return values - {0}


def _frame(case: Case, data: DataConfig) -> int | None:
    return data.frame if case.frame is None else case.frame


def _h5_affine(data: DataConfig) -> Array:
    return np.diag([*(data.spacing_mm or (1.0, 1.0, 1.0)), 1.0])


def _read_h5(path: Path, key: str) -> Array:
    try:
        with open_h5(path) as file:
            if not has_dataset(file, key):
                raise ImageReadError(f"{path} has no {key!r} (only {', '.join(file) or 'nothing'}): download it again.")
            voxels: Array = np.asarray(own_dataset(file, path, key)[()])
    except FileNotFoundError:
        raise ImageReadError(f"{path} does not exist: check the path (or the link).") from None
    except DAMAGES as error:
        raise ImageReadError(f"{path} cannot be read as HDF5 ({reason_of(error)}): download it again.") from error
    if voxels.ndim != 3 or voxels.dtype.kind not in "iuf" or voxels.size == 0:
        raise ImageReadError(f"{path}: {key} is {voxels.dtype} {voxels.shape}, not a volume (x, y, z) of numbers.")
    return voxels


def _whole_numbers(path: Path, voxels: Array) -> Array:
    if voxels.dtype.kind == "f":
        is_whole = are_whole(voxels)
        if not is_whole.all():
            example = voxels[~is_whole].flat[0]
            raise ImageReadError(
                f"{path} has label values that are not whole numbers ({example:g}, for example): round them, or "
                "resample the label with nearest neighbours."
            )
    if max(abs(int(voxels.min())), int(voxels.max())) > 2**31 - 1:
        raise ImageReadError(f"{path} has label values beyond 2^31: check that it is a label file.")
    return np.rint(voxels).astype(np.int32) if voxels.dtype.kind == "f" else voxels


def are_whole(voxels: Array) -> Array:
    """Which voxels are whole numbers, but for rounding; NaN and infinity are not."""
    with np.errstate(invalid="ignore"):
        whole: Array = np.abs(voxels - np.rint(voxels)) < _ROUNDING
    return whole


def broken_voxels(number: int) -> str:
    """How many voxels of a file are no numbers."""
    return f"{counted(number, 'voxel')} that {'is' if number == 1 else 'are'} NaN or infinite"


def n_values_of_scan(voxels: Array) -> int:
    """Number of different values where these are intensities; 0 where they are the labels of a mask.

    Most voxels of a structure have the label of their neighbour, those of a scan do not. Background, in a scan air that
    was cut off, is left out; a few values are a mask, however it is speckled.
    """
    inside = voxels[:-1] != voxels.min()
    if np.count_nonzero(inside & (voxels[1:] == voxels[:-1])) >= _ALIKE_IN_MASKS * np.count_nonzero(inside):
        return 0
    n_values = len(np.unique(voxels))
    return n_values if n_values > _FEW_VALUES else 0


def grid_distance_mm(label: Geometry, image: Geometry) -> float:
    """How far the corners of two grids of the same shape lie apart, at most, along an axis."""
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*image.shape, 1]
    return float(np.abs((label.affine - image.affine) @ corners.T).max())


def is_same_grid(label: Geometry, image: Geometry) -> bool:
    """Whether voxels of the same index lie at the same place, within a share of a voxel."""
    if label.shape != image.shape:
        return False
    return grid_distance_mm(label, image) <= SAME_GRID_VOXELS * min(image.spacing_mm)


def _check_grid(path: Path, label: Geometry, image: Geometry) -> None:
    if label.shape != image.shape:
        raise ImageReadError(
            f"{path} has shape {by(label.shape)}, but its image {by(image.shape)}: resample the label to the "
            "grid of the image."
        )
    if not is_same_grid(label, image):
        distance_mm = grid_distance_mm(label, image)
        raise ImageReadError(
            f"{path} lies up to {distance_mm:.3g} mm away from its image (another affine): resample the label to "
            "the grid of the image, or copy the image's header if the voxels belong together."
        )


def _empty_frame(path: Path, frame: int) -> ImageReadError:
    frames = some([str(index) for index in occupied_frames(path)])
    where = f"only in {frames}" if frames else "nor in any other"
    return ImageReadError(
        f"{path} has no label in frame {frame}, {where}: correct the table of the data set (the first frame is 0)."
    )


def unknown_values(case: Case, unknown: set[int], data: DataConfig) -> str:
    """What to say of label values that are no class."""
    values = some([str(value) for value in sorted(unknown)])
    known = ", ".join(f"{value} {name}" for name, value in data.classes.items()) or "none"
    remedy = "add them to data.classes, data.background_values or data.value_aliases"
    if IGNORE in unknown:
        remedy = "set data.ignore_value: 255 if 255 marks voxels to leave out, else add the values to data.classes"
    return f"{case.label_path} has label values {values} that are no class (classes: {known}): {remedy}."


def _shape(voxels: Array) -> tuple[int, int, int]:
    x, y, z = voxels.shape
    return x, y, z


def _h5_shape(path: Path) -> tuple[int, int, int]:
    try:
        with open_h5(path) as file:
            x, y, z = own_dataset(file, path, "image").shape
            return x, y, z
    except DAMAGES as error:
        raise ImageReadError(f"{path} has no volume 'image' ({reason_of(error)}): download it again.") from error
