"""The decoder's last steps in training on a CPU: batch normalisation, ReLU and the last 1 x 1 convolution.

The map between them, (B, H/4 * W/4, E), is the largest of the network and fits no cache. Each step for itself writes it
to memory and reads it back, forward and backward, every time into pages that are new to the process. Here all steps are
done to a few rows before the next few, so nothing of the map's size is made: backward computes the rows again, and
writes their gradient over the input.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ROWS = 512
"""Positions taken at a time: two float32 buffers of (512, 768) lie in the second-level cache."""


def readout(features: Tensor, norm: nn.BatchNorm2d, weight: Tensor) -> Tensor:
    """Class logits without their bias; updates the running statistics of `norm`.

    Args:
        features: (B, N, E). They belong to this function: backward overwrites them, so a second backward
            through the same graph raises RuntimeError.
        norm: of the E channels, in training: the statistics are those of this batch.
        weight: (B, K, E), a matrix for each image.

    Returns:
        (B, N, K) in the dtype of `weight`.

    Raises:
        ValueError: one position in all, which has no variance.
    """
    count = features.shape[0] * features.shape[1]
    if count == 1:  # as torch's batch normalisation says it
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {features.shape}")
    logits, mean, variance = _Readout.apply(features, norm.weight, norm.bias, weight, norm.eps)  # type: ignore[no-untyped-call]
    assert norm.momentum is not None
    norm.get_buffer("running_mean").lerp_(mean, norm.momentum)
    norm.get_buffer("running_var").lerp_(variance * (count / (count - 1)), norm.momentum)
    norm.get_buffer("num_batches_tracked").add_(1)
    assert isinstance(logits, Tensor)
    return logits


class _Readout(torch.autograd.Function):
    """Written with the gradients of each step; everything is computed in the dtype of the parameters."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, gain: Tensor, offset: Tensor, weight: Tensor, eps: float) -> Any:
        with torch.autocast(features.device.type, enabled=False):
            mean, variance = _statistics(features, gain.dtype)
            inverse = (variance + eps).rsqrt()
            scale = gain * inverse
            shift = offset - mean * scale
            logits = weight.new_empty(*features.shape[:2], weight.shape[1])
            buffer = gain.new_empty(_ROWS, len(gain))
            for rows, out, matrix in _chunks(features, logits, weight):
                hidden = torch.addcmul(shift, rows, scale, out=buffer[: len(rows)]).relu_()
                torch.mm(hidden, matrix.T, out=out)
        ctx.save_for_backward(features, scale, shift, mean, inverse, weight)
        ctx.mark_non_differentiable(mean, variance)
        return logits, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Any:
        features, scale, shift, mean, inverse, weight = ctx.saved_tensors
        with torch.autocast(features.device.type, enabled=False):
            buffers = scale.new_empty(2, _ROWS, len(scale))
            grad_weight, grad_offset, along = torch.zeros_like(weight), torch.zeros_like(scale), torch.zeros_like(scale)
            for rows, above, matrix, grad_matrix in _chunks(features, grad, weight, grad_weight):
                hidden, below = buffers[:, : len(rows)]
                torch.addcmul(shift, rows, scale, out=hidden).relu_()
                grad_matrix.addmm_(above.T, hidden)
                _through_relu(torch.mm(above, matrix, out=below), hidden)
                grad_offset += below.sum(0)
                along += below.mul_(rows).sum(0)
            grad_gain = (along - mean * grad_offset) * inverse
            # What the batch's own mean and variance pass on: one factor and one constant per channel.
            count = features.shape[0] * features.shape[1]
            factor = -scale * inverse * grad_gain / count
            constant = -scale * grad_offset / count - mean * factor
            for rows, above, matrix in _chunks(features, grad, weight * scale):
                hidden, below = buffers[:, : len(rows)]
                _through_relu(torch.mm(above, matrix, out=below), torch.addcmul(shift, rows, scale, out=hidden))
                below.add_(torch.addcmul(constant, rows, factor, out=hidden))
                rows.copy_(below)
        return features, grad_gain, grad_offset, grad_weight, None


def _statistics(features: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, summed around the first position so that little cancels."""
    around = features[0, 0].to(dtype)
    total, squares = torch.zeros_like(around), torch.zeros_like(around)
    buffer = around.new_empty(_ROWS, len(around))
    for rows in features.flatten(0, 1).split(_ROWS):
        apart = torch.sub(rows, around, out=buffer[: len(rows)])
        total += apart.sum(0)
        squares += apart.square_().sum(0)
    mean = total / (features.shape[0] * features.shape[1])
    return mean + around, (squares / (features.shape[0] * features.shape[1]) - mean.square()).clamp_min(0)


def _chunks(features: Tensor, by_row: Tensor, *by_image: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of (B, N, E) and (B, N, K), a few at a time, each with what its image has."""
    for image, other, *matrices in zip(features, by_row, *by_image, strict=True):
        for rows, others in zip(image.split(_ROWS), other.split(_ROWS), strict=True):
            yield rows, others, *matrices


def _through_relu(grad: Tensor, before: Tensor) -> Tensor:
    """The gradient with zeros where ReLU had none, in place."""
    torch.ops.aten.threshold_backward.grad_input(grad, before, 0, grad_input=grad)
    return grad
