"""The three losses of a training step and their combination.

Source: method.md section 3, steps 5-8. Targets are class indices; `IGNORE` counts nowhere.
Everything is computed in float32 or wider: the small constants vanish in half precision.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdm_cli.config import MethodConfig
from sdm_cli.data_config import IGNORE

_DICE_SMOOTH = 1e-5


class LossTerms(NamedTuple):
    """Scalars of one step; the two unlabeled terms are None while the labeled loss stands alone."""

    total: Tensor
    labeled: Tensor
    unlabeled: Tensor | None
    consistency: Tensor | None


def labeled_loss(logits: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    """L_x: cross entropy weighted by class.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64 class indices or IGNORE.
        class_weights: (K,), or None for equal weights.

    Returns:
        Scalar; 0 when every pixel is ignored.
    """
    counted = target != IGNORE
    known = torch.where(counted, target, 0)
    # What F.cross_entropy calls for pixels has no deterministic form on a GPU; this has, and gives the same numbers.
    losses = -_wide(logits).log_softmax(1).gather(1, known.unsqueeze(1)).squeeze(1)  # (B, H, W)
    losses = losses.where(counted, 0)
    weight = counted.to(losses.dtype) if class_weights is None else class_weights[known] * counted
    return (losses * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus soft Dice over the whole batch, mean of all classes with the background.

    Departure: ignored pixels leave the sums altogether; the published form still counts their squared
    probabilities (method.md 7.5).

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64 class indices or IGNORE.

    Returns:
        Scalar in [0, 1].
    """
    counted = (target != IGNORE).unsqueeze(1)
    probabilities = _wide(logits).softmax(1) * counted
    one_hot = torch.zeros_like(probabilities).scatter_(1, torch.where(counted, target.unsqueeze(1), 0), 1.0) * counted
    axes = (0, 2, 3)
    overlap = (probabilities * one_hot).sum(axes)  # (K,)
    size = (probabilities * probabilities).sum(axes) + one_hot.sum(axes)
    return (1 - (2 * overlap + _DICE_SMOOTH) / (size + _DICE_SMOOTH)).mean()


def unlabeled_loss(logits: Tensor, pseudo_label: Tensor) -> Tensor:
    """L_u: mean of cross entropy and soft Dice against the pasted pseudo-label (shapes as above)."""
    return (labeled_loss(logits, pseudo_label, None) + soft_dice_loss(logits, pseudo_label)) / 2


def consistency_loss(logits_labeled: Tensor, logits_unlabeled: Tensor, pasted: Tensor) -> Tensor:
    """L_c: mean squared difference of the logits on the pasted area.

    Args:
        logits_labeled: (B, K, H, W).
        logits_unlabeled: (B, K, H, W).
        pasted: (B, H, W) bool.

    Returns:
        Scalar: the mean over all elements, the area not pasted counted as zeros.
    """
    difference = (_wide(logits_labeled) - _wide(logits_unlabeled)) * pasted.unsqueeze(1)
    return difference.square().mean()


def combine(labeled: Tensor, unlabeled: Tensor, consistency: Tensor, config: MethodConfig) -> LossTerms:
    """Weighted mean of the three losses; (L_x + L_u + L_c) / 3 as published."""
    weights = (config.labeled_weight, config.unlabeled_weight, config.consistency_weight)
    total = sum(w * term for w, term in zip(weights, (labeled, unlabeled, consistency), strict=True))
    assert isinstance(total, Tensor)
    return LossTerms(total / sum(weights), labeled, unlabeled, consistency)


def mean_terms(terms: Sequence[LossTerms]) -> LossTerms:
    """The mean of the losses of the micro-batches of one step, without gradient."""

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(each, name) for each in terms]).detach().mean()

    stands_alone = terms[0].unlabeled is None  # then it does in all of the step
    names = ("unlabeled", "consistency")
    return LossTerms(mean("total"), mean("labeled"), *(None if stands_alone else mean(name) for name in names))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
