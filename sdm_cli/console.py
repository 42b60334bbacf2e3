"""The one place that prints. stdout is the result; stderr is progress and messages.

On a terminal long work shows a live bar; elsewhere (a log file, a pipe) it stays plain.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is slow to import; `sdm --help` must not pay for it
    from rich.console import Console
    from rich.table import Table


_speaking = threading.RLock()
"""Held by who writes a message, and by who keeps libraries silent."""


def stderr_console() -> "Console":
    """Console of progress and messages."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """One plain line on stderr; of several processes the first one speaks."""
    if is_first_process():
        _print_on_stderr(message)


def say_error(message: str) -> None:
    """As `say`, from any process that has joined the others: before that, all of them fail alike."""
    distributed = sys.modules.get("torch.distributed")
    if is_first_process() or (distributed is not None and distributed.is_initialized()):
        _print_on_stderr(message)


def _print_on_stderr(message: str) -> None:
    with _speaking:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One warning line on stderr, without a full stop at its end: a warning may quote an error, which has one."""
    say(_as_warning(message))


@cache
def warn_once(message: str) -> None:
    """A warning that several parts of one command may meet, such as the trainings of a study: said at the first."""
    warn(message)


@contextmanager
def muted() -> Iterator[None]:
    """What libraries written in C say on stderr while the block runs is lost; messages of other threads wait."""
    with _speaking, open(os.devnull, "wb") as nothing:  # noqa: PTH123  # a device, no path
        stderr = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def warn_from_any(message: str) -> None:
    """One warning line on stderr, from whichever of several processes has met its cause."""
    say_error(_as_warning(message))


def _as_warning(message: str) -> str:
    return f"warning: {message.removesuffix('.')}"


def print_result(text: str) -> None:
    """A result on stdout."""
    print(text, flush=True)


def print_table(table: "Table") -> None:
    """A table on stdout; wide enough to keep its words whole when stdout is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(table)


class ProgressBar:
    """Counts finished items of known total; draws only on a terminal."""

    def __init__(self, advance: "object | None" = None) -> None:
        self._advance = advance

    def advance(self, count: int = 1) -> None:
        """Count `count` more finished items."""
        if callable(self._advance):
            self._advance(count)


@contextmanager
def progress(description: str, total: int) -> Iterator[ProgressBar]:
    """Show a bar on stderr while the block runs; silent when stderr is not a terminal."""
    console = stderr_console()
    if not console.is_terminal:
        yield ProgressBar()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield ProgressBar(lambda count: bars.advance(task, count))
