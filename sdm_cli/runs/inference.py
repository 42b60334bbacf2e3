"""Slices in, classes and what is known of their certainty out: one volume at a time, streamed, whatever the batch.

A volume passes as slices, so the peak of memory is the network's work on one batch; never classes x volume, unless
the probabilities are asked for. The size of the batch never changes a voxel of a mask: see `predict_slices`.

Knows arrays of the array API alone (numpy's, or torch's on any device), so that it needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from array_api_compat import array_namespace, to_device
from array_api_compat import device as device_of

from sdm_cli.config import IN_PLANE, STRIDE, Direction
from sdm_cli.data.grid import SliceGrid
from sdm_cli.errors import CheckpointError, SdmError
from sdm_cli.runs.memory import is_out_of_memory
from sdm_cli.runs.parts import keep_largest_part
from sdm_cli.runs.predictor import Array, Predictor

# On a CPU a larger batch gains nothing from about 160 x 160 pixels on (measured, MiT-B0 and B2).
_PIXELS_PER_BATCH = {"cpu": 256 * 256}
_PIXELS_PER_BATCH_GPU = 16 * 512 * 512

# Logits of a slice alone and of the same slice in a batch differ by rounding: at most 1.5e-6 of the
# largest logit (measured: MiT-B0 and B2, 1-4 messengers, 32-256 pixels, batches of 2-16, float32).
_TIE_TOLERANCE = 3e-5


@dataclass(frozen=True)
class Maps:
    """Arrays on the scan's slices that a prediction fills beside its mask; views of whatever the caller keeps.

    Attributes:
        entropy: (Z, H, W), of the probabilities of a voxel, divided by log K: 0 is certain, 1 knows nothing.
        confidence: (Z, H, W), the probability of the best class.
        probabilities: (Z, H, W) of each of the K classes, the background first; or nothing.
    """

    entropy: Array | None = None
    confidence: Array | None = None
    probabilities: Sequence[Array] = ()

    def __post_init__(self) -> None:
        """What lies outside of the slices' grid is background for certain."""
        for array, value in ((self.entropy, 0), (self.confidence, 1)):
            if array is not None:
                array[...] = value
        for index, array in enumerate(self.probabilities):
            array[...] = index == 0

    @property
    def are_wanted(self) -> bool:
        """Whether there is anything to fill."""
        return not (self.entropy is None and self.confidence is None and len(self.probabilities) == 0)

    def fill(self, where: tuple[int, slice, slice], probabilities: Array) -> None:
        """Take the (K, H, W) probabilities of a part of a slice."""
        for array, of_class in zip(self.probabilities, probabilities, strict=False):
            array[where] = of_class
        if self.confidence is not None:
            self.confidence[where] = probabilities.max(0)
        if self.entropy is not None:
            self.entropy[where] = _entropy(probabilities)


@dataclass(frozen=True)
class Segmentation:
    """What a network finds in a scan.

    Attributes:
        mask: (Z, H, W) uint8 class indices on the slices of the scan.
        confidence: mean probability of their class over the voxels found to be foreground, before all but the largest
            part of a class is left out. Absent: None when there are none.
    """

    mask: Array
    confidence: float | None


def flips_of(directions: Sequence[Direction], slice_axis: str) -> list[tuple[int, ...]]:
    """All ways to mirror a slice along some of these directions, as axes of (..., H, W); at first not at all."""
    axes = [IN_PLANE[slice_axis].index(direction) - 2 for direction in directions]
    return [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]


