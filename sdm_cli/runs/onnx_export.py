"""A traced network as one ONNX file that carries its preprocessing, in float32 or smaller.

Needs the extra `[onnx]`; it is imported only when such a file is written.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from sdm_cli.method.tensors import first_line
from sdm_cli.runs.onnx_model import INPUT, OUTPUT
from sdm_cli.runs.tracing import cannot_trace, quiet

OnnxPrecision = Literal["float32", "float16", "int8"]


def save_onnx(
    program: torch.export.ExportedProgram, metadata: dict[str, str], path: Path, precision: OnnxPrecision, output: Path
) -> None:
    """Write a traced network.

    Args:
        program: of `trace`.
        metadata: kept in the file's `metadata_props`.
        path: to write to.
        precision: `float32`; `float16`, in which weights are kept but not computed with; or `int8`, in which matrix
            products are computed, their inputs quantised as they come, and the other weights kept in float16.
        output: what the file will be called, for messages.

    Raises:
        CheckpointError: this torch cannot turn the program into ONNX.
    """
    import onnx

    with quiet():
        proto = _converted(program, output).model_proto
        for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
            del node.metadata_props[:]  # lines of source, with the paths of this machine
        proto = {"float32": _unchanged, "float16": _halved, "int8": _quantised}[precision](proto)
    onnx.helper.set_model_props(proto, {**metadata, "precision": precision})
    onnx.save(proto, path)


def _converted(program: torch.export.ExportedProgram, output: Path) -> torch.onnx.ONNXProgram:
    try:
        converted = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise cannot_trace(output, first_line(error)) from error
    assert converted is not None  # only the exporter that writes to a file gives none
    shape = converted.model.graph.inputs[0].shape
    # The exporter has fallen back, in silence, to a program for the traced size alone.
    if shape is None or any(isinstance(shape[axis], int) for axis in (0, 2, 3)):
        raise cannot_trace(output, f"it took {shape} for the only size of the input")
    return converted


def _unchanged(proto: Any) -> Any:
    return proto


def _halved(proto: Any) -> Any:
    """Weights in float16, computed with in float32.

    The converters at hand also round what passes between the operators. With it, a sum over the channels of a
    messenger leaves the range of float16 (262144 values are added up), and on a CPU nothing is gained: it computes in
    float32, and converts twice at each operator.
    """
    import onnx

    casts = []
    for tensor in proto.graph.initializer:
        weight = onnx.numpy_helper.to_array(tensor)
        if weight.dtype == np.float32 and weight.ndim > 1 and np.abs(weight).max() <= np.finfo(np.float16).max:
            name = f"{tensor.name}_float16"
            casts.append(onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT))
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight.astype(np.float16), name))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _quantised(proto: Any) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # A convolution of inputs that are quantised as they come takes several times as long as one in float32. A scale
    # for each channel is no choice: onnxruntime cannot run it for products of more than two axes.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(proto, path, ["MatMul"], weight_type=QuantType.QInt8)
        return _halved(onnx.load(path))
