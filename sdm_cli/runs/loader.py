"""Pairs of slices in batches, from loader processes, shared out over the processes that train."""

import os
from collections.abc import Iterator, Sequence

from accelerate import Accelerator
from torch.utils.data import DataLoader

from sdm_cli.config import TrainConfig
from sdm_cli.data.pairs import Pair, PairedSlices
from sdm_cli.errors import StoreError
from sdm_cli.runs.stop import leave_process_group


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
        num_workers=min(config.workers, os.cpu_count() or 1),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=leave_process_group,
    )
    try:
        yield from accelerator.prepare_data_loader(loader)
    except StoreError as error:
        # A loader process wraps the sentence in its traceback.
        raise StoreError(str(error).rpartition("StoreError: ")[2].strip()) from None
