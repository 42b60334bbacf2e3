"""The optimiser of a preset, and its state as plain tensors: nothing of it is ever pickled."""

from typing import Any

import torch
from torch import Tensor

from sdm_cli.config import TrainConfig
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.runs.muon import MATRICES, Muon, is_matrix


def make_optimizer(network: MessengerNetwork, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD, AdamW or Muon over two groups, encoder and the rest (method.md section 3, step 9); of Muon, two of each.

    Each group has a `lr_factor`, by which the loop multiplies the learning rate of a step. SGD and AdamW are
    fused: one pass over the weights instead of one an operation.
    """
    groups: list[dict[str, Any]] = [
        {"params": list(network.backbone.parameters()), "lr_factor": 1.0},
        {"params": list(network.framework.parameters()), "lr_factor": config.head_lr_factor},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay, fused=True)
    # The source leaves the output layer to AdamW.
    classifier = network.framework.decoder.linear_pred.weight
    halves = [
        {
            **group,
            "params": [w for w in group["params"] if (is_matrix(w) and w is not classifier) == wanted],
            MATRICES: wanted,
        }
        for group in groups
        for wanted in (True, False)
    ]
    return Muon(halves, config.lr, config.weight_decay)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of every parameter that has some, as `<index of the parameter>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load `optimizer_tensors` into an optimiser made from the same preset."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
