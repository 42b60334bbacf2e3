"""What a step of the optimiser costs: AdamW, our Muon, and torch's own Muon.

    python benchmarks/optimizer.py --encoder mit-b0

Copies of one network, gradients of noise, in turns (A B C A B C); printed are medians of seconds and what each costs
beside AdamW. "In float32" is what Muon costs where the hardware has no bfloat16. Torch's Muon (where this torch has it)
takes no convolutions, so it is given them as matrices, and AdamW does the rest.
"""

import argparse
import copy
from collections.abc import Callable
from unittest import mock

import torch
from step import alternate
from torch import nn

from sdm_cli.config import ModelConfig, TrainConfig
from sdm_cli.method.encoder import ENCODER_SIZES
from sdm_cli.method.network import build_network
from sdm_cli.runs import muon
from sdm_cli.runs.optimizer import make_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=list(ENCODER_SIZES), default="mit-b0")
    parser.add_argument("--head-width", type=int, default=256, help="embedding width E of the decoder")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = build_network(ModelConfig(encoder=options.encoder, head_width=options.head_width), 2)
    runs = {
        "AdamW": steps(network, lambda copied: [make_optimizer(copied, TrainConfig(optimizer="adamw"))]),
        "Muon": steps(network, lambda copied: [make_optimizer(copied, TrainConfig(optimizer="muon"))]),
    }
    runs["in float32"] = in_float32(runs["Muon"])
    if hasattr(torch.optim, "Muon"):
        runs["torch's Muon"] = steps(network, torchs_own)
    seconds = dict(zip(runs, alternate(list(runs.values()), options.rounds), strict=True))
    for name, taken in seconds.items():
        print(f"{name:13} {taken * 1e3:7.1f} ms, {taken / seconds['AdamW']:5.1f} times AdamW")


def steps(network: nn.Module, make: Callable[[nn.Module], list[torch.optim.Optimizer]]) -> Callable[[], None]:
    copied = copy.deepcopy(network)
    optimizers = make(copied)
    weights = [weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
    gradients = [torch.randn_like(weight) for weight in weights]

    def run() -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()  # our Muon spends it
        for optimizer in optimizers:
            optimizer.step()

    return run


def in_float32(run: Callable[[], None]) -> Callable[[], None]:
    def run_so() -> None:
        with mock.patch.object(muon, "_precision", lambda device: torch.float32):
            run()

    return run_so


def torchs_own(network: nn.Module) -> list[torch.optim.Optimizer]:
    groups = make_optimizer(network, TrainConfig(optimizer="muon")).param_groups
    matrices = [
        nn.Parameter(w.flatten(1).detach()) for group in groups if group[muon.MATRICES] for w in group["params"]
    ]
    others = [weight for group in groups if not group[muon.MATRICES] for weight in group["params"]]
    return [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(others, fused=True)]


if __name__ == "__main__":
    main()
