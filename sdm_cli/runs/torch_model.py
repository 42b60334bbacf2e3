"""Networks of model folders, run by torch, and the devices they run on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sdm_cli.config import Preset
from sdm_cli.data.manifest import is_store
from sdm_cli.errors import CheckpointError, SdmError
from sdm_cli.method.checkpoint import has_model, load_model, weights_sha256
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.runs.predictor import Array, Predictor
from sdm_cli.runs.run_folder import runs_below


def open_folder(path: Path, device: str | None = None) -> Predictor:
    """Predictor of a run folder (its best checkpoint, else its last) or a model folder.

    Raises:
        CheckpointError: there is no model, or it cannot be read.
        SdmError: there is no such device.
    """
    target = resolve_device(device)
    folder = find_model(path)
    network, preset = load_model(folder)
    return replace(network_predictor(network.to(target), preset, target), weights_sha256=weights_sha256(folder))


def network_predictor(network: MessengerNetwork, preset: Preset, device: torch.device) -> Predictor:
    """Predictor of a network that is in evaluation mode and on `device`."""

    def forward(images: Array) -> Tensor:
        with torch.inference_mode(), exact_float32(device):
            return network.predict(torch.from_numpy(images).to(device))

    return Predictor(preset, str(device), forward)


def find_model(path: Path) -> Path:
    """The model folder that a run folder or a model folder stands for.

    Raises:
        CheckpointError: there is none.
        StoreError: the system does not let us look.
    """
    for candidate in (*(path / "checkpoints" / name for name in ("best", "last", "previous")), path):
        if has_model(candidate):
            return candidate
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such run or model; give the folder of one, or an exported file.")
    runs = runs_below(path)
    if runs == [path] or (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path}: the run has no checkpoint yet; train on with --resume.")
    if runs:
        raise CheckpointError(f"{path} holds {len(runs)} runs: name one of them, for example {runs[0]}.")
    if is_store(path):
        raise CheckpointError(f"{path} is a store, not a model; give a run or a model folder.")
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


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No lower precision around: its rounding is a thousand times what the tie tolerance of `inference` supposes."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with flags, torch.autocast(device.type, enabled=False):
        yield
