"""Presets as people write them: by name or file, `--set` on top, checked against the fields of `config`.

A YAML file says only what differs from the defaults (or from another preset, named by `base`). Unknown keys and
wrong types are collected and shown together, each with its remedy.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sdm_cli import resources
from sdm_cli.config import Preset
from sdm_cli.data_config import DataConfig
from sdm_cli.documents import parse_yaml, read_text
from sdm_cli.errors import PresetError, reason_of

_PRESET: TypeAdapter[Preset] = TypeAdapter(Preset)
# Mappings that are values, not sections: a child replaces them whole.
_VALUES = ("classes", "published", "normalize_by_domain", "value_aliases")

_LONGEST_VALUE = 200
# What pydantic calls by its Python name.
_IN_YAML = {
    "tuple_type": "should be a list, for example [1, 2]",
    "dict_type": "should be lines of `key: value`",
    "too_long": "has too many values",
    "float_parsing": "should be a number",
    "int_parsing": "should be a whole number",
}


@dataclass(frozen=True)
class PresetFile:
    """One file of a preset, before it is merged with its base.

    Attributes:
        origin: what messages call it.
        text: as it was written.
        tree: what it says, without `base`.
    """

    origin: str
    text: str
    tree: dict[str, Any]


def load_preset(name_or_path: str, overrides: Sequence[str] = ()) -> Preset:
    """Resolve a shipped preset (by name) or a YAML file (by path), then apply `--set` values.

    Args:
        name_or_path: `laseg-5`, or a path ending in .yaml or .yml.
        overrides: `section.key=value` strings, values read as YAML.

    Raises:
        PresetError: naming every unknown key (with the nearest right one) and wrong value.
    """
    files = preset_chain(name_or_path)
    origin = f"{files[0].origin} with --set" if overrides else files[0].origin
    return _changed(_merged_chain(files), read_overrides(overrides), origin)


def with_changes(preset: Preset, changes: Mapping[str, Any], origin: str) -> Preset:
    """The preset with other values of some fields, named `section.key`; raises PresetError as `preset_from_dict`."""
    return _changed(preset_to_dict(preset), changes, origin)


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The fields that `section.key=value` strings set, values read as YAML; PresetError if one is none."""
    changes: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise PresetError(f"--set {override}: write it as section.key=value, for example train.steps=500")
        changes[key.strip()] = _read_yaml(text, f"--set {override}")
    return changes


def _changed(tree: dict[str, Any], changes: Mapping[str, Any], origin: str) -> Preset:
    for dotted, value in changes.items():
        _set_key(tree, dotted, value)
    return preset_from_dict(tree, origin)


def preset_chain(name_or_path: str) -> list[PresetFile]:
    """The file of a preset, that of its base, and so on to the last.

    Raises:
        PresetError: a file is missing, is no mapping of sections, or leads back to itself.
    """
    files: list[PresetFile] = []
    seen: list[str] = []
    while True:
        text, origin = _preset_text(name_or_path)
        # One file has many spellings (../x/a.yaml): the resolved path is what a cycle meets again.
        seen.append(str(Path(name_or_path).resolve()) if _is_path(name_or_path) else origin)
        if seen[-1] in seen[:-1]:
            raise PresetError(f"{origin}: base leads back to itself ({' -> '.join(seen)}).")
        tree = _read_yaml(text, origin)
        if not isinstance(tree, dict):
            raise PresetError(
                f"{origin}: a preset is a mapping of sections (data, model, method, augment, train, predict)."
            )
        base = tree.pop("base", None)
        tree.setdefault("name", Path(name_or_path).stem if _is_path(name_or_path) else name_or_path)
        files.append(PresetFile(origin, text, tree))
        if base is None:
            return files
        is_beside = _is_path(name_or_path) and _is_path(str(base))
        name_or_path = str(Path(name_or_path).parent / str(base)) if is_beside else str(base)


