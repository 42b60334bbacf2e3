"""Muon: matrices by their own rule, everything else as AdamW has it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdm_cli.config import ModelConfig, TrainConfig
from sdm_cli.method.network import build_network
from sdm_cli.runs.muon import MATRICES, Muon, is_matrix, orthogonalize
from sdm_cli.runs.optimizer import make_optimizer, optimizer_tensors, restore_optimizer

LR, DECAY = 1e-2, 0.1


def after_steps(optimizer, weights, gradients):
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return [weight.detach() for weight in weights]


def of_matrices(*values):
    weights = [nn.Parameter(value.clone()) for value in values]
    return Muon([{"params": weights, MATRICES: True}], LR, DECAY), weights


def noise(*shapes):
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon of its own")
def test_matrices_of_many_shapes_move_as_torch_moves_each_alone():
    torch.manual_seed(0)
    shapes = [(40, 70), (70, 40), (40, 70), (30, 30), (2, 9)]
    values, gradients = noise(*shapes), [noise(*shapes) for _ in range(4)]
    ours, weights = of_matrices(*values)
    moved = after_steps(ours, weights, gradients)
    others = [nn.Parameter(value.clone()) for value in values]
    theirs = torch.optim.Muon(others, LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    expected = after_steps(theirs, others, gradients)
    for value, ours_moved, theirs_moved in zip(values, moved, expected, strict=True):
        # torch works in bfloat16, of 8 bits, and each step goes about 0.2 x LR.
        torch.testing.assert_close(ours_moved, theirs_moved, atol=2e-3, rtol=0)
        assert (ours_moved - value).abs().mean() > 4e-3


@given(st.integers(1, 24), st.integers(1, 24), st.integers(-4, 6), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_directions_stay_and_their_lengths_become_alike(height, width, scale, seed):
    random = torch.Generator().manual_seed(seed)
    left, values, right = torch.linalg.svd(torch.randn(height, width, generator=random), full_matrices=False)
    lengths = torch.rand(len(values), generator=random) * 0.9 + 0.1
    result = orthogonalize(left @ torch.diag(lengths * 10.0**scale) @ right)
    seen = left.mT @ result.float() @ right.mT  # diagonal where the singular vectors are those of the input
    found = seen.diagonal()
    assert found.min() > 0.6 and found.max() < 1.3
    assert (seen - torch.diag(found)).abs().max() < 0.1


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-30, 1e-20, 1e-15])
def test_a_gradient_of_nothing_moves_nothing(scale):
    assert orthogonalize(torch.ones(3, 5) * scale).abs().max() < 1e-3


def test_momentum_fades_where_no_gradient_comes_any_more():
    torch.manual_seed(4)
    ours, weights = of_matrices(torch.zeros(4, 6))
    nothing = [[torch.zeros(4, 6)]]
    moved = after_steps(ours, weights, [noise((4, 6)), *nothing * 1500])[0].clone()
    assert torch.isfinite(moved).all()
    later = after_steps(ours, weights, nothing * 10)[0]
    assert (later - moved * (1 - LR * DECAY) ** 10).abs().max() < 1e-6


def test_matrices_without_a_gradient_stay():
    ours, (weight,) = of_matrices(torch.ones(3, 4))
    ours.step()
    assert torch.equal(weight.detach(), torch.ones(3, 4))


def test_a_convolution_is_a_matrix_of_a_row_an_output_channel():
    torch.manual_seed(1)
    kernel, gradients = torch.randn(8, 3, 3, 3), [noise((8, 3, 3, 3)) for _ in range(3)]
    ours, weights = of_matrices(kernel)
    flat, rows = of_matrices(kernel.flatten(1))
    moved = after_steps(ours, weights, gradients)[0]
    assert torch.equal(moved.flatten(1), after_steps(flat, rows, [[g[0].flatten(1)] for g in gradients])[0])


def test_all_else_moves_as_adamw_has_it():
    torch.manual_seed(2)
    shapes = [(7,), (6, 1, 3, 3)]
    values, gradients = noise(*shapes), [noise(*shapes) for _ in range(3)]
    weights, others = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    ours = Muon([{"params": weights, MATRICES: False}], LR, DECAY)
    moved = after_steps(ours, weights, gradients)
    for mine, theirs in zip(
        moved, after_steps(torch.optim.AdamW(others, LR, weight_decay=DECAY), others, gradients), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_every_weight_is_in_one_group_and_matrices_are_what_mixes_channels():
    network = build_network(ModelConfig(encoder="mit-b0", pretrained="none"), 4)
    groups = make_optimizer(network, TrainConfig(optimizer="muon", head_lr_factor=3.0)).param_groups
    found = {id(weight): group for group in groups for weight in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    for name, weight in network.named_parameters():
        group = found[id(weight)]
        assert group["lr_factor"] == (1.0 if name.startswith("backbone.") else 3.0)
        mixes = weight.ndim >= 2 and "dwconv" not in name and "linear_pred" not in name
        assert group[MATRICES] == mixes, name


def test_state_goes_through_tensors_and_on_exactly():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    groups = [
        {"params": [w for w in network.parameters() if is_matrix(w) == wanted], MATRICES: wanted}
        for wanted in (True, False)
    ]
    first = Muon(groups, LR, DECAY)
    weights = [weight for group in first.param_groups for weight in group["params"]]
    gradients = [noise(*(weight.shape for weight in weights)) for _ in range(4)]
    after_steps(first, weights, gradients[:2])
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    second = Muon([{"params": copies[:1], MATRICES: True}, {"params": copies[1:], MATRICES: False}], LR, DECAY)
    restore_optimizer(second, {name: value.clone() for name, value in optimizer_tensors(first).items()})
    for one, other in zip(
        after_steps(first, weights, gradients[2:]), after_steps(second, copies, gradients[2:]), strict=True
    ):
        assert torch.equal(one, other)
