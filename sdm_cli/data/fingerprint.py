"""What a folder of scans is like: the facts that a plan is made from.

Knows no file: `measure` takes the fingerprint of a folder.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdm_cli.data.cases import counted, some
from sdm_cli.data.classes import FoundClasses
from sdm_cli.data.hounsfield import Modality, contradicts
from sdm_cli.data.volume import Array, SliceAxis

Triple = tuple[float, float, float]

FOREGROUND_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Spread:
    """Of the scans: the median and the extremes, each (Z, H, W) along the slice axis and in plane."""

    median: Triple
    least: Triple
    most: Triple


@dataclass(frozen=True)
class ScanFacts:
    """What the header of a scan says that can be read.

    Attributes:
        case_id: of the scan.
        size: (Z, H, W) of its slices.
        spacing_mm: (Z, H, W), between slices and in plane.
        labeled: whether there is a label file.
        domain: where known.
        has_spacing: whether the file stores a voxel size; else 1 mm is assumed.
    """

    case_id: str
    size: tuple[int, int, int]
    spacing_mm: Triple
    labeled: bool
    domain: str | None
    has_spacing: bool = True


@dataclass(frozen=True)
class Foreground:
    """What is inside the labels of all labeled scans.

    Attributes:
        low: percentile 0.5 of the intensities; each scan counts with as many voxels.
        high: percentile 99.5.
        mean: of the intensities.
        box_mm: the largest box (H, W) of a scan's foreground in plane.
        class_volumes_ml: class name -> median volume where the class is present.
        class_cases: class name -> number of scans with it.
    """

    low: float
    high: float
    mean: float
    box_mm: tuple[float, float]
    class_volumes_ml: dict[str, float]
    class_cases: dict[str, int]


@dataclass(frozen=True)
class Fingerprint:
    """Facts of a folder of scans.

    Attributes:
        scans: all that can be used, as far as they were read, by case id.
        unusable: case id -> why the scan or its label cannot be used.
        modality: by the intensities; `MR` stands for everything that is not CT.
        modality_evidence: why, in words.
        slice_axis: across the coarsest spacing where that stands out, else axial.
        slice_axis_evidence: why, in words.
        classes: and where their names come from.
        foreground: none without a labeled scan that has one.
        n_scans_read: scans whose voxels were read.
        modality_claim: what `dataset.json` calls the scans, where it does.
    """

    scans: tuple[ScanFacts, ...]
    unusable: dict[str, str]
    modality: Modality
    modality_evidence: str
    slice_axis: SliceAxis
    slice_axis_evidence: str
    classes: FoundClasses
    foreground: Foreground | None
    n_scans_read: int
    modality_claim: str | None = None

    @property
    def is_disputed(self) -> bool:
        """Whether `dataset.json` calls the scans CT and the intensities do not, or the other way round."""
        return contradicts(self.modality_claim, self.modality)

    @property
    def size(self) -> Spread:
        """Of the scans' slices."""
        return _spread([scan.size for scan in self.scans])

    @property
    def spacing_mm(self) -> Spread:
        """Of the scans' slices."""
        return _spread([scan.spacing_mm for scan in self.scans])

    @property
    def n_without_spacing(self) -> int:
        """Number of scans whose voxel size is assumed."""
        return sum(not scan.has_spacing for scan in self.scans)

    @property
    def domains(self) -> dict[str, int]:
        """Domain -> number of scans, by name."""
        return dict(sorted(Counter(scan.domain for scan in self.scans if scan.domain is not None).items()))

    def n_scans(self, *, labeled: bool) -> int:
        """Number of scans with a label file, or without."""
        return sum(scan.labeled == labeled for scan in self.scans)

    def n_slices(self, *, labeled: bool) -> int:
        """Number of slices of the scans with a label file, or without."""
        return sum(scan.size[0] for scan in self.scans if scan.labeled == labeled)

    def to_tree(self) -> dict[str, Any]:
        """The facts as JSON types, and a summary for those who read them."""
        summary = {
            "labeled": {"scans": self.n_scans(labeled=True), "slices": self.n_slices(labeled=True)},
            "unlabeled": {"scans": self.n_scans(labeled=False), "slices": self.n_slices(labeled=False)},
            "size": dataclasses.asdict(self.size),
            "spacing_mm": dataclasses.asdict(self.spacing_mm),
            "domains": self.domains,
        }
        return {"summary": summary, **dataclasses.asdict(self)}


def describe(fingerprint: Fingerprint) -> list[str]:
    """What is to be known of a folder, as sentences."""
    size, spacing = fingerprint.size, fingerprint.spacing_mm
    notes = [
        f"Labeled scans: {fingerprint.n_scans(labeled=True)} ({counted(fingerprint.n_slices(labeled=True), 'slice')}); "
        f"unlabeled: {fingerprint.n_scans(labeled=False)} ({counted(fingerprint.n_slices(labeled=False), 'slice')}); "
        f"voxels were read of {fingerprint.n_scans_read}.",
        f"Slices of {size.median[1]:.0f} x {size.median[2]:.0f} pixels (median; {size.least[1]:.0f} x "
        f"{size.least[2]:.0f} to {size.most[1]:.0f} x {size.most[2]:.0f}), {spacing.median[1]:.3g} x "
        f"{spacing.median[2]:.3g} mm, {spacing.median[0]:.3g} mm apart.",
    ]
    if fingerprint.n_without_spacing:
        notes.append(
            f"{fingerprint.n_without_spacing} of {len(fingerprint.scans)} scans (HDF5) store no voxel size: 1 mm is "
            "assumed, and spacings and volumes follow from it; data.spacing_mm says otherwise."
        )
    if foreground := fingerprint.foreground:
        height, width = foreground.box_mm
        notes.append(f"Structures lie in a box of up to {height:.0f} x {width:.0f} mm in plane.")
    if not fingerprint.classes.values:
        notes.append("There is no label yet: give some scans a label and start anew (--overwrite) before training.")
    elif not fingerprint.n_scans(labeled=False):
        notes.append("Every scan has a label: training needs unlabeled ones, so list some in a split (data.split).")
    if fingerprint.domains:
        listed = ", ".join(f"{domain} {count}" for domain, count in fingerprint.domains.items())
        notes.append(
            f"Domains: {listed}. No rule follows from them; data.labeled_domains, data.unlabeled_domains and "
            "data.unseen_domains say which of them training may touch."
        )
    if fingerprint.unusable:
        notes.append(f"Left out, since they cannot be used as they are: {some(list(fingerprint.unusable))}.")
    return notes


def _spread(rows: Sequence[Triple]) -> Spread:
    def triple(values: Array) -> Triple:
        z, h, w = (float(value) for value in values)
        return z, h, w

    table = np.array(rows, np.float64)
    return Spread(triple(np.median(table, axis=0)), triple(table.min(axis=0)), triple(table.max(axis=0)))