def preset_from_dict(tree: Mapping[str, Any], origin: str) -> Preset:
    """Check a nested dict against the fields of `Preset`.

    Raises:
        PresetError: one message with all problems; `origin` names where the dict came from.
    """
    try:
        return _PRESET.validate_python(dict(tree))
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise PresetError(f"{origin}: {problems}.") from None


def preset_to_dict(preset: Preset) -> dict[str, Any]:
    """The resolved preset as plain JSON and YAML types; `preset_from_dict` reads it back."""
    tree: dict[str, Any] = _PRESET.dump_python(preset, mode="json")
    return tree


def data_config_from_dict(tree: Mapping[str, Any], origin: str) -> DataConfig:
    """Check a dict against `DataConfig` (as kept in a store's manifest); raises PresetError."""
    # Paper, because a store may hold more than what protocol clean trains on.
    whole = {"data": dict(tree), "protocol": "paper", "train": {"steps": 1}, "method": {"patch": 1}}
    return preset_from_dict(whole, origin).data


def data_config_to_dict(data: DataConfig) -> dict[str, Any]:
    """`DataConfig` as plain JSON types."""
    tree: dict[str, Any] = TypeAdapter(DataConfig).dump_python(data, mode="json")
    return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping by dotted key; sequences as lists."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return leaves


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Dotted keys in which two nested mappings differ, each with both values in words."""
    ours, theirs = flat(first), flat(second)
    keys = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    return [(key, _in_words(ours.get(key)), _in_words(theirs.get(key))) for key in keys]


def _in_words(value: Any) -> str:
    return "none" if value is None else str(value)


def _merged_chain(files: Sequence[PresetFile]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for file in reversed(files):
        tree = _merged(tree, file.tree)
    return tree


def _is_path(name_or_path: str) -> bool:
    return name_or_path.endswith((".yaml", ".yml"))


def _preset_text(name_or_path: str) -> tuple[str, str]:
    if _is_path(name_or_path):
        try:
            return read_text(Path(name_or_path)), name_or_path
        except (OSError, ValueError) as error:
            raise PresetError(f"{name_or_path}: cannot be read as a preset ({reason_of(error)}).") from None
    names = resources.preset_names()
    if name_or_path not in names:
        raise PresetError(
            f"There is no preset {name_or_path!r}{_nearest(name_or_path, names)}; "
            "`sdm presets` lists them, and a file of your own is given by its path (.yaml)."
        )
    return resources.preset_text(name_or_path), f"preset {name_or_path}"


def _read_yaml(text: str, origin: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise PresetError(f"{origin}: not valid YAML ({reason_of(error)}).") from None


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        is_section = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if is_section and key not in _VALUES else value
    return merged


def _set_key(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise PresetError(f"--set {dotted}: {section} is a value, not a section.")
    node[key] = value


def _describe(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    dotted = ".".join(location)
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _field_names(location[:-1])
        inside = [f"{section}.{dotted}" for section in known if dotted in _field_names([section])]
        return f"unknown key {dotted}{_suggested(inside) or _nearest(location[-1], known) or ' (leave it out)'}"
    if problem["type"] == "dataclass_type":
        return f"{dotted}: a section, so `key: value` lines below it (got {_shown(problem['input'])})"
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    message = _IN_YAML.get(problem["type"], message)
    # The checks of a section name their fields themselves; a value on its own has no name but its place.
    is_of_section = problem["type"] == "value_error" and not isinstance(problem["input"], bool)
    return message if is_of_section else f"{dotted}: {message} (got {_shown(problem['input'])})"


def _shown(value: Any) -> str:
    """A value as it was written; the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _field_names(path: Sequence[str]) -> list[str]:
    owner: Any = Preset
    for part in path:
        types = {f.name: f.type for f in dataclasses.fields(owner)}
        owner = types.get(part)
        if not dataclasses.is_dataclass(owner):
            return []
    return [f.name for f in dataclasses.fields(owner)]


def _nearest(word: str, known: Sequence[str]) -> str:
    return _suggested(difflib.get_close_matches(word, known, n=1, cutoff=0.5))


def _suggested(names: Sequence[str]) -> str:
    return f" (did you mean {names[0]!r}?)" if names else ""
