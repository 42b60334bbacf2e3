"""Writing a file whole or not at all.

Owns the temporary names. A kill at any moment leaves the old file or the new one, never half a
file under its final name; what it may leave is a hidden `.tmp-*` file that the next run removes.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdm_cli.errors import OutputError, reason_of

_PREFIX = ".tmp-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to, and rename it to `path` at the end.

    The suffix of the name is kept, because writers choose their format by it.

    Raises:
        OutputError: the folder cannot be written or the disk is full; `path` is as it was before.
    """
    temporary = path.with_name(f"{_PREFIX}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({reason_of(error)}): {_remedy(error)}choose another output, and run again."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: what is written later may then rely on it."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room there or "
    return "check the permissions or " if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed run left in `folder`."""
    for leftover in folder.glob(f"{_PREFIX}*"):
        leftover.unlink(missing_ok=True)
