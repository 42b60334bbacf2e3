"""Pairs of slices in batches, from loader processes, shared out over the processes that train."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader

from sdm_cli.config import TrainConfig
from sdm_cli.console import warn
from sdm_cli.data.pairs import Pair, PairedSlices
from sdm_cli.errors import StoreError
from sdm_cli.runs.stop import leave_process_group
from sdm_cli.runs.workers import all_cores

_SHARED_MEMORY = Path("/dev/shm")
_BYTES_PER_PIXEL = 2 + 1 + 2
"""Of a pair: labeled image, label, unlabeled image."""
_BATCHES_AHEAD = 3
"""Of each loader process: two that are ready (torch's prefetch factor), one that training holds."""


def load_pairs(
    pairs: PairedSlices, draws: Sequence[int], config: TrainConfig, accelerator: Accelerator
) -> Iterator[Pair]:
    """Batches of `config.pairs` of these draw numbers, in order; of n processes each gets every n-th.

    Raises:
        StoreError: a slice cannot be read.
    """
    loader = DataLoader(
        pairs,
        batch_size=config.pairs,
        sampler=draws,
        num_workers=_workers(config, accelerator),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=leave_process_group,
    )
    try:
        yield from accelerator.prepare_data_loader(loader)
    except StoreError as error:
        # A loader process wraps the sentence in its traceback, which `sdm -v` shows.
        raise StoreError(str(error).rpartition("StoreError: ")[2].strip()) from error


def _workers(config: TrainConfig, accelerator: Accelerator) -> int:
    """Loader processes of one process that trains: fewer, with a warning, where shared memory holds no more."""
    workers = min(config.workers, all_cores())
    free = _free_shared_memory()
    if free is None or workers == 0:
        return workers
    each = _BATCHES_AHEAD * config.pairs * config.crop[0] * config.crop[1] * _BYTES_PER_PIXEL
    fitting = min(workers, free // (each * int(accelerator.num_processes)))
    if fitting < workers and accelerator.is_main_process:
        state = f"has {free / 2**20:.1f} MB free" if free else "is full or missing"
        warn(
            f"{_SHARED_MEMORY} {state}, and {workers} loader processes need "
            f"{each * workers * accelerator.num_processes / 2**20:.1f} MB: going on with {fitting}; give the "
            "container more (docker run --shm-size=1g) for faster loading."
        )
    return fitting


def _free_shared_memory() -> int | None:
    """Bytes through which loader processes can hand over batches; none: this system has no such limit."""
    if sys.platform != "linux":
        return None
    try:
        return int(shutil.disk_usage(_SHARED_MEMORY).free)
    except OSError:
        return 0
