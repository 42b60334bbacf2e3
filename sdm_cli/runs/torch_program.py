"""A `torch.export` program (`.pt2`) that carries its preprocessing: written, read, and run like a network.

`torch.export.load` trusts its file: it unpickles what the file calls a pickle, evaluates expressions of sizes and
conditions as Python, calls any function of torch by its name, and loads compiled libraries. So a file is first taken
apart here, and only its tensors, the operators of our network and expressions of the expected words are put together
again; what is not among them is refused unread. A file is written the same way, which also leaves out the paths of
the machine that made it.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._export.verifier import SpecViolationError
from torch.export.passes import move_to_device_pass

from sdm_cli.documents import parse_json
from sdm_cli.errors import CheckpointError, reason_of
from sdm_cli.files import json_text
from sdm_cli.method.card import preset_of
from sdm_cli.method.tensors import first_line
from sdm_cli.runs.memory import is_out_of_memory
from sdm_cli.runs.predictor import Array, Predictor, foreign_graph
from sdm_cli.runs.torch_model import exact_float32, resolve_device

_METADATA = "sdm.json"
_GRAPH = "models/model.json"
_TREES = (_GRAPH, "data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_SAMPLE = "data/sample_inputs/model.pt"  # a pickle, which has to be there and may be empty
_KEPT = re.compile(r"archive_(?:format|version)|byteorder|\.data/(?:version|serialization_id)|data/weights/weight_\d+")
_ATEN = (
    "_assert_tensor_metadata.default abs.default add.Tensor arange.default baddbmm_.default bmm.default cat.default "
    "chunk.default clamp.default clamp_min.default contiguous.default conv2d.default div.Tensor dropout.default "
    "expand.default flatten.using_ints gelu.default layer_norm.default linear.default matmul.default mean.dim "
    "mul.Tensor new_zeros.default permute.default promote_types.default relu_.default reshape.default rsqrt.default "
    "rsub.Scalar scaled_dot_product_attention.default slice.Tensor sqrt.default square.default squeeze.dim "
    "sub.Tensor sum.dim_IntList sym_size.int to.dtype transpose.int unbind.int unflatten.int unsqueeze.default "
    "upsample_bilinear2d.vec var.correction view.default"
)
_OPERATORS = {
    *(f"torch.ops.aten.{name}" for name in _ATEN.split()),
    *("torch.ops.higher_order.wrap_with_autocast", "_operator.mul", "_operator.sub", "_operator.truediv"),
}
# Of a power one digit, for a tower of them would never be computed; nothing is tried in two ways.
_EXPRESSION = re.compile(
    r"(?:Pow\(Symbol\('s\d++', positive=True, integer=True\), Integer\(-?\d\)\)"
    r"|Add|Mul|Min|Max|Mod|FloorDiv|IntTrueDiv|Integer|Rational|Symbol"
    r"|'s\d++'|positive=True|nonnegative=True|integer=True|-?\d{1,12}(?!\d)|[(), ]){0,1000}+"
)
_SPECIFICATION = re.compile(
    r'(?:"(?:type|context|children_spec|builtins\.(?:tuple|dict)|null|\[\])"|null|1|[][{}:, ])*'
)
_NAME = re.compile(r"[\w.+*]{0,300}", re.ASCII)
# From which line an operator came, and conditions on sizes that are compared without them.
_LEFT_OUT: dict[str, Any] = {"metadata": {}, "guards_code": []}


def save_program(program: torch.export.ExportedProgram, metadata: dict[str, str], path: Path) -> None:
    """Write a program with its metadata.

    Raises:
        CheckpointError: this torch wrote what `open_program` would refuse.
    """
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_METADATA: json_text(metadata)})
    path.write_bytes(_checked(buffer, path).getbuffer())


def open_program(path: Path, device: str | None = None) -> Predictor:
    """Load a program that `sdm export` made; nothing of the file is executed but the operators of our network.

    Args:
        path: of the `.pt2` file.
        device: see `resolve_device`.

    Raises:
        CheckpointError: missing, damaged, of a newer version, not made by `sdm export`, or with anything in it that
            the program of our network does not have.
        SdmError: there is no such device.
    """
    target = resolve_device(device)
    try:
        clean = _checked(path, path)
        with zipfile.ZipFile(clean) as archive:
            facts = parse_json(archive.read(f"model/extra/{_METADATA}").decode())
        preset = preset_of(facts, path)  # a file of somebody else's is refused before its program is put together
        clean.seek(0)
        network = move_to_device_pass(torch.export.load(clean), target).module(check_guards=False)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)}); check the path.") from None
    except (
        SpecViolationError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        SyntaxError,
        MemoryError,
    ) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a program of torch {torch.__version__} ({first_line(error)}); export the "
            "model again."
        ) from None

    def forward(images: Array) -> Tensor:
        try:
            with torch.inference_mode(), exact_float32(target):
                logits = network(torch.from_numpy(images).to(target))
        except (RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointError(f"{path}: cannot be run ({first_line(error)}); export the model again.") from None
        if not isinstance(logits, Tensor) or logits.shape != (len(images), preset.data.n_classes, *images.shape[2:]):
            raise foreign_graph(path)
        return logits

    return Predictor(preset, str(target), forward, facts.get("weights_sha256", ""), facts.get("sdm_version", ""))


def _checked(file: Path | io.BytesIO, path: Path) -> io.BytesIO:
    """The archive with nothing in it but what a program of our network needs; raises CheckpointError."""
    clean = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(clean, "w") as copy:
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2]
                if entry.compress_type != zipfile.ZIP_STORED or f"model/{name}" in copy.NameToInfo:
                    raise _refusal(path, entry.filename)  # which torch never writes, and readers may differ on
                if name in _TREES:
                    content = json.dumps(_harmless(parse_json(archive.read(entry).decode()), name, path)).encode()
                elif name == _SAMPLE:
                    content = b""
                elif name == f"extra/{_METADATA}" or _KEPT.fullmatch(name):
                    content = archive.read(entry)
                else:
                    raise _refusal(path, entry.filename)
                copy.writestr(f"model/{name}", content)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or no program ({reason_of(error)}); export the model again.") from None
    clean.seek(0)
    return clean


def _harmless(tree: Any, key: str, path: Path) -> Any:
    """A part of the JSON as it is, without notes and conditions; raises CheckpointError for words that are not ours."""
    if isinstance(tree, dict):
        for name in tree:
            _require(_NAME, name, path)
        return {
            name: _LEFT_OUT[name] if name in _LEFT_OUT else _harmless(value, name, path) for name, value in tree.items()
        }
    if isinstance(tree, list):
        return [_harmless(value, key, path) for value in tree]
    if key == "use_pickle" and tree is not False:
        raise _refusal(path, "a pickle")
    if isinstance(tree, str):
        if key == "target":
            if tree not in _OPERATORS:
                raise _refusal(path, tree)
        else:
            special = {"expr_str": _EXPRESSION, "in_spec": _SPECIFICATION, "out_spec": _SPECIFICATION}
            _require(special.get(key, _NAME), tree, path)
    return tree


def _require(pattern: re.Pattern[str], text: str, path: Path) -> None:
    if not pattern.fullmatch(text):
        raise _refusal(path, text)


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: refused, since it holds {' '.join(what.split())[:80]!r}, which no program of our network needs and "
        "which could run code; use a file that `sdm export` of this version made with this torch."
    )
