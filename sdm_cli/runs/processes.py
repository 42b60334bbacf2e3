"""What the processes of one run agree on, so that they go on, stop and fail together.

Accelerate starts them and shares out their work. This is the rest: a few words a step, over a group of their CPUs, so
that no device waits for it.
"""

import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState

from sdm_cli.errors import PeerFailed, SdmError

_PATIENCE = timedelta(days=1)
"""How long one process waits for another, which may try steps, or validate large scans, alone."""


class Processes:
    """The processes of a run, which may be one; made by all at the same time."""

    def __init__(self, accelerator: Accelerator | PartialState) -> None:
        self.count, self._index = accelerator.num_processes, accelerator.process_index
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.count > 1 else None
        if self.count > 1:  # a depthwise kernel of width 1 has one layout under two names
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)

    def any(self, wish: bool) -> bool:
        """Whether any process has a wish: the same answer in all of them."""
        return self._least(0 if wish else 1) == 0

    def require_same(self, number: int, what: str) -> None:
        """Raise SdmError, in the first process for all, unless all have the same number."""
        is_same = self._least(number) == -self._least(-number)
        with self.together():
            if not is_same:
                raise SdmError(f"The processes have different {what}: look whether all see the same files.")

    @contextmanager
    def together(self) -> Iterator[None]:
        """All processes do the block, and leave it when all have; it must not wait for another process itself.

        Raises:
            PeerFailed: another process failed. If several did, the first raises its own error, for one sentence.
        """
        failure: SdmError | OSError | None = None
        try:
            yield
        except (SdmError, OSError) as error:
            failure = error
        first = self._least(self._index if failure else self.count)
        if failure and first == self._index:
            raise failure
        if first < self.count:
            raise PeerFailed

    @contextmanager
    def noticing_losses(self, remedy: str = "--resume") -> Iterator[None]:
        """A process that is gone (killed, or by a fault of the program) makes this one end with a sentence.

        Args:
            remedy: the option that goes on.

        Raises:
            SdmError: it is gone.
        """
        try:
            yield
        except RuntimeError as error:
            # Of gloo's errors only the text tells where they are from.
            if self.count > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise SdmError(
                    f"Process {self._index} stops, since another one of the run ended: see what that one said, or "
                    f"whether it was killed for want of memory, and go on with {remedy}."
                ) from None
            raise

    def _least(self, number: int) -> int:
        if self._group is None:
            return number
        least = torch.tensor(number)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self._group)
        return int(least)


def leave(patience: float = 5.0) -> None:
    """Leave the other processes, before the interpreter ends; without them, nothing.

    A thread of gloo frees its last tensors under the lock of the interpreter. If that ends meanwhile, the thread calls
    std::terminate, and a run that is done has exit code 134 (SIGABRT). Threads of a group that something still holds
    (one of DistributedDataParallel's) stay, with nothing left to free.

    Args:
        patience: seconds; work that another process never joins would hold this one up for ever. After them it ends
            all the same, with that risk.
    """
    if not dist.is_initialized():
        return
    leaving = threading.Thread(target=_destroy_groups, daemon=True)
    with suppress(KeyboardInterrupt):  # how the command ended is settled
        leaving.start()
        leaving.join(patience)


def _destroy_groups() -> None:
    gc.collect()  # a group ends with its last reference, and networks are in cycles
    with suppress(Exception):  # of work that failed, which has been told
        dist.destroy_process_group()
