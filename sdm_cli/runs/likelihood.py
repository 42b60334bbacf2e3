"""Slices to probabilities: through one network or several, mirrored or not, in batches that memory may halve.

A batch changes a probability by rounding alone, and how much that can be is told with it. Knows arrays of the array API
alone (numpy's, or torch's on any device), so that it needs no torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, to_device
from array_api_compat import device as device_of

from sdm_cli.config import IN_PLANE, Direction, Preset
from sdm_cli.errors import CheckpointError
from sdm_cli.runs.memory import is_out_of_memory
from sdm_cli.runs.predictor import Array, Predictor

# On a CPU a larger batch gains nothing from about 160 x 160 pixels on (measured, MiT-B0 and B2).
_PIXELS_PER_BATCH = {"cpu": 256 * 256}
_PIXELS_PER_BATCH_GPU = 16 * 512 * 512

# Logits of a slice alone and of the same slice in a batch differ by rounding: at most 1.5e-6 of the
# largest logit (measured: MiT-B0 and B2, 1-4 messengers, 32-256 pixels, batches of 2-16, float32), 4e-6 where most is
# padding.
_ROUNDING = 3e-5
_SOFTMAX_ROUNDING = 1e-6  # of probabilities, whatever the logits are


class Likelihood(NamedTuple):
    """What the networks say of one slice.

    Attributes:
        values: (K, H, W) probabilities on the grid, an array of the network's kind and device.
        slack: how much the batch may have changed the ratio of two of them, as a share; 0 of a slice predicted alone.
    """

    values: Any
    slack: float


@dataclass(frozen=True)
class Ensemble:
    """Networks of the same classes and slices, whose probabilities are averaged.

    Attributes:
        predictors: the networks.
        flips: as `flips_of`; probabilities are averaged over them too.
    """

    predictors: Sequence[Predictor]
    flips: Sequence[tuple[int, ...]] = ((),)

    def likelihoods(self, slices: Array) -> tuple[Any, list[float]]:
        """(B, H, W) uint16 to probabilities (B, K, H, W), and their slacks."""
        total: Any = None
        slack = np.zeros(len(slices))
        for predictor in self.predictors:
            for axes in self.flips:
                logits = _logits(predictor, np.flip(slices, axes))
                xp = array_namespace(logits)
                if len(slices) > 1:
                    rounding = _ROUNDING * as_numpy(xp.max(xp.abs(logits), axis=(1, 2, 3))) + _SOFTMAX_ROUNDING
                    slack = np.maximum(slack, rounding)
                values = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
                values /= xp.sum(values, axis=1, keepdims=True)
                values = xp.flip(values, axis=axes) if axes else values
                total = values if total is None else _sum(total, values)
        n_votes = len(self.predictors) * len(self.flips)
        return total if n_votes == 1 else total / n_votes, slack.tolist()

    def batch_size(self, height: int, width: int) -> int:
        """How many slices of that size suit the devices in one pass."""
        fitting = [
            _PIXELS_PER_BATCH.get(predictor.device, _PIXELS_PER_BATCH_GPU)
            // math.prod(predictor.preset.padded_size(height, width))
            for predictor in self.predictors
        ]
        return max(1, min(fitting))


class SliceStream:
    """The probabilities of slice after slice, of which one batch is held."""

    def __init__(
        self, ensemble: Ensemble, slices: Array, indices: Sequence[int], batch_size: int | None = None
    ) -> None:
        """Nothing is computed yet.

        Args:
            ensemble: the networks.
            slices: (Z, H, W) uint16, of any size; the padding is cut off again.
            indices: which of them, in which order.
            batch_size: slices a forward pass; none: as many as suit the device.
        """
        self._ensemble = ensemble
        self._slices = slices
        self._indices = indices
        self._batch_size = batch_size or ensemble.batch_size(*slices.shape[1:])
        self._n_again = 0

    def __iter__(self) -> Iterator[tuple[int, Likelihood]]:
        """Index and probabilities of each; a batch is halved where memory runs out.

        Once most slices had to be made again alone, which is what rounding asks for where a coarse grid is spread over
        many pixels, a batch gains nothing, and all others are made alone at once.

        Raises:
            RuntimeError, MemoryError: a single slice does not fit the memory of the device (`is_out_of_memory`).
            CheckpointError: a network gives numbers that are not finite.
        """
        start = 0
        while start < len(self._indices):
            if 2 * self._n_again > start:
                self._batch_size = 1
            chunk = list(self._indices[start : start + self._batch_size])
            try:
                values, slacks = self._ensemble.likelihoods(self._slices[chunk])
            except (RuntimeError, MemoryError) as error:
                if len(chunk) == 1 or not is_out_of_memory(error):
                    raise
                self._batch_size = len(chunk) // 2
            else:
                start += len(chunk)
                for n, index in enumerate(chunk):
                    yield index, Likelihood(values[n], slacks[n])
                del values  # before the next batch is made

    def again(self, index: int) -> Likelihood:
        """A slice predicted alone, after a batch did not tell enough; errors as of a batch."""
        self._n_again += 1
        values, _ = self._ensemble.likelihoods(self._slices[[index]])
        return Likelihood(values[0], 0.0)


def flips_of(directions: Sequence[Direction], slice_axis: str) -> list[tuple[int, ...]]:
    """All ways to mirror a slice along some of these directions, as axes of (..., H, W); at first not at all."""
    axes = [IN_PLANE[slice_axis].index(direction) - 2 for direction in directions]
    return [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]


def as_numpy(values: Any) -> Array:
    """An array of numpy, wherever the values lie."""
    return np.asarray(to_device(values, "cpu"))


def _sum(first: Any, second: Any) -> Any:
    """Of probabilities of two networks, which may lie on two devices or be arrays of numpy and of torch."""
    if array_namespace(first) is not array_namespace(second):
        return as_numpy(first) + as_numpy(second)
    return first + to_device(second, device_of(first))


def padded(slices: Array, preset: Preset) -> Array:
    """What the network is given of slices: padded at the end of each side to full strides.

    A side shorter than the training crop is padded with zeros up to the crop, as in training (method.md section 5); a
    longer one by repeating its border, since its crops held image only, rotation aside. Zeros there instead cost one
    network 10 Dice points (benchmarks/RESULTS.md).

    Args:
        slices: (B, H, W) uint16.
        preset: of the network.

    Returns:
        (B, 1, *preset.padded_size(H, W)) float32 in [0, 1].
    """
    height, width = slices.shape[1:]
    images = np.zeros((len(slices), 1, *preset.padded_size(height, width)), np.float32)
    images[:, 0, :height, :width] = slices / np.float32(65535)
    if height >= preset.train.crop[0]:
        images[:, :, height:] = images[:, :, height - 1 : height]
    if width >= preset.train.crop[1]:
        images[:, :, :, width:] = images[:, :, :, width - 1 : width]
    return images


def _logits(predictor: Predictor, slices: Array) -> Any:
    """(B, H, W) uint16 to (B, K, H, W) logits."""
    height, width = slices.shape[1:]
    logits = predictor.forward(padded(slices, predictor.preset))[:, :, :height, :width]
    xp = array_namespace(logits)
    if not bool(xp.all(xp.isfinite(logits))):
        raise CheckpointError(
            f"The model of {predictor.preset.name} gives numbers that are not finite: its weights are damaged, take an "
            "intact copy or an earlier checkpoint."
        )
    return logits
