"""Probabilities to classes on the scan's own slices, and how certain they are: streamed, whatever the batch.

A volume passes as slices, so the peak of memory is the network's work on one batch beside the probabilities of the one
before, or those within three `predict.smooth_mm` of a slice; never classes x volume, unless the probabilities are
asked for. The size of the batch never changes a voxel of a mask: see `predict_scan`.

Knows arrays of the array API alone (numpy's, or torch's on any device), so that it needs no torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of

from sdm_cli.config import PredictConfig
from sdm_cli.data.grid import SliceGrid, whole_grid
from sdm_cli.errors import SdmError
from sdm_cli.runs.likelihood import Ensemble, Likelihood, SliceStream, as_numpy
from sdm_cli.runs.memory import is_out_of_memory
from sdm_cli.runs.parts import keep_largest_part
from sdm_cli.runs.predictor import Array, Predictor

_DIGITS = 3
"""Of a confidence. What a batch may change is a hundredth of the last one, or less."""
_REACH = 3
"""How many standard deviations of `predict.smooth_mm` count."""


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
            part of a class is left out; to three digits, which no batch changes. Absent: None when there are none.
    """

    mask: Array
    confidence: float | None


def predict_scan(
    predictors: Sequence[Predictor],
    slices: Array,
    grid: SliceGrid,
    spacing_mm: tuple[float, float, float],
    flips: Sequence[tuple[int, ...]] = ((),),
    maps: Maps = Maps(),  # frozen and empty
    batch_size: int | None = None,
) -> Segmentation:
    """The classes of a scan on its own slices, from normalised slices on a grid.

    Probabilities are averaged over networks, flips and (`predict.smooth_mm`) neighbouring slices on the grid, go back
    to the pixels of the scan, and only then the best class is taken; what the grid left out is background. Mask and
    confidence are those of each slice predicted alone, whatever the batch: what its rounding could change is predicted
    again alone. Maps may differ by that rounding (1e-5 at most, before they are stored).

    Args:
        predictors: one network, or several of the same classes and slices, whose probabilities are averaged; the
            preset of the first one says what is done with the mean (`smooth_mm`, `largest_part`, `bridge_mm`).
        slices: (Z, H, W) uint16 on the grid, of any size.
        grid: where they lie in the scan.
        spacing_mm: (z, h, w) of the scan's slices.
        flips: as `flips_of`; probabilities are averaged over them.
        maps: filled on the way.
        batch_size: slices a forward pass; none: as many as suit the device. Where memory runs out it is halved.

    Raises:
        SdmError: a slice does not fit the memory of the device.
        CheckpointError: a network gives numbers that are not finite.
    """
    rules, names = predictors[0].preset.predict, predictors[0].preset.data.class_names
    found = _classify(Ensemble(predictors, flips), slices, grid, maps, batch_size, _smoothing(rules, grid, spacing_mm))
    for name in rules.largest_part:
        keep_largest_part(found.mask, 1 + names.index(name), spacing_mm, rules.bridge_mm)
    return found


def n_neighbours(rules: PredictConfig, grid: SliceGrid, spacing_mm: tuple[float, float, float]) -> int:
    """How many slices before and after one count in its probabilities; arguments as `predict_scan` takes them."""
    return _reach(grid, _smoothing(rules, grid, spacing_mm))


def predict_slices(predictor: Predictor, slices: Array, batch_size: int | None = None) -> Segmentation:
    """The classes of normalised slices (Z, H, W) on their own grid, each by itself, all parts of them.

    Otherwise as `predict_scan`.
    """
    return _classify(Ensemble([predictor]), slices, whole_grid(slices.shape), Maps(), batch_size, 0.0)


def _classify(
    ensemble: Ensemble, slices: Array, grid: SliceGrid, maps: Maps, batch_size: int | None, smoothing: float
) -> Segmentation:
    mask = np.zeros(grid.scan, np.uint8)
    shares = list(_shares(grid, smoothing))
    try:
        sure = _pass(ensemble, slices, grid, shares, maps, batch_size, mask)
        if not sure.is_clear:
            sure = _pass(ensemble, slices, grid, shares, maps, 1, mask)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        device, (height, width) = ensemble.predictors[0].device, slices.shape[1:]
        remedy = "use a machine with more" if device == "cpu" else "give -d cpu"
        raise SdmError(
            f"A slice of {height} x {width} pixels is too large for the memory of {device}: {remedy}."
        ) from None
    return Segmentation(mask, sure.value)


def _shares(grid: SliceGrid, smoothing: float) -> Iterator[dict[int, float]]:
    """For each slice of the scan's box: slices of the grid, in order -> their shares in its probabilities.

    Linear between the two that it lies between, each of which is first the mean of its neighbours, weighed by a
    Gaussian whose standard deviation is `smoothing` slices.
    """
    reach = _reach(grid, smoothing)
    steps = [step / smoothing if step else 0.0 for step in range(reach + 1)]
    bell = [math.exp(-step * step / 2) for step in steps]
    for first, second, share in zip(*(values.tolist() for values in grid.weights(0)), strict=True):
        found: dict[int, float] = {}
        for centre, part in ((first, 1 - share), (second, share)):
            around = range(max(0, centre - reach), min(grid.size[0], centre + reach + 1)) if part else ()
            total = sum(bell[abs(n - centre)] for n in around)
            for n in around:
                found[n] = found.get(n, 0.0) + part * bell[abs(n - centre)] / total
        yield found


