"""What a scan and its label hold, in numbers small enough to keep for each case of a large data set."""

import hashlib
from collections import Counter
from dataclasses import dataclass

import nibabel
import numpy as np

from sdm_cli.data.hounsfield import has_air
from sdm_cli.data.readers import are_whole
from sdm_cli.data.volume import Array, SliceAxis, Volume, slice_spacing_mm, to_slices
from sdm_cli.data_config import DataConfig

QUANTILES = np.linspace(0, 1, 513)
"""Levels of `Intensity.quantiles`: enough for a histogram of many scans, small enough to keep for each."""

LARGEST_CLASS = 65_535
"""The largest value of a class in a label file."""

_SAMPLE_VOXELS = 2_000_000
_THUMBNAIL_PIXELS = 192


@dataclass(frozen=True)
class Intensity:
    """Finite intensities of a scan.

    Attributes:
        minimum: of all voxels.
        maximum: of all voxels.
        mean: of all voxels.
        quantiles: at `QUANTILES`, of at most two million evenly spaced voxels.
        has_air: whether the scan looks like CT.
    """

    minimum: float
    maximum: float
    mean: float
    quantiles: Array
    has_air: bool


@dataclass(frozen=True)
class Thumbnail:
    """A slice to draw: image (H, W) and label values (H, W), at most 192 pixels a side, with the pixel size."""

    image: Array
    label: Array | None
    pixel_mm: tuple[float, float]


@dataclass(frozen=True)
class ImageContents:
    """What was read of the image.

    Attributes:
        shape: in the axis order of the file.
        shape_ras: left-right, back-front, feet-head.
        spacing_mm: left-right, back-front, feet-head; none where it is assumed.
        pixel_mm: (H, W) of the slices.
        orientation: where the axes of the file point, for example `LPS`.
        dtype: of the file, after its slope.
        intensity: none where no voxel is finite.
        digest: of the voxels in RAS+, the same for the same scan under any name, dtype or orientation.
    """

    shape: tuple[int, int, int]
    shape_ras: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    pixel_mm: tuple[float, float]
    orientation: str
    dtype: str
    intensity: Intensity | None
    digest: str


@dataclass(frozen=True)
class LabelContents:
    """What was read of the label: dtype, voxels a value but 0 (none: no whole numbers), ml a voxel, digest."""

    dtype: str
    voxels: dict[int, int] | None
    voxel_ml: float
    digest: str


def image_contents(volume: Volume, slice_axis: SliceAxis, knows_spacing: bool) -> ImageContents:
    """Look through the voxels of an image, whose voxel size may be an assumption."""
    voxels, affine = volume.voxels, volume.geometry.affine
    superior, right, anterior = slice_spacing_mm(affine, "axial")
    n_superior, n_right, n_anterior = to_slices(voxels, affine, "axial").shape
    return ImageContents(
        volume.geometry.shape,
        (n_right, n_anterior, n_superior),
        (right, anterior, superior) if knows_spacing else None,
        slice_spacing_mm(affine, slice_axis)[1:],
        "".join(nibabel.orientations.aff2axcodes(affine)),
        str(voxels.dtype),
        _intensity(voxels),
        _digest(voxels, affine),
    )


def label_contents(label: Volume) -> LabelContents:
    """Look through the voxels of a label."""
    voxels, affine = label.voxels, label.geometry.affine
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return LabelContents(str(voxels.dtype), voxels_by_value(voxels), voxel_ml, _digest(voxels, affine))


def voxels_by_value(label: Array) -> dict[int, int] | None:
    """Voxels of each label value but 0, by rising value; none where the values are no whole numbers."""
    counts: Counter[int] = Counter()
    for plane in np.moveaxis(label, 2, 0):  # one slice at a time: a sorted copy of all would be large
        if plane.dtype.kind == "f":
            if not are_whole(plane).all():
                return None
            plane = np.rint(plane)
        if plane.min() >= 0 and plane.max() <= LARGEST_CLASS:  # can be classes: several times as fast
            sizes = np.bincount(plane.astype(np.intp).ravel())
            values = np.flatnonzero(sizes)
            sizes = sizes[values]
        else:
            values, sizes = np.unique(plane, return_counts=True)
        for value, size in zip(values.tolist(), sizes.tolist(), strict=True):
            counts[round(value)] += size
    del counts[0]
    return dict(sorted(counts.items()))


def _intensity(voxels: Array) -> Intensity | None:
    if voxels.dtype.kind == "f" and not (is_finite := np.isfinite(voxels)).all():
        voxels = voxels[is_finite]
    if voxels.size == 0:
        return None
    sample = voxels.ravel(order="K")[:: max(1, voxels.size // _SAMPLE_VOXELS)]
    quantiles = np.quantile(sample.astype(np.float64), QUANTILES)
    mean = float(voxels.mean(dtype=np.float64))
    return Intensity(float(voxels.min()), float(voxels.max()), mean, quantiles, has_air(voxels))


def _digest(voxels: Array, affine: Array) -> str:
    slices = to_slices(voxels, affine, "axial")
    digest = hashlib.blake2b(str(slices.shape).encode(), digest_size=16)
    for plane in slices:
        digest.update(np.ascontiguousarray(plane, np.float32).tobytes())
    return digest.hexdigest()


def make_thumbnail(volume: Volume, label: Volume | None, data: DataConfig) -> Thumbnail:
    """The slice with most foreground, or the middle one, along `data.slice_axis`."""
    affine = volume.geometry.affine
    slices = to_slices(volume.voxels, affine, data.slice_axis)
    index, mask = len(slices) // 2, None
    if label is not None and label.geometry.shape == volume.geometry.shape:
        masks = to_slices(label.voxels, affine, data.slice_axis)
        foreground = [int(np.count_nonzero(plane)) for plane in masks]
        if any(foreground):
            index = int(np.argmax(foreground))
        mask = np.nan_to_num(masks[index])
    step = -(-max(slices.shape[1:]) // _THUMBNAIL_PIXELS)
    image = np.nan_to_num(slices[index][::step, ::step].astype(np.float32), posinf=0, neginf=0)
    pixel_mm = slice_spacing_mm(affine, data.slice_axis)[1:]
    return Thumbnail(image, None if mask is None else np.rint(mask[::step, ::step]).astype(np.int64), pixel_mm)
