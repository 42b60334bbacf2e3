"""Augmented pairs per second: this project's data path against the published recipe.

Baseline: method.md section 5 as published, slice by slice with scipy: splines for the image, one linear
interpolation per class for the label, rotation and scaling interpolated one after the other, the scaling also
when it draws the identity. Ours: parameters drawn first, then applied in batches by torch.

    python benchmarks/data.py [--size 512] [--classes 14] [--pairs 8] [--rounds 20] [--threads 1]

Both run in one process, in turn (A B A B), on slices held in memory, with the allocator setting of `sdm train` on a
CPU. `--threads` is torch's; scipy always uses one core.
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
from sdm_cli.runs.hardware import keep_freed_memory

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
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
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
        augment_pairs(default_collate([dataset[draw + i] for i in range(options.pairs)]))
        draw += options.pairs

    sides = {"published": (published, 1), "ours": (ours, 8)}  # batches a round: ours are short
    ours()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, (run, n_batches) in sides.items():
            start = time.perf_counter()
            for _ in range(n_batches):
                run()
            seconds[name].append((time.perf_counter() - start) / n_batches)
    # Means, not medians: what a batch costs depends on what it draws, and both sides must meet their average.
    speeds = {name: options.pairs / statistics.mean(taken) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        slowest, fastest = options.pairs / max(taken), options.pairs / min(taken)
        print(f"{name:10} {speeds[name]:8.2f} pairs/s (rounds: {slowest:.2f} to {fastest:.2f})")
    print(
        f"ratio      {speeds['ours'] / speeds['published']:8.1f}, {options.rounds} rounds, "
        f"{options.size} x {options.size}, {options.classes} classes, torch threads {options.threads}"
    )


if __name__ == "__main__":
    main()
