"""L2U delivery: a labeled patch around the foreground is pasted into the unlabeled slice.

Source: method.md section 3, step 3 (paper section 3.2).
Departure: the mask of the consistency loss is the pasted area itself (method.md 7.2), and pixels to
ignore are no foreground (7.5).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sdm_cli.data_config import IGNORE


class Delivery(NamedTuple):
    """Unlabeled side of a batch after the paste."""

    image: Tensor  # (B, C, H, W)
    pseudo_label: Tensor  # (B, H, W) int64
    pasted: Tensor  # (B, H, W) bool


def draw_boxes(labeled_target: Tensor, patch: int, uniform: Tensor) -> Tensor:
    """Where to paste: a patch centred at a random point of the foreground's bounding box.

    Args:
        labeled_target: (B, H, W) int64 class indices or IGNORE.
        patch: K, side of the patch in pixels.
        uniform: (B, 2) in [0, 1), deciding row and column of the centre.

    Returns:
        (B, 4) int64 rows and columns [top, left, bottom, right), clipped at the border; empty
        (all zero) where a side of the foreground box, largest minus smallest index, is not larger than K.
    """
    foreground = (labeled_target > 0) & (labeled_target != IGNORE)
    edges, large_enough = [], torch.ones(len(foreground), dtype=torch.bool, device=foreground.device)
    for axis, fraction in ((2, uniform[:, 0]), (1, uniform[:, 1])):
        occupied = foreground.any(axis).long()  # (B, H) of rows, then (B, W) of columns
        size = occupied.shape[1]
        smallest = occupied.argmax(1)
        largest = size - 1 - occupied.flip(1).argmax(1)
        large_enough &= occupied.any(1) & (largest - smallest > patch)
        centre = smallest + (fraction * (largest - smallest)).long()
        start = centre - patch // 2
        edges.append((start.clamp_min(0), (start + patch).clamp_max(size)))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], 1) * large_enough.unsqueeze(1)


def deliver_l2u(
    labeled_image: Tensor, labeled_target: Tensor, unlabeled_image: Tensor, pseudo_label: Tensor, boxes: Tensor
) -> Delivery:
    """Paste image and label of each pair inside its box.

    Args:
        labeled_image: (B, C, H, W).
        labeled_target: (B, H, W) int64.
        unlabeled_image: (B, C, H, W).
        pseudo_label: (B, H, W) int64.
        boxes: (B, 4) of `draw_boxes`.
    """
    height, width = labeled_target.shape[1:]
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    top, left, bottom, right = boxes[:, :, None, None].unbind(1)
    pasted = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    image = torch.where(pasted.unsqueeze(1), labeled_image, unlabeled_image)
    return Delivery(image, torch.where(pasted, labeled_target, pseudo_label), pasted)
