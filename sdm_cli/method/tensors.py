"""Files of tensors, read without running code: safetensors, and PyTorch files restricted to tensors."""

import hashlib
import mmap
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdm_cli.documents import require_regular
from sdm_cli.errors import CheckpointError

_DAMAGES = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile),
)
"""What torch raises on a damaged file, depending on where the damage is."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors; raises OSError or SafetensorError."""
    path.touch()
    mode = path.stat().st_mode
    # safetensors stores neither strided views nor shared memory; channels-last weights are such views.
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)  # safetensors makes its files private to their owner


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU; raises CheckpointError."""
    try:
        require_regular(path)
        return load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({first_line(error)}); take an intact copy."
        ) from None


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors or PyTorch file.

    A PyTorch file may be bare or nested under `model`, `state_dict` or `ema`; a leading `module.`
    (of a network wrapped for several processes) is dropped from the names.

    Raises:
        CheckpointError: not a file of tensors. A pickle that would run code is refused unrun.
    """
    tree: Any = load_tensors(path) if path.suffix == ".safetensors" else _load_pth(path)
    while isinstance(tree, Mapping) and not _has_tensors(tree):
        tree = next((tree[key] for key in ("model", "state_dict", "ema") if key in tree), None)
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path}: holds no state dict, neither bare nor under model, state_dict or ema.")
    return {str(name).removeprefix("module."): value for name, value in tree.items() if _is_plain(value)}


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of a library's message, for a message of one sentence; of one of the system without its number."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")


def _load_pth(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file.")
    try:
        _require_bounded(path)
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on an unusual pickle protocol; it is read or refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: refused: it is no PyTorch file or reading it would run code; ask for a file of tensors alone."
        ) from None
    except _DAMAGES as error:
        raise CheckpointError(f"{path}: cannot be read as a PyTorch file ({first_line(error)}).") from None


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a best score kept as a NumPy scalar needs; it is common and runs no code."""
    scalar = np.float64(0).__reduce__()[0]
    assert callable(scalar)
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _require_bounded(path: Path) -> None:
    """What unpickling may allocate is no more than the file holds; ValueError where it could be more.

    PyTorch compresses nothing, and no state dict needs a `bytearray`, which a few bytes may ask for at any length.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"bytearray") >= 0:
            raise ValueError("it asks for memory that holds no tensor")


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with a value for each element, in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _has_tensors(tree: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in tree.values())
