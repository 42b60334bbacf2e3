"""Small slice stores for the tests, made by the program's own preprocessing."""

from pathlib import Path

import numpy as np
from scans import write_nifti

from sdm_cli.config import Preset
from sdm_cli.preset_files import preset_from_dict
from sdm_cli.runs.preprocess import preprocess

CLASSES = {"ball": 1, "box": 2}


def tiny_preset(**changes) -> Preset:
    """Two classes, the smallest network, a few steps; `changes` are merged section by section."""
    tree = {
        "name": "tiny",
        "data": {"dataset": "tiny", "classes": CLASSES, "normalize": {"scale": "slice"}},
        "model": {"encoder": "mit-b0", "head_width": 16},
        "method": {"patch": 8, "labeled_only_fraction": 0.5},
        "train": {"crop": [32, 32], "pairs": 2, "steps": 4, "workers": 0, "validate_every_steps": 2},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    return preset_from_dict(tree, "the test's preset")


def scan(seed: int, shape=(40, 36, 3)) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of a ball and a box on noise."""
    random = np.random.default_rng(seed)
    x, y, _ = np.indices(shape)
    label = np.zeros(shape, np.uint8)
    label[(x - 15 - seed % 3) ** 2 + (y - 14) ** 2 < 90] = 1
    label[27:38, 22:34] = 2
    image = 100 * random.random(shape) + 200 * label
    return image.astype(np.int16), label


def make_store(
    folder: Path, preset: Preset | None = None, n_labeled=2, n_unlabeled=3, shape=(40, 36, 3), first_seed=0
) -> Path:
    """A store of phantoms; cases `l0...` have labels, `u0...` have none."""
    images, labels = folder / "images", folder / "labels"
    for i in range(n_labeled + n_unlabeled):
        image, label = scan(first_seed + i, shape)
        case_id = f"l{i}" if i < n_labeled else f"u{i - n_labeled}"
        write_nifti(images / f"{case_id}.nii.gz", image, np.diag([1.0, 1, 3, 1]))
        if i < n_labeled:
            write_nifti(labels / f"{case_id}.nii.gz", label, np.diag([1.0, 1, 3, 1]))
    return preprocess(images, labels if n_labeled else None, preset or tiny_preset(), folder / "store")
