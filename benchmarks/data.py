"""Augmented pairs per second: this project's data path against the published recipe.

Baseline: method.md section 5 as published, slice by slice with scipy: splines for the image, one linear
interpolation per class for the label, rotation and scaling interpolated one after the other, the scaling also
when it draws the identity. Ours: parameters drawn first, then applied in batches by torch.

    python benchmarks/data.py [--size 512] [--classes 14] [--pairs 8] [--rounds 5] [--threads 1]

Both run in one process, in turn (A B A B), on slices held in memory; the table gives medians and the median
ratio of the pairs of rounds. `--threads` is torch's; scipy always uses one core.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import numpy as np
import torch
from scipy import ndimage
from torch.utils.data import default_collate

from sdm_cli.config import AugmentConfig
from sdm_cli.data.pairs import PairedSlices, augment_pairs

_CONFIG = AugmentConfig()


class MemoryStore:
    """Smooth random slices with blobs of every class, in the store's types."""

    def __init__(self, size: int, n_classes: int, n_slices: int = 16) -> None:
        random = np.random.default_rng(0)
        noise = ndimage.gaussian_filter(random.random((n_slices, size, size)), (0, 6, 6))
        noise = (noise - noise.min()) / (noise.max() - noise.min())
        self.images = (noise * 65535).astype(np.uint16)
        self.labels = np.minimum((noise * 1.2 * n_classes), n_classes - 1).astype(np.uint8)
        self.cases = {"case": SimpleNamespace(n_slices=n_slices)}

    def read_image(self, case_id: str, z: int) -> np.ndarray:
        return self.images[z]

    def read_label(self, case_id: str, z: int) -> np.ndarray:
        return self.labels[z]


def published_augment(image: np.ndarray, label: np.ndarray | None, n_classes: int, random: np.random.Generator) -> None:
    """One slice by the published recipe."""
    for kind in random.permutation(6)[: _CONFIG.transforms]:
        if random.random() >= _CONFIG.probability:
            continue
        if kind == 0:
            angle = np.deg2rad(random.uniform(-15, 15))
            matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            image, label = _warp(image, label, n_classes, matrix)
        elif kind == 1:
            scale = random.uniform(0.5, 1) if random.random() < 0.5 else 1.0
            image, label = _warp(image, label, n_classes, np.eye(2) * scale)
        elif kind == 2:
            image = ndimage.gaussian_filter(image, random.uniform(0.7, 1.3))
        elif kind == 3:
            image = image * random.uniform(0.5, 2)
        elif kind == 4:
            low, high, mean = image.min(), image.max(), image.mean()
            image = np.clip((image - mean) * random.uniform(0.5, 1.5) + mean, low, high)
        else:
            low, span, mean, deviation = image.min(), np.ptp(image), image.mean(), image.std()
            image = np.power((image - low) / (span + 1e-7), random.uniform(0.5, 2)) * span + low
            image = (image - image.mean()) / (image.std() + 1e-8) * deviation + mean


def _warp(
    image: np.ndarray, label: np.ndarray | None, n_classes: int, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ centre
    image = ndimage.affine_transform(image, matrix, offset, order=3)
    if label is not None:
        layers = [
            ndimage.affine_transform((label == c).astype(np.float32), matrix, offset, order=1) for c in range(n_classes)
        ]
        label = np.argmax(layers, 0)
    return image, label


def main() -> None:
    parser = argparse.ArgumentParser(description="Augmented pairs per second against the published recipe.")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = MemoryStore(options.size, options.classes)
    dataset = PairedSlices(store, ["case"], ["case"], (options.size, options.size), _CONFIG, seed=0)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    draw = 0

    def published() -> None:
        for _ in range(options.pairs):
            for with_label in (True, False):
                z = int(random.integers(16))
                image = store.images[z].astype(np.float32) / 65535
                published_augment(image, store.labels[z] if with_label else None, options.classes, random)

    def ours() -> None:
        nonlocal draw
        for _ in range(8):  # several batches a round: ours are short
            augment_pairs(default_collate([dataset[draw + i] for i in range(options.pairs)]), _CONFIG)
            draw += options.pairs

    ours()
    speeds: dict[str, list[float]] = {"published": [], "ours": []}
    for _ in range(options.rounds):
        for name, run, count in (("published", published, options.pairs), ("ours", ours, 8 * options.pairs)):
            start = time.perf_counter()
            run()
            speeds[name].append(count / (time.perf_counter() - start))
    ratios = [b / a for a, b in zip(speeds["published"], speeds["ours"], strict=True)]
    for name, values in speeds.items():
        print(f"{name:10} {statistics.median(values):8.2f} pairs/s (min {min(values):.2f}, max {max(values):.2f})")
    print(
        f"ratio      {statistics.median(ratios):8.1f} (min {min(ratios):.1f}, max {max(ratios):.1f}), "
        f"{options.size} x {options.size}, {options.classes} classes, torch threads {options.threads}"
    )


if __name__ == "__main__":
    main()