def _smoothing(rules: PredictConfig, grid: SliceGrid, spacing_mm: tuple[float, float, float]) -> float:
    return rules.smooth_mm / grid.spacing_mm(spacing_mm)[0]


def _reach(grid: SliceGrid, smoothing: float) -> int:
    return math.ceil(min(_REACH * smoothing, grid.size[0] - 1))


def _pass(
    ensemble: Ensemble,
    slices: Array,
    grid: SliceGrid,
    shares: Sequence[dict[int, float]],
    maps: Maps,
    batch_size: int | None,
    mask: Array,
) -> "_Confidence":
    """Fill mask and maps; where two classes of some voxel are closer than rounding, slices are made again, alone."""
    stream = SliceStream(ensemble, slices, sorted(set().union(*shares)), batch_size)
    upcoming = iter(stream)
    held: dict[int, Likelihood] = {}
    sure = _Confidence()
    z_window, *in_plane = grid.window
    for z, wanted in zip(range(grid.scan[0])[z_window], shares, strict=True):
        held = {n: held[n] for n in wanted if n in held}
        while not held.keys() >= wanted.keys():
            held.update([next(upcoming)])
        likelihood = _on_scan(held, wanted, grid)
        best, classes, is_clear = _best(likelihood)
        if not is_clear:
            held = {n: stream.again(n) if found.slack else found for n, found in held.items()}
            likelihood = _on_scan(held, wanted, grid)
            best, classes, _ = _best(likelihood)
        where = (z, in_plane[0], in_plane[1])
        mask[where] = as_numpy(classes)
        sure.add(as_numpy(best)[mask[where] > 0], likelihood.slack)
        if maps.are_wanted:
            maps.fill(where, as_numpy(likelihood.values))
    return sure


def _on_scan(held: dict[int, Likelihood], shares: dict[int, float], grid: SliceGrid) -> Likelihood:
    """Slices of the grid to the pixels of the scan's box: by their shares, and bilinear in plane."""
    first, *others = shares
    values = held[first].values if not others else held[first].values * shares[first]
    for n in others:
        values += held[n].values * shares[n]
    for axis in (2, 1):
        if grid.size[axis] != grid.box_size[axis]:
            values = _resized(values, axis, grid)
    return Likelihood(values, max(held[n].slack for n in shares))


def _resized(maps: Any, axis: int, grid: SliceGrid) -> Any:
    """(K, H, W) of the grid to the pixels of its box along H (1) or W (2)."""
    xp = array_namespace(maps)
    low, high, shares = grid.weights(axis)
    shares = shares.astype(np.float32).reshape((-1, 1) if axis == 1 else -1)  # no device need know float64
    first, resized = (_taken(maps, xp.asarray(index, device=device_of(maps)), axis) for index in (low, high))
    resized -= first
    resized *= xp.asarray(shares, device=device_of(maps))
    resized += first
    return resized


def _taken(maps: Any, index: Any, axis: int) -> Any:
    """By index along H (1) or W (2): a `take` needs a third of the time in numpy, and five times of it in torch."""
    if isinstance(maps, np.ndarray):
        return maps.take(index, axis)
    return maps[:, index] if axis == 1 else maps[:, :, index]


def _best(likelihood: Likelihood) -> tuple[Any, Any, bool]:
    """The largest probability over classes (H, W), its class (uint8; of equal ones the first), and whether it is clear.

    Clear means that no rounding of a batch makes another class the best one. One pass over the classes, since numpy's
    argmax over an axis that is not the last takes five times as long.
    """
    values, slack = likelihood
    xp = array_namespace(values)
    best = values[0]
    second = xp.full_like(best, -xp.inf)
    classes = xp.zeros_like(best, dtype=xp.uint8)
    for index in range(1, values.shape[0]):
        plane = values[index]
        second = xp.maximum(second, xp.minimum(best, plane))
        classes = xp.where(plane > best, xp.asarray(index, dtype=xp.uint8, device=device_of(values)), classes)
        best = xp.maximum(best, plane)
    return best, classes, not slack or bool(xp.all(second < best * (1 - slack)))


class _Confidence:
    """Mean of probabilities that come in pieces, and how much of it may be rounding; None of none."""

    def __init__(self) -> None:
        self._sum, self._count, self._slack = 0.0, 0, 0.0

    def add(self, values: Array, slack: float) -> None:
        """Probabilities of one slice, and its slack: see `Likelihood`."""
        values = values.astype(np.float64)
        self._sum += float(values.sum())
        self._count += values.size
        if slack:  # p (1 - p) times that of the ratio, and what softmax itself rounds
            self._slack += float((values * (1 - values) * slack + 1e-7).sum())

    @property
    def value(self) -> float | None:
        return round(self._sum / self._count, _DIGITS) if self._count else None

    @property
    def is_clear(self) -> bool:
        """Whether no rounding of a batch changes the value."""
        low, high = self._sum - self._slack, self._sum + self._slack
        return not self._slack or round(low / self._count, _DIGITS) == round(high / self._count, _DIGITS)


def _entropy(probabilities: Array) -> Array:
    """(K, H, W) to (H, W), 0 to 1."""
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    entropy: Array = -(probabilities * logs).sum(0) / np.log(len(probabilities))
    return entropy
