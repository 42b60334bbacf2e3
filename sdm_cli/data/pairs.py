"""Training pairs: one labeled and one unlabeled slice for each draw number.

The content of a pair depends only on (seed, draw number), so any number of loader workers or
processes, and a resumed run, see the same pairs. A `Pair` has no field for the label of an
unlabeled case, and `PairedSlices` never reads one: the unlabeled side cannot leak.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdm_cli.config import AugmentConfig
from sdm_cli.data.augment import AugmentDraw, augment, draw_augmentation
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import StoreError

INTENSITY_SCALE = 65535
"""Stored intensities are [0, 1] in 16 bits."""


class Pair(NamedTuple):
    """Cropped slices of one draw, not yet augmented; a batch of them gains a leading axis."""

    labeled_image: Tensor  # (1, H, W) uint16 as stored
    labeled_target: Tensor  # (H, W) uint8 class indices or 255
    unlabeled_image: Tensor  # (1, H, W) uint16 as stored
    labeled_draw: AugmentDraw
    unlabeled_draw: AugmentDraw
    paste: Tensor  # (2,) float32 in [0, 1): where L2U centres its patch
    number: Tensor  # () int64, of the draw: `PairedSlices.slices_of` names its slices


class PairBatch(NamedTuple):
    """What a training step sees."""

    labeled_image: Tensor  # (B, 1, H, W) float32
    labeled_target: Tensor  # (B, H, W) int64 class indices or 255
    unlabeled_image: Tensor  # (B, 1, H, W) float32
    paste: Tensor  # (B, 2) float32 in [0, 1)


class PairedSlices(Dataset[Pair]):
    """Pairs by draw number, from 0 upwards without end.

    Each pass over the unlabeled slices (an epoch) is a new permutation of them; the labeled slices are
    permuted again each time they run out (method.md section 3).

    Args:
        store: of normalised slices.
        labeled: case ids whose labels are read.
        unlabeled: case ids whose images alone are read.
        crop: (height, width) in pixels.
        augment: the ranges to draw from.
        seed: with the draw number, the whole source of randomness.
    """

    def __init__(
        self,
        store: SliceStore,
        labeled: Sequence[str],
        unlabeled: Sequence[str],
        crop: tuple[int, int],
        augment: AugmentConfig,
        seed: int,
    ) -> None:
        self.store = store
        self.labeled = _slices(store, labeled)
        self.unlabeled = _slices(store, unlabeled)
        self.crop = crop
        self.augment = augment
        self.seed = seed
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __getitem__(self, draw: int) -> Pair:
        """The pair of a draw number; a StoreError names the slice that cannot be read."""
        random = np.random.default_rng([self.seed, 0, draw])
        (case_id, z), (unlabeled_case, unlabeled_z) = self.slices_of(draw)
        with _naming(self.store, case_id, z):
            image, label = self.store.read_image(case_id, z), self.store.read_label(case_id, z)
            labeled_image, labeled_target = _crop(self.crop, random, image, label)
        with _naming(self.store, unlabeled_case, unlabeled_z):
            (unlabeled_image,) = _crop(self.crop, random, self.store.read_image(unlabeled_case, unlabeled_z))
        return Pair(
            torch.from_numpy(labeled_image).unsqueeze(0),
            torch.from_numpy(labeled_target),
            torch.from_numpy(unlabeled_image).unsqueeze(0),
            draw_augmentation(self.augment, random),
            draw_augmentation(self.augment, random),
            torch.from_numpy(random.random(2, dtype=np.float32)),
            torch.tensor(draw),
        )

    @property
    def largest_slice(self) -> tuple[int, int]:
        """The largest height and the largest width of all slices, in pixels."""
        cases = [self.store.cases[case_id] for case_id, _ in (*self.labeled, *self.unlabeled)]
        return max(case.height for case in cases), max(case.width for case in cases)

    def slices_of(self, draw: int) -> tuple[tuple[str, int], tuple[str, int]]:
        """Case and slice number of the labeled and of the unlabeled slice of a draw number."""
        return self._pick("labeled", self.labeled, draw), self._pick("unlabeled", self.unlabeled, draw)

    def _pick(self, role: str, slices: Sequence[tuple[str, int]], draw: int) -> tuple[str, int]:
        """The slice of a role: pass `draw // n` permutes all n slices, `draw % n` walks through them."""
        turn, position = divmod(draw, len(slices))
        cached = self._orders.get(role)
        if cached is None or cached[0] != turn:
            stream = ("labeled", "unlabeled").index(role) + 1
            order = np.random.default_rng([self.seed, stream, turn]).permutation(len(slices))
            cached = self._orders[role] = (turn, order)
        return slices[int(cached[1][position])]


def augment_pairs(batch: Pair) -> PairBatch:
    """Apply the drawn augmentations of a collated batch, on its device."""
    labeled_image, unlabeled_image = _intensities(batch.labeled_image), _intensities(batch.unlabeled_image)
    target = batch.labeled_target.clone()
    augment(labeled_image, target, batch.labeled_draw)
    augment(unlabeled_image, None, batch.unlabeled_draw)
    return PairBatch(labeled_image, target.long(), unlabeled_image, batch.paste)


def _intensities(stored: Tensor) -> Tensor:
    """uint16 as stored to float32 in [0, 1]."""
    return stored.float().div_(INTENSITY_SCALE)


@contextmanager
def _naming(store: SliceStore, case_id: str, z: int) -> Iterator[None]:
    """Whatever fails in here is raised as a StoreError that names the slice.

    Every kind of error is taken, for in a loader process it would lose the case it belongs to; none is swallowed.
    """
    try:
        yield
    except StoreError as error:
        raise StoreError(f"Slice {z} of case {case_id} cannot be read: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StoreError(
            f"Slice {z} of case {case_id} in {store.path} cannot be read ({type(error).__name__}: {reason}): make the "
            "case anew (delete its file there and run sdm preprocess again), or free memory if that is what lacks."
        ) from error


def _slices(store: SliceStore, case_ids: Sequence[str]) -> list[tuple[str, int]]:
    return [(case_id, z) for case_id in case_ids for z in range(store.cases[case_id].n_slices)]


def _crop(size: tuple[int, int], random: np.random.Generator, *arrays: np.ndarray) -> list[np.ndarray]:
    """The same random crop of (H, W) arrays; zeros surround a slice that is smaller than the crop."""
    shape = arrays[0].shape
    source, target = [], []
    for length, wanted in zip(shape, size, strict=True):
        # Negative: the slice starts that far inside the crop.
        start = int(random.integers(min(0, length - wanted), max(0, length - wanted), endpoint=True))
        source.append(slice(max(0, start), min(length, start + wanted)))
        target.append(slice(max(0, -start), max(0, -start) + source[-1].stop - source[-1].start))
    if all(length >= wanted for length, wanted in zip(shape, size, strict=True)):
        return [array[tuple(source)] for array in arrays]
    crops = []
    for array in arrays:
        crop = np.zeros(size, array.dtype)
        crop[tuple(target)] = array[tuple(source)]
        crops.append(crop)
    return crops
