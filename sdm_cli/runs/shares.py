"""Share of each class in the labeled targets and in the pseudo-labels, from one record of the run to the next."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_cli.data_config import IGNORE

BACKGROUND = "background"
"""What records call class 0."""


class Shares(NamedTuple):
    """Shares (K) of pixels, 0 to 1, the background first; None where no pixel was counted."""

    labeled: list[float] | None
    pseudo: list[float] | None


class ClassShares:
    """Counts pixels by class since the last record; part of the training state, so that records resume exactly.

    Several processes add up what each of them counts at once: a checkpoint, which one of them writes, holds all.

    Args:
        n_classes: K, with the background.
        device: of the labels that are counted.

    Attributes:
        counts: (2, K) int64: of the labeled targets, and of the pseudo-labels before the paste.
    """

    def __init__(self, n_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(2, n_classes, dtype=torch.int64, device=device)

    def add_labeled(self, target: Tensor, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Count a target (B, H, W) int64; IGNORE is left out."""
        self.counts[0] += sum_over_processes(self._count(target))

    def add_pseudo(self, label: Tensor, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Count pseudo-labels (B, H, W) int64."""
        self.counts[1] += sum_over_processes(self._count(label))

    def take(self) -> Shares:
        """The shares; counting begins anew."""
        counts = self.counts.tolist()
        self.counts.zero_()
        labeled, pseudo = ([n / sum(row) for n in row] if any(row) else None for row in counts)
        return Shares(labeled, pseudo)

    def _count(self, label: Tensor) -> Tensor:
        n_classes = self.counts.shape[1]
        # Ignored pixels go to one bin more, which is dropped.
        return torch.bincount(torch.where(label == IGNORE, n_classes, label).flatten(), minlength=n_classes + 1)[:-1]
