"""One training step of S&D Messenger, from a batch of pairs to the loss.

Source: method.md section 3, steps 2-8. Knows tensors and the network; gradients, processes and
precision are the caller's.
Departure: without U2L the warm-up leaves the unlabeled half out, which then reaches the labeled loss by the
statistics of batch normalisation alone, and would take as long as the labeled half.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdm_cli.config import MethodConfig
from sdm_cli.method.difficulty import ClassDifficulty, count_classes
from sdm_cli.method.l2u import deliver_l2u, draw_boxes
from sdm_cli.method.losses import LossTerms, combine, consistency_loss, labeled_loss, unlabeled_loss
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.u2l import Exchange


def pseudo_label(network: MessengerNetwork, image: Tensor, exchange: Exchange) -> Tensor:
    """Hard pseudo-labels (B, H, W) int64 of unlabeled images (B, 1, H, W), in evaluation mode, no gradient."""
    was_training = network.training
    network.eval()
    with torch.no_grad():
        label = network.predict(image, exchange).argmax(1)
    network.train(was_training)
    return label


def semi_supervised_step(
    network: nn.Module,
    make_pseudo_label: Callable[[Tensor], Tensor],
    labeled_image: Tensor,
    labeled_target: Tensor,
    unlabeled_image: Tensor,
    paste: Tensor,
    difficulty: ClassDifficulty,
    config: MethodConfig,
    *,
    labeled_only: bool,
    has_messenger: bool,
    sum_over_processes: Callable[[Tensor], Tensor],
) -> LossTerms:
    """Losses of one batch of pairs; updates the class difficulty.

    Args:
        network: called as `MessengerNetwork.forward` (it may be wrapped for several processes).
        make_pseudo_label: (B, 1, H, W) to (B, H, W); not called while the labeled loss stands alone.
        labeled_image: (B, 1, H, W), augmented.
        labeled_target: (B, H, W) int64 class indices or 255.
        unlabeled_image: (B, 1, H, W), augmented.
        paste: (B, 2) uniform numbers that place the patch.
        difficulty: running state of the class weights.
        config: switches, patch size and loss weights.
        labeled_only: the warm-up, where the loss is L_x alone.
        has_messenger: whether features of the unlabeled half reach the labeled one (U2L); without, the warm-up
            leaves the unlabeled half out.
        sum_over_processes: adds the class counts of all ranks, so that they share the weights.
    """
    if not config.use_unlabeled or (labeled_only and not has_messenger):
        logits_l, _ = network(labeled_image, None)
        return _alone(_weighted(logits_l, labeled_target, difficulty, config, sum_over_processes))
    # The warm-up needs the pasted images (their features reach the labeled half) but no pseudo-label.
    label = torch.zeros_like(labeled_target) if labeled_only else make_pseudo_label(unlabeled_image)
    boxes = draw_boxes(labeled_target, config.patch, paste)
    if not config.l2u:
        boxes = torch.zeros_like(boxes)
    delivery = deliver_l2u(labeled_image, labeled_target, unlabeled_image, label, boxes)
    logits_l, logits_u = network(labeled_image, delivery.image)
    labeled = _weighted(logits_l, labeled_target, difficulty, config, sum_over_processes)
    if labeled_only:
        return _alone(labeled)
    unlabeled = unlabeled_loss(logits_u, delivery.pseudo_label)
    return combine(labeled, unlabeled, consistency_loss(logits_l, logits_u, delivery.pasted), config)


def _weighted(
    logits: Tensor,
    target: Tensor,
    difficulty: ClassDifficulty,
    config: MethodConfig,
    sum_over_processes: Callable[[Tensor], Tensor],
) -> Tensor:
    if not config.class_weights:
        return labeled_loss(logits, target, None)
    return labeled_loss(logits, target, difficulty.update(sum_over_processes(count_classes(logits, target))))


def _alone(labeled: Tensor) -> LossTerms:
    return LossTerms(labeled, labeled, None, None)
