from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sdm_cli.config import MethodConfig
from sdm_cli.data_config import IGNORE
from sdm_cli.method.difficulty import MIN_WEIGHT, ClassDifficulty, count_classes
from sdm_cli.method.losses import combine, consistency_loss, labeled_loss, soft_dice_loss, unlabeled_loss

GOLDEN = Path(__file__).parent / "golden"
CASES = ("plain", "zero_weight", "pseudo255")


def golden_losses(case):
    with np.load(GOLDEN / "losses.npz") as file:
        arrays = {key.removeprefix(f"{case}/"): file[key] for key in file if key.startswith(f"{case}/")}
    logits = [torch.tensor(arrays[key]).double().requires_grad_() for key in ("pred_x", "pred_u")]
    target, pseudo = (torch.tensor(arrays[key]).long() for key in ("mask_x", "pseudo_label"))
    return arrays, logits, target, pseudo


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_authors(case):
    arrays, (logits_l, logits_u), target, pseudo = golden_losses(case)
    weight, area = torch.tensor(arrays["weight"]).double(), torch.tensor(arrays["area"]).bool()
    labeled = labeled_loss(logits_l, target, weight)
    cross_entropy = labeled_loss(logits_u, pseudo, None)
    consistency = consistency_loss(logits_l, logits_u, area)
    assert labeled.item() == pytest.approx(arrays["loss_x_64"], abs=1e-10)
    assert cross_entropy.item() == pytest.approx(arrays["ce_u_64"], abs=1e-10)
    assert consistency.item() == pytest.approx(arrays["loss_consis_64"], abs=1e-10)
    total = combine(labeled, unlabeled_loss(logits_u, pseudo), consistency, MethodConfig()).total
    total.backward()
    assert (logits_l.grad - torch.tensor(arrays["grad_x_64"])).abs().max() < 1e-10
    if case != "pseudo255":
        assert soft_dice_loss(logits_u, pseudo).item() == pytest.approx(arrays["dice_u_64"], abs=1e-10)
        assert total.item() == pytest.approx(arrays["total_epoch6_64"], abs=1e-10)
        assert (logits_u.grad - torch.tensor(arrays["grad_u_64"])).abs().max() < 1e-10


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 3.0)])
def test_the_labeled_loss_is_the_cross_entropy_of_torch(weights):
    generator = torch.Generator().manual_seed(0)
    logits = [(9 * torch.randn(2, 3, 8, 8, generator=generator)).requires_grad_()]
    logits.append(logits[0].detach().clone().requires_grad_())
    target = torch.randint(0, 3, (2, 8, 8), generator=generator)
    target[:, 0] = IGNORE
    class_weights = None if weights is None else torch.tensor(weights)
    ours = labeled_loss(logits[0], target, class_weights)
    theirs = F.cross_entropy(logits[1], target, class_weights, ignore_index=IGNORE)
    for loss in (ours, theirs):
        loss.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits[0].grad, logits[1].grad, rtol=1e-5, atol=1e-9)


def test_ignored_pixels_differ_from_the_authors_in_the_dice_alone_and_as_stated():
    arrays, (_, logits), _, pseudo = golden_losses("pseudo255")
    counted = (pseudo != IGNORE).unsqueeze(1)
    probabilities = logits.softmax(1)
    one_hot = torch.zeros_like(probabilities).scatter_(1, torch.where(counted, pseudo.unsqueeze(1), 0), 1.0) * counted
    overlap = (probabilities * one_hot).sum((0, 2, 3))
    published = (probabilities**2).sum((0, 2, 3)) + one_hot.sum((0, 2, 3))  # ignored pixels counted here
    dice = (1 - (2 * overlap + 1e-5) / (published + 1e-5)).mean()
    assert dice.item() == pytest.approx(arrays["dice_u_64"], abs=1e-10)
    assert soft_dice_loss(logits, pseudo).item() != pytest.approx(arrays["dice_u_64"], abs=1e-4)


def test_ignored_pixels_have_no_gradient_and_no_value():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 4))
    target[:, :2] = IGNORE
    loss = labeled_loss(logits, target, torch.tensor([1.0, 2.0, 3.0])) + unlabeled_loss(logits, target)
    loss.backward()
    assert (logits.grad[:, :, :2] == 0).all() and (logits.grad[:, :, 2:] != 0).any()
    changed = logits.detach().clone()
    changed[:, :, :2] = 50.0
    again = labeled_loss(changed, target, torch.tensor([1.0, 2.0, 3.0])) + unlabeled_loss(changed, target)
    assert again.item() == pytest.approx(loss.item())


