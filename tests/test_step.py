"""One training step as a whole: what is pasted where, which loss meets what, and what the warm-up leaves out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdm_cli.config import MethodConfig
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.encoder import DropPath
from sdm_cli.method.step import semi_supervised_step
from sdm_cli.method.u2l import ChannelAttention, _drawn

K, SIZE, PATCH = 3, 24, 6


class Stub(nn.Module):
    """Logits that are plain functions of the images, and a record of what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.3, -0.7, 1.1]))
        self.seen = []

    def forward(self, labeled, unlabeled):
        self.seen.append((labeled, unlabeled))
        logits = [None if images is None else images * self.scale.view(1, K, 1, 1) for images in (labeled, unlabeled)]
        return logits[0], logits[1]


def batch():
    generator = torch.Generator().manual_seed(0)
    labeled, unlabeled = torch.rand(2, 2, 1, SIZE, SIZE, generator=generator)
    target = torch.zeros(2, SIZE, SIZE, dtype=torch.int64)
    target[0, 4:20, 3:21] = 1
    target[0, 8:12, 8:12] = 2
    target[1, 10:13, 10:13] = 2  # too small to give a patch
    pseudo = torch.randint(K, (2, SIZE, SIZE), generator=generator)
    return labeled, target, unlabeled, pseudo


def step(config, labeled_only=False, has_messenger=True, sum_over_processes=lambda counts: counts):
    network, (labeled, target, unlabeled, pseudo) = Stub(), batch()
    asked = []

    def make_pseudo_label(images):
        asked.append(images)
        return pseudo

    paste = torch.tensor([[0.5, 0.25], [0.5, 0.5]])
    difficulty = ClassDifficulty(K, 50)
    terms = semi_supervised_step(
        network,
        make_pseudo_label,
        labeled,
        target,
        unlabeled,
        paste,
        difficulty,
        config,
        labeled_only=labeled_only,
        has_messenger=has_messenger,
        sum_over_processes=sum_over_processes,
    )
    return network, terms, asked, difficulty


def pasted_by_hand():
    """Rows 4..19 and columns 3..20 enclose the foreground: centre (4 + 7, 3 + 4), half a patch to each side."""
    labeled, target, unlabeled, pseudo = batch()
    image, label, mask = unlabeled.clone(), pseudo.clone(), torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    mask[0, 8:14, 4:10] = True
    image[0, 0, 8:14, 4:10] = labeled[0, 0, 8:14, 4:10]
    label[0, 8:14, 4:10] = target[0, 8:14, 4:10]
    return image, label, mask


