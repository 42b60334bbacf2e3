"""`sdm export`: a trained model as a folder to share, or as one ONNX file that carries its preprocessing.

An ONNX file is compared with PyTorch before it gets its name; what was measured is kept beside it.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdm_cli import __version__, console
from sdm_cli.config import STRIDE, Preset
from sdm_cli.errors import CheckpointError, OutputError
from sdm_cli.files import replacing
from sdm_cli.method.card import FORMAT, VERSION, preprocessing
from sdm_cli.method.checkpoint import (
    chosen_on,
    load_model,
    network_from_state,
    save_model,
    weights_sha256,
)
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.tensors import first_line, load_state
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs.onnx_model import INPUT, OUTPUT, open_onnx, require_onnx
from sdm_cli.runs.predictor import Array
from sdm_cli.runs.torch_model import find_model

_ALLOWED_DIFFERENCE = 1e-3
# Slices, height, width: the least size, both orientations, other batches than the traced one.
_COMPARED = ((1, 32, 32), (1, 64, 96), (3, 96, 64), (5, 32, 160), (2, 256, 256))


def export_model(source: Path, output: Path, format: Literal["folder", "onnx"], overwrite: bool = False) -> Path:
    """Write the model of a run or a model folder elsewhere, without the state of its training.

    Args:
        source: run folder (its best checkpoint) or model folder.
        output: folder, or file ending in `.onnx`; `<output>.json` beside it holds the comparison.
        format: `folder` (safetensors and JSON) or `onnx`.
        overwrite: replace a model that is there.

    Returns:
        `output`.

    Raises:
        CheckpointError: no model at `source`, or ONNX gives other logits than PyTorch.
        OutputError: `output` exists, or cannot be written.
        SdmError: the extra `[onnx]` is not installed.
    """
    model = find_model(source)
    if format == "folder":
        if output.suffix == ".onnx":
            raise OutputError(f"{output}: a model folder must not be called .onnx, which predict takes for a file.")
        _check_free(output, overwrite)
        if output.resolve() == model.resolve():
            raise OutputError(f"{output} is the model itself: give another folder.")
        save_model(output, *load_model(model), chosen_on=chosen_on(model))
        return output
    require_onnx()
    if output.suffix != ".onnx":
        raise OutputError(f"{output}: give a name that ends in .onnx.")
    _check_free(output, overwrite)
    network, preset = load_model(model)
    console.say("Tracing the network and comparing it with onnxruntime: up to some minutes for a large encoder.")
    _write_onnx(network, _metadata(preset, weights_sha256(model)), output)
    return output


def import_authors_model(file: Path, preset: Preset, output: Path, overwrite: bool = False) -> Path:
    """Make a model folder of a checkpoint of the authors' code.

    Args:
        file: `.pth`; a bare or nested state dict, with or without `module.`.
        preset: the recipe it was trained with: network and classes must be those of the file.
        output: model folder.
        overwrite: replace a model that is there.

    Returns:
        `output`.

    Raises:
        CheckpointError: no tensors in the file, or they do not fit the preset.
        OutputError: `output` exists, or cannot be written.
    """
    _check_free(output, overwrite)
    save_model(output, network_from_state(load_state(file), preset, str(file)), preset)
    return output


def _check_free(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(f"{output} exists: give another name, or replace it with --overwrite.")


def _metadata(preset: Preset, sha256: str) -> dict[str, str]:
    """Everything a program needs that meets the ONNX file alone; strings, JSON where structured."""
    facts = preprocessing(preset)
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "sdm_version": __version__,
        "weights_sha256": sha256,
        "preset": json.dumps(preset_to_dict(preset)),
        **{key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()},
    }


def _write_onnx(network: MessengerNetwork, metadata: dict[str, str], output: Path) -> None:
    with replacing(output) as temporary:
        with _quiet():
            program = _traced(network, output)
            program.model.metadata_props.update(metadata)
            program.save(temporary, external_data=False)
        forward = open_onnx(temporary, "cpu").forward
        measured = [_difference(network, forward, *size) for size in _COMPARED]
        worst = max(entry["max_difference"] for entry in measured)
        if not worst <= _ALLOWED_DIFFERENCE:
            raise CheckpointError(
                f"{output}: not written, since its logits differ from PyTorch's by {worst:.2g} "
                f"(allowed {_ALLOWED_DIFFERENCE:g}); try other versions of onnx and onnxruntime."
            )
        report = {"allowed_difference": _ALLOWED_DIFFERENCE, "max_difference": worst, "compared": measured}
        with replacing(output.with_name(f"{output.name}.json")) as side_file:
            side_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class _Inference(nn.Module):
    """The network with inference as its `forward`, which is what the exporter traces."""

    def __init__(self, network: MessengerNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.network.predict(image)


def _traced(network: MessengerNetwork, output: Path) -> torch.onnx.ONNXProgram:
    # A traced size of 1 would be taken for a constant, and equal height and width for one number. The size is
    # that of a usual slice, since the network chooses between equal formulas by size, and tracing keeps the choice.
    example = torch.zeros(2, 1, 12 * STRIDE, 16 * STRIDE)
    height, width = torch.export.Dim("h", min=1), torch.export.Dim("w", min=1)
    dynamic_shapes = {INPUT: {0: torch.export.Dim("batch"), 2: STRIDE * height, 3: STRIDE * width}}
    try:
        program = torch.onnx.export(
            _Inference(network),
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise _cannot_trace(output, first_line(error)) from error
    assert program is not None  # only the exporter that writes to a file gives none
    shape = program.model.graph.inputs[0].shape
    # The exporter falls back, in silence, to a program for the traced size alone.
    if shape is None or any(isinstance(shape[axis], int) for axis in dynamic_shapes[INPUT]):
        raise _cannot_trace(output, f"it took {shape} for the only size of the input")
    return program


def _cannot_trace(output: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{output}: not written, since torch {torch.__version__} cannot trace the network ({reason}); "
        "install another version of torch and onnxscript."
    )


def _difference(
    network: MessengerNetwork, forward: Callable[[Array], Any], batch: int, height: int, width: int
) -> dict[str, Any]:
    """Logits of both programs on the same noise."""
    images = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(height + width))
    with torch.inference_mode():
        expected = network.predict(images)
    found = torch.from_numpy(forward(images.numpy()))
    if found.shape != expected.shape:
        return {"size": [batch, height, width], "max_difference": float("inf")}
    return {
        "size": [batch, height, width],
        "max_difference": float((found - expected).abs().max()),
        "max_logit": float(expected.abs().max()),
        "equal_classes": float((found.argmax(1) == expected.argmax(1)).float().mean()),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings and progress concern its developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