def test_a_logit_that_is_not_finite_harms_no_loss_where_it_is_ignored():
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    target[0, 0] = IGNORE
    expected = labeled_loss(logits, target, None)
    logits[0, 0, 0] = torch.inf
    assert labeled_loss(logits, target, None) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_but_ignored_pixels_gives_finite_losses(dtype):
    logits, target = torch.randn(1, 3, 4, 4, dtype=dtype), torch.full((1, 4, 4), IGNORE)
    assert labeled_loss(logits, target, None) == 0
    assert labeled_loss(logits, target, torch.ones(3)) == 0
    assert torch.isfinite(unlabeled_loss(logits, target))


def test_half_precision_logits_are_widened():
    logits, target = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
    assert unlabeled_loss(logits.bfloat16(), target).dtype == torch.float32


def test_consistency_counts_the_unpasted_area_as_zeros():
    pasted = torch.zeros(1, 4, 4, dtype=torch.bool)
    pasted[0, 0] = True
    loss = consistency_loss(torch.full((1, 2, 4, 4), 3.0), torch.full((1, 2, 4, 4), 1.0), pasted)
    assert loss.item() == pytest.approx(4 * 4 / 16)


def test_combine_is_a_weighted_mean():
    terms = [torch.tensor(value) for value in (1.0, 2.0, 6.0)]
    assert combine(*terms, MethodConfig()).total.item() == pytest.approx(3)
    assert combine(*terms, MethodConfig(consistency_weight=0)).total.item() == pytest.approx(1.5)


@pytest.mark.parametrize("steps", [50, 20])
def test_class_weights_are_the_intended_ones(steps):
    with np.load(GOLDEN / f"difficulty_acc{steps}.npz") as file:
        logits, labels = torch.tensor(file["pred"]), torch.tensor(file["label"]).long()
        difficulty = ClassDifficulty(logits.shape[2], steps)
        for step in range(len(logits)):
            weights = difficulty.update(count_classes(logits[step], labels[step]))
            # float32 on both sides
            assert weights.numpy() == pytest.approx(file[f"as_intended/{step}/weights"], rel=1e-6)
            assert difficulty.last_dice.numpy() == pytest.approx(file[f"as_intended/{step}/dice"], rel=1e-6)


def test_an_absent_class_has_dice_one_half_and_finite_weights():
    difficulty = ClassDifficulty(3, 50)
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 1
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    weights = difficulty.update(count_classes(logits, target))
    assert difficulty.last_dice.tolist() == pytest.approx([1.0, 0.5, 0.5])
    assert torch.isfinite(weights).all()


def test_a_class_that_stays_perfect_keeps_a_weight():
    difficulty = ClassDifficulty(2, 50)
    target = torch.randint(0, 2, (1, 8, 8))
    logits = torch.nn.functional.one_hot(target, 2).permute(0, 3, 1, 2).float()
    for _ in range(2000):
        weights = difficulty.update(count_classes(logits, target))
    assert (weights >= MIN_WEIGHT).all()
    assert torch.isfinite(labeled_loss(logits, target, weights))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**20), min_size=3, max_size=8))
def test_class_weights_stay_finite_and_bounded_below_whatever_comes(seeds):
    difficulty = ClassDifficulty(4, 5)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, 4, 6, 6, generator=generator)
        target = torch.randint(0, 5, (2, 6, 6), generator=generator)
        target[target == 4] = IGNORE
        weights = difficulty.update(count_classes(logits, target))
        assert torch.isfinite(weights).all() and (weights >= MIN_WEIGHT).all()


def test_counts_ignore_255_and_add_up():
    target = torch.tensor([[[0, 1, 1, IGNORE]]])
    logits = torch.zeros(1, 3, 1, 4)
    logits[0, :, 0] = torch.tensor([[5.0, 0, 0, 5], [0, 5, 0, 0], [0, 0, 5, 0]])
    assert count_classes(logits, target).tolist() == [[1, 1, 0], [1, 1, 1], [1, 2, 0]]
    doubled = count_classes(logits.repeat(2, 1, 1, 1), target.repeat(2, 1, 1))
    assert torch.equal(doubled, 2 * count_classes(logits, target))


def test_difficulty_state_continues_exactly():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(1, 3, 5, 5, generator=generator), torch.randint(0, 3, (1, 5, 5), generator=generator))
        for _ in range(6)
    ]
    whole, first = ClassDifficulty(3, 10), ClassDifficulty(3, 10)
    expected = [whole.update(count_classes(*batch)) for batch in batches]
    for batch in batches[:3]:
        first.update(count_classes(*batch))
    second = ClassDifficulty(3, 10)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(second.update(count_classes(*b)), e) for b, e in zip(batches[3:], expected[3:], strict=True))
