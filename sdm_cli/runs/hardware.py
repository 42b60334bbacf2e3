"""Devices and memory of a run: Accelerate's set-up, and the C library's allocator on a CPU."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

from sdm_cli.config import TrainConfig
from sdm_cli.errors import SdmError
from sdm_cli.runs.torch_model import resolve_device

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def make_accelerator(config: TrainConfig, device: str | None) -> Accelerator:
    """Processes, precision and device of a run.

    Raises:
        SdmError: the device is not here or has no such precision, or the launcher was told of a way of training that
            is not ours.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise SdmError(
                f"accelerate launch was told to use {name}, which splits the network's weights over processes, while "
                "pseudo-labels, validation and checkpoints need them whole: launch without it (docs/processes.md)."
            )
    chosen = resolve_device(device)
    if config.mixed_precision == "fp16" and chosen.type == "cpu":
        raise SdmError("train.mixed_precision: fp16 needs a GPU: set train.mixed_precision=bf16, or no, on a CPU.")
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    accelerator = Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulate,
        # Running statistics are shared once a step, by the loop.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if (launched := accelerator.gradient_accumulation_steps) != config.accumulate:
        raise SdmError(
            f"accelerate launch was given gradient_accumulation_steps {launched}, but the preset decides: leave it "
            "out, and give train.accumulate."
        )
    return accelerator


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """While the block runs, torch refuses operations without a deterministic form (RuntimeError), if `wanted`."""
    if not wanted:
        yield
        return
    is_set = _CUBLAS in os.environ  # read when the first matrices are multiplied on a GPU; a user's own stays
    os.environ.setdefault(_CUBLAS, ":4096:8")
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        if not is_set:
            del os.environ[_CUBLAS]


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
