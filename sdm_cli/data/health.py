"""One case looked into: what it holds, and what is wrong with it taken alone.

Reads each file once, and never stops at a bad one: what cannot be read is a finding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdm_cli.data.cases import Case, is_nifti, some, stores_spacing
from sdm_cli.data.contents import (
    ImageContents,
    LabelContents,
    Thumbnail,
    image_contents,
    label_contents,
    make_thumbnail,
)
from sdm_cli.data.doubts import centres_x_mm, swapped_sides
from sdm_cli.data.findings import Finding, Fix, from_error, sides
from sdm_cli.data.limits import by
from sdm_cli.data.readers import (
    SAME_GRID_VOXELS,
    are_whole,
    broken_voxels,
    grid_distance_mm,
    read_image_file,
    read_label_file,
)
from sdm_cli.data.volume import (
    Array,
    Geometry,
    Volume,
    assumes_spacing,
    has_no_form,
    is_one_volume,
    mended_fields,
    to_slices,
)
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError

_SMALL_OFFSET_VOXELS = 1.0
_SMALL_SIDE = 32


@dataclass(frozen=True)
class CaseHealth:
    """A case, what it holds, the findings that the case alone shows, and a slice to draw."""

    case: Case
    image: ImageContents | None
    label: LabelContents | None
    findings: tuple[Finding, ...]
    thumbnail: Thumbnail | None = None


@np.errstate(over="ignore", invalid="ignore")  # numbers that no cast can hold are findings, not lines of numpy
def examine(case: Case, data: DataConfig) -> CaseHealth:
    """Read a case and look for whatever would stop or mislead training; runs in a worker.

    Args:
        case: image, perhaps with a label.
        data: frame, slice axis, and the classes by whose names left and right are told.
    """
    try:
        volume = read_image_file(case, data)
    except ImageReadError as error:
        return CaseHealth(case, None, None, (_unreadable(case, case.image_path, error),))
    findings = [*_image_findings(case, volume), *_size_findings(case, volume, data), *_header_findings(case, volume)]
    label, contents = None, None
    if case.label_path is not None:
        try:
            label = read_label_file(case, data, volume.geometry)
            contents = label_contents(label)
            findings += _label_findings(case, case.label_path, volume, label, contents, data)
        except ImageReadError as error:
            findings.append(_unreadable(case, case.label_path, error))
    image = image_contents(volume, data.slice_axis, _knows_spacing(case, volume.geometry, data))
    return CaseHealth(case, image, contents, tuple(findings), make_thumbnail(volume, label, data))


def _knows_spacing(case: Case, geometry: Geometry, data: DataConfig) -> bool:
    is_told = stores_spacing(case.image_path) or data.spacing_mm is not None
    return is_told and not assumes_spacing(case.image_path, geometry)


def _unreadable(case: Case, path: Path, error: ImageReadError) -> Finding:
    code = "four_dimensional" if _has_frames(path) else "unreadable"
    return from_error(code, case.case_id, error)


def _has_frames(path: Path) -> bool:
    try:
        return is_nifti(path) and not is_one_volume(path)
    except ImageReadError:
        return False


def _image_findings(case: Case, volume: Volume) -> list[Finding]:
    path, voxels, findings = case.image_path, volume.voxels, []
    if voxels.dtype.kind == "f" and (n_broken := voxels.size - int(np.count_nonzero(np.isfinite(voxels)))):
        message = f"{path} has {broken_voxels(n_broken)}."
        if n_broken == voxels.size:
            return [Finding("blocks", "not_finite", case.case_id, message, "Export the scan again.")]
        repair = "Replace them by the lowest finite value."
        findings.append(Finding("blocks", "not_finite", case.case_id, message, repair, "fill NaN"))
        voxels = voxels[np.isfinite(voxels)]
    if voxels.min() == voxels.max():
        message = f"{path} is constant: all voxels are {voxels.flat[0]:g}."
        repair = "Export the scan again, or leave it out."
        findings.append(Finding("blocks", "constant", case.case_id, message, repair))
    return findings


def _size_findings(case: Case, volume: Volume, data: DataConfig) -> list[Finding]:
    path, shape = case.image_path, volume.geometry.shape
    if 1 in shape:
        message = f"{path} is a single slice ({by(shape)})."
        repair = "Join the slices of a scan to one volume, or leave it out if it is a localizer."
        return [Finding("warns", "single_slice", case.case_id, message, repair)]
    sides = to_slices(volume.voxels, volume.geometry.affine, data.slice_axis).shape[1:]
    if min(sides) < _SMALL_SIDE:
        message = f"{path} has slices of {by(sides)} pixels, less than {_SMALL_SIDE} a side."
        repair = "Leave it out if it is a preview, or export it at its full size."
        return [Finding("warns", "small", case.case_id, message, repair)]
    return []


def _header_findings(case: Case, volume: Volume) -> list[Finding]:
    """What the header says of voxel size and place in a way that nibabel has to replace."""
    path, geometry = case.image_path, volume.geometry
    if assumes_spacing(path, geometry):
        message = f"{path} stores a voxel size of 0: 1 mm is assumed."
        return [Finding("warns", "no_spacing", case.case_id, message, "Write the true voxel size into the header.")]
    if faults := mended_fields(path, geometry):
        message = f"{path} has a header that breaks the standard ({'; '.join(faults)}): its place may be wrong."
        repair = "Look at it in a viewer, and export it again if it is wrong."
        return [Finding("warns", "header", case.case_id, message, repair)]
    return []


def _label_findings(
    case: Case, path: Path, image: Volume, label: Volume, contents: LabelContents, data: DataConfig
) -> list[Finding]:
    findings = _grid_findings(case, path, image.geometry, label.geometry)
    if contents.voxels is None:
        is_broken = ~are_whole(label.voxels)
        message = f"{path} has label values that are not whole numbers ({label.voxels[is_broken].flat[0]:g}, say)."
        repair = "Resample the label with nearest neighbours, or round it if you know what the values mean."
        findings.append(Finding("blocks", "label_not_whole", case.case_id, message, repair))
    elif label.voxels.dtype.kind == "f":
        message = f"{path} stores its label values as {label.voxels.dtype}."
        repair = "Store whole numbers (uint8)."
        findings.append(Finding("warns", "label_float", case.case_id, message, repair, "whole numbers"))
    is_resampled = any(finding.fix == "grid of the image" for finding in findings)
    place = label.geometry if is_resampled else image.geometry
    if label.geometry.shape == place.shape and contents.voxels:
        findings += _side_findings(case, path, label.voxels, place, data)
    return findings


def _grid_findings(case: Case, path: Path, image: Geometry, label: Geometry) -> list[Finding]:
    if image.shape != label.shape:
        message = f"{path} has shape {by(label.shape)}, but its image {by(image.shape)}."
        fix: Fix | None = None if _has_no_place(label) or not _covers(label, image) else "grid of the image"
        missing = "" if fix else ", once it is known where it lies and what it lacks"
        repair = f"Resample the label to the grid of the image (nearest neighbours){missing}."
        return [Finding("blocks", "shape_mismatch", case.case_id, message, repair, fix)]
    distance_mm = grid_distance_mm(label, image)
    if distance_mm <= SAME_GRID_VOXELS * min(image.spacing_mm):
        return []
    fix = None
    if _has_no_place(label) or distance_mm <= _SMALL_OFFSET_VOXELS * min(image.spacing_mm):
        fix, repair = "header of the image", "Give the label the header of its image."
    elif _covers(label, image):
        fix, repair = "grid of the image", "Resample the label to the grid of its image: both lie at the same place."
    else:
        repair = "Resample the label to the image, or copy the image's header if the voxels belong together."
    message = f"{path} lies up to {distance_mm:.3g} mm away from its image: the affines differ."
    return [Finding("blocks", "affine_mismatch", case.case_id, message, repair, fix)]


def _covers(label: Geometry, image: Geometry) -> bool:
    """Whether a label of another grid tells of all of the image, but for half a voxel at its border."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * image.shape - 0.5
    to_label = np.linalg.inv(label.affine) @ image.affine
    places = corners @ to_label[:3, :3].T + to_label[:3, 3]
    return bool((places > -1 - SAME_GRID_VOXELS).all() and (places < np.array(label.shape) + SAME_GRID_VOXELS).all())


def _has_no_place(geometry: Geometry) -> bool:
    """Whether the header says nothing of the patient: an identity, or no affine at all."""
    return has_no_form(geometry) or np.array_equal(geometry.affine, np.eye(4))


def _side_findings(case: Case, path: Path, voxels: Array, geometry: Geometry, data: DataConfig) -> list[Finding]:
    pairs = sides(data.classes)
    swapped = swapped_sides(centres_x_mm(voxels, geometry.affine), pairs) if pairs else []
    if not swapped:
        return []
    message = f"{path}: left and right look swapped ({some(swapped)}), or the header is mirrored."
    repair = "Look at the scan: exchange the two label values, or correct the header of image and label."
    return [Finding("blocks", "sides_swapped", case.case_id, message, repair)]
