"""The decoder's last steps, a few rows at a time, against the same steps one after the other in torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdm_cli.method import readout as readout_module
from sdm_cli.method.readout import readout


def plain(features, norm, weight):
    """(B, N, E) as torch does it: every step over the whole map."""
    return F.relu(norm(features.transpose(1, 2))).transpose(1, 2) @ weight.transpose(1, 2)


def walk(function, features, norm, weight, above):
    """Logits, the gradients of all inputs, and the running statistics that are left."""
    leaves = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    norm.zero_grad()
    logits = function(leaves[0] * 1, norm, leaves[1])
    logits.backward(above.to(logits.dtype))
    grads = [leaf.grad for leaf in (*leaves, norm.weight, norm.bias)]
    return [logits, *grads, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def two_norms(channels, dtype):
    pair = [nn.BatchNorm2d(channels).to(dtype), nn.BatchNorm1d(channels).to(dtype)]
    for parameter in ("weight", "bias"):
        values = torch.randn(channels, dtype=dtype)
        for norm in pair:
            getattr(norm, parameter).data.copy_(values)
    return pair


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    positions=st.sampled_from([2, 5, 511, 512, 513, 1100]),
    channels=st.integers(1, 9),
    classes=st.integers(1, 4),
    mean=st.sampled_from([0.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_it_is_batch_norm_relu_and_a_product(batch, positions, channels, classes, mean, seed):
    torch.manual_seed(seed)
    features = torch.randn(batch, positions, channels, dtype=torch.float64) * 3 + mean
    weight = torch.randn(batch, classes, channels, dtype=torch.float64)
    above = torch.randn(batch, positions, classes, dtype=torch.float64)
    ours, theirs = two_norms(channels, torch.float64)
    for fast, slow in zip(
        walk(readout, features, ours, weight, above), walk(plain, features, theirs, weight, above), strict=True
    ):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def test_features_in_bfloat16_are_computed_in_float32():
    torch.manual_seed(0)
    features = torch.randn(2, 600, 8).bfloat16()
    weight, above = torch.randn(2, 3, 8), torch.randn(2, 600, 3)
    ours, theirs = two_norms(8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        fast = walk(readout, features, ours, weight, above)
    slow = walk(plain, features.float(), theirs, weight, above)
    assert fast[0].dtype == torch.float32 and fast[1].dtype == torch.bfloat16
    torch.testing.assert_close(fast[1].float(), slow[1], rtol=1e-2, atol=1e-2)
    for one, other in zip(fast[:1] + fast[2:], slow[:1] + slow[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_autocast_is_off_in_backward_too(monkeypatch):
    states = []

    def record(*arguments):
        states.append(torch.is_autocast_enabled("cpu"))
        return chunks(*arguments)

    chunks = readout_module._chunks
    monkeypatch.setattr(readout_module, "_chunks", record)
    with torch.autocast("cpu", torch.bfloat16):
        logits = readout(torch.randn(1, 4, 3, requires_grad=True) * 1, nn.BatchNorm2d(3), torch.randn(1, 2, 3))
        logits.sum().backward()
    assert states == [False] * 3


def test_a_gradient_of_the_gradient_is_refused_and_not_wrong():
    features = torch.randn(1, 4, 3, requires_grad=True)
    logits = readout(features * 1, nn.BatchNorm2d(3), torch.randn(1, 2, 3))
    (grad,) = torch.autograd.grad(logits.square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_one_position_has_no_variance_and_is_refused_as_torch_does():
    for function, norm in ((readout, nn.BatchNorm2d(3)), (plain, nn.BatchNorm1d(3))):
        with pytest.raises(ValueError, match=r"^Expected more than 1 value per channel when training, got"):
            function(torch.randn(1, 1, 3), norm, torch.randn(1, 2, 3))


def test_a_second_backward_is_refused_and_not_wrong():
    features = torch.randn(1, 4, 3, requires_grad=True)
    logits = readout(features * 1, nn.BatchNorm2d(3), torch.randn(1, 2, 3))
    logits.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()
