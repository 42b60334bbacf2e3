"""Text, JSON and YAML files of unknown origin, read within bounds.

A file is at most 64 MiB, and what it says at most 50 levels deep. YAML, whose parser takes seconds for a megabyte, is
at most 1 MiB of 200 000 values, those of an alias counted wherever it is used, and a number in it has at most 100
characters. What lies beyond, and what is no regular file (a pipe would block, a device never ends), is an OSError or a
ValueError: the caller says whose file it is and what to do. Runs no code.

Also: which paths stay in a folder that came from elsewhere.
"""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from sdm_cli.errors import reason_of

_MOST_BYTES = 2**26
_MOST_YAML_CHARACTERS = 2**20
_MOST_LEVELS = 50
_MOST_YAML_NODES = 200_000
_MOST_DIGITS = 100
# What PyYAML lets through besides errors of its own: values that do not fit their tag, such as `!!bool x`.
_WRONG_VALUES = (ValueError, KeyError, AttributeError, TypeError, OverflowError)


def require_regular(path: Path) -> None:
    """Raise OSError unless the path is a file on a disk, or a link to one."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, stays in a folder; the folder itself may be reached by links."""
    return path.resolve().is_relative_to(folder.resolve())


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file of at most 64 MiB.

    Raises:
        OSError: missing, out of reach, or no regular file.
        ValueError: too large, or not in this encoding.
    """
    require_regular(path)
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES // 2**20} MiB")
    return content.decode(encoding, errors).replace("\r\n", "\n")


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: no JSON, nested too deeply, or with half a character (a lone surrogate), which cannot be written.
    """
    try:
        tree = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    _require_flat(tree)
    if "\\ud" in text.lower():
        _require_whole_characters(tree)
    return tree


def parse_yaml(text: str) -> Any:
    """What a YAML text says, in plain types.

    Raises:
        ValueError: no YAML, too large, nested too deeply, with aliases that say too much or repeat themselves, with a
            number that is too long, or a value that does not fit its tag.
    """
    if len(text) > _MOST_YAML_CHARACTERS:
        raise ValueError(f"it is larger than {_MOST_YAML_CHARACTERS // 2**20} MiB")
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # Before values are made of the nodes: merging keys (<<) would repeat them in memory.
        if _count(node, {}) > _MOST_YAML_NODES:
            raise ValueError(f"it says more than {_MOST_YAML_NODES} values, where its aliases are written out")
        tree = _constructed(loader, node)
    except yaml.YAMLError as error:
        raise ValueError(reason_of(error)) from None
    except RecursionError:
        raise _too_deep() from None
    finally:
        if loader is not None:
            loader.dispose()
    _require_flat(tree)
    if "\\" in text:
        _require_whole_characters(tree)
    return tree


def _constructed(loader: Any, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except _WRONG_VALUES as error:
        raise ValueError(f"a value that does not fit its type: {reason_of(error)}") from None


def _count(node: yaml.Node, counts: dict[int, float]) -> float:
    """Nodes below and with this one, aliases as often as they are used; infinite where one repeats itself."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith((":int", ":float")) and len(node.value) > _MOST_DIGITS:
            raise ValueError(f"a number of {len(node.value)} characters")
        return 1
    if id(node) not in counts:
        counts[id(node)] = math.inf
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        counts[id(node)] = 1 + sum(_count(part, counts) for part in parts)
    return counts[id(node)]


def _require_flat(tree: Any) -> None:
    level = [tree]
    for _ in range(_MOST_LEVELS):
        groups = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [child for group in groups for child in group]
        if not level:
            return
    raise _too_deep()


def _require_whole_characters(tree: Any) -> None:
    """UnicodeEncodeError, which is a ValueError, for half a character."""
    json.dumps(tree, ensure_ascii=False, default=str, skipkeys=True).encode()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")
