"""Small networks for the tests: less than the least encoder that there is, a narrow head."""

from pathlib import Path

import torch

from sdm_cli.config import MethodConfig, ModelConfig, Preset, TrainConfig
from sdm_cli.data_config import DataConfig
from sdm_cli.method.encoder import ENCODER_SIZES, EncoderSizes
from sdm_cli.method.network import MessengerNetwork, build_network

SDM = str(Path(__file__).with_name("small_sdm.py"))
PUBLISHED = ENCODER_SIZES["mit-b0"]
LEAST = EncoderSizes((16, 32, 40, 64), (1, 1, 1, 1))
"""All parts of `mit-b0` in a twentieth of its weights."""


def use_least_encoder() -> None:
    """Let this process take it for `mit-b0`: a step takes a third of the time, and what is tested depends on no size.

    Programs that tests start do so by `small_sdm.py`.
    """
    ENCODER_SIZES["mit-b0"] = LEAST


def small_preset(classes: dict[str, int] | None = None, stages=(4,), name="small", **data) -> Preset:
    return Preset(
        name=name,
        data=DataConfig(classes=classes or {"liver": 1, "spleen": 7}, **data),
        model=ModelConfig(encoder="mit-b0", head_width=32, messenger_stages=stages),
        method=MethodConfig(patch=8),
        train=TrainConfig(steps=1, crop=(32, 32)),
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
