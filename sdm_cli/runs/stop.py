"""SIGTERM and Ctrl-C as a wish, which a loop grants when its work is safe."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopWish:
    """Takes both signals while it is entered; a second Ctrl-C stops at once (KeyboardInterrupt).

    Attributes:
        wanted: whether one has come.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._pressed = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopWish":
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _take(self, number: int, _frame: FrameType | None) -> None:
        # Nothing is printed here: who reads it may be gone (`| tee`), and an error would break a step in two.
        self.wanted = True
        # A launcher passes Ctrl-C on as SIGTERM, which must not count as the second one.
        if number == signal.SIGINT and self._pressed:
            raise KeyboardInterrupt
        self._pressed = self._pressed or number == signal.SIGINT


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt while the block runs, so that what cleans up after Ctrl-C does so after both."""
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_process_group(_worker: int) -> None:
    """For loader workers: a signal to the group (Ctrl-C, a launcher's SIGTERM) is for the process that they serve.

    If one of them died with it, torch would raise an error in the middle of a step. Without that process they end.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
