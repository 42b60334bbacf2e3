"""`sdm predict --rank`: which unlabeled cases a person should label next.

Two figures a case, neither of which needs a label:

- entropy: mean over the voxels that are found to be foreground or whose best class has a probability below 0.99, of the
  entropy of their probabilities, 0 (certain) to 1. Absent: 0 without such a voxel.
- inconsistency: 1 minus the mean Dice of a class in neighbouring slices, over all classes and neighbours where at least
  one has the class. The network sees a slice alone, so a structure that comes and goes between slices is doubtful.
  Absent: 1 where nothing was found at all.

A case is as doubtful as the mean of its two places among all cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdm_cli.console import print_table
from sdm_cli.files import write_csv
from sdm_cli.runs.model import Prediction
from sdm_cli.runs.predictor import Array

_CERTAIN = 0.99


@dataclass(frozen=True)
class Doubt:
    """How little a model knows of a case: see the module."""

    case_id: str
    entropy: float
    inconsistency: float


def doubt_of(case_id: str, found: Prediction) -> Doubt:
    """Doubt about a prediction that has its entropy and its confidence map."""
    assert found.entropy is not None and found.confidence_map is not None
    asked = (found.mask > 0) | (found.confidence_map < _CERTAIN)
    entropy = float(found.entropy[asked].mean(dtype=np.float64)) if asked.any() else 0.0
    return Doubt(case_id, entropy, inconsistency(found.slices))


def inconsistency(slices: Array) -> float:
    """1 minus the mean Dice between neighbouring slices of (Z, H, W) class indices. Absent: 1 without foreground."""
    if not slices.any():
        return 1.0
    scores = []
    for index in range(1, int(slices.max()) + 1):
        sizes = np.array([np.count_nonzero(plane == index) for plane in slices])
        for z in np.flatnonzero(sizes[:-1] + sizes[1:]):
            both = np.count_nonzero((slices[z] == index) & (slices[z + 1] == index))
            scores.append(2 * both / (sizes[z] + sizes[z + 1]))
    return 1 - float(np.mean(scores)) if scores else 0.0


def ranked(doubts: Sequence[Doubt]) -> list[Doubt]:
    """The most doubtful first; equal ones by name."""
    from scipy.stats import rankdata  # half a second that most predictions need not wait

    places = sum(rankdata([-getattr(doubt, name) for doubt in doubts]) for name in ("entropy", "inconsistency"))
    order = sorted(range(len(doubts)), key=lambda n: (float(np.atleast_1d(places)[n]), doubts[n].case_id))
    return [doubts[n] for n in order]


def write_ranking(path: Path, doubts: Sequence[Doubt]) -> None:
    """Write the ranked cases as CSV; raises OutputError."""
    rows = (
        (place, doubt.case_id, round(doubt.entropy, 6), round(doubt.inconsistency, 6))
        for place, doubt in enumerate(doubts, 1)
    )
    write_csv(path, ("place", "case", "mean_entropy", "slice_inconsistency"), rows)


def show_ranking(doubts: Sequence[Doubt]) -> None:
    """Print the ranked cases, the first being the one to label next."""
    from rich.table import Table

    table = Table(title="Label these next", title_justify="left", caption=_RULES, caption_justify="left")
    table.add_column("")
    table.add_column("case")
    for heading in ("mean entropy", "slice inconsistency"):
        table.add_column(heading, justify="right")
    for place, doubt in enumerate(doubts, 1):
        table.add_row(str(place), doubt.case_id, f"{doubt.entropy:.4f}", f"{doubt.inconsistency:.4f}")
    print_table(table)


_RULES = (
    "By the mean of both places. Entropy: over voxels of foreground or of probability below 0.99, 0 is certain. "
    "Inconsistency: 1 - mean Dice of a class in neighbouring slices."
)
