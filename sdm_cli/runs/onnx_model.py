"""Reading an exported ONNX file: its metadata, and running it as a network would run.

Needs the extra `[onnx]`; it is imported only when an `.onnx` file is met.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np

from sdm_cli.errors import CheckpointError, SdmError, reason_of
from sdm_cli.method.card import preset_of
from sdm_cli.runs.predictor import Array, Predictor

INPUT = "image"
OUTPUT = "logits"


def require_packages(*names: str) -> None:
    """Raise SdmError with the remedy unless these packages of the extra are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise SdmError(f"ONNX needs {', '.join(missing)}: install it with pip install 'sdm-cli[onnx]'.")


def open_onnx(path: Path, device: str | None = None) -> Predictor:
    """Load an ONNX file that `sdm export` made.

    Args:
        path: of the file.
        device: where to run; none: a GPU if this onnxruntime has its provider.

    Raises:
        CheckpointError: missing, damaged, of a newer version, or not made by `sdm export`.
    """
    require_packages("onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings say nothing a user could act on
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # as torch; 0: one a core
    wanted = [] if device == "cpu" else ["CUDAExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    except (state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.NoSuchFile) as error:
        raise CheckpointError(f"{path}: cannot be read as ONNX ({reason_of(error)}); export the model again.") from None
    metadata = session.get_modelmeta().custom_metadata_map
    preset = preset_of(metadata, path)
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    n_channels = session.get_outputs()[0].shape[1:2]
    if names != [INPUT, OUTPUT] or n_channels != [preset.data.n_classes]:
        raise CheckpointError(f"{path}: its graph is not that of the preset it names; export the model again.")

    def forward(images: Array) -> Array:
        (logits,) = session.run([OUTPUT], {INPUT: images})
        return np.asarray(logits)

    return Predictor(preset, "cuda" if providers else "cpu", forward, metadata.get("weights_sha256", ""))
