"""Networks ready for inference, from whatever file they come, and the devices they run on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdm_cli.config import Preset
from sdm_cli.errors import CheckpointError, SdmError
from sdm_cli.method.checkpoint import has_model, load_model
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.runs.run_folder import runs_below


@dataclass(frozen=True)
class Predictor:
    """A network ready for inference, from whatever file it came.

    Attributes:
        preset: what it was trained with.
        device: where `forward` wants its images.
        forward: images (B, 1, H, W) float32 in [0, 1], H and W multiples of 32, to logits (B, K, H, W).
    """

    preset: Preset
    device: torch.device
    forward: Callable[[Tensor], Tensor]


def network_predictor(network: MessengerNetwork, preset: Preset, device: torch.device) -> Predictor:
    """Predictor of a network that is in evaluation mode and on `device`."""
    return Predictor(preset, device, network.predict)


def load_predictor(path: Path, device: str | None = None) -> Predictor:
    """Predictor of a run folder (its best checkpoint, else its last), a model folder or an `.onnx` file.

    Raises:
        CheckpointError: there is no model, or it cannot be read.
        SdmError: there is no such device; the extra `[onnx]` is not installed.
    """
    target = resolve_device(device)
    if path.suffix == ".onnx":
        from sdm_cli.runs.onnx_model import open_onnx

        forward, preset = open_onnx(path, target)
        return Predictor(preset, torch.device("cpu"), forward)
    network, preset = load_model(find_model(path))
    return network_predictor(network.to(target), preset, target)


def find_model(path: Path) -> Path:
    """The model folder that a run folder or a model folder stands for; raises CheckpointError."""
    for candidate in (*(path / "checkpoints" / name for name in ("best", "last", "previous")), path):
        if has_model(candidate):
            return candidate
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such run or model.")
    runs = runs_below(path)
    if runs == [path] or (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path}: the run has no checkpoint yet; train on with --resume.")
    if runs:
        raise CheckpointError(f"{path} holds {len(runs)} runs: name one of them, for example {runs[0]}.")
    return path


def resolve_device(name: str | None = None) -> torch.device:
    """The device of that name (cpu, cuda, cuda:1, gpu, mps); without a name the best one here.

    Raises:
        SdmError: unknown, or not on this machine.
    """
    has_mps = torch.backends.mps.is_available()
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    kind, _, index = name.lower().replace("gpu", "cuda", 1).partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdecimal())):
        raise SdmError(f"There is no device {name!r}: give cpu, cuda, cuda:1 (a second GPU) or mps.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SdmError(
            f"The device {name} is not here ({torch.cuda.device_count()} GPUs that PyTorch can use): give another, or "
            "cpu."
        )
    if kind == "mps" and not has_mps:
        raise SdmError("The device mps is not here (it is that of Apple's processors): give cpu.")
    return torch.device(kind, int(index)) if index else torch.device(kind)
