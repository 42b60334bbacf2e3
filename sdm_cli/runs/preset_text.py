"""A resolved preset as YAML with a comment for each field: that of its file, or what the field means.

Knows the comments of preset files and the docstrings of `config`; what a value does, it does not know.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from sdm_cli.config import Preset
from sdm_cli.preset_files import PresetFile

Path = tuple[str, ...]

_WIDTH = 100
_SECTION = re.compile(r" \(method\.md [^)]*\)")
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def resolved_text(files: Sequence[PresetFile], tree: Mapping[str, Any]) -> str:
    """All fields as YAML that reads back, below the remarks at the top of the preset's files.

    Args:
        files: of the preset, then of its base, and so on.
        tree: the resolved preset.
    """
    remarks = {**_meanings(Preset, ()), **_comments(files)}
    lines: list[str] = []
    for place, file in enumerate(files):
        header = _header(file.text)
        if header:
            lines += [] if place == 0 else ["#", f"# Of its base, {file.origin.removeprefix('preset ')}:", "#"]
            lines += header
    return "\n".join([*lines, *([""] if lines else []), *_fields(tree, (), remarks)])


def _fields(tree: Mapping[str, Any], path: Path, remarks: Mapping[Path, list[str]]) -> Iterator[str]:
    margin = "  " * len(path)
    for key, value in tree.items():
        here = (*path, str(key))
        if not path and isinstance(value, dict):
            yield ""
        yield from (f"{margin}# {line}".rstrip() for line in remarks.get(here, ()))
        if isinstance(value, dict) and value:
            yield f"{margin}{_yaml({key: None}).removesuffix('null')}".rstrip()
            yield from _fields(value, here, remarks)
        else:
            yield textwrap.indent(_yaml({key: value}), margin)


def _comments(files: Sequence[PresetFile]) -> dict[Path, list[str]]:
    """Comments above the keys of the files; of a key that several files set, those of the first in the row."""
    found: dict[Path, list[str]] = {}
    for file in reversed(files):
        lines = file.text.splitlines()
        start = len(_header(file.text))
        for path, line in _keys(yaml.compose(file.text, Loader=yaml.SafeLoader), ()):
            above: list[str] = []
            while line - len(above) > start and lines[line - len(above) - 1].lstrip().startswith("#"):
                above.insert(0, lines[line - len(above) - 1].strip().removeprefix("#").strip())
            found.pop(path, None)
            if above:
                found[path] = above
    return found


def _keys(node: yaml.Node | None, path: Path) -> Iterator[tuple[Path, int]]:
    """Each key that begins a line, with the number of that line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line if not node.flow_style else -1
            yield from _keys(value, here)


def _header(text: str) -> list[str]:
    """The lines of comment that a file begins with."""
    lines = text.splitlines()
    n_lines = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:n_lines]


def _meanings(owner: Any, path: Path) -> dict[Path, list[str]]:
    """What the docstrings say of each field of a dataclass, and of a section as a whole."""
    _, _, attributes = (inspect.getdoc(owner) or "").partition("Attributes:\n")
    meanings = {(*path, name): _wrap(text, path) for name, text in _ATTRIBUTE.findall(attributes)}
    for field in dataclasses.fields(owner):
        if dataclasses.is_dataclass(field.type):
            here = (*path, field.name)
            summary = (inspect.getdoc(field.type) or "").partition("\n\n")[0]
            meanings.setdefault(here, _wrap(summary, path))
            meanings |= _meanings(field.type, here)
    return meanings


def _wrap(text: str, path: Path) -> list[str]:
    """A remark as lines, without the section of the specification that programmers look up."""
    text = _SECTION.sub("", " ".join(text.split()))
    if text[:2].isalpha():  # not a symbol of the paper
        text = text[0].upper() + text[1:]
    return textwrap.wrap(text, _WIDTH - 2 * len(path) - 2)


def _yaml(tree: dict[Any, Any]) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH).rstrip()


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_Dumper.add_representer(list, _represent_list)
