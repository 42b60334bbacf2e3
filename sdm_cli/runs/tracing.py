"""A network traced to a program of fixed operators, and how far another program is from the network.

What every exported file begins with: `torch.export` for any batch and any height and width that are multiples of 32.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdm_cli.config import STRIDE
from sdm_cli.errors import CheckpointError
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.tensors import first_line
from sdm_cli.runs.onnx_model import INPUT
from sdm_cli.runs.predictor import Array

_ALLOWED_DIFFERENCE = 1e-3
"""Largest difference of two logits in float32 with which a file is still written."""

# Slices, height, width: the least size, both orientations, other batches than the traced one.
_COMPARED = ((1, 32, 32), (1, 64, 96), (3, 96, 64), (5, 32, 160), (2, 256, 256))


class _Inference(nn.Module):
    """The network with inference as its `forward`, which is what is traced."""

    def __init__(self, network: MessengerNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.network.predict(image)


def trace(network: MessengerNetwork, output: Path) -> torch.export.ExportedProgram:
    """The network as a program from images (B, 1, H, W) float32 to logits (B, K, H, W).

    Args:
        network: in evaluation mode, on the CPU.
        output: the file that is to be written, for the message.

    Raises:
        CheckpointError: this torch cannot trace the network.
    """
    # A traced size of 1 would be taken for a constant, and equal height and width for one number. The size is
    # that of a usual slice, since the network chooses between equal formulas by size, and tracing keeps the choice.
    example = torch.zeros(2, 1, 12 * STRIDE, 16 * STRIDE)
    height, width = torch.export.Dim("h", min=1), torch.export.Dim("w", min=1)
    sizes = {INPUT: {0: torch.export.Dim("batch"), 2: STRIDE * height, 3: STRIDE * width}}
    try:
        with quiet():
            return torch.export.export(_Inference(network), (example,), dynamic_shapes=sizes)
    except (torch._dynamo.exc.UserError, torch.fx.experimental.symbolic_shapes.ConstraintViolationError) as error:
        raise cannot_trace(output, first_line(error)) from error


def cannot_trace(output: Path, reason: str) -> CheckpointError:
    """Says that this torch is the wrong one for `output`."""
    return CheckpointError(
        f"{output}: not written, since torch {torch.__version__} cannot trace the network ({reason}); "
        "install another version of torch and onnxscript."
    )


def measure_difference(
    network: MessengerNetwork, forward: Callable[[Array], Any], is_rounded: bool = False
) -> dict[str, Any]:
    """Logits of a program beside those of the network on the same noise, as the side file tells it.

    Args:
        network: in evaluation mode, on the CPU.
        forward: as that of a `Predictor`.
        is_rounded: whether the program computes or keeps weights in less than float32: it may then differ by less than
            the largest logit, beyond which nothing is left of them.
    """
    measured = [_difference(network, forward, *size) for size in _COMPARED]
    return {
        "max_difference": max(entry["max_difference"] for entry in measured),
        "allowed_difference": min(entry["max_logit"] for entry in measured) if is_rounded else _ALLOWED_DIFFERENCE,
        "compared": measured,
    }


def require_near(report: Mapping[str, Any], output: Path) -> None:
    """Raise CheckpointError if the logits of a program are further from those of the network than is allowed."""
    if not report["max_difference"] <= report["allowed_difference"]:
        raise CheckpointError(
            f"{output}: not written, since its logits differ from PyTorch's by {report['max_difference']:.2g} "
            f"(allowed {report['allowed_difference']:.2g}); try other versions of torch, onnx and onnxruntime."
        )


def _difference(
    network: MessengerNetwork, forward: Callable[[Array], Any], batch: int, height: int, width: int
) -> dict[str, Any]:
    images = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(height + width))
    with torch.inference_mode():
        expected = network.predict(images)
    found = torch.as_tensor(forward(images.numpy()))
    facts = {"size": [batch, height, width], "max_logit": float(expected.abs().max())}
    if found.shape != expected.shape:
        return {**facts, "max_difference": torch.inf, "equal_classes": 0.0}
    return {
        **facts,
        "max_difference": float((found - expected).abs().nan_to_num(nan=torch.inf).max()),
        "equal_classes": float((found.argmax(1) == expected.argmax(1)).float().mean()),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """The warnings and progress of exporters concern their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
