"""Voxels with their geometry, their way to slices and back, and NIfTI files.

Axis order and orientation change in `to_slices` and its inverse `from_slices`, nowhere else.
Spacing is derived from the affine. Knows nothing of classes, presets or intensities.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from sdm_cli.data.limits import beyond_memory, by, require_room
from sdm_cli.data.nifti_header import clear_text, explained, header_block, held_bytes, read_header
from sdm_cli.errors import ImageReadError, OutputError
from sdm_cli.files import replacing

Array = np.ndarray[Any, np.dtype[Any]]
SliceAxis = Literal["axial", "coronal", "sagittal", "stored"]

# It prints what it mends in a header without the file's name; `sdm check` says it with, where it matters.
nibabel.imageglobals.logger.setLevel(logging.CRITICAL + 1)

# Canonical RAS+ axis that the slices of each plane are stacked along.
_STACKING_AXIS: dict[SliceAxis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_PLACE_FIELDS = ("pixdim[1,2,3]", "qform_code", "sform_code")
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI's codes of metre and micrometre


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of one file lie.

    Attributes:
        affine: (4, 4) float64, voxel index -> mm in RAS+.
        shape: (x, y, z) of the file.
        header: the file's NIfTI header, copied into a mask; none for files of other formats.
    """

    affine: Array
    shape: tuple[int, int, int]
    header: nibabel.Nifti1Header | None = None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the axes of the file."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: voxels (x, y, z) in the axis order of the file, with their geometry."""

    voxels: Array
    geometry: Geometry

    @property
    def is_constant(self) -> bool:
        """Whether all voxels are the same."""
        return bool(self.voxels.min() == self.voxels.max())


def to_slices(voxels: Array, affine: Array, slice_axis: SliceAxis) -> Array:
    """Turn a volume to the closest canonical orientation (RAS+), slice axis first; or take its slices as stored.

    Args:
        voxels: (x, y, z) in the axis order of the file, any dtype.
        affine: (4, 4), voxel index -> mm; oblique and sheared ones are taken to the closest axes.
        slice_axis: plane of the slices; `stored`: along the last axis of the file, nothing turned.

    Returns:
        (Z, H, W), a view. The two axes within a slice keep their RAS+ order: axial slices stack
        from the feet up, their rows (H) run from left to right, their columns (W) from back to front.
    """
    file_axes, steps = _layout(affine, slice_axis)
    return voxels.transpose(file_axes)[steps]


def from_slices(slices: Array, affine: Array, slice_axis: SliceAxis) -> Array:
    """Undo `to_slices`: (Z, H, W) back to the axis order of the file; a view."""
    file_axes, steps = _layout(affine, slice_axis)
    x, y, z = np.argsort(file_axes).tolist()
    return slices[steps].transpose(x, y, z)


def slice_spacing_mm(affine: Array, slice_axis: SliceAxis) -> tuple[float, float, float]:
    """Voxel size in the order of `to_slices`: between slices, along rows (H), along columns (W)."""
    file_axes, _ = _layout(affine, slice_axis)
    z, h, w = np.linalg.norm(affine[:3, :3], axis=0)[list(file_axes)].tolist()
    return z, h, w


def _layout(affine: Array, slice_axis: SliceAxis) -> tuple[tuple[int, int, int], tuple[slice, ...]]:
    """For each of Z, H, W: the file axis it is, and the direction it is walked in."""
    if slice_axis == "stored":
        return (2, 0, 1), (slice(None),) * 3
    orientation = nibabel.orientations.io_orientation(affine)
    file_axis_of = np.argsort(orientation[:, 0])
    stacking = _STACKING_AXIS[slice_axis]
    z, h, w = (int(file_axis_of[axis]) for axis in (stacking, *(axis for axis in range(3) if axis != stacking)))
    return (z, h, w), tuple(slice(None, None, int(orientation[axis, 1])) for axis in (z, h, w))


