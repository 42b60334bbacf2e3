"""Work on many cases in several processes.

Owns how worker processes start, end and fail. They import no torch.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import TypeVar

from sdm_cli.console import warn_once
from sdm_cli.errors import OutputError, reason_of

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, note: str = ""
) -> Iterator[Result]:
    """Do `work` on each item and yield the results as they come; in this process with one worker.

    Args:
        work: picklable, and so are its argument and its result.
        items: one a call.
        workers: processes, at most one an item.
        note: what the message of a killed worker adds, for example what is kept.

    Raises:
        OutputError: a worker was killed.
    """
    yield from as_made(work, items, min(workers, len(items)), note)


def as_made(work: Callable[[Item], Result], items: Iterable[Item], workers: int, note: str = "") -> Iterator[Result]:
    """As `in_processes`, of items that this process makes meanwhile: it is at most workers + 1 of them ahead.

    Args:
        work: picklable, and so are its argument and its result.
        items: one a call; asked for the next one when a worker is about to need it.
        workers: processes; with one, and where the system lets processes share nothing, the work is done in this one.
        note: what the message of a killed worker adds.

    Raises:
        OutputError: a worker was killed.
    """
    executor = _executor(workers) if workers > 1 else None
    if executor is None:
        yield from map(work, items)
        return
    with _closing(executor) as pool:
        pending: set[Future[Result]] = set()
        try:
            for item in items:
                with _interrupts_held():
                    pending.add(pool.submit(work, item))
                del item  # the pool lets go of it when it is done
                done, pending = wait(pending, None if len(pending) > workers else 0, FIRST_COMPLETED)
                for future in done:
                    yield future.result()
            for future in as_completed(pending):
                yield future.result()
        except BrokenProcessPool:
            raise OutputError(
                "A worker was killed, most likely for want of memory: run again with fewer --workers than "
                f"{workers}{note}."
            ) from None


def all_cores() -> int:
    """Number of cores that this process may use, which is how many share work out unless told otherwise.

    A cluster's job, or a container, may have few of the machine's.
    """
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _executor(workers: int) -> ProcessPoolExecutor | None:
    """None, with a warning, where there are no locks that processes share: a container without /dev/shm."""
    try:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    except (OSError, NotImplementedError) as error:
        warn_once(
            f"Processes cannot share locks here ({reason_of(error)}): going on with one instead of several; a "
            "container needs /dev/shm for them (docker run --shm-size=1g)"
        )
        return None


@contextmanager
def _closing(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block is done, here and in the processes that are started in it.

    One that starts has no handler yet and would print a traceback, as it would if this process left it half started.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it is killed: a worker would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
