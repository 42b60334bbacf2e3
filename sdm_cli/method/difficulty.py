"""Class weights by learning difficulty: classes that are hard or get worse weigh more.

Source: method.md section 4 (DiffDW of DHC, arXiv 2310.11320).
Departure: d_t compares the prediction with the labels, as the formula says, not with the constant
map of the published call; weights have a floor (method.md 7.1 and 7.7).
"""

import torch
from torch import Tensor

from sdm_cli.data_config import IGNORE

_TINY = 1e-8
_SHARPNESS = 1 / 5
MIN_WEIGHT = 1e-3
"""Floor of every class weight: a class learnt perfectly would otherwise fade to zero."""


def count_classes(logits: Tensor, target: Tensor) -> Tensor:
    """Pixel counts of a batch, per class: true positives, predicted, labeled.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64 class indices or IGNORE (not counted).

    Returns:
        (3, K) int64; counts of several processes may be summed.
    """
    n_classes = logits.shape[1]
    counted = target != IGNORE
    # Ignored pixels go to one bin more, which is dropped: no host synchronisation for a selection.
    reference = torch.where(counted, target, n_classes).flatten()
    prediction = torch.where(counted, logits.detach().argmax(1), n_classes).flatten()
    hits = torch.where(prediction == reference, reference, n_classes)
    counts = [torch.bincount(x, minlength=n_classes + 1)[:n_classes] for x in (hits, prediction, reference)]
    return torch.stack(counts)


class ClassDifficulty:
    """Running difficulty of each class over training steps.

    Args:
        n_classes: K, with the background.
        steps: A, length of the moving averages.
        device: of the state and of the weights.
    """

    def __init__(self, n_classes: int, steps: int, device: torch.device | str = "cpu") -> None:
        self.momentum = (steps - 1) / steps
        # Differences of Dice from step to step are small: float64, where the device has it.
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.last_dice = torch.full((n_classes,), _TINY, device=device, dtype=dtype)
        self.learned = torch.zeros(n_classes, device=device, dtype=dtype)
        self.unlearned = torch.zeros(n_classes, device=device, dtype=dtype)
        self.dice_weight = torch.ones(n_classes, device=device, dtype=dtype)

    def update(self, counts: Tensor) -> Tensor:
        """Take in one step's `count_classes` and return the class weights (K,), finite, at least MIN_WEIGHT, float32.

        A class absent from labels and prediction has Dice 0.5 (section 4).
        """
        hits, predicted, labeled = counts.to(self.last_dice.dtype)
        dice = (2 * hits + _TINY) / (predicted + labeled + 2 * _TINY)
        change = dice - self.last_dice
        log_ratio = torch.log(dice / self.last_dice)  # both are above zero
        self.learned = self._average(self.learned, change.clamp_min(0) * log_ratio)
        self.unlearned = self._average(self.unlearned, change.clamp_max(0) * log_ratio)
        self.dice_weight = self._average(self.dice_weight, 1 - dice)
        self.last_dice = dice
        return self.weights

    @property
    def weights(self) -> Tensor:
        """The class weights (K,) as they stand."""
        ratio = ((self.unlearned + _TINY) / (self.learned + _TINY)) ** _SHARPNESS
        return (ratio * self.dice_weight * len(ratio)).clamp_min(MIN_WEIGHT).float()

    def state_dict(self) -> dict[str, Tensor]:
        """The four running vectors (K,)."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`, on the device of this object."""
        for name in _STATE:
            setattr(self, name, state[name].to(self.last_dice.device))

    def _average(self, old: Tensor, new: Tensor) -> Tensor:
        return self.momentum * old + (1 - self.momentum) * new


_STATE = ("last_dice", "learned", "unlearned", "dice_weight")
