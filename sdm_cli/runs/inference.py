"""Slices in, class indices out: one volume at a time, streamed, and the same whatever the batch.

A volume passes as slices in batches, so the peak of memory is the network's work on one batch; never
classes x volume. The size of the batch never changes a voxel: see `predict_slices`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_cli.data.grid import SliceGrid
from sdm_cli.errors import SdmError
from sdm_cli.method.network import STRIDE
from sdm_cli.runs.failures import is_out_of_memory
from sdm_cli.runs.parts import keep_largest_part
from sdm_cli.runs.predictor import Predictor

Array = np.ndarray[Any, np.dtype[Any]]

# On a CPU a larger batch gains nothing from about 160 x 160 pixels on (measured, MiT-B0 and B2).
_PIXELS_PER_BATCH = {"cpu": 256 * 256}
_PIXELS_PER_BATCH_GPU = 16 * 512 * 512

# Logits of a slice alone and of the same slice in a batch differ by rounding: at most 1.5e-6 of the
# largest logit (measured: MiT-B0 and B2, 1-4 messengers, 32-256 pixels, batches of 2-16, float32).
_TIE_TOLERANCE = 3e-5


def predict_slices(predictor: Predictor, slices: Array, batch_size: int | None = None) -> Array:
    """Class indices of normalised slices.

    The mask is that of each slice predicted alone, whatever the batch: a slice in which the two
    best classes of some voxel are closer than the rounding of the network is predicted again alone.

    Args:
        predictor: the network.
        slices: (Z, H, W) uint16, of any size; zeros are added to the right and bottom and cut off again.
        batch_size: slices per forward pass; by default as many as suit the device. Where memory
            runs out it is halved.

    Returns:
        (Z, H, W) uint8.

    Raises:
        SdmError: a single slice does not fit the memory of the device.
    """
    n_slices, height, width = slices.shape
    batch = batch_size or _batch_size(predictor.device, height, width)
    mask = np.empty(slices.shape, np.uint8)
    start = 0
    with torch.inference_mode(), _exact_float32(predictor.device):
        while start < n_slices:
            chunk = slices[start : start + batch]
            try:
                mask[start : start + len(chunk)] = _predict_batch(predictor, chunk)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise _too_large(predictor, height, width) from None
                batch = len(chunk) // 2
            else:
                start += len(chunk)
    return mask


def predict_scan(predictor: Predictor, slices: Array, grid: SliceGrid, spacing_mm: tuple[float, float, float]) -> Array:
    """The mask of a scan: class indices on its own slices, from normalised slices on a grid.

    Args:
        predictor: the network, with its preset, which may keep the largest part of a class only.
        slices: (Z, H, W) uint16 on the grid.
        grid: where they lie in the scan.
        spacing_mm: (z, h, w) of the scan's slices.

    Returns:
        (Z, H, W) uint8 on the slices of the scan.

    Raises:
        SdmError: a slice does not fit the memory of the device.
    """
    mask = predict_slices(predictor, slices) if grid.is_identity else _predict_on(predictor, slices, grid)
    rules, names = predictor.preset.predict, predictor.preset.data.class_names
    for name in rules.largest_part:
        keep_largest_part(mask, 1 + names.index(name), spacing_mm, rules.bridge_mm)
    return mask


def _predict_on(predictor: Predictor, slices: Array, grid: SliceGrid) -> Array:
    """Class indices on the scan's own slices (Z, H, W), of slices that lie on another grid.

    Probabilities go back to the pixels of the scan, bilinear in plane and linear between slices, and only then
    the best class is taken. Two slices of them are held at a time. What the grid left out is background.
    """
    mask = np.zeros(grid.scan, np.uint8)
    held: dict[int, Tensor] = {}
    with torch.inference_mode(), _exact_float32(predictor.device):
        for plane, low, high, share in zip(mask[grid.window], *grid.slice_weights(), strict=True):
            # One slice at a time, so that no batch can change a voxel.
            held = {z: held[z] if z in held else _probabilities(predictor, slices[z], grid) for z in (low, high)}
            plane[...] = torch.lerp(held[low], held[high], float(share)).argmax(0).to(torch.uint8).cpu().numpy()
    return mask


def _probabilities(predictor: Predictor, plane: Array, grid: SliceGrid) -> Tensor:
    """(H, W) uint16 on the grid to (K, H, W) probabilities on the pixels of the scan's box."""
    try:
        probabilities = _logits(predictor, plane[None]).softmax(1)
        return F.interpolate(probabilities, grid.box_size[1:], mode="bilinear", align_corners=False)[0]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(predictor, *plane.shape) from None


def _too_large(predictor: Predictor, height: int, width: int) -> SdmError:
    remedy = "use a machine with more" if predictor.device.type == "cpu" else "give -d cpu"
    return SdmError(
        f"A slice of {height} x {width} pixels is too large for the memory of {predictor.device}: {remedy}."
    )


def _predict_batch(predictor: Predictor, slices: Array) -> Array:
    """(B, H, W) uint16 to (B, H, W) uint8, each slice as if it were alone."""
    logits = _logits(predictor, slices)
    best, classes = logits.max(1)
    mask: Array = classes.to(torch.uint8).cpu().numpy()
    if len(slices) == 1:
        return mask
    largest = logits.abs().amax((1, 2, 3))
    second = logits.scatter_(1, classes[:, None], -torch.inf).amax(1)
    margin = (best - second).amin((1, 2))
    for index in torch.nonzero(~(margin > _TIE_TOLERANCE * largest)).flatten().tolist():
        mask[index] = _logits(predictor, slices[index : index + 1]).max(1)[1].to(torch.uint8).cpu().numpy()
    return mask


def _logits(predictor: Predictor, slices: Array) -> Tensor:
    """(B, H, W) uint16 to (B, K, H, W) logits."""
    height, width = slices.shape[1:]
    images = torch.from_numpy(slices.astype(np.float32) / np.float32(65535)).unsqueeze(1)
    images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE)).to(predictor.device)
    return predictor.forward(images)[:, :, :height, :width]


def _batch_size(device: torch.device, height: int, width: int) -> int:
    pixels = (height + -height % STRIDE) * (width + -width % STRIDE)
    return max(1, _PIXELS_PER_BATCH.get(device.type, _PIXELS_PER_BATCH_GPU) // pixels)


@contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    """No lower precision around: its rounding is a thousand times what the tie tolerance supposes."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with flags, torch.autocast(device.type, enabled=False):
        yield
