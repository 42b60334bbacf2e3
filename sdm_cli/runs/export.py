"""`sdm export`: a trained model as a folder to share, or as one file that carries its preprocessing.

A file is compared with the network before it gets its name; what was measured is kept beside it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from sdm_cli import console
from sdm_cli.config import Preset
from sdm_cli.data.fit import fitting_store
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import OutputError
from sdm_cli.files import replacing, write_json
from sdm_cli.method.card import metadata
from sdm_cli.method.checkpoint import (
    chosen_on,
    describe_model,
    load_model,
    network_from_state,
    save_model,
    weights_sha256,
)
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.tensors import load_state
from sdm_cli.runs.bundle import require_bundle, require_expressible, save_bundle
from sdm_cli.runs.export_cost import cost_on_cases
from sdm_cli.runs.hub import push_model, require_own_name
from sdm_cli.runs.onnx_export import OnnxPrecision, save_onnx
from sdm_cli.runs.onnx_model import open_onnx, require_packages
from sdm_cli.runs.predictor import SUFFIXES, Predictor
from sdm_cli.runs.torch_model import find_model, network_predictor
from sdm_cli.runs.torch_program import open_program, save_program
from sdm_cli.runs.tracing import measure_difference, require_near, trace

Form = Literal["folder", "onnx", "torch", "monai-bundle"]


def export_model(
    source: Path,
    output: Path,
    form: Form,
    overwrite: bool = False,
    precision: OnnxPrecision = "float32",
    store: Path | None = None,
) -> Path:
    """Write the model of a run or a model folder elsewhere, without the state of its training.

    Args:
        source: run folder (its best checkpoint) or model folder.
        output: folder, or file with the suffix of its form; `<output>.json` beside a file holds the comparison.
        form: `folder` (safetensors and JSON), `onnx`, `torch` (a `torch.export` program), or `monai-bundle` (a folder).
        overwrite: replace a model that is there.
        precision: of an ONNX file, see `save_onnx`.
        store: measure a file on its cases too.

    Returns:
        `output`.

    Raises:
        CheckpointError: no model at `source`, or the file gives other logits than the network.
        PresetError: MONAI has no transforms for what the model does to its scans.
        OutputError: `output` exists, or cannot be written.
        StoreError: `store` cannot be read, or its slices are not those of the model.
        SdmError: the extra `[onnx]` is not installed.
    """
    model = find_model(source)
    if form == "folder":
        _export_folder(model, output, overwrite)
        return output
    if form == "onnx":
        require_packages("onnx", "onnxruntime", "onnxscript")
    _require_place(output, form, overwrite)
    _, preset = describe_model(model)
    if form == "monai-bundle":
        require_expressible(preset)
    slices = fitting_store(store, preset.data) if store is not None else None
    network, _ = load_model(model)
    facts = metadata(preset, weights_sha256(model))
    console.say("Tracing the network and comparing the file with it: up to some minutes for a large encoder.")
    program = trace(network, output)
    if form == "monai-bundle":
        save_bundle(program, preset, facts, chosen_on(model), output)
        return output
    with replacing(output) as temporary:
        if form == "onnx":
            save_onnx(program, facts, temporary, precision, output)
            exported = open_onnx(temporary, "cpu")
        else:
            save_program(program, facts, temporary)
            exported = open_program(temporary, "cpu")
        write_json(_side_file(output), _measured(network, exported, output, precision, slices))
    return output


def _export_folder(model: Path, output: Path, overwrite: bool) -> None:
    if output.suffix in SUFFIXES.values():
        raise OutputError(f"{output}: a model folder must not be called {output.suffix}, which names a file.")
    _check_free(output, overwrite)
    if output.resolve() == model.resolve():
        raise OutputError(f"{output} is the model itself: give another folder.")
    save_model(output, *load_model(model), chosen_on=chosen_on(model))


def push_to_hub(source: Path, repo: str) -> str:
    """Send the model of a run or a model folder to the Hugging Face hub, without the state of its training.

    Args:
        source: run folder (its best checkpoint) or model folder.
        repo: ORG/NAME.

    Returns:
        The address of what was sent.

    Raises:
        CheckpointError: no model at `source`.
        SdmError: the hub did not take it.
    """
    require_own_name(repo)
    model = find_model(source)
    with TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", *load_model(model), chosen_on=chosen_on(model))
        return push_model(Path(folder) / "model", repo)


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


def _require_place(output: Path, form: Literal["onnx", "torch", "monai-bundle"], overwrite: bool) -> None:
    """Raise OutputError unless a file with its comparison, or a bundle, may be written there."""
    if form != "monai-bundle" and output.suffix != SUFFIXES[form]:
        raise OutputError(f"{output}: give a name that ends in {SUFFIXES[form]}.")
    _check_free(output, overwrite)
    if form == "monai-bundle":
        require_bundle(output)
    else:
        _check_free(_side_file(output), overwrite)


def _side_file(output: Path) -> Path:
    """Where the comparison of a file stands."""
    return output.with_name(f"{output.name}.json")


def _check_free(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(f"{output} exists: give another name, or replace it with --overwrite.")


def _measured(
    network: MessengerNetwork, exported: Predictor, output: Path, precision: OnnxPrecision, slices: SliceStore | None
) -> dict[str, Any]:
    """What the side file says; raises CheckpointError if the file is not the network."""
    is_rounded = precision != "float32"
    report = {"precision": precision, **measure_difference(network, exported.forward, is_rounded)}
    require_near(report, output)
    if slices is not None:
        full = network_predictor(network, exported.preset, torch.device("cpu"))
        report["cases"] = cost_on_cases(full, exported, slices)
    return report
