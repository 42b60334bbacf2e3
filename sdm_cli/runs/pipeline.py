"""Three stages that overlap: one item is read ahead, one is worked on, one is written behind.

At most three items are alive at any time. Knows nothing of scans.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sdm_cli.errors import SdmError

Item = TypeVar("Item")
Read = TypeVar("Read")
Found = TypeVar("Found")
Done = TypeVar("Done")


def run_stages(
    items: Sequence[Item],
    read: Callable[[Item], Read],
    work: Callable[[Read], Found],
    write: Callable[[Found], Done],
    done: Callable[[Item, Done | SdmError], None],
) -> None:
    """Take each item through three stages, the outer two in a thread each, and the middle one in this thread.

    An SdmError of a stage is the outcome of its item, and the others go on, unless `done` raises it. Any other error
    ends all. However this ends, what is being written is finished and told to `done` first.

    Args:
        items: in the order in which they are done.
        read: first stage.
        work: second stage, on what the first one made.
        write: third stage, on what the second one made.
        done: told the outcome of each item, in their order and in this thread.
    """
    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
        ahead = [reader.submit(_attempt, read, item) for item in items[:1]]
        behind: list[tuple[Item, Future[Done | SdmError]]] = []

        def settle() -> None:
            while behind:
                item, writing = behind[-1]
                outcome = writing.result()
                behind.clear()
                done(item, outcome)

        try:
            for number, item in enumerate(items, start=1):
                piece = ahead.pop().result()
                ahead = [reader.submit(_attempt, read, following) for following in items[number : number + 1]]
                found = piece if isinstance(piece, SdmError) else _attempt(work, piece)
                del piece  # three items at most
                settle()
                if isinstance(found, SdmError):
                    done(item, found)
                else:
                    behind.append((item, writer.submit(_attempt, write, found)))
                del found
        finally:
            settle()


def _attempt(stage: Callable[[Item], Done], item: Item) -> Done | SdmError:
    try:
        return stage(item)
    except SdmError as error:
        return error
