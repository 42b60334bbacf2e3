"""A network ready for inference, from whatever file it came. Imports no torch: an `.onnx` file needs none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdm_cli.config import Preset
from sdm_cli.data.fit import misfit
from sdm_cli.errors import CheckpointError

Array = np.ndarray[Any, np.dtype[Any]]
SUFFIXES: dict[Literal["onnx", "torch"], str] = {"onnx": ".onnx", "torch": ".pt2"}
"""Of the forms of a model that are one file."""


@dataclass(frozen=True)
class Predictor:
    """A network ready for inference.

    Attributes:
        preset: what it was trained with.
        device: where the network runs: cpu, cuda:1, ...
        forward: images (B, 1, H, W) float32 in [0, 1], as `likelihood.padded` makes them, to logits (B, K, H, W) in
            float32, as an array of numpy or of torch, on whatever device.
        weights_sha256: of the weights, where they lie in a file.
        sdm_version: of the program that made an exported file.
    """

    preset: Preset
    device: str
    forward: Callable[[Array], Any]
    weights_sha256: str = ""
    sdm_version: str = ""


def load_predictor(path: Path, device: str | None = None) -> Predictor:
    """Predictor of a run (its best checkpoint, else its last), a model folder, an exported file or a name on the hub.

    Raises:
        CheckpointError: there is no model, or it cannot be read.
        SdmError: there is no such device; the extra `[onnx]` is not installed.
    """
    if path.suffix == SUFFIXES["onnx"]:
        from sdm_cli.runs.onnx_model import open_onnx

        return open_onnx(path, device)
    if path.suffix == SUFFIXES["torch"]:
        from sdm_cli.runs.torch_program import open_program

        return open_program(path, device)
    from sdm_cli.runs.hub import fetch_model, is_hub_name
    from sdm_cli.runs.torch_model import open_folder

    return open_folder(fetch_model(str(path)) if is_hub_name(path) else path, device)


def foreign_graph(path: Path) -> CheckpointError:
    """What to raise when an exported file gives other logits than its preset says."""
    return CheckpointError(f"{path}: its graph is not that of the preset it names; export the model again.")


def require_alike(predictors: Sequence[Predictor], paths: Sequence[Path]) -> None:
    """Raise CheckpointError unless all networks take the same slices and find the same classes."""
    for predictor, path in zip(predictors[1:], paths[1:], strict=True):
        if reasons := misfit(predictor.preset.data, predictors[0].preset.data):
            raise CheckpointError(
                f"{path} does not go with {paths[0]} ({reasons}): only models of the same classes and slices can be "
                "averaged."
            )
