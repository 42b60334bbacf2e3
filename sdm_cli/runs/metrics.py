"""Scores of one predicted volume: overlap, surface distances, volume difference; and the authors' pooled figure.

Owns what a number means and what happens when a structure is absent. Knows arrays only: no
file, no network, no class name. An undefined value is None; it is counted, never averaged in.

Absent:
    neither in reference nor in prediction: every score is None (nothing was asked or answered).
    in the reference only ("missed"): Dice, Jaccard and NSD 0, volume difference -100 %; HD95 and ASD None, because a
        distance to nothing has no value, and 0 would be the best one. Report the misses beside the mean.
    in the prediction only ("invented"): Dice, Jaccard and NSD 0; HD95, ASD and the volume difference in percent (of
        nothing) None, that in ml is all that was predicted; likewise counted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdm_cli.data_config import IGNORE
from sdm_cli.errors import SdmError
from sdm_cli.runs.surfaces import surface_distances

Unit = Literal["mm", "voxel"]
"""Of distances. In voxels the spacing is taken as 1 on every axis, as papers on LASeg print them."""

_BLOCK = 2**20  # voxels counted at once, for the sake of memory


@dataclass(frozen=True)
class Measure:
    """How distances are measured.

    Attributes:
        unit: of HD95, ASD and the tolerance.
        tolerance: of NSD, within which two surfaces agree; by default about the pixel of most scans, beyond which a
            border is visibly off.
    """

    unit: Unit = "mm"
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        """Raise SdmError for a tolerance that is no distance."""
        if not 0 <= self.tolerance < math.inf:
            raise SdmError(
                f"--tolerance is {self.tolerance}: give the distance within which two surfaces agree, 0 or more."
            )


@dataclass(frozen=True)
class ClassCounts:
    """Voxels of one class in one case, those that are ignored in the reference left out."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def n_pred(self) -> int:
        """Predicted voxels."""
        return self.true_positive + self.false_positive

    @property
    def n_ref(self) -> int:
        """Voxels of the reference."""
        return self.true_positive + self.false_negative

    @property
    def is_missed(self) -> bool:
        """The reference has the class, the prediction does not."""
        return self.n_ref > 0 and self.n_pred == 0

    @property
    def is_invented(self) -> bool:
        """The prediction has the class, the reference does not."""
        return self.n_pred > 0 and self.n_ref == 0

    @property
    def dice(self) -> float | None:
        """2 TP / (2 TP + FP + FN), 0 to 1. Absent: None when neither side has the class."""
        size = self.n_pred + self.n_ref
        return 2 * self.true_positive / size if size else None

    @property
    def jaccard(self) -> float | None:
        """TP / (TP + FP + FN), 0 to 1. Absent: None when neither side has the class."""
        union = self.n_pred + self.n_ref - self.true_positive
        return self.true_positive / union if union else None

    @property
    def volume_difference_percent(self) -> float | None:
        """Prediction minus reference, in percent of the reference. Absent: None when the reference lacks the class."""
        return 100 * (self.n_pred - self.n_ref) / self.n_ref if self.n_ref else None


@dataclass(frozen=True)
class ClassScore:
    """Scores of one foreground class in one case.

    Attributes:
        counts: voxels, from which Dice and Jaccard follow.
        hd95: 95th percentile of the surface distances of both directions pooled, in the unit of
            the spacing; None unless both sides have the class.
        asd: mean distance from the surface of the prediction to that of the reference (directed,
            as medpy and the papers have it), in the same unit; None likewise.
        nsd: share of both surfaces within the tolerance of the other, 0 to 1; 0 when one side has the class, None when
            neither has.
        volume_difference_ml: prediction minus reference; None when neither side has the class.
    """

    counts: ClassCounts
    hd95: float | None
    asd: float | None
    nsd: float | None
    volume_difference_ml: float | None


