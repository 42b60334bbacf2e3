"""Writing a file whole or not at all; text, JSON and CSV.

Owns the temporary names, and what JSON and CSV of this program look like. A kill at any moment leaves the old file or
the new one, never half a file under its final name; what it may leave is a hidden `.tmp-*` file that the next run
removes.
"""

import csv
import errno
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; raises OutputError."""
    with replacing(path) as temporary:
        # A name of a file that is no Unicode is written as the bytes that it has.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, tree: Any) -> None:
    """Write a tree as `json_text` has it, whole or not at all; raises OutputError."""
    write_text(path, json_text(tree) + "\n")


def json_text(tree: Any, indent: int | None = 2) -> str:
    """A tree as JSON in ASCII.

    Args:
        tree: mappings, sequences, texts, numbers, truth values and None. A number that is not finite becomes null:
            JSON has no word for it.
        indent: spaces a level; None: all in one line.
    """
    return json.dumps(_finite(tree), indent=indent, allow_nan=False)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, whole or not at all; None, and a number that is not finite, is an empty field.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(_finite(row) for row in rows)
    write_text(path, text.getvalue())


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


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
