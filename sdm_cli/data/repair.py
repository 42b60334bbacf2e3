"""Repaired copies of a case, in nnU-Net's raw layout. The originals are only read.

Owns what a safe repair does to voxels and headers; `findings` say which case needs which.
"""

import gzip
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from sdm_cli.data.cases import Case, is_nifti
from sdm_cli.data.findings import Fix
from sdm_cli.data.layouts.folders import LABELED, LABELS, UNLABELED
from sdm_cli.data.readers import read_image_file, read_label_file
from sdm_cli.data.resample import to_grid
from sdm_cli.data.volume import Array, Geometry, is_one_volume, write_mask
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError
from sdm_cli.files import replacing


@dataclass(frozen=True)
class Plan:
    """What to copy, and what to change in the copy.

    Attributes:
        case: the original.
        fixes: that this case needs.
        new_values: label value -> value in the copy, where any changes.
    """

    case: Case
    fixes: frozenset[Fix]
    new_values: Mapping[int, int]


@dataclass(frozen=True)
class Copy:
    """What became of a case: the files written, relative to the output; or why there are none."""

    case_id: str
    image: str | None = None
    label: str | None = None
    failure: str | None = None


def copy_case(plan: Plan, output: Path, data: DataConfig) -> Copy:
    """Write the copy of one case; runs in a worker.

    Raises:
        OutputError: the output cannot be written.
    """
    case = plan.case
    is_labeled = case.label_path is not None
    image_name = f"{LABELED if is_labeled else UNLABELED}/{case.case_id}_0000.nii.gz"
    label_name = f"{LABELS}/{case.case_id}.nii.gz" if is_labeled else None
    try:
        geometry = _copy_image(plan, output / image_name, data)
        if label_name is not None:
            _copy_label(plan, output / label_name, data, geometry)
    except ImageReadError as error:  # the files changed since they were checked
        return Copy(case.case_id, failure=str(error))
    return Copy(case.case_id, image_name, label_name)


def _copy_image(plan: Plan, path: Path, data: DataConfig) -> Geometry:
    volume = read_image_file(plan.case, data)
    voxels = volume.voxels
    if "fill NaN" in plan.fixes:
        is_finite = np.isfinite(voxels)
        voxels = np.where(is_finite, voxels, voxels[is_finite].min())
    elif _is_one_volume(plan.case.image_path):
        _copy_bytes(plan.case.image_path, path)
        return volume.geometry
    _write_image(path, voxels, volume.geometry)
    return volume.geometry


def _copy_label(plan: Plan, path: Path, data: DataConfig, image: Geometry) -> None:
    source = plan.case.label_path
    if source is None:
        return
    is_resampled = "grid of the image" in plan.fixes
    takes_header = is_resampled or "header of the image" in plan.fixes
    new_values = {**data.value_aliases, **plan.new_values}
    if not takes_header and not new_values and "whole numbers" not in plan.fixes and _is_one_volume(source):
        _copy_bytes(source, path)
        return
    label = read_label_file(plan.case, data, image)
    values = np.rint(label.voxels).astype(np.int32)
    mask = values.copy()
    for old, new in new_values.items():
        mask[values == old] = new
    if is_resampled:
        mask = to_grid(mask, label.geometry, image)
    write_mask(path, mask, image if takes_header else label.geometry, overwrite=True)


def _is_one_volume(path: Path) -> bool:
    """Whether the file can be copied as it is: NIfTI, one frame."""
    return is_nifti(path) and is_one_volume(path)


def _copy_bytes(source: Path, path: Path) -> None:
    """The same bytes, compressed where they were not: the header and the voxels stay to the last bit."""
    with replacing(path) as temporary:
        if source.name.lower().endswith(".gz"):
            shutil.copyfile(source, temporary)
        else:
            with source.open("rb") as plain, gzip.open(temporary, "wb", compresslevel=1) as packed:
                shutil.copyfileobj(plain, packed)


def _write_image(path: Path, voxels: Array, geometry: Geometry) -> None:
    """Voxels under the header of their file; affine, qform, sform and their codes are kept."""
    if geometry.header is None:
        image: Any = nibabel.Nifti1Image(voxels, geometry.affine)
        image.header.set_xyzt_units("mm")
    else:
        header = geometry.header.copy()
        header.set_data_dtype(voxels.dtype)
        header.set_slope_inter(1, 0)
        if len(header.get_data_shape()) == 2:  # read as one slice
            voxels = voxels[..., 0]
        kind: Any = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        image = kind(voxels, None, header)
    with replacing(path) as temporary:
        nibabel.save(image, temporary)