def test_the_three_losses_of_a_step_by_hand():
    network, terms, asked, _ = step(MethodConfig(patch=PATCH, class_weights=False))
    labeled, target, unlabeled, _ = batch()
    image, label, mask = pasted_by_hand()
    assert torch.equal(asked[0], unlabeled)  # pseudo-labels are made before the paste
    assert torch.equal(network.seen[0][0], labeled) and torch.equal(network.seen[0][1], image)
    logits_l, logits_u = (part * network.scale.view(1, K, 1, 1) for part in (labeled, image))
    assert terms.labeled.item() == pytest.approx(F.cross_entropy(logits_l, target).item(), rel=1e-5)
    s, t = logits_u.softmax(1), F.one_hot(label, K).movedim(-1, 1).float()
    overlap, size = (s * t).sum((0, 2, 3)), (s * s).sum((0, 2, 3)) + (t * t).sum((0, 2, 3))
    dice = (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()
    expected = (F.cross_entropy(logits_u, label) + dice) / 2
    assert terms.unlabeled.item() == pytest.approx(expected.item(), rel=1e-5)
    consistency = (logits_l * mask[:, None] - logits_u * mask[:, None]).square().mean()
    assert terms.consistency.item() == pytest.approx(consistency.item(), abs=1e-8)
    total = (terms.labeled + terms.unlabeled + terms.consistency) / 3
    assert terms.total.item() == pytest.approx(total.item(), rel=1e-5)


def test_the_consistency_loss_counts_the_pasted_area_alone():
    mask = pasted_by_hand()[2]

    class Shifted(Stub):
        def forward(self, left, right):
            logits, other = super().forward(left, right)
            return logits, other + 1

    network = Shifted()
    paste = torch.tensor([[0.5, 0.25], [0.5, 0.5]])
    terms = semi_supervised_step(
        network,
        lambda images: batch()[3],
        *batch()[:3],
        paste,
        ClassDifficulty(K, 50),
        MethodConfig(patch=PATCH, class_weights=False),
        labeled_only=False,
        has_messenger=True,
        sum_over_processes=lambda counts: counts,
    )
    assert terms.consistency.item() == pytest.approx(
        mask.float().mean().item(), rel=1e-5
    )  # the pasted pixels differ by 1


def test_the_warm_up_has_the_labeled_loss_alone_and_asks_for_no_pseudo_label():
    network, terms, asked, _ = step(MethodConfig(patch=PATCH, class_weights=False), labeled_only=True)
    assert asked == [] and terms.unlabeled is None and terms.consistency is None
    assert terms.total is terms.labeled
    assert torch.equal(network.seen[0][1], pasted_by_hand()[0])  # the pasted images still reach the labeled half


def test_the_warm_up_leaves_the_unlabeled_half_out_where_no_messenger_carries_it():
    config = MethodConfig(patch=PATCH, class_weights=False)
    network, terms, asked, _ = step(config, labeled_only=True, has_messenger=False)
    assert asked == [] and network.seen[0][1] is None and terms.total is terms.labeled
    network, terms, _, _ = step(config, has_messenger=False)
    assert torch.equal(network.seen[0][1], pasted_by_hand()[0]) and terms.unlabeled is not None


def test_without_l2u_nothing_is_pasted():
    network, terms, _, _ = step(MethodConfig(patch=PATCH, class_weights=False, l2u=False))
    assert torch.equal(network.seen[0][1], batch()[2]) and terms.consistency == 0


def test_the_twin_sees_labeled_slices_alone():
    network, terms, asked, _ = step(MethodConfig(patch=PATCH, class_weights=False, use_unlabeled=False))
    assert network.seen[0][1] is None and asked == [] and terms.total is terms.labeled


def test_class_weights_are_those_of_the_counts_of_all_processes():
    added = torch.tensor([[100, 5, 5], [200, 40, 40], [300, 50, 10]])
    _, terms, _, difficulty = step(MethodConfig(patch=PATCH), sum_over_processes=lambda counts: counts + added)
    labeled, target, *_ = batch()
    logits = labeled * Stub().scale.view(1, K, 1, 1)
    prediction = logits.argmax(1)
    counts = [
        [((prediction == k) & (target == k)).sum(), (prediction == k).sum(), (target == k).sum()] for k in range(K)
    ]
    expected = ClassDifficulty(K, 50)
    weights = expected.update(torch.tensor(counts).T + added)
    assert torch.equal(difficulty.last_dice, expected.last_dice)
    assert terms.labeled.item() == pytest.approx(F.cross_entropy(logits, target, weights).item(), rel=1e-5)


def test_what_is_dropped_is_made_up_for_in_expectation():
    torch.manual_seed(0)
    ones = torch.ones(4000, 1, 1)
    dropped = DropPath(0.25).train()(ones)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert dropped.mean() == pytest.approx(1, abs=0.03)
    attention = ChannelAttention(8, 2, 0.1)
    attention.out_dropout.p = 0.0
    tokens = torch.rand(1, 30, 8)
    with torch.no_grad():
        whole = attention.eval().unlabeled(tokens)
        attention.train()
        mean = torch.stack([attention.unlabeled(tokens) for _ in range(600)]).mean(0)
    assert (mean - whole).abs().max() < 0.05 * whole.abs().max()
    assert _drawn(torch.ones(1000, 100), 0.1).float().mean() == pytest.approx(0.1, abs=0.005)
