"""How much memory there is: of a GPU, of the machine, and of the container that a process may be in."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sdm_cli.data.limits import free_memory_bytes
from sdm_cli.errors import SdmError

if TYPE_CHECKING:  # prediction by an .onnx file asks about memory too, and needs no torch
    import torch

_SHARE = 0.8
"""Of what is free, for a training step; the rest is for loader processes, validation and other programs."""


_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate memory|bad_alloc", re.IGNORECASE
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had no memory left for an array; torch and onnxruntime say it in their words."""
    is_told = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_told or bool(_NO_MEMORY.search(str(error)))


def memory_bound(device: "torch.device", proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that training may take on a device: four fifths of what is free now.

    Raises:
        SdmError: this system does not tell.
    """
    if device.type == "cuda":
        import torch

        return int(_SHARE * torch.cuda.mem_get_info(device)[0])
    free = free_memory_bytes(proc, cgroups)
    if device.type != "cpu" or free is None:
        raise SdmError(
            f"--pairs-per-process auto: how much memory {device} has left is not known on this system: give a number."
        )
    return int(_SHARE * free)


def peak_memory(device: "torch.device") -> int:
    """Bytes that this process took at most so far, on a GPU or on the machine; 0 where the system does not tell."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device)
    return peak_of_process()


def peak_of_process() -> int:
    """Bytes of the machine that this process took at most so far; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
