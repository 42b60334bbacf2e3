"""Devices and memory of a run: Accelerate's set-up, and the C library's allocator on a CPU."""

import ctypes
import platform

import torch
from accelerate import Accelerator

from sdm_cli.config import TrainConfig
from sdm_cli.runs.predictor import resolve_device

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def make_accelerator(config: TrainConfig, device: str | None) -> Accelerator:
    """Processes, precision and device of a run; SdmError for a device that is not here."""
    chosen = resolve_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    return Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=config.mixed_precision,
    )


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for reuse; True where the C library can (glibc).

    Otherwise every large tensor is given back to the system and faulted in again, page by page, in every step:
    `benchmarks/step.py` with and without `--keep-memory` shows what that costs.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
