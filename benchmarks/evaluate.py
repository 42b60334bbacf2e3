"""All scores of one case of Synapse's size against medpy on the whole volume.

Thirteen ellipsoids, from the size of an adrenal gland to that of a liver, in 512 x 512 x 150 voxels; the prediction is
each of them moved and swollen a little, with a ragged border and specks far away. medpy has HD95 and ASD only and
scores one class at a time; its classes are timed one by one, since all of them take minutes.
"""

import argparse
import statistics
import time

import numpy as np
from medpy.metric.binary import asd, hd95
from scipy import ndimage

from sdm_cli.runs.metrics import score_case

SHAPE = (150, 512, 512)
SPACING_MM = (3.0, 0.76, 0.76)
# radii: spleen, kidneys, gallbladder, oesophagus, liver, stomach, aorta, vena cava, veins, pancreas, glands
RADII_MM = (
    *((55, 35, 45), (55, 28, 28), (55, 28, 28), (25, 18, 18), (60, 10, 10), (80, 75, 100), (60, 40, 60)),
    *((150, 11, 11), (130, 12, 12), (40, 9, 25), (25, 18, 60), (14, 6, 10), (14, 6, 10)),
)


def draw_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference), both (Z, H, W) uint8 with classes 1 to 13."""
    random = np.random.default_rng(seed)
    prediction, reference = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    sizes_mm = np.multiply(SHAPE, SPACING_MM)
    for index, radii in enumerate(RADII_MM, start=1):
        center = random.uniform(0.3, 0.7, 3) * sizes_mm
        for volume, moved, grown in ((reference, 0, 1.0), (prediction, 3, 1.05)):
            paint(volume, index, center + random.normal(0, 1, 3) * moved, np.multiply(radii, grown))
    edge = (prediction > 0) != ndimage.binary_erosion(prediction > 0)
    prediction[edge & (random.random(SHAPE) < 0.3)] = 0
    specks = random.random(SHAPE) < 1e-5
    prediction[specks] = random.integers(1, 14, int(specks.sum()))
    return prediction, reference


def paint(volume: np.ndarray, value: int, center_mm: np.ndarray, radii_mm: np.ndarray) -> None:
    axes = [
        ((np.arange(size) * spacing - middle) / radius) ** 2
        for size, spacing, middle, radius in zip(SHAPE, SPACING_MM, center_mm, radii_mm, strict=True)
    ]
    volume[axes[0][:, None, None] + axes[1][:, None] + axes[2] < 1] = value


def seconds_of(work, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--medpy-classes", type=int, default=2, help="how many of the 13 classes medpy scores")
    parser.add_argument("--rounds", type=int, default=3, help="of ours, of which the median counts")
    options = parser.parse_args()
    prediction, reference = draw_case()
    ours = [seconds_of(score_case, prediction, reference, 14, SPACING_MM) for _ in range(options.rounds)]
    seconds, scores = statistics.median(each for each, _ in ours), ours[0][1]
    print(f"sdm: all scores of 13 classes in {seconds:.2f} s")
    theirs = []
    for index in range(1, options.medpy_classes + 1):
        masks = (prediction == index, reference == index, SPACING_MM)
        (first, hd), (second, mean) = seconds_of(hd95, *masks), seconds_of(asd, *masks)
        theirs.append(first + second)
        score = scores[index - 1]
        print(
            f"medpy, class {index}: HD95 and ASD in {theirs[-1]:.1f} s, differences {abs(score.hd95 - hd):.1e} and "
            f"{abs(score.asd - mean):.1e} mm"
        )
    if theirs:
        per_class = statistics.mean(theirs)
        print(f"ratio: {13 * per_class / seconds:.0f} (13 classes of medpy: {13 * per_class:.0f} s)")


if __name__ == "__main__":
    main()