def predict_scan(
    predictors: Sequence[Predictor],
    slices: Array,
    grid: SliceGrid,
    spacing_mm: tuple[float, float, float],
    flips: Sequence[tuple[int, ...]] = ((),),
    maps: Maps = Maps(),  # frozen and empty
) -> Segmentation:
    """The classes of a scan on its own slices, from normalised slices on a grid.

    Args:
        predictors: one network, or several of the same classes and slices, whose probabilities are averaged.
        slices: (Z, H, W) uint16 on the grid.
        grid: where they lie in the scan.
        spacing_mm: (z, h, w) of the scan's slices.
        flips: as `flips_of`; probabilities are averaged over them.
        maps: filled on the way.

    Raises:
        SdmError: a slice does not fit the memory of the device.
    """
    if len(predictors) == 1 and len(flips) == 1 and grid.is_identity and not maps.are_wanted:
        found = predict_slices(predictors[0], slices)
    else:
        found = _from_probabilities(predictors, slices, grid, flips, maps)
    rules, names = predictors[0].preset.predict, predictors[0].preset.data.class_names
    for name in rules.largest_part:
        keep_largest_part(found.mask, 1 + names.index(name), spacing_mm, rules.bridge_mm)
    return found


def predict_slices(predictor: Predictor, slices: Array, batch_size: int | None = None) -> Segmentation:
    """Class indices of normalised slices.

    The mask is that of each slice predicted alone, whatever the batch: a slice in which the two
    best classes of some voxel are closer than the rounding of the network is predicted again alone.

    Args:
        predictor: the network.
        slices: (Z, H, W) uint16, of any size; zeros are added to the right and bottom and cut off again.
        batch_size: slices per forward pass; by default as many as suit the device. Where memory
            runs out it is halved.

    Raises:
        SdmError: a single slice does not fit the memory of the device.
    """
    n_slices, height, width = slices.shape
    batch = batch_size or _batch_size(predictor.device, height, width)
    mask = np.empty(slices.shape, np.uint8)
    sure = _Mean()
    start = 0
    while start < n_slices:
        chunk = slices[start : start + batch]
        try:
            classes, likelihood = _predict_batch(predictor, chunk)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise _too_large(predictor, height, width) from None
            batch = len(chunk) // 2
        else:
            mask[start : start + len(chunk)] = classes
            sure.add(likelihood[classes > 0])
            start += len(chunk)
    return Segmentation(mask, sure.value)


def _from_probabilities(
    predictors: Sequence[Predictor], slices: Array, grid: SliceGrid, flips: Sequence[tuple[int, ...]], maps: Maps
) -> Segmentation:
    """As `predict_scan`: probabilities go back to the pixels of the scan, and only then the best class is taken.

    They are averaged over networks and flips on the grid, bilinear in plane and linear between slices on the way back.
    Two slices of them are held at a time, made one at a time, so that no batch can change a voxel. What the grid left
    out is background.
    """
    mask = np.zeros(grid.scan, np.uint8)
    sure = _Mean()
    held: dict[int, Any] = {}
    z_window, *in_plane = grid.window
    for z, low, high, share in zip(range(grid.scan[0])[z_window], *grid.weights(0), strict=True):
        held = {n: held[n] if n in held else _probabilities(predictors, slices[n], grid, flips) for n in (low, high)}
        probabilities = held[low] if share == 0 else held[low] + (held[high] - held[low]) * float(share)
        best, classes, _ = _best_two(probabilities[None])
        where = (z, in_plane[0], in_plane[1])
        mask[where] = _numpy(classes)[0]
        sure.add(_numpy(best)[0][mask[where] > 0])
        if maps.are_wanted:
            maps.fill(where, _numpy(probabilities))
    return Segmentation(mask, sure.value)


def _probabilities(
    predictors: Sequence[Predictor], plane: Array, grid: SliceGrid, flips: Sequence[tuple[int, ...]]
) -> Any:
    """(H, W) uint16 on the grid to (K, H, W) probabilities on the pixels of the scan's box."""
    total: Any = None
    for predictor in predictors:
        for axes in flips:
            try:
                logits = _logits(predictor, np.flip(plane, axes)[None])
                xp = array_namespace(logits)
                likelihood = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
                likelihood = likelihood / xp.sum(likelihood, axis=1, keepdims=True)
                likelihood = xp.flip(likelihood[0], axis=axes) if axes else likelihood[0]
                total = likelihood if total is None else total + to_device(likelihood, device_of(total))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise _too_large(predictor, *plane.shape) from None
    mean = total / (len(predictors) * len(flips))
    for axis in (1, 2):
        if grid.size[axis] != grid.box_size[axis]:
            mean = _resized(mean, axis, grid)
    return mean