def read_nifti(path: Path, frame: int | None = None) -> Volume:
    """Read a NIfTI file, scaled by its slope and intercept.

    Args:
        path: `.nii` or `.nii.gz`, any byte order, integer or real voxels.
        frame: index of the frame to take from a 4D image.

    Returns:
        Voxels in the file's own dtype and native byte order; float32 when scaled.

    Raises:
        ImageReadError: the file is missing, damaged, no NIfTI, not 3D, or its affine is singular.
    """
    header = read_header(path)
    with explained(path):
        voxels = _read_voxels(path, header, frame)
        return Volume(voxels, _geometry(path, header, voxels.shape))


def read_nifti_geometry(path: Path, frame: int | None = None) -> Geometry:
    """Geometry of a NIfTI file, or of a frame of it, from its header alone.

    Raises:
        ImageReadError: the file is missing, no NIfTI, not 3D, or its affine is singular.
    """
    header = read_header(path)
    with explained(path):
        shape = header.get_data_shape()
        if min(shape, default=0) < 1:
            raise ImageReadError(f"{path} has no voxels ({by(shape)}): copy or convert it again.")
        return _geometry(path, header, (*_shape_of(path, header, frame), 1, 1)[:3])


def mended_fields(path: Path, geometry: Geometry) -> list[str]:
    """What the header of a NIfTI file says of voxel size and place that the standard forbids and nibabel replaces."""
    header = geometry.header
    if header is None or int(header["sform_code"]) > 0:  # an sform tells both, whatever the rest says
        return []
    block = header_block(path)[: header.sizeof_hdr]
    return [fault for fault in header.diagnose_binaryblock(block).splitlines() if fault.startswith(_PLACE_FIELDS)]


def assumes_spacing(path: Path, geometry: Geometry) -> bool:
    """Whether the header stores a voxel size of 0, for which 1 mm is taken."""
    return any("non-zero" in fault for fault in mended_fields(path, geometry))


def has_no_form(geometry: Geometry) -> bool:
    """Whether a NIfTI header says nothing of the patient's directions: sform and qform are both unset."""
    header = geometry.header
    return header is not None and int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0


def _geometry(path: Path, header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> Geometry:
    affine = _affine_mm(header)
    if not _is_usable(affine):
        raise ImageReadError(f"{path} has no usable affine (voxel axes of zero length): repair its header.")
    x, y, z = shape
    return Geometry(affine, (x, y, z), header)


def is_one_volume(path: Path) -> bool:
    """Whether a readable NIfTI file holds one frame."""
    header = read_header(path)
    with explained(path):
        return all(size == 1 for size in header.get_data_shape()[3:])


def occupied_frames(path: Path) -> list[int]:
    """Frames of a readable 4D NIfTI file that hold anything but zeros."""
    header = read_header(path)
    return [index for index in range(header.get_data_shape()[3]) if _read_voxels(path, header, index).any()]


def _read_voxels(path: Path, header: nibabel.Nifti1Header, frame: int | None) -> Array:
    shape = _shape_of(path, header, frame)
    if min(shape, default=0) < 1:
        raise ImageReadError(f"{path} has no voxels ({by(shape)}): copy or convert it again.")
    proxy: Any = ArrayProxy(str(path), header, mmap=False)
    is_scaled = (proxy.slope, proxy.inter) != (1, 0)
    stored = proxy.dtype.itemsize
    needed = math.prod(shape[:3]) * (stored + 4 * is_scaled)
    require_room(path, header.get_data_shape(), stored, held_bytes(path, proxy.offset), needed)
    try:
        if len(shape) == 4:
            proxy = proxy[:, :, :, frame, *([0] * (proxy.ndim - 4))]
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite then is said where intensities are read
            voxels = np.asarray(proxy, np.float32 if is_scaled else None)
    except (MemoryError, OverflowError):
        raise ImageReadError(beyond_memory(path, shape)) from None
    voxels = voxels.reshape(*shape[:3], *([1] * (3 - len(shape))))
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)


