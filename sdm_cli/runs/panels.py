"""Panels of a run: a few training pairs as the network sees them, with label, pasted patch and prediction.

The pairs are those of fixed draw numbers, so that panels of one run can be compared.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from sdm_cli.config import Preset
from sdm_cli.data.pairs import Pair, PairedSlices, augment_pairs
from sdm_cli.data_config import IGNORE
from sdm_cli.method.l2u import deliver_l2u, draw_boxes
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.step import pseudo_label
from sdm_cli.runs.report import class_legend, draw_slice, png_figure, upright

SlicesOf = Callable[[int], tuple[tuple[str, int], tuple[str, int]]]
_CANDIDATES = 32
_PAIRS = 3


class _Column(NamedTuple):
    """One column of the picture: (B, H, W) each."""

    side: Literal[0, 1]  # of the pair: the labeled slice, or the unlabeled one
    title: str
    image: Tensor
    mask: Tensor
    pasted: Tensor | None = None


def choose_pairs(pairs: PairedSlices) -> Pair:
    """Of the first draws those whose labeled slices hold most classes, then most of them, as a batch on the CPU."""

    def content(pair: Pair) -> tuple[int, int]:
        foreground = pair.labeled_target[(pair.labeled_target > 0) & (pair.labeled_target != IGNORE)]
        return len(foreground.unique()), len(foreground)

    candidates = [pairs[draw] for draw in range(_CANDIDATES)]
    chosen: Pair = default_collate(sorted(candidates, key=content, reverse=True)[:_PAIRS])
    return chosen


def draw_panels(
    path: Path,
    network: MessengerNetwork,
    pairs: Pair,
    slices_of: SlicesOf,
    preset: Preset,
    device: torch.device,
    title: str,
) -> None:
    """Draw pairs with the names of their slices, their labels and the predictions of a network, as a PNG.

    Args:
        path: of the PNG; an older one is replaced.
        network: on `device`; its mode is kept.
        pairs: a batch; augmented here, as in training.
        slices_of: as that of `PairedSlices`.
        preset: resolved.
        device: of the network.
        title: over the whole figure.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = _columns(network, send_to_device(pairs, device), preset)
    n_rows = len(columns[0].image)
    with png_figure(path, 2.6 * len(columns), 2.5 * n_rows + 0.9) as figure:
        axes = figure.subplots(n_rows, len(columns), squeeze=False)
        for column, panels in zip(columns, axes.T, strict=True):
            panels[0].set_title(column.title)
            for row, panel in enumerate(panels):
                case_id, z = slices_of(int(pairs.number[row]))[column.side]
                panel.set_xlabel(f"{case_id}, slice {z}")
                draw_slice(panel, _array(column.image[row]), _array(column.mask[row]).astype(np.uint8))
                if column.pasted is not None and column.pasted[row].any():
                    outline = upright(_array(column.pasted[row]).astype(float))
                    panel.contour(outline, levels=[0.5], colors="white", linewidths=1.2, linestyles="dashed")
        class_legend(figure, preset.data.class_names)
        is_pasted = any(column.pasted is not None and column.pasted.any() for column in columns)
        figure.suptitle(f"{title} (dashed: the pasted patch)" if is_pasted else title)


def _columns(network: MessengerNetwork, pairs: Pair, preset: Preset) -> list[_Column]:
    batch = augment_pairs(pairs)
    labeled = batch.labeled_image[:, 0]
    columns = [
        _Column(0, "labeled slice: label", labeled, batch.labeled_target),
        _Column(0, "labeled slice: prediction", labeled, pseudo_label(network, batch.labeled_image, "image")),
    ]
    if not preset.method.use_unlabeled:
        return columns
    label = pseudo_label(network, batch.unlabeled_image, preset.model.exchange)
    boxes = draw_boxes(batch.labeled_target, preset.method.patch, batch.paste) * int(preset.method.l2u)
    delivery = deliver_l2u(batch.labeled_image, batch.labeled_target, batch.unlabeled_image, label, boxes)
    unlabeled = delivery.image[:, 0]
    prediction = pseudo_label(network, delivery.image, "image")
    return [
        *columns,
        _Column(1, "unlabeled slice: pseudo-label", unlabeled, delivery.pseudo_label, delivery.pasted),
        _Column(1, "unlabeled slice: prediction", unlabeled, prediction, delivery.pasted),
    ]


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
