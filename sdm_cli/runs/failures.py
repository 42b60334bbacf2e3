"""What torch raises in the middle of a run, as sentences: memory that is out, a worker that is gone, and the like.

Torch says all of it by RuntimeError; which one it is, its words tell alone.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdm_cli.config import TrainConfig
from sdm_cli.data.cases import counted
from sdm_cli.errors import SdmError
from sdm_cli.runs.memory import is_out_of_memory, peak_memory

_NO_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? .*?\)( is killed by signal: [\w ]+| exited unexpectedly)")
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def explained(train: TrainConfig, device: torch.device) -> Iterator[None]:
    """Turn errors of torch that a person can remedy into SdmError; all others pass as they are."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        sentence = _sentence(error, train, device)
        if sentence is None:
            raise
        raise SdmError(sentence) from error


def _sentence(error: RuntimeError | MemoryError, train: TrainConfig, device: torch.device) -> str | None:
    text = str(error)
    if is_out_of_memory(error):
        smaller = (
            f"{_half_at_a_time(train)} (the same effective batch), or with --pairs-per-process auto, which tries how "
            "many fit"
            if train.pairs > 1
            else "a smaller train.crop or model.encoder, or --set train.mixed_precision=bf16"
        )
        return (
            f"The memory of {device} does not hold a step of {counted(train.pairs, 'pair')} of {train.crop[0]} x "
            f"{train.crop[1]} pixels (it had taken {peak_memory(device) / 1e9:.1f} GB): train a new run with {smaller}."
        )
    if found := _NO_WORKER.search(text):
        return (
            f"A loader process was killed ({found[1].strip().removeprefix('is killed by ')}), most likely for want of "
            "memory or of /dev/shm: go on with fewer of them (the same command with --set train.workers=0 --resume)."
        )
    if found := _NOT_DETERMINISTIC.search(text):
        return (
            f"train.deterministic: {found[1]} has no deterministic form on {device}: set train.deterministic=false, or "
            "train on another device (-d cpu)."
        )
    return None


def _half_at_a_time(train: TrainConfig) -> str:
    """Settings of as many pairs a step in more micro-batches, none of more than half as many pairs."""
    pairs = next(n for n in range(train.pairs // 2, 0, -1) if train.pairs % n == 0)
    return f"--set train.pairs={pairs} --set train.accumulate={train.accumulate * train.pairs // pairs}"
