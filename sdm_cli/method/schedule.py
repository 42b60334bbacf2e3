"""Learning rate and weight average: pure functions of the step number.

Source: method.md section 3, step 9.
"""

import copy
from typing import TypeVar

import torch
from torch import nn

from sdm_cli.config import TrainConfig

Network = TypeVar("Network", bound=nn.Module)


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Encoder's learning rate in effect during a step.

    The published loop sets the rate after each step from the number of the step just done, so steps 0 and 1
    share the base rate. A warm-up multiplies the polynomial by a linear rise.

    Args:
        step: 0-based.
        total: number of steps of the run.
        config: base rate, exponent and length of the warm-up.
    """
    rise = min(1.0, (step + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
    return float(config.lr * rise * (1 - max(step - 1, 0) / total) ** config.lr_power)


def first_semi_supervised_step(total: int, labeled_only_fraction: float) -> int:
    """Step (0-based) from which the unlabeled losses count (published: from the seventh of 300 epochs)."""
    return round(total * labeled_only_fraction)


def start_average(network: Network) -> Network:
    """A copy of the network that will hold the average of its weights; in evaluation mode, without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Move the average towards the network after a step (0-based), in place.

    The decay is shorter at the start, (1 + step) / (10 + step), so that the random first weights fade.
    Running statistics are averaged as the weights are; counters are copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([old for old, _ in floating], [new for _, new in floating], 1 - decay)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)
