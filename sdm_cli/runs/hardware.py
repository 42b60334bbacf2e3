"""Devices and memory of a run: Accelerate's set-up, and the C library's allocator on a CPU."""

import ctypes
import platform

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from sdm_cli.config import TrainConfig
from sdm_cli.errors import SdmError
from sdm_cli.runs.predictor import resolve_device

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def make_accelerator(config: TrainConfig, device: str | None) -> Accelerator:
    """Processes, precision and device of a run.

    Raises:
        SdmError: the device is not here, or the launcher was told of a way of training that is not ours.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise SdmError(
                f"accelerate launch was told to use {name}, which splits the network's weights over processes, while "
                "pseudo-labels, validation and checkpoints need them whole: launch without it (docs/processes.md)."
            )
    chosen = resolve_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    accelerator = Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulate,
    )
    if (launched := accelerator.gradient_accumulation_steps) != config.accumulate:
        raise SdmError(
            f"accelerate launch was given gradient_accumulation_steps {launched}, but the preset decides: leave it "
            "out, and give train.accumulate."
        )
    return accelerator


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
