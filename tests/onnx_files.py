"""Small .onnx files: a graph of one convolution, which names the preset of a network and gives its classes."""

from pathlib import Path

import numpy as np
from models import small_preset

from sdm_cli.config import Preset
from sdm_cli.method.card import metadata


def write_onnx(path: Path, preset: Preset | None = None, inputs=("image",), outputs=("logits",), size=("h", "w")):
    """A valid file, unless other inputs, outputs or a fixed size make it one that `sdm export` never writes."""
    from onnx import TensorProto, helper, numpy_helper

    preset = preset or small_preset()
    n_classes = preset.data.n_classes
    weights = np.linspace(-1, 1, n_classes, dtype=np.float32).reshape(n_classes, 1, 1, 1)
    bias = np.linspace(0.5, 0, n_classes, dtype=np.float32)
    nodes = [helper.make_node("Conv", ["image", "w", "b"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, *size]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", n_classes, *size]) for name in outputs],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata(preset, "0" * 64))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path