def _resized(maps: Any, axis: int, grid: SliceGrid) -> Any:
    """(K, H, W) of the grid to the pixels of its box along H (1) or W (2), bilinear."""
    xp = array_namespace(maps)
    low, high, share = (xp.asarray(values, device=device_of(maps)) for values in grid.weights(axis))
    share = xp.reshape(xp.astype(share, maps.dtype), (-1, 1) if axis == 1 else (-1,))
    first, second = xp.take(maps, low, axis=axis), xp.take(maps, high, axis=axis)
    return first + (second - first) * share


class _Mean:
    """Mean of numbers that come in pieces; None of none."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, values: Array) -> None:
        self._sum += float(values.sum(dtype=np.float64))
        self._count += values.size

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


def _entropy(probabilities: Array) -> Array:
    """(K, H, W) to (H, W), 0 to 1."""
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    entropy: Array = -(probabilities * logs).sum(0) / np.log(len(probabilities))
    return entropy


def _too_large(predictor: Predictor, height: int, width: int) -> SdmError:
    remedy = "use a machine with more" if predictor.device == "cpu" else "give -d cpu"
    return SdmError(
        f"A slice of {height} x {width} pixels is too large for the memory of {predictor.device}: {remedy}."
    )


def _predict_batch(predictor: Predictor, slices: Array) -> tuple[Array, Array]:
    """(B, H, W) uint16 to classes (B, H, W) uint8, each slice as if it were alone, and their probabilities."""
    logits = _logits(predictor, slices)
    best, classes, second = _best_two(logits)
    xp = array_namespace(logits)
    mask, likelihood = _numpy(classes), _numpy(1 / xp.sum(xp.exp(logits - best[:, None]), axis=1))
    if len(slices) == 1:
        return mask, likelihood
    largest = _numpy(xp.max(xp.abs(logits), axis=(1, 2, 3)))
    margin = _numpy(xp.min(best - second, axis=(1, 2)))
    mask = mask.copy()
    for index in np.flatnonzero(~(margin > _TIE_TOLERANCE * largest)).tolist():
        mask[index] = _numpy(_best_two(_logits(predictor, slices[index : index + 1]))[1])[0]
    return mask, likelihood


def _best_two(values: Any) -> tuple[Any, Any, Any]:
    """(B, K, H, W) to the largest value over classes, its class (uint8; of equal ones the first), the second largest.

    One pass over the classes, since numpy's argmax over an axis that is not the last takes five times as long.
    """
    xp = array_namespace(values)
    best = values[:, 0]
    second = xp.full_like(best, -xp.inf)
    classes = xp.zeros_like(best, dtype=xp.uint8)
    for index in range(1, values.shape[1]):
        plane = values[:, index]
        second = xp.maximum(second, xp.minimum(best, plane))
        classes = xp.where(plane > best, xp.asarray(index, dtype=xp.uint8, device=device_of(values)), classes)
        best = xp.maximum(best, plane)
    return best, classes, second


def _numpy(values: Any) -> Array:
    """An array of numpy, wherever the values lie."""
    return np.asarray(to_device(values, "cpu"))


def _logits(predictor: Predictor, slices: Array) -> Any:
    """(B, H, W) uint16 to (B, K, H, W) logits."""
    height, width = slices.shape[1:]
    images = np.zeros((len(slices), 1, height + -height % STRIDE, width + -width % STRIDE), np.float32)
    images[:, 0, :height, :width] = slices / np.float32(65535)
    logits = predictor.forward(images)[:, :, :height, :width]
    xp = array_namespace(logits)
    if not bool(xp.all(xp.isfinite(logits))):
        raise CheckpointError(
            f"The model of {predictor.preset.name} gives numbers that are not finite: its weights are damaged, take an "
            "intact copy or an earlier checkpoint."
        )
    return logits


def _batch_size(device: str, height: int, width: int) -> int:
    pixels = (height + -height % STRIDE) * (width + -width % STRIDE)
    return max(1, _PIXELS_PER_BATCH.get(device, _PIXELS_PER_BATCH_GPU) // pixels)