def _shape_of(path: Path, header: nibabel.Nifti1Header, frame: int | None) -> tuple[int, ...]:
    """Sizes of a grey image of at most three dimensions, or of four with the frame asked for."""
    if header.get_data_dtype().kind not in "iuf":
        raise ImageReadError(f"{path} has voxels of type {header.get_data_dtype()}: only grey images can be read.")
    shape: tuple[int, ...] = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4 or (len(shape) == 4 and frame is None):
        remedy = "split it into 3D files"
        if len(shape) == 4:
            remedy += ", or train with a preset that names the frame to take (data.frame)"
        raise ImageReadError(f"{path} is {len(shape)}D ({by(shape)}): {remedy}.")
    if len(shape) == 4 and frame is not None and not 0 <= frame < shape[3]:
        raise ImageReadError(
            f"{path} has frames 0 to {shape[3] - 1}, but frame {frame} is asked for: correct data.frame, or the table "
            "of the data set."
        )
    return shape


def _affine_mm(header: nibabel.Nifti1Header) -> Array:
    with np.errstate(all="ignore"):  # what is infinite then is no usable affine
        affine = np.asarray(header.get_best_affine(), dtype=np.float64).copy()
        # Three bits; nibabel raises on values that the standard does not know, which happen and mean nothing.
        affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine


def _is_usable(affine: Array) -> bool:
    """Three axes of some length, none of them in the plane of the others; whatever the size of a voxel."""
    if not np.isfinite(affine).all():
        return False
    with np.errstate(all="ignore"):
        volume = float(np.prod(np.linalg.norm(affine[:3, :3], axis=0)))
        is_solid = 0 < volume < np.inf and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * volume
        return is_solid and bool(np.isfinite(nibabel.orientations.io_orientation(affine)).all())


def write_mask(path: Path, mask: Array, geometry: Geometry, overwrite: bool = False) -> None:
    """Write label values on the grid of a scan, as `write_volume`.

    Args:
        path: `.nii` or `.nii.gz`.
        mask: (x, y, z) in the axis order of the scan, whole numbers from 0 to 65535.
        geometry: of the scan.
        overwrite: replace an existing file.
    """
    write_volume(path, as_label_values(mask), geometry, overwrite)


def as_label_values(mask: Array) -> Array:
    """Whole numbers from 0 to 65535 in the smallest type of a mask's file: uint8, or uint16."""
    return mask.astype(np.uint16 if mask.max(initial=0) > 255 else np.uint8, copy=False)


def require_place(path: Path, voxels: Array, geometry: Geometry, overwrite: bool) -> None:
    """Raise OutputError where a file must stay, ValueError where voxels are not on the grid of the scan."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another output folder, or replace it with --overwrite.")
    if voxels.shape != geometry.shape:
        raise ValueError(f"voxels {voxels.shape} are not on the grid {geometry.shape}")


def write_volume(path: Path, voxels: Array, geometry: Geometry, overwrite: bool = False) -> None:
    """Write numbers on the grid of a scan, with the scan's header.

    Affine, qform, sform, their codes and units are the scan's own; extensions and the free text of the header,
    either of which may name the patient, and the display range are not copied.

    Args:
        path: `.nii` or `.nii.gz`.
        voxels: (x, y, z) in the axis order of the scan, of a type that NIfTI has.
        geometry: of the scan.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    require_place(path, voxels, geometry, overwrite)
    if voxels.dtype in (np.int64, np.uint64):  # which few programs read
        voxels = voxels.astype(np.float64)
    if geometry.header is None:
        image = nibabel.Nifti1Image(voxels, geometry.affine)
        image.header.set_xyzt_units("mm")
    else:
        header = geometry.header.copy()
        if len(header.get_data_shape()) == 2:  # read as one slice
            voxels = voxels[..., 0]
        header.set_data_dtype(voxels.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        clear_text(header)
        # Without an affine nibabel leaves both forms of the header alone, to the last bit.
        kind: Any = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        image = kind(voxels, None, header)
    with replacing(path) as temporary:
        nibabel.save(image, temporary)
