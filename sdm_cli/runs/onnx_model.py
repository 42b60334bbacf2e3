"""Reading an exported ONNX file: its metadata, and running it as a network would run.

Needs the extra `[onnx]`; it is imported only when an `.onnx` file is met.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sdm_cli.errors import CheckpointError, SdmError, reason_of
from sdm_cli.method.card import preset_of
from sdm_cli.runs.memory import is_out_of_memory
from sdm_cli.runs.predictor import Array, Predictor, foreign_graph

INPUT = "image"
OUTPUT = "logits"
_CUDA = "CUDAExecutionProvider"


def require_packages(*names: str) -> None:
    """Raise SdmError with the remedy unless these packages of the extra are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise SdmError(f"ONNX needs {', '.join(missing)}: install it with pip install 'sdm-cli[onnx]'.")


def open_onnx(path: Path, device: str | None = None) -> Predictor:
    """Load an ONNX file that `sdm export` made.

    Args:
        path: of the file.
        device: cpu, cuda or cuda:1; none: a GPU if this onnxruntime has its provider.

    Raises:
        CheckpointError: missing, damaged, of a newer version, or not made by `sdm export`.
        SdmError: the device is none of these, or not one that this onnxruntime can use.
    """
    require_packages("onnxruntime")
    import onnxruntime

    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; make one by `sdm export`.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # none: what it cannot do is said below, as a sentence
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0  # as torch; 0: one a core
    providers = _cuda_provider(device, _CUDA in onnxruntime.get_available_providers())
    try:
        with _explained(path, "read as ONNX"):
            session = onnxruntime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
            metadata = session.get_modelmeta().custom_metadata_map
            inputs, outputs = session.get_inputs(), session.get_outputs()
    except MemoryError:
        raise CheckpointError(f"{path}: too large for the memory of this machine.") from None
    preset = preset_of(metadata, path)
    n_classes = preset.data.n_classes
    if [value.name for value in (*inputs, *outputs)] != [INPUT, OUTPUT] or outputs[0].shape[1:2] != [n_classes]:
        raise foreign_graph(path)

    def forward(images: Array) -> Array:
        if len(images) > 1 and metadata.get("precision") == "int8":  # its scale is that of all the images of a batch
            return np.concatenate([forward(images[n : n + 1]) for n in range(len(images))])
        with _explained(path, "run"):
            (logits,) = session.run([OUTPUT], {INPUT: images})
        if not isinstance(logits, np.ndarray) or logits.shape != (len(images), n_classes, *images.shape[2:]):
            raise foreign_graph(path)
        return logits.astype(np.float32, copy=False)

    own = (metadata.get(key, "") for key in ("weights_sha256", "sdm_version"))
    return Predictor(preset, "cuda" if providers else "cpu", forward, *own)


def _cuda_provider(device: str | None, is_here: bool) -> list[tuple[str, dict[str, int]]]:
    """What to run on before the CPU; raises SdmError where that is neither asked for nor here."""
    kind, _, index = (device or ("cuda" if is_here else "cpu")).lower().replace("gpu", "cuda", 1).partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind != "cuda" or not index.isdecimal())):
        raise SdmError(f"An .onnx file does not run on {device!r}: give cpu, cuda or cuda:1 (a second GPU).")
    if kind == "cuda" and not is_here:
        raise SdmError(f"This onnxruntime cannot use {device}: give cpu, or install onnxruntime-gpu in its place.")
    return [(_CUDA, {"device_id": int(index or 0)})] if kind == "cuda" else []


@contextmanager
def _explained(path: Path, verb: str) -> Iterator[None]:
    """Turn what onnxruntime raises into CheckpointError, and memory that is out into MemoryError."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds: list[type[Exception]] = [RuntimeError, ValueError]
    kinds += [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    try:
        yield
    except tuple(kinds) as error:
        if is_out_of_memory(error):
            raise MemoryError from None
        raise CheckpointError(f"{path}: cannot be {verb} ({reason_of(error)}); export the model again.") from None
