"""Muon: of a matrix of weights, every direction learns at the same pace, not the strongest ones of its gradient alone.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the length of a step is that
of J. Liu et al., arXiv 2502.16982, eq. 4, by which learning rates of AdamW serve for matrices too.
Departures: the first layer is moved like all others, where the source leaves it to AdamW; hardware without bfloat16
takes float32.
"""

import math
from typing import Any

import torch
from torch import Tensor

MATRICES = "is_matrices"
"""Key of a group of weights: whether Muon moves them; AdamW moves the others."""

_MOMENTUM = 0.95
_ITERATIONS = 5
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5, which bring singular values near 1 in few iterations."""
_EPSILON = 1e-7
"""A gradient of a smaller norm moves its matrix by less: it is zero but for rounding."""
_ADAMW_RMS = 0.2
"""What the root of the mean square of AdamW's updates usually is."""


class Muon(torch.optim.AdamW):
    """Muon for the groups marked `MATRICES`, AdamW for all others.

    Not torch's own Muon: it takes no convolutions, which are a large part here, and uses bfloat16 on any processor.

    Args:
        groups: as torch's optimisers take them, each with the key `MATRICES`.
        lr: learning rate of both.
        weight_decay: of both.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(groups, lr, weight_decay=weight_decay, fused=True)
        # Under fp16 the scaler must divide the gradients itself: AdamW would do so within its step, Muon comes before.
        self._step_supports_amp_scaling = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW's own completes the pickles of old versions, and stumbles over a weight without its entries.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all weights that have a gradient; the gradients of matrices are spent by it (set to None)."""
        for group in self.param_groups:
            if group[MATRICES]:
                for weight in group["params"]:
                    self._step_matrix(weight, group["lr"], group["weight_decay"])
        super().step(closure)  # passes over weights without a gradient

    def _step_matrix(self, weight: Tensor, lr: float, decay: float) -> None:
        gradient, weight.grad = weight.grad, None
        if gradient is None:
            return
        if "momentum" not in self.state[weight]:
            self.state[weight]["momentum"] = torch.zeros_like(weight)
        average: Tensor = self.state[weight]["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        ahead = gradient.lerp_(average, _MOMENTUM)  # as Nesterov's
        matrix = weight.view(weight.shape[0], -1)
        update = orthogonalize(ahead.view_as(matrix))
        matrix.mul_(1 - lr * decay).add_(update, alpha=-lr * _ADAMW_RMS * math.sqrt(max(matrix.shape)))


def is_matrix(weight: Tensor) -> bool:
    """Whether the channels of a weight mix: neither biases and scales nor the filters of single channels."""
    return weight.ndim >= 2 and weight.shape[1] > 1


def orthogonalize(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors whose singular values are about alike (Newton-Schulz).

    0.68 to 1.2, where they were above 0.003 of the matrix's norm; smaller ones may stay below.

    Args:
        matrix: (H, W) float32.

    Returns:
        (H, W) in the precision of the products; zeros stay zeros.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.t()).t()
    a, b, c = _NEWTON_SCHULZ
    x: Tensor = (matrix / torch.linalg.vector_norm(matrix).clamp_min(_EPSILON)).to(_precision(matrix.device))
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _precision(device: torch.device) -> torch.dtype:
    """bfloat16, which is enough, where hardware has it; imitated it is 4 to 38 times as slow (measured on a CPU)."""
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_told = device.type == "cpu" and hasattr(torch.cpu, "get_capabilities")  # by newer versions of torch
        has_bfloat16 = is_told and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return torch.bfloat16 if has_bfloat16 else torch.float32
