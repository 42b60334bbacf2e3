"""How much memory there is: of a GPU, of the machine, and of the container that a process may be in."""

from pathlib import Path

import torch

from sdm_cli.data.limits import free_memory_bytes
from sdm_cli.errors import SdmError

_SHARE = 0.8
"""Of what is free, for a training step; the rest is for loader processes, validation and other programs."""


def memory_bound(device: torch.device, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that training may take on a device: four fifths of what is free now.

    Raises:
        SdmError: this system does not tell.
    """
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.mem_get_info(device)[0])
    free = free_memory_bytes(proc, cgroups)
    if device.type != "cpu" or free is None:
        raise SdmError(
            f"--pairs-per-process auto: how much memory {device} has left is not known on this system: give a number."
        )
    return int(_SHARE * free)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process took at most so far, on a GPU or on the machine; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
