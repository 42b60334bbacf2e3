"""Where torch's own random numbers come from: the seed of a run and the number of a micro-batch, never a kept state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights from the seed, without disturbing torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seed_micro_batch(seed: int, number: int, process: int) -> None:
    """Dropout and stochastic depth depend on the number of the micro-batch alone, so no generator state is kept."""
    mixed = torch.tensor([seed, number, process], dtype=torch.int64).mul(torch.tensor([1_000_003, 7919, 104_729]))
    torch.manual_seed(int(mixed.sum()))
