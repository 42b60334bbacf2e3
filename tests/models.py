"""Small networks for the tests: the least encoder, a narrow head."""

import torch

from sdm_cli.config import ModelConfig, Preset, TrainConfig
from sdm_cli.data_config import DataConfig
from sdm_cli.method.network import MessengerNetwork, build_network


def small_preset(classes: dict[str, int] | None = None, stages=(4,), name="small", **data) -> Preset:
    return Preset(
        name=name,
        data=DataConfig(classes=classes or {"liver": 1, "spleen": 7}, **data),
        model=ModelConfig(encoder="mit-b0", head_width=32, messenger_stages=stages),
        train=TrainConfig(steps=1),
    )


def small_network(preset: Preset, seed: int = 0) -> MessengerNetwork:
    """Untrained, in evaluation mode, with biases that make every class win somewhere on noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(preset.model, preset.data.n_classes).eval()
        with torch.inference_mode():
            logits = network.predict(torch.rand(2, 1, 64, 64))
        offsets = logits.transpose(0, 1).flatten(1).median(1).values
    network.framework.decoder.linear_pred.bias.data -= offsets.clone()
    return network