def count_case(prediction: NDArray[np.uint8], reference: NDArray[np.uint8], n_classes: int) -> tuple[ClassCounts, ...]:
    """Count the voxels of every class; enough for Dice, Jaccard and the pooled figure.

    Args:
        prediction: class indices, any shape.
        reference: class indices of the same shape; 255 is ignored.
        n_classes: K, with the background.

    Returns:
        K entries; the position is the class index, 0 the background.

    Raises:
        ValueError: the shapes differ, or a value is neither a class nor (reference) 255.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    totals = np.zeros(256 * 256, np.int64)
    expected, predicted = reference.reshape(-1), prediction.reshape(-1)
    for start in range(0, expected.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        totals += np.bincount(expected[block].astype(np.int64) * 256 + predicted[block], minlength=256 * 256)
    # rows: reference, columns: prediction
    table = totals.reshape(256, 256)
    if table[n_classes:IGNORE].any():
        raise ValueError(f"the reference holds a value that is no class of {n_classes} and not {IGNORE}")
    confusion = table[:n_classes]
    if confusion[:, n_classes:].any():
        raise ValueError(f"the prediction holds a value that is no class of {n_classes}")
    total = int(confusion.sum())
    counts = []
    for index in range(n_classes):
        true_positive = int(confusion[index, index])
        false_positive = int(confusion[:, index].sum()) - true_positive
        false_negative = int(confusion[index].sum()) - true_positive
        true_negative = total - true_positive - false_positive - false_negative
        counts.append(ClassCounts(true_positive, false_positive, false_negative, true_negative))
    return tuple(counts)


def score_case(
    prediction: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    n_classes: int,
    spacing_mm: tuple[float, float, float],
    measure: Measure = Measure(),  # frozen
) -> tuple[ClassScore, ...]:
    """Score one whole volume, class by class.

    Voxels that the reference ignores (255) belong to no structure of either side, so a surface
    may run along an ignored region.

    Args:
        prediction: (Z, H, W) class indices.
        reference: (Z, H, W) class indices; 255 is ignored.
        n_classes: K, with the background.
        spacing_mm: of the three axes in their order.
        measure: unit of the distances, and tolerance of NSD.

    Returns:
        K - 1 entries, the foreground classes in order.

    Raises:
        ValueError: as `count_case`.
    """
    counts = count_case(prediction, reference, n_classes)
    if (reference == IGNORE).any():
        prediction = np.where(reference == IGNORE, np.uint8(0), prediction)
    spacing = spacing_mm if measure.unit == "mm" else (1.0, 1.0, 1.0)
    voxel_ml = math.prod(spacing_mm) / 1000
    distances = surface_distances(prediction, reference, n_classes, spacing)
    scores = []
    for index, count in enumerate(counts[1:], start=1):
        is_absent = count.n_pred + count.n_ref == 0
        apart = distances.get(index)
        scores.append(
            ClassScore(
                count,
                hd95=apart.hd95 if apart else None,
                asd=apart.asd if apart else None,
                nsd=apart.nsd(measure.tolerance) if apart else None if is_absent else 0.0,
                volume_difference_ml=None if is_absent else (count.n_pred - count.n_ref) * voxel_ml,
            )
        )
    return tuple(scores)


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined. Absent: None when there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


class PooledCounts:
    """The figure of the authors' validation code, under its own name: `pooled`.

    Voxels of all slices of all cases are summed before one IoU per class is taken, so a large
    case weighs more than a small one; Dice = 2 IoU / (1 + IoU); means over the foreground.

    Absent: a class that no reference and no prediction has is None and left out of the means.
    Departure: the authors' code counts it as 0, and counts label K as class K - 1.
    Source: method.md sections 6 and 7.11.
    """

    def __init__(self, n_classes: int) -> None:
        self.totals: NDArray[np.int64] = np.zeros((n_classes, 3), dtype=np.int64)
        """(K, 3): true positives, predicted and reference voxels. Sums over processes are sums of this."""

    def add(self, counts: Sequence[ClassCounts]) -> None:
        """Add one case (or one slice), as `count_case` returns it."""
        self.totals += np.array([(c.true_positive, c.n_pred, c.n_ref) for c in counts], dtype=np.int64)

    def iou(self) -> tuple[float | None, ...]:
        """IoU of each of the K classes, 0 to 1, the background first."""
        unions = self.totals[:, 1] + self.totals[:, 2] - self.totals[:, 0]
        return tuple(
            int(overlap) / int(union) if union else None
            for overlap, union in zip(self.totals[:, 0], unions, strict=True)
        )

    def dice(self) -> tuple[float | None, ...]:
        """Dice of each of the K classes, 0 to 1, the background first."""
        return tuple(None if iou is None else 2 * iou / (1 + iou) for iou in self.iou())

    def mean_iou(self) -> float | None:
        """Mean IoU of the foreground classes, 0 to 1."""
        return mean_defined(self.iou()[1:])

    def mean_dice(self) -> float | None:
        """Mean Dice of the foreground classes, 0 to 1."""
        return mean_defined(self.dice()[1:])
