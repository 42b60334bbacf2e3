from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdm_cli.data_config import IGNORE
from sdm_cli.method.l2u import deliver_l2u, draw_boxes

GOLDEN = Path(__file__).parent / "golden" / "cutmix.npz"
PATCH = 32
SEEDS = {"large_wide": 1030, "large_border": 1031, "exact": 1032, "one_side_small": 1033, "small": 1034, "none": 1035}


@pytest.mark.parametrize("case", SEEDS)
def test_pasting_is_the_authors(case):
    with np.load(GOLDEN) as file:
        arrays = {key.removeprefix(f"{case}/"): torch.tensor(file[key]) for key in file if key.startswith(f"{case}/")}
    target = arrays["masks_b"].long()
    box = draw_boxes(target, PATCH, authors_uniform(arrays["masks_b"].numpy()[0], SEEDS[case]))
    left, top, right, bottom = arrays["cor_x1y1x2y2"].tolist()
    assert box.tolist() == [[top, left, bottom, right]]
    delivery = deliver_l2u(arrays["images_b"], target, arrays["images_a"], arrays["masks_a"].long(), box)
    assert torch.equal(delivery.image, arrays["out_images"])
    assert torch.equal(delivery.pseudo_label, arrays["out_masks"].long())
    assert torch.equal(delivery.pasted, arrays["area_pasted_region"].bool())


def authors_uniform(mask, seed):
    """The uniform numbers that stand for the integers which the authors' code draws: column first, then row."""
    rows, columns = np.nonzero(mask)
    if len(rows) == 0 or np.ptp(rows) == 0 or np.ptp(columns) == 0:
        return torch.zeros(1, 2)
    random = np.random.RandomState(seed)
    column, row = (random.randint(axis.min(), axis.max()) for axis in (columns, rows))
    return torch.tensor([[(row - rows.min() + 0.5) / np.ptp(rows), (column - columns.min() + 0.5) / np.ptp(columns)]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_patch_lies_around_a_point_of_the_foreground_box(seed, patch, u, v):
    random = np.random.default_rng(seed)
    target = torch.zeros(1, 24, 20, dtype=torch.long)
    top, left = random.integers(0, 10, 2)
    height, width = random.integers(1, 12), random.integers(1, 10)
    target[0, top : top + height, left : left + width] = 2
    ((y1, x1, y2, x2),) = draw_boxes(target, patch, torch.tensor([[u, v]])).tolist()
    if min(height, width) - 1 <= patch:
        assert (y1, x1, y2, x2) == (0, 0, 0, 0)
        return
    assert 0 <= y1 < y2 <= 24 and 0 <= x1 < x2 <= 20
    assert y2 - y1 <= patch and x2 - x1 <= patch
    assert y1 < top + height and y2 > top and x1 < left + width and x2 > left


def test_ignored_pixels_are_no_foreground():
    target = torch.full((1, 40, 40), IGNORE)
    assert draw_boxes(target, 8, torch.full((1, 2), 0.5)).tolist() == [[0, 0, 0, 0]]


def test_a_delivery_changes_the_pasted_area_alone_and_no_input():
    generator = torch.Generator().manual_seed(0)
    labeled, unlabeled = torch.rand(3, 1, 30, 30, generator=generator), torch.rand(3, 1, 30, 30, generator=generator)
    target, pseudo = torch.ones(3, 30, 30).long(), torch.full((3, 30, 30), 4)
    before = [x.clone() for x in (labeled, target, unlabeled, pseudo)]
    delivery = deliver_l2u(labeled, target, unlabeled, pseudo, draw_boxes(target, 6, torch.rand(3, 2)))
    area = delivery.pasted
    assert area.any(2).any(1).all()
    assert torch.equal(delivery.image[:, 0][area], labeled[:, 0][area])
    assert torch.equal(delivery.image[:, 0][~area], unlabeled[:, 0][~area])
    assert (delivery.pseudo_label[area] == 1).all() and (delivery.pseudo_label[~area] == 4).all()
    assert all(torch.equal(x, y) for x, y in zip(before, (labeled, target, unlabeled, pseudo), strict=True))
